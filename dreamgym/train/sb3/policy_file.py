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
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from dreamgym._files import atomic_file
from dreamgym.data.spaces import space_from_json, space_to_json
from dreamgym.errors import PolicyFileError
from dreamgym.models.weights import shape_mismatch
from dreamgym.train.actions import learner_action_space
from dreamgym.train.policy import (
    PolicyCard,
    TrainedPolicy,
    not_finite_error,
    policy_space_limit,
)
from dreamgym.train.registry import LEARNERS, find_learner
from dreamgym.train.sb3.agent_wrappers import UNKNOWN_STATISTICS
from dreamgym.train.sb3.algorithms import find_algorithm
from dreamgym.train.sb3.replay import MixedReplayBuffer

CARD_MEMBER = "dreamgym.json"
_WEIGHTS_MEMBER = "policy.pth"
_DATA_MEMBER = "data"
_PICKLED_KEY = ":serialized:"
_LOAD_IT_YOURSELF = (
    "If it was trained by another algorithm (such as RecurrentPPO), with other arguments or behind "
    "wrappers, load it with its own library and pass that agent to dreamgym.evaluate or "
    "dreamgym.transfer_policy"
)
_NETWORK_ARGUMENTS = ("net_arch", "n_quantiles", "n_critics")
_BUFFER_ARGUMENTS = ("replay_buffer_class", "replay_buffer_kwargs")
_CLIP = 10.0  # standard deviations
_MAX_RATIO, _SPARE_BYTES = 20, 1 << 20
"""Bytes that a member of a zip may unpack to: by compressed byte, and in any case."""


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

        Raises:
            ValueError: there is not one number for each entry.
        """
        super().__init__(observation_space, features_dim=len(mean))
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))
        size = (int(np.prod(observation_space.shape or ())),)
        if not self.mean.shape == self.std.shape == size:
            raise ValueError(
                f"mean and std have the shapes {tuple(self.mean.shape)} and "
                f"{tuple(self.std.shape)}; expected {size}"
            )

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """Return standardised observations (B, features_dim) of raw ones (B, ...)."""
        return ((observations.flatten(1) - self.mean) / self.std).clamp(-_CLIP, _CLIP)


def policy_arguments(network: dict[str, Any]) -> dict[str, Any]:
    """Return keyword arguments of Stable-Baselines3's policy class for the card's `policy`."""
    arguments = {name: network[name] for name in _NETWORK_ARGUMENTS if name in network}
    if "mean" in network:
        arguments["features_extractor_class"] = Standardise
        arguments["features_extractor_kwargs"] = {"mean": network["mean"], "std": network["std"]}
    return arguments


def save(policy: TrainedPolicy, path: Path) -> None:
    """See `LearnerLibrary.save`."""
    buffer = io.BytesIO()
    # The real transitions of a mixed replay buffer are not part of a policy.
    mixed = getattr(policy.algorithm, "replay_buffer_class", None) is MixedReplayBuffer
    policy.algorithm.save(buffer, exclude=_BUFFER_ARGUMENTS if mixed else None)
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
    weights = _read_weights(path, members)
    network = _build_network(path, card, weights)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise _other_weights_error(path, card, " ".join(str(error).split())[:200]) from None
    network.set_training_mode(False)
    return TrainedPolicy(network=network, card=card)


def _other_weights_error(path: Path, card: PolicyCard, difference: str) -> PolicyFileError:
    return PolicyFileError(
        f"the weights in {path} are not those of a {card.algo} policy in these spaces "
        f"({difference} ...). {_LOAD_IT_YOURSELF}"
    )


def _read_members(path: Path) -> dict[str, bytes]:
    needed = (CARD_MEMBER, _DATA_MEMBER, _WEIGHTS_MEMBER)
    try:
        with zipfile.ZipFile(path) as archive:
            _require_plausible_sizes(archive, path, needed)
            names = set(archive.namelist())
            members = {name: archive.read(name) for name in needed if name in names}
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, OSError, zlib.error) as error:
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


def _require_plausible_sizes(
    archive: zipfile.ZipFile, path: Path, names: Sequence[str] | None = None
) -> None:
    """Refuse members that claim more bytes than compressed weights or settings can have.

    Args:
        archive: an open zip.
        path: the policy's file, for the message.
        names: members to look at; all by default.

    Raises:
        PolicyFileError: a member claims more.
    """
    for info in archive.infolist():
        most = _SPARE_BYTES + _MAX_RATIO * info.compress_size
        if (names is None or info.filename in names) and info.file_size > most:
            raise PolicyFileError(
                f"{path} is not a policy's file: {info.filename} claims {info.file_size:,} bytes "
                f"in {info.compress_size:,} compressed ones"
            )


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


def _build_network(path: Path, card: PolicyCard, weights: dict[str, Any]) -> BasePolicy:
    """Build the policy's network, once its weights are known to be those in the file."""
    algorithm = find_algorithm(card.algo)
    shapes = {str(name): tuple(getattr(leaf, "shape", ())) for name, leaf in weights.items()}
    try:
        limit = policy_space_limit(path)
        observation_space = space_from_json(card.observation_space, limit)
        action_space = learner_action_space(space_from_json(card.action_space, limit))
        policy_class = algorithm.learner.policy_aliases["MlpPolicy"]
        arguments = policy_arguments(card.policy)

        def build(kind: Any) -> BasePolicy:
            return kind(observation_space, action_space, _no_schedule, **arguments)

        # Its networks are moved to the policy's device, which is the CPU until they are there.
        without_memory = type("WithoutMemory", (policy_class,), {"device": torch.device("meta")})
        mismatch = shape_mismatch(lambda: build(without_memory), shapes)
        if not mismatch:
            # the initial weights are drawn from the global generator, which must not change
            with torch.random.fork_rng(devices=[]):
                return build(policy_class)
    except (TypeError, ValueError, KeyError, AssertionError, RuntimeError) as error:
        raise PolicyFileError(f"no policy can be built from the card in {path}: {error}") from error
    raise _other_weights_error(path, card, mismatch)


