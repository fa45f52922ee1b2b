"""A trained policy, its card and its file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from safetensors.torch import save

from dreamgym._device import float32_by_default
from dreamgym._files import local_path
from dreamgym.data import FrameSkip
from dreamgym.data.spaces import space_from_json
from dreamgym.errors import PolicyFileError, file_errors
from dreamgym.models.weights import without_open_bounds
from dreamgym.train.actions import environment_actions
from dreamgym.train.registry import LEARNERS, find_learner, format_owner, learner_of_file
from dreamgym.world.world import World, as_world

CARD_SCHEMA = 1

_PROGRAMS = (".pt", ".pth", ".pt2", ".ts", ".onnx")
"""Suffixes of files of torch, which hold programs or pickles, and of single ONNX graphs."""


@dataclass(frozen=True, kw_only=True)
class PolicyCard:
    """What is stored beside a policy's weights; all values are JSON-plain.

    Attributes:
        algo: name of the algorithm, such as "PPO".
        view: what the policy sees, "observation" or "latent".
        env_id: id of the real environment; None where the world has none.
        world: name of the world.
        world_checksum: SHA-256 of the world's weights, as in its world.json; None where unknown.
        seed: seed of the training.
        steps: dream steps that the policy was trained for.
        observation_space: space of the policy's view, as JSON (`dreamgym.data.spaces`).
        action_space: action space, as JSON.
        policy: how the network is built: `net_arch`, `mean` and `std`.
        hyperparameters: settings of the algorithm and of the dream.
        reward_scale: factor on the rewards while training; the policy itself does not need it.
        curve: pairs [steps, mean return of the dreams that ended].
        versions: versions of the libraries.
        frame_skip: the world's frame skip, as `FrameSkip.to_json` gives it; empty without one.
        learner: name of the learner library in `dreamgym.train.registry.LEARNERS`.
        learned: numbers outside the network that training goes on from, such as SAC's entropy
            coefficient.
        evaluations: figures of the evaluations while it trained, with their dream "steps".
        alarms: alarms that were raised while it trained, in words.
        schema: version of this card.
    """

    algo: str
    view: str
    env_id: str | None
    world: str
    world_checksum: str | None
    seed: int
    steps: int
    observation_space: dict[str, Any]
    action_space: dict[str, Any]
    policy: dict[str, Any]
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    reward_scale: float = 1.0
    curve: list[list[float]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    frame_skip: dict[str, Any] = field(default_factory=dict)
    learner: str = "sb3"
    learned: dict[str, float] = field(default_factory=dict)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    alarms: list[str] = field(default_factory=list)
    schema: int = CARD_SCHEMA

    def as_dict(self) -> dict[str, Any]:
        """Return the card as JSON-plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PolicyCard:
        """Read a card.

        Raises:
            PolicyFileError: it was written by a newer dreamgym, or a value is missing or wrong.
        """
        schema = values.get("schema")
        if not isinstance(schema, int) or schema > CARD_SCHEMA:
            raise PolicyFileError(
                f"the policy's card has schema {schema!r}, this dreamgym reads up to "
                f"{CARD_SCHEMA}; install a newer dreamgym"
            )
        known = {each.name for each in fields(cls)}
        try:
            card = cls(**{key: value for key, value in values.items() if key in known})
            for name in ("algo", "learner", "view"):
                if not isinstance(getattr(card, name), str):
                    raise TypeError(f"{name} is {getattr(card, name)!r}; expected a name")
            FrameSkip(**card.frame_skip)
            return card
        except (TypeError, ValueError) as error:
            raise PolicyFileError(f"the policy's card cannot be used: {error}") from None


