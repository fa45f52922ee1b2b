"""A policy on disk: Stable-Baselines3's own zip with a card in it, read without unpickling.

Stable-Baselines3 keeps what is not JSON as cloudpickle inside the member `data`, and its `load`
runs it. Here a policy is rebuilt from its card (spaces, network) and its weights, which torch reads
with `weights_only=True`; what the pickles say is never looked at.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy

from dreamgym._files import atomic_file
from dreamgym.data.spaces import space_from_json, space_to_json
from dreamgym.errors import PolicyFileError
from dreamgym.train.policy import PolicyCard, TrainedPolicy, world_checksum
from dreamgym.train.sb3.algorithms import find_algorithm
from dreamgym.train.sb3.scaling import Standardise
from dreamgym.world.world import World

CARD_MEMBER = "dreamgym.json"


_WEIGHTS_MEMBER = "policy.pth"


_DATA_MEMBER = "data"


_SERIALIZED = ":serialized:"


def policy_arguments(plain: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of Stable-Baselines3's policy class, from the card's plain values."""
    arguments: dict[str, Any] = {}
    if "net_arch" in plain:
        arguments["net_arch"] = plain["net_arch"]
    if "mean" in plain:
        arguments["features_extractor_class"] = Standardise
        arguments["features_extractor_kwargs"] = {"mean": plain["mean"], "std": plain["std"]}
    return arguments


def with_zip_suffix(path: str | Path) -> Path:
    """`path`, with ".zip" added where it has no suffix, as Stable-Baselines3 does."""
    path = Path(path)
    return path if path.suffix else path.with_name(path.name + ".zip")


def save_policy(policy: TrainedPolicy, path: str | Path) -> Path:
    """Write a policy that has its learner.

    Args:
        policy: as `train_policy` gives it.
        path: a file; ".zip" is added where it has no suffix.

    Returns:
        The path written.

    Raises:
        PolicyFileError: it cannot be written there; what stood there is as it was.
    """
    path = with_zip_suffix(path)
    if policy.algorithm is None:
        raise PolicyFileError("a policy that was read from a file has no learner to save")
    buffer = io.BytesIO()
    policy.algorithm.save(buffer)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(CARD_MEMBER, json.dumps(policy.card.as_dict(), indent=1))
    try:
        with atomic_file(path) as aside:
            aside.write_bytes(buffer.getvalue())
    except OSError as error:
        raise PolicyFileError(f"the policy cannot be written to {path}: {error}") from error
    return path


def check_writable(path: str | Path) -> Path:
    """Refuse a place where a policy cannot be saved, before any time is spent on training.

    Returns:
        The path that will be written.

    Raises:
        PolicyFileError: a folder stands there, or nothing can be written beside it.
    """
    path = with_zip_suffix(path)
    if path.is_dir():
        raise PolicyFileError(f"{path} is a folder; wanted the file to save the policy in")
    probe = path.with_name(f".{path.name}.writable")
    try:
        with atomic_file(probe) as aside:
            aside.write_bytes(b"\0")
        probe.unlink()
    except OSError as error:
        raise PolicyFileError(f"no policy can be written to {path}: {error}") from error
    return path


def load_policy(
    path: str | Path,
    *,
    world: World | None = None,
    algo: str | None = None,
    env: gym.Env[Any, Any] | None = None,
) -> TrainedPolicy:
    """Read a policy from a zip of Stable-Baselines3, executing nothing that is in it.

    Args:
        path: written by `train_policy`, or by Stable-Baselines3 alone.
        world: when given, the policy must fit its spaces; one that sees latents must have been
            trained on this world's very weights, for to another model they mean something else.
        algo: the algorithm's name; needed for a zip without a card only.
        env: an environment with the policy's spaces; needed for a zip without a card only.

    Returns:
        The policy, ready to act; it has no learner.

    Raises:
        PolicyFileError: no such file, not a zip of Stable-Baselines3, a card or weights that
            do not fit, or a world with other spaces or, for latents, other weights.
        TrainingError: no such algorithm.
    """
    path = _existing(path)
    members = _read_members(path)
    card = _card(path, members, algo, env)
    network = _build(path, card)
    weights = _weights(path, members)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise PolicyFileError(
            f"the weights in {path} are not those of its network: {error}"
        ) from None
    network.set_training_mode(False)
    policy = TrainedPolicy(network=network, card=card)
    if world is not None:
        _check_world(path, policy, world)
    return policy


def _existing(path: str | Path) -> Path:
    path = Path(path)
    for candidate in (path, with_zip_suffix(path)):
        if candidate.is_file():
            return candidate
    raise PolicyFileError(f"there is no policy {path}; dreamgym train --out {path} makes one")


def _read_members(path: Path) -> dict[str, bytes]:
    wanted = (CARD_MEMBER, _DATA_MEMBER, _WEIGHTS_MEMBER)
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            members = {name: archive.read(name) for name in wanted if name in names}
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, OSError) as error:
        raise PolicyFileError(
            f"{path} is not a zip of Stable-Baselines3 ({error}); wanted a file of "
            "dreamgym train or of a learner's save()"
        ) from None
    if _WEIGHTS_MEMBER not in members:
        raise PolicyFileError(
            f"{path} is a zip without {_WEIGHTS_MEMBER}; wanted a file of dreamgym train or of a "
            "Stable-Baselines3 learner's save()"
        )
    return members


