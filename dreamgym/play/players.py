"""Players: policies and planners that act in a dream in place of a person."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch

from dreamgym.data.policies import as_batch, make_policy
from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.errors import PolicyError
from dreamgym.models import Decodes
from dreamgym.train.planners.noise import keyed
from dreamgym.train.planners.registry import make_planner

if TYPE_CHECKING:
    from dreamgym.play.session import Moment

PLANNED = "plan:"
"""What the names of planners begin with."""

PLAYER = -4
"""Purpose of the noise with which a planner plans."""


class Player(ABC):
    """Chooses the actions of one dream."""

    @abstractmethod
    def restart(self, seed: int) -> None:
        """Forget what came before; called where an episode starts and after each jump in time."""

    @abstractmethod
    def act(self, moment: Moment) -> Any:
        """Return an action of the world's action space."""


class PolicyPlayer(Player):
    """A policy: of a file, a library, a function, or random.

    Args:
        policy: anything that `dreamgym.evaluate` takes.
        env: the dream.

    Raises:
        PolicyError: it is not a policy, or it sees observations and the world does not decode them.
    """

    def __init__(self, policy: Any, env: DreamVectorEnv) -> None:
        self._policy = make_policy(policy, env, deterministic=True)
        self._model = env.engine.model
        self._view = getattr(policy, "view", None) or env.world.default_view
        if isinstance(policy, str):
            self._view = "nothing"  # a random policy
        if self._view == "observation" and not isinstance(self._model, Decodes):
            raise PolicyError(
                f"the policy {self._policy.name!r} sees observations, and a {env.world.family} "
                "world does not decode them; give a policy of the latent view"
            )

    def restart(self, seed: int) -> None:
        """See `Player.restart`."""
        self._policy.reset([0], [seed])

    def act(self, moment: Moment) -> Any:
        """See `Player.act`."""
        seen: Any = [None]
        if self._view == "latent":
            seen = self._model.features(moment.dreams.model).cpu().numpy()
        elif self._view == "observation":
            seen = as_batch([moment.observation])
        return self._policy.act(seen, [0])[0]


class PlannerPlayer(Player):
    """A planner, which searches from the very state of the dream.

    Args:
        planner: name of a planner or of a preset.
        env: the dream.

    Raises:
        TrainingError: there is no such planner.
        TypeError: it cannot search the world's action space.
    """

    def __init__(self, planner: str, env: DreamVectorEnv) -> None:
        self.planner = make_planner(env.engine.plain, planner)
        self.restart(0)

    def restart(self, seed: int) -> None:
        """See `Player.restart`."""
        self._memory: Any = None
        self._seed = seed

    def act(self, moment: Moment) -> Any:
        """See `Player.act`."""
        dreams = moment.dreams
        keys = keyed(keyed(torch.full_like(dreams.age, self._seed), PLAYER), moment.step)
        plan = self.planner.plan(dreams.model, keys, self._memory)
        self._memory = plan.memory
        space: Any = self.planner.model.action_space
        action = plan.actions[0, 0].cpu().numpy().astype(space.dtype)
        if isinstance(space, gym.spaces.Box):  # rounding to float32 may leave the bounds
            action = np.clip(action, space.low, space.high)
        return action


def make_player(policy: Any, env: DreamVectorEnv) -> Player:
    """Return the player of a policy, or of the name of a planner (`plan:icem`).

    Raises:
        PolicyError: it is not a policy, or cannot act in the dream.
        TrainingError: there is no such planner.
        TypeError: the planner cannot search the world's action space.
    """
    if isinstance(policy, str) and policy.startswith(PLANNED):
        return PlannerPlayer(policy.removeprefix(PLANNED), env)
    return PolicyPlayer(policy, env)