@dataclass(frozen=True, kw_only=True)
class TrainedPolicy:
    """A policy that takes raw observations of its view and returns actions.

    `dreamgym.record`, `evaluate` and `transfer_policy` take it as it is. A policy of the latent
    view acts in a real environment through `dreamgym.transfer.LatentAgent` or `LatentObservation`.

    Attributes:
        network: the learner's own policy object, a torch module with `predict`.
        card: where the policy comes from and how it was trained.
        algorithm: the learner itself, for further training; None for a policy from a file.
    """

    network: Any
    card: PolicyCard
    algorithm: Any = None

    @property
    def name(self) -> str:
        """Name in datasets: algorithm, world, and a checksum of the weights."""
        return f"{self.card.algo}:{self.card.world}@{_network_checksum(self.network)[:12]}"

    @property
    def view(self) -> str:
        """View of the world that the policy sees, "observation" or "latent"."""
        return self.card.view

    @property
    def frame_skip(self) -> FrameSkip:
        """Frame skip of the real environment that one action is for."""
        return FrameSkip(**self.card.frame_skip)

    @property
    def observation_space(self) -> gym.Space[Any]:
        """Space of the policy's view."""
        return space_from_json(self.card.observation_space)

    @property
    def action_space(self) -> gym.Space[Any]:
        """Action space of the real environment, with the frame skip."""
        return space_from_json(self.card.action_space)

    @property
    def curve(self) -> list[tuple[int, float]]:
        """Learning curve: (steps, mean return of the dreams that ended)."""
        return [(int(steps), float(value)) for steps, value in self.card.curve]

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[Any, Any]:
        """Return actions for one observation or a batch, with Stable-Baselines3's signature.

        Args:
            observation: (...) or (B, ...) raw observations in the view's units.
            state: state of a recurrent policy, from the previous call.
            episode_start: (B,) bool, rows in which an episode starts (recurrent policies).
            deterministic: whether to take the most likely action. (SB3's default is a sample.)

        Returns:
            The action or actions (NumPy), and the state of a recurrent policy, else None.
        """
        actions, state = self.network.predict(observation, state, episode_start, deterministic)
        return environment_actions(actions, self.action_space), state

    def actor(self) -> torch.nn.Module:
        """Return the deterministic actor on tensors, as `predict` without NumPy.

        Returns:
            A module from raw observations (B, ...) of the view to raw actions (B, ...). It shares
            the policy's weights.

        Raises:
            ModuleNotFoundError: the learner library is not installed.
        """
        return format_owner(self.card.learner).library().actor(self)

    @contextmanager
    def seeded(self, seed: int) -> Iterator[None]:
        """Sample actions from `seed` inside the block; the global generators are not changed."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed CUDA as well
            yield

    def save(self, path: str | Path) -> Path:
        """Write the policy's file, which is the learner's own format with the card in it.

        Args:
            path: the file; the learner's suffix is added where it does not end with it.

        Returns:
            The path that was written.

        Raises:
            PolicyFileError: this policy was read from a file (copy that one), or nothing can be
                written there; the previous file is unchanged.
        """
        if self.algorithm is None:
            raise PolicyFileError(
                "a policy that was read from a file has no learner to save; copy its file instead"
            )
        learner = LEARNERS[self.card.learner]
        path = learner.policy_path(path)
        learner.library().save(self, path)
        return path

    def __getstate__(self) -> dict[str, Any]:
        # a process that records needs the network only; the learner holds a whole dream
        return {"network": self.network, "card": self.card, "algorithm": None}


@float32_by_default()
def load_policy(
    path: str | Path,
    *,
    world: World | str | Path | None = None,
    algo: str | None = None,
    env: gym.Env[Any, Any] | None = None,
) -> TrainedPolicy:
    """Read a policy from its file, executing nothing that is in it.

    Args:
        path: a file that `train_policy` wrote, or a learner library alone. Its suffix may be left
            out.
        world: if given, the policy must fit its spaces. A policy of the latent view must have been
            trained on this world's weights, since the latents of other weights differ in meaning.
        algo: name of the algorithm, for a file without a card only.
        env: an environment with the policy's spaces, for a file without a card only.

    Returns:
        The policy, ready to act; it has no learner.

    Raises:
        PolicyFileError: there is no such file, its format, card or weights cannot be used, or the
            world has other spaces or, for latents, other weights.
        TrainingError: there is no such algorithm.
        ModuleNotFoundError: the learner library is not installed.
    """
    path = _existing(local_path(path, PolicyFileError))
    if path.suffix in _PROGRAMS:
        raise PolicyFileError(
            f"{path} is not a policy file of a learner. Files of torch.jit, torch.export and "
            "torch.save hold programs or pickles, which dreamgym does not execute: if you trust "
            "it, load it yourself and pass dreamgym.transfer.TensorPolicy(network); to exchange "
            "policies safely, write them with dreamgym export and name the folder"
        )
    if algo is not None:
        learner = find_learner(algo)
    else:
        learner = learner_of_file(path) or next(iter(LEARNERS.values()))
    library = learner.library()
    with file_errors(lambda text: PolicyFileError(f"{path}: {text}; the file is damaged")):
        policy = library.load(path, algo=algo, env=env)
    if (
        policy.card.learner not in LEARNERS
        or LEARNERS[policy.card.learner].suffix != learner.suffix
    ):
        policy = replace(policy, card=replace(policy.card, learner=learner.name))
    if world is not None:
        _check_world(path, policy, as_world(world))
    return policy


def policy_view(world: World) -> str:
    """Return the view of a policy by default: "observation" where it is one vector, or "latent"."""
    is_box = isinstance(world.observation_space, gym.spaces.Box)
    return world.default_view if is_box else "latent"


def policy_space_limit(path: Path) -> int:
    """Return the most bytes that an observation or action of a policy in a file can have.

    The first layer of its network has at least one weight of four bytes for each number that it
    sees, and a number has at most eight.
    """
    return 2 * path.stat().st_size


def not_finite_error(path: Path, name: str) -> PolicyFileError:
    """Return the error for a policy whose weights are not numbers."""
    return PolicyFileError(
        f"the policy in {path} cannot act: {name} holds NaN or an infinity, so its training had "
        "failed; train it again"
    )


def _existing(path: Path) -> Path:
    for candidate in (path, *(learner.policy_path(path) for learner in LEARNERS.values())):
        if candidate.is_file():
            return candidate
    raise PolicyFileError(f"there is no policy {path}; dreamgym train --out {path} makes one")


def _check_world(path: Path, policy: TrainedPolicy, world: World) -> None:
    """Check that a policy fits the spaces and, for latents, the weights of a world."""
    if policy.view == "latent":
        width = world.model.feature_dim
        view_space: gym.Space[Any] = gym.spaces.Box(-np.inf, np.inf, (width,), np.float32)
    else:
        view_space = world.observation_space
    for role, own, expected in (
        ("observation", policy.observation_space, view_space),
        ("action", policy.action_space, world.action_space),
    ):
        if not _interchangeable(own, expected):
            raise PolicyFileError(
                f"the policy in {path} has {role} space {own}, the world {world.name!r} (of "
                f"{world.env_id}) needs {expected}; it was trained in {policy.card.world!r} "
                f"(of {policy.card.env_id}): pass that world"
            )
    known = policy.card.world_checksum
    if policy.view == "latent" and known is not None and known not in _checksums(world):
        raise PolicyFileError(
            f"the policy in {path} sees the latents of world {policy.card.world!r} with other "
            f"weights than {world.name!r} has (checksum {known[:12]}, not "
            f"{world_checksum(world)[:12]}); pass the world that it was trained in"
        )


def _interchangeable(own: gym.Space[Any], expected: gym.Space[Any]) -> bool:
    """Return whether a policy of one space can act in the other; bounds of a Box may differ."""
    if isinstance(expected, gym.spaces.Discrete | gym.spaces.MultiDiscrete):
        return own == expected
    return own.shape == expected.shape and type(own) is type(expected)


def world_checksum(world: World) -> str:
    """Return the SHA-256 of a world's weights, as its `model.safetensors` stores them."""
    return _weights_checksum(world.model.state_dict())


def _checksums(world: World) -> tuple[str, str]:
    """Return the checksums of a world's weights in the layouts of this version and of the last."""
    weights = world.model.state_dict()
    return _weights_checksum(weights), _weights_checksum(without_open_bounds(weights))


def _weights_checksum(weights: Mapping[str, torch.Tensor]) -> str:
    stored = {key: value.detach().cpu().contiguous() for key, value in weights.items()}
    return hashlib.sha256(save(stored)).hexdigest()


def _network_checksum(network: torch.nn.Module) -> str:
    """Return a SHA-256 of a network's weights, which may share memory."""
    digest = hashlib.sha256()
    for key, value in sorted(network.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