def _card(
    path: Path, members: dict[str, bytes], algo: str | None, env: gym.Env[Any, Any] | None
) -> PolicyCard:
    if CARD_MEMBER in members:
        try:
            values = json.loads(members[CARD_MEMBER])
        except ValueError as error:
            raise PolicyFileError(f"the card in {path} cannot be read: {error}") from None
        if not isinstance(values, dict):
            raise PolicyFileError(f"the card in {path} is no JSON object; the file is damaged")
        return PolicyCard.from_dict(values)
    if algo is None or env is None:
        raise PolicyFileError(
            f"{path} has no {CARD_MEMBER}: it was not written by dreamgym, and its spaces are "
            "pickled, which is not read. Pass algo= (e.g. 'PPO') and env= (an environment with the "
            "policy's spaces)"
        )
    find_algorithm(algo)
    return PolicyCard(
        algo=algo,
        view="observation",
        env_id=env.spec.id if env.spec is not None else None,
        world="",
        world_checksum=None,
        seed=0,
        steps=0,
        observation_space=space_to_json(env.observation_space),
        action_space=space_to_json(env.action_space),
        policy=_foreign_network(path, members),
    )


def _foreign_network(path: Path, members: dict[str, bytes]) -> dict[str, Any]:
    try:
        data = json.loads(members.get(_DATA_MEMBER, b"{}"))
    except ValueError as error:
        raise PolicyFileError(f"the member 'data' of {path} cannot be read: {error}") from None
    arguments = data.get("policy_kwargs", {}) if isinstance(data, dict) else {}
    unknown = set(arguments) - {"net_arch", "optimizer_kwargs", "use_sde"}
    if _SERIALIZED in arguments or unknown or arguments.get("use_sde"):
        raise PolicyFileError(
            f"the network in {path} was made with arguments that are pickled or not known here "
            f"({', '.join(sorted(key for key in arguments if not key.startswith(':')))}); "
            "only net_arch can be taken from a zip that dreamgym did not write"
        )
    return {"net_arch": arguments["net_arch"]} if "net_arch" in arguments else {}


def _build(path: Path, card: PolicyCard) -> BasePolicy:
    algorithm = find_algorithm(card.algo)
    try:
        observation_space = space_from_json(card.observation_space)
        action_space = space_from_json(card.action_space)
        policy_class = algorithm.learner.policy_aliases["MlpPolicy"]
        # building draws initial weights, soon replaced: the global generator must not notice
        with torch.random.fork_rng(devices=[]):
            return policy_class(
                observation_space, action_space, _no_schedule, **policy_arguments(card.policy)
            )
    except (TypeError, ValueError, KeyError) as error:
        raise PolicyFileError(f"no policy can be built from the card in {path}: {error}") from error


def _no_schedule(_: float) -> float:
    """The learning rate of a policy that only acts."""
    return 0.0


def _weights(path: Path, members: dict[str, bytes]) -> dict[str, Any]:
    try:
        weights = torch.load(
            io.BytesIO(members[_WEIGHTS_MEMBER]), map_location="cpu", weights_only=True
        )
    except Exception as error:  # torch raises pickle errors, RuntimeError, EOFError and others
        raise PolicyFileError(
            f"the weights in {path} cannot be read without executing what is in them, so they are "
            f"not read: {str(error).splitlines()[0]}"
        ) from None
    if not isinstance(weights, dict):
        raise PolicyFileError(f"the weights in {path} are no table of tensors")
    return weights


def _check_world(path: Path, policy: TrainedPolicy, world: World) -> None:
    if policy.view == "latent":
        width = world.model.feature_dim
        wanted: gym.Space[Any] = gym.spaces.Box(-np.inf, np.inf, (width,), np.float32)
    else:
        wanted = world.observation_space
    for role, own, needed in (
        ("observation", policy.observation_space, wanted),
        ("action", policy.action_space, world.action_space),
    ):
        if not _alike(own, needed):
            raise PolicyFileError(
                f"the policy in {path} has {role} space {own}, the world {world.name!r} (of "
                f"{world.env_id}) needs {needed}; it was trained in {policy.card.world!r} "
                f"(of {policy.card.env_id}): pass that world"
            )
    known = policy.card.world_checksum
    if policy.view == "latent" and known is not None and known != world_checksum(world):
        raise PolicyFileError(
            f"the policy in {path} sees the latents of world {policy.card.world!r} with other "
            f"weights than {world.name!r} has (checksum {known[:12]}, not "
            f"{world_checksum(world)[:12]}); pass the world that it was trained in"
        )


def _alike(own: gym.Space[Any], needed: gym.Space[Any]) -> bool:
    """Whether a policy of the one space can act in the other; bounds of a Box are no matter."""
    if isinstance(needed, gym.spaces.Discrete | gym.spaces.MultiDiscrete):
        return own == needed
    return own.shape == needed.shape and type(own) is type(needed)