def _no_schedule(_: float) -> float:
    """Return the learning rate of a policy that is not trained."""
    return 0.0


def _read_weights(path: Path, members: dict[str, bytes]) -> dict[str, Any]:
    content = members[_WEIGHTS_MEMBER]
    try:
        # torch's older formats allocate what a file claims before they read it
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            _require_plausible_sizes(archive, path)
            size = sum(info.file_size for info in archive.infolist())
        weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except PolicyFileError:
        raise
    except Exception as error:  # torch raises pickle errors, RuntimeError, EOFError and others
        raise PolicyFileError(
            f"the weights in {path} cannot be read without executing what is in them, so they are "
            f"not read: {str(error).splitlines()[0]}"
        ) from None
    if not isinstance(weights, dict):
        raise PolicyFileError(f"the weights in {path} are not a dict of tensors")
    for name, leaf in weights.items():
        if isinstance(leaf, torch.Tensor):
            _require_stored(path, str(name), leaf, size)
    return weights


def _require_stored(path: Path, name: str, leaf: torch.Tensor, size: int) -> None:
    """Check that a tensor's numbers are in the file, and can be used.

    Args:
        path: the policy's file, for the message.
        name: name of the tensor.
        leaf: the tensor.
        size: bytes of all tensors in the file.

    Raises:
        PolicyFileError: it claims more numbers than are stored, or holds NaN or an infinity.
    """
    numbers = leaf.numel() * leaf.element_size()
    plain = leaf.layout == torch.strided and leaf.device.type == "cpu"
    if not plain or not numbers <= leaf.untyped_storage().nbytes() <= size:
        raise PolicyFileError(
            f"the weights in {path} cannot be used: {name} claims {numbers:,} bytes, which are not "
            "all in the file"
        )
    if leaf.is_floating_point() and not torch.isfinite(leaf).all():
        raise not_finite_error(path, name)
