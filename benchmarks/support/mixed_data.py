"""Mixed data of three tasks: a controller with random actions mixed in, more or fewer per episode.

So are the logs of real machines: somebody's controller, experiments round it, and accidents.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

import dreamgym
from dreamgym.data.policies import as_rows

NOISE = (0.1, 0.3, 0.6, 1.0)
"""Probabilities of a random action; each episode has one of them. Nothing is undisturbed."""
STICKINESS = 0.5
"""Probability that a random action is the one before."""


Controller = Callable[[gym.Env[Any, Any], NDArray[Any]], Any]


class Disturbed:
    """A recording policy: a controller, some of whose actions are replaced by random ones.

    Args:
        controller: from an environment and its observation to an action.
        env: whose action space the random actions come from.
    """

    def __init__(self, controller: Controller, env: gym.Env[Any, Any]) -> None:
        name = getattr(controller, "__name__", type(controller).__name__)
        self.name = f"disturbed {name}, {', '.join(map(str, NOISE))}"
        self._controller, self._env = controller, env
        self._space = copy.deepcopy(env.action_space)

    def reset(self, rows: Sequence[int], seeds: Sequence[int]) -> None:
        """Draw this episode's noise; there is one row, the environment's."""
        (seed,) = seeds
        self._space.seed(seed)
        self._rng = np.random.default_rng([seed, 2])
        self._noise = self._rng.choice(NOISE)
        self._random = self._space.sample()

    def act(self, observations: Any, rows: Sequence[int]) -> list[Any]:
        """Return the controller's action, or a random one."""
        return [self._action(observation) for observation in as_rows(observations)]

    def _action(self, observation: NDArray[Any]) -> Any:
        if self._rng.random() >= STICKINESS:
            self._random = self._space.sample()
        if self._rng.random() < self._noise:
            return self._random
        return self._controller(self._env, observation)


def balance(env: gym.Env[Any, Any], observation: NDArray[Any]) -> int:
    """Return the action of a linear controller for CartPole."""
    x, speed, angle, turn = observation
    return int(angle + 0.3 * turn + 0.02 * x + 0.05 * speed > 0)


def swing(env: gym.Env[Any, Any], observation: NDArray[Any]) -> NDArray[np.float32]:
    """Return the action of an energy-shaping swing-up controller for Pendulum."""
    cosine, sine, turn = observation
    if cosine > 0.9:
        torque = -10.0 * sine - 2.0 * turn
    else:
        energy = turn**2 / 6 + 5.0 * (cosine - 1)  # of the rod, zero at rest upright
        torque = -2.0 * np.sign(turn if turn else 1.0) * np.sign(energy)
    return np.clip([torque], -2.0, 2.0).astype(np.float32)


def land(env: gym.Env[Any, Any], observation: NDArray[Any]) -> int:
    """Return the action of Gymnasium's heuristic for LunarLander."""
    from gymnasium.envs.box2d.lunar_lander import heuristic

    return heuristic(env, observation)


CONTROLLERS: dict[str, Controller] = {
    "CartPole-v1": balance,
    "Pendulum-v1": swing,
    "LunarLander-v3": land,
}


def record_mixed(env_id: str, steps: int, out: Path, seed: int) -> Path:
    """Record a task with its controller and random actions mixed in.

    Args:
        env_id: one of `CONTROLLERS`.
        steps: number of real steps.
        out: the dataset to make.
        seed: seed of episodes and noise.
    """
    with gym.make(env_id) as env:
        policy = Disturbed(CONTROLLERS[env_id], env)
        return dreamgym.record(env, steps=steps, out=out, policy=policy, seed=seed)
