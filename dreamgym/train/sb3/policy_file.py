"""A policy on disk: Stable-Baselines3's zip with dreamgym's card in it, read without unpickling.

Stable-Baselines3 stores what is not JSON as cloudpickle in the member `data`, and its own `load`
executes it. Here a policy is rebuilt from its card (spaces and network) and its weights, which
torch reads with `weights_only=True`. The pickles are never read.
"""

from __future__ import annotations

import io
import json
import re
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from dreamgym._files import atomic_file
from dreamgym.data.spaces import space_from_json, space_to_json
from dreamgym.errors import PolicyFileError
from dreamgym.train.actions import learner_action_space
from dreamgym.train.policy import PolicyCard, TrainedPolicy
from dreamgym.train.registry import LEARNERS, find_learner
from dreamgym.train.sb3.agent_wrappers import UNKNOWN_STATISTICS
from dreamgym.train.sb3.algorithms import find_algorithm

CARD_MEMBER = "dreamgym.json"
_WEIGHTS_MEMBER = "policy.pth"
_DATA_MEMBER = "data"
_PICKLED_KEY = ":serialized:"
_LOAD_IT_YOURSELF = (
    "If it was trained by another algorithm (such as RecurrentPPO), with other arguments or behind "
    "wrappers, load it with its own library and pass that agent to dreamgym.evaluate or "
    "dreamgym.transfer_policy"
)
_CLIP = 10.0  # standard deviations


