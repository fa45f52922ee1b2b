"""Exploration: the policy that is improved, with some random actions."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from dreamgym.data import FrameSkip
from dreamgym.data.policies import Policy, StickyRandomPolicy
from dreamgym.errors import PolicyError

STICKINESS = 0.8
"""Probability that a random action is repeated."""


class NoisyPolicy:
    """A policy, some of whose actions are replaced by random ones.

    Every episode draws its share of random actions between 0 and `noise`, so that data has nearly
    undisturbed episodes as well as wild ones. Random actions are sticky, and go further. With a
    frame skip it acts as the policy does, and a whole action is random or not.

    Args:
        policy: the policy, which may have a frame skip.
        action_space: action space of the environment, without the frame skip; random actions are
            drawn from it.
        noise: largest share of random actions in an episode, in [0, 1].

    Attributes:
        name: the policy's name with the noise.
        frame_skip: the policy's frame skip.

    Raises:
        PolicyError: the noise is out of range.
    """

    def __init__(self, policy: Policy, action_space: gym.Space[Any], noise: float) -> None:
        if not 0 <= noise <= 1:
            raise PolicyError(f"the noise is {noise}; expected a number between 0 and 1")
        self.name = f"{policy.name}, noise {noise:g}"
        self.frame_skip = getattr(policy, "frame_skip", None) or FrameSkip()
        self._policy, self._noise, self._action_space = policy, noise, action_space
        self._random = StickyRandomPolicy(copy.deepcopy(action_space), STICKINESS)
        self._generators: dict[int, np.random.Generator] = {}
        self._shares: dict[int, float] = {}

    def reset(self, rows: Sequence[int], seeds: Sequence[int]) -> None:
        """See `Policy.reset`."""
        self._policy.reset(rows, seeds)
        self._random.reset(rows, seeds)
        for row, seed in zip(rows, seeds, strict=True):
            self._generators[row] = np.random.default_rng([seed, 2])
            self._shares[row] = self._noise * self._generators[row].random()

    def act(self, observations: Any, rows: Sequence[int]) -> list[Any]:
        """See `Policy.act`."""
        chosen = self._policy.act(observations, rows)
        random = self._random_actions(observations, rows)
        return [
            noise if self._generators[row].random() < self._shares[row] else own
            for row, own, noise in zip(rows, chosen, random, strict=True)
        ]

    def _random_actions(self, observations: Any, rows: Sequence[int]) -> list[Any]:
        """Return a random action of the frame skip for each row."""
        skip = self.frame_skip
        drawn = [self._random.act(observations, rows) for _ in range(skip.steps)]
        if skip.steps == 1:
            return list(drawn[0])
        return [skip.join(np.stack(each), self._action_space) for each in zip(*drawn, strict=True)]
