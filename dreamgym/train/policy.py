"""A trained policy and what is known about it."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
from safetensors.torch import save

from dreamgym.data import FrameSkip
from dreamgym.errors import PolicyFileError
from dreamgym.world.world import World

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.policies import BasePolicy


def world_checksum(world: World) -> str:
    """SHA-256 of the world's weights as its `model.safetensors` holds them."""
    weights = {
        key: value.detach().cpu().contiguous() for key, value in world.model.state_dict().items()
    }
    return hashlib.sha256(save(weights)).hexdigest()


CARD_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class PolicyCard:
    """What is kept beside a policy's weights; plain JSON values all.

    Attributes:
        algo: of Stable-Baselines3, e.g. "PPO".
        view: what the policy sees, "observation" or "latent".
        env_id: the real environment's id, None where the world does not say.
        world: the world's name.
        world_checksum: of the world's weights, as its own file says it.
        seed: of the training.
        steps: dream steps it was trained for.
        observation_space, action_space: of the policy, as `dreamgym.data.spaces` writes them.
        policy: how the network is made: `net_arch`, `mean` and `std`.
        hyperparameters: of the learner and of the dream.
        reward_scale: what rewards were multiplied by while training; the policy does not need it.
        curve: [steps, mean return of the dreams that ended] pairs.
        versions: of the libraries.
        frame_skip: of the world, as `FrameSkip` has it; empty where it has none.
        schema: of this card.
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
    schema: int = CARD_SCHEMA

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PolicyCard:
        """Read a card.

        Raises:
            PolicyFileError: it is newer than this package or lacks something.
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
            FrameSkip(**card.frame_skip)
            return card
        except (TypeError, ValueError) as error:
            raise PolicyFileError(f"the policy's card cannot be used: {error}") from None


@dataclass(frozen=True, kw_only=True)
class TrainedPolicy:
    """A policy that takes raw observations of its view and gives actions.

    Attributes:
        network: Stable-Baselines3's policy.
        card: what is known about it.
        algorithm: the whole learner, to train further; None where the policy was read from a file.
    """

    network: BasePolicy
    card: PolicyCard
    algorithm: BaseAlgorithm | None = None

    @property
    def view(self) -> str:
        """What the policy sees, "observation" or "latent"."""
        return self.card.view

    @property
    def frame_skip(self) -> FrameSkip:
        """Steps of the real environment that one action is for."""
        return FrameSkip(**self.card.frame_skip)

    @property
    def observation_space(self) -> gym.Space[Any]:
        """Of the policy's view."""
        return self.network.observation_space

    @property
    def action_space(self) -> gym.Space[Any]:
        """Of the real environment, with the frame skip."""
        return self.network.action_space

    @property
    def curve(self) -> list[tuple[int, float]]:
        """(steps, mean return of the dreams that ended) through the training."""
        return [(int(steps), float(value)) for steps, value in self.card.curve]

    def predict(
        self,
        observation: Any,
        state: tuple[Any, ...] | None = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[Any, tuple[Any, ...] | None]:
        """Actions for one observation or a batch, as Stable-Baselines3's `predict`.

        Args:
            observation: (...) or (B, ...) raw, in the view's units.
            state: of a recurrent policy; there are none yet.
            episode_start: likewise.
            deterministic: take the most likely action. (The default differs from SB3's.)

        Returns:
            The action or actions (NumPy), and the recurrent state (None).
        """
        return self.network.predict(observation, state, episode_start, deterministic)

    def save(self, path: str | Path) -> Path:
        """Write Stable-Baselines3's zip with the card in it; whole or not at all.

        Returns:
            The path, with ".zip" added where it has no suffix.

        Raises:
            PolicyFileError: this policy was read from a file (copy that one), or it cannot be
                written there, e.g. for want of space.
        """
        from dreamgym.train.sb3.policy_file import save_policy

        if self.algorithm is None:
            raise PolicyFileError(
                "a policy that was read from a file has no learner to save; copy its file instead"
            )
        return save_policy(self, path)