class Standardise(BaseFeaturesExtractor):
    """Subtract a fixed mean, divide by a fixed standard deviation, and clip to [-10, 10]."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, observation_space: gym.Space[Any], mean: Sequence[float], std: Sequence[float]
    ) -> None:
        """Make the layer.

        Args:
            observation_space: a Box of any shape; observations are flattened.
            mean: mean of each entry of the flattened observation.
            std: standard deviation of each entry, above 0.
        """
        super().__init__(observation_space, features_dim=len(mean))
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """Return standardised observations (B, features_dim) of raw ones (B, ...)."""
        return ((observations.flatten(1) - self.mean) / self.std).clamp(-_CLIP, _CLIP)


def policy_arguments(network: dict[str, Any]) -> dict[str, Any]:
    """Return keyword arguments of Stable-Baselines3's policy class for the card's `policy`."""
    arguments: dict[str, Any] = {}
    if "net_arch" in network:
        arguments["net_arch"] = network["net_arch"]
    if "mean" in network:
        arguments["features_extractor_class"] = Standardise
        arguments["features_extractor_kwargs"] = {"mean": network["mean"], "std": network["std"]}
    return arguments


def save(policy: TrainedPolicy, path: Path) -> None:
    """See `LearnerLibrary.save`."""
    buffer = io.BytesIO()
    policy.algorithm.save(buffer)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(CARD_MEMBER, json.dumps(policy.card.as_dict(), indent=1))
    try:
        with atomic_file(path) as temporary:
            temporary.write_bytes(buffer.getvalue())
    except OSError as error:
        raise PolicyFileError(f"the policy cannot be written to {path}: {error}") from error


def load(path: Path, *, algo: str | None, env: gym.Env[Any, Any] | None) -> TrainedPolicy:
    """See `LearnerLibrary.load`."""
    members = _read_members(path)
    card = _read_card(path, members, algo, env)
    if card.learner in LEARNERS:
        LEARNERS[card.learner].library()  # sb3-contrib adds algorithms
    network = _build_network(path, card)
    try:
        network.load_state_dict(_read_weights(path, members))
    except RuntimeError as error:
        raise PolicyFileError(
            f"the weights in {path} are not those of a {card.algo} policy in these spaces "
            f"({' '.join(str(error).split())[:200]} ...). {_LOAD_IT_YOURSELF}"
        ) from None
    network.set_training_mode(False)
    return TrainedPolicy(network=network, card=card)


def _read_members(path: Path) -> dict[str, bytes]:
    needed = (CARD_MEMBER, _DATA_MEMBER, _WEIGHTS_MEMBER)
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            members = {name: archive.read(name) for name in needed if name in names}
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, OSError) as error:
        raise PolicyFileError(
            f"{path} is not a zip of Stable-Baselines3 ({error}); expected a file of "
            "dreamgym train or of an algorithm's save()"
        ) from None
    if _WEIGHTS_MEMBER not in members:
        raise PolicyFileError(
            f"{path} is a zip without {_WEIGHTS_MEMBER}; expected a file of dreamgym train or of "
            "a Stable-Baselines3 algorithm's save()"
        )
    return members


def _read_card(
    path: Path, members: dict[str, bytes], algo: str | None, env: gym.Env[Any, Any] | None
) -> PolicyCard:
    if CARD_MEMBER in members:
        try:
            values = json.loads(members[CARD_MEMBER])
        except ValueError as error:
            raise PolicyFileError(f"the card in {path} cannot be read: {error}") from None
        if not isinstance(values, dict):
            raise PolicyFileError(f"the card in {path} is not a JSON object; the file is damaged")
        return PolicyCard.from_dict(values)
    if algo is None or env is None:
        raise PolicyFileError(
            f"{path} has no {CARD_MEMBER}: it was not written by dreamgym, and its spaces are "
            "pickled, which is not read. Pass algo= (e.g. 'PPO') and env= (an environment with the "
            "policy's spaces)"
        )
    learner = find_learner(algo)
    data = _read_data(path, members)
    _check_saved_space(path, data.get("observation_space"), env.observation_space, ("_shape",))
    bounds = ("_shape", "low", "high", "n", "nvec", "start")
    _check_saved_space(path, data.get("action_space"), env.action_space, bounds)
    return PolicyCard(
        algo=algo,
        learner=learner.name,
        view="observation",
        env_id=env.spec.id if env.spec is not None else None,
        world="",
        world_checksum=None,
        seed=0,
        steps=0,
        observation_space=space_to_json(env.observation_space),
        action_space=space_to_json(env.action_space),
        policy=_foreign_network(path, data),
    )


def _read_data(path: Path, members: dict[str, bytes]) -> dict[str, Any]:
    """Return what Stable-Baselines3 wrote as JSON beside its pickles."""
    try:
        data = json.loads(members.get(_DATA_MEMBER, b"{}"))
    except ValueError as error:
        raise PolicyFileError(f"the member 'data' of {path} cannot be read: {error}") from None
    return data if isinstance(data, dict) else {}


def _check_saved_space(path: Path, saved: Any, space: gym.Space[Any], names: Sequence[str]) -> None:
    """Check that a space of the user's environment is the one that the policy was saved with.

    Stable-Baselines3 pickles its spaces, and writes their attributes as text beside the pickle.

    Args:
        path: the policy's file, for the message.
        saved: description of the space in the file.
        space: space of the environment.
        names: attributes that must agree.

    Raises:
        PolicyFileError: one of them differs.
    """
    for name in names:
        before, now = (saved or {}).get(name), getattr(space, name, None)
        if before is None or now is None:
            continue
        before, now = (" ".join(re.sub(r"[\[\](),]", " ", str(v)).split()) for v in (before, now))
        if before != now:
            raise PolicyFileError(
                f"the policy in {path} was saved with {name.strip('_')} ({before}) in a space "
                f"where the environment has ({now}), {space}: it was trained in another "
                f"environment, or behind wrappers that stack frames or rescale actions. Pass the "
                f"environment with these wrappers. {_LOAD_IT_YOURSELF}"
            )


def _foreign_network(path: Path, data: dict[str, Any]) -> dict[str, Any]:
    """Return the card's `policy` for a zip that dreamgym did not write."""
    if data.get("_last_original_obs") is not None:
        if "replay_buffer_class" in data:  # an off-policy algorithm, which always stores it
            text = UNKNOWN_STATISTICS.format(name=f"the policy in {path}")
            warnings.warn(text, UserWarning, stacklevel=5)
        else:
            raise PolicyFileError(
                f"the policy in {path} was trained behind VecNormalize, whose statistics are in "
                "another file, a pickle, which is not read. Load both with Stable-Baselines3, e.g. "
                "PPO.load(path, env=VecNormalize.load(statistics, venv)), and pass that agent to "
                "dreamgym.evaluate or dreamgym.transfer_policy; if VecNormalize scaled rewards "
                "only, pass PPO.load(path).policy"
            )
    arguments = data.get("policy_kwargs", {})
    unknown = set(arguments) - {"net_arch", "optimizer_kwargs", "use_sde"}
    if _PICKLED_KEY in arguments or unknown or arguments.get("use_sde"):
        raise PolicyFileError(
            f"the network in {path} was made with arguments that are pickled or not supported "
            f"({', '.join(sorted(key for key in arguments if not key.startswith(':')))}); "
            "only net_arch can be read from a zip that dreamgym did not write"
        )
    return {"net_arch": arguments["net_arch"]} if "net_arch" in arguments else {}


def _build_network(path: Path, card: PolicyCard) -> BasePolicy:
    algorithm = find_algorithm(card.algo)
    try:
        observation_space = space_from_json(card.observation_space)
        action_space = learner_action_space(space_from_json(card.action_space))
        policy_class = algorithm.learner.policy_aliases["MlpPolicy"]
        # the initial weights are drawn from the global generator, which must not change
        with torch.random.fork_rng(devices=[]):
            return policy_class(
                observation_space, action_space, _no_schedule, **policy_arguments(card.policy)
            )
    except (TypeError, ValueError, KeyError) as error:
        raise PolicyFileError(f"no policy can be built from the card in {path}: {error}") from error


def _no_schedule(_: float) -> float:
    """Return the learning rate of a policy that is not trained."""
    return 0.0


def _read_weights(path: Path, members: dict[str, bytes]) -> dict[str, Any]:
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
        raise PolicyFileError(f"the weights in {path} are not a dict of tensors")
    return weights
