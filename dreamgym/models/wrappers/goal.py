"""Goal rewards: minus the distance to a goal, in the model's own features or learned distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from dreamgym._settings import nearest
from dreamgym.models.base import (
    Prediction,
    State,
    WorldModel,
    model_device,
    zero_action,
)
from dreamgym.models.observations import (
    WHOLE,
    Observation,
    as_tensors,
    is_image,
    join_parts,
    map_observation,
    observation_boxes,
)
from dreamgym.models.spec import ModelSpec
from dreamgym.models.wrappers.base import Wrapper

GOAL = "goal"
"""Leaf of a state that has a goal of its own."""


@dataclass(frozen=True, kw_only=True)
class GoalRewardConfig:
    """Config of a goal reward; the goal itself is a buffer, saved with the weights.

    Attributes:
        inner: the model inside.
        leaves: names of the state leaves to compare; empty for `WorldModel.goal_features`, which
            are the features unless the model has learned a distance. The features of a recurrent
            model include its memory, which depends on the way to a place: for such a model name the
            leaf that describes the place (`("z",)` for the MDN-RNN).
        threshold: distance at which the goal is reached and the dream terminates; None for never.
    """

    inner: ModelSpec
    leaves: tuple[str, ...] = ()
    threshold: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "leaves", tuple(self.leaves))
        if self.threshold is not None and not self.threshold > 0:
            raise ValueError(f"threshold={self.threshold}: give a distance above 0, or None")


class GoalReward(Wrapper):
    """The reward is minus the Euclidean distance of the new state's features to those of a goal.

    A JEPA with a goal value is compared by that value: the distance is then the discounted number
    of steps to the goal.

    The goal's features are those of the state after the goal as an episode's first observation.
    With a threshold, states within it are terminal.

    A state may have goals of its own, one for each row, which `with_goals` puts into it. They stay
    with it from step to step; without them all rows have the wrapper's goal.

    Args:
        inner: a fitted model; it must be fitted first, because the goal is encoded here, once.
        goal: one observation of the real environment, in its units: an array, or a dict of arrays.
        leaves: see `GoalRewardConfig`.
        threshold: see `GoalRewardConfig`.

    Raises:
        ValueError: the goal is not an observation of the model's space, or an unknown leaf.
    """

    config_type = GoalRewardConfig
    config: GoalRewardConfig
    goal: Tensor

    def __init__(
        self,
        inner: WorldModel,
        goal: Any,
        *,
        leaves: tuple[str, ...] = (),
        threshold: float | None = None,
    ) -> None:
        config = GoalRewardConfig(inner=ModelSpec.of(inner), leaves=leaves, threshold=threshold)
        super().__init__(inner, config)
        state = inner.initial(1)
        unknown = [leaf for leaf in config.leaves if leaf not in state]
        if unknown:
            raise ValueError(
                f"the state of {type(inner).__name__} has no leaf {unknown[0]!r}: "
                f"{nearest(unknown[0], state)}"
            )
        self._check(goal)
        tensors = as_tensors(goal, model_device(inner))
        batch = map_observation(lambda leaf: leaf.unsqueeze(0), tensors)
        self.register_buffer("goal", self.encode_goals(batch))

    @classmethod
    def from_config(
        cls, observation_space: gym.Space, action_space: gym.Space, config: Any
    ) -> Self:
        """Build the wrapper around fresh weights; the goal is zeros until weights are loaded."""
        inner = config.inner.build(observation_space, action_space)
        zeros = {
            key: np.zeros(box.shape, box.dtype)
            for key, box in observation_boxes(observation_space).items()
        }
        return cls(inner, join_parts(zeros), leaves=config.leaves, threshold=config.threshold)

    def set_statistics(self, statistics: Any) -> None:
        """Refuse to be fitted: the goal has been encoded with the normalisers as they were.

        Raises:
            ValueError: always.
        """
        raise ValueError("a GoalReward cannot be fitted: fit the model inside, then wrap it")

    def with_goals(self, state: State, goals: Observation) -> State:
        """Return a state with a goal for each row.

        Args:
            state: leaves (B, ...).
            goals: (B, ...) observations of the goals, or a dict of such, on the model's device.
        """
        return {**state, GOAL: self.encode_goals(goals)}

    def carry(self, state: State, following: State) -> State:
        """Keep the goals of the rows."""
        return {**following, GOAL: state[GOAL]} if GOAL in state else following

    def distance(self, state: State) -> Tensor:
        """Return the Euclidean distance to the goal, (B,)."""
        return (self._compared(state) - state.get(GOAL, self.goal)).norm(dim=-1)

    def value(self, state: State) -> Tensor:
        """Return minus the distance to the goal, (B,); see `Values`."""
        return -self.distance(state)

    def predict(
        self, state: State, action: Tensor, following: State, prediction: Prediction
    ) -> Prediction:
        """Replace the reward; with a threshold, make states within it terminal."""
        distance = self.distance(following)
        prediction = prediction._replace(reward=-distance)
        if self.config.threshold is None:
            return prediction
        reached = distance <= self.config.threshold
        return prediction._replace(termination=torch.where(reached, 1.0, prediction.termination))

    def _compared(self, state: State) -> Tensor:
        """Return the numbers (B, d) that are compared with the goal's."""
        if not self.config.leaves:
            return self.inner.goal_features(state)
        return torch.cat([state[leaf].flatten(1) for leaf in self.config.leaves], -1)

    @torch.no_grad()
    def encode_goals(self, goals: Observation) -> Tensor:
        """Return the compared numbers (B, d) of goals as an episode's first observations.

        Args:
            goals: (B, ...) observations, or a dict of such, on the model's device.
        """
        parts = list(goals.values()) if isinstance(goals, dict) else [goals]
        batch, device, training = len(parts[0]), parts[0].device, self.inner.training
        # Uniforms of one half give the median of every sampled distribution.
        noise = torch.full((batch, self.inner.noise_dim), 0.5, device=device)
        action = zero_action(self.action_space, batch, device)
        self.inner.eval()
        state = self.inner.observe(self.inner.initial(batch), action, goals, noise)
        self.inner.train(training)
        return self._compared(state).clone()

    def _check(self, goal: Any) -> None:
        """Check that a goal has the shapes and image dtypes of the observation space."""
        parts = goal if isinstance(goal, dict) else {WHOLE: goal}
        for key, box in observation_boxes(self.observation_space).items():
            shape = np.shape(parts[key]) if key in parts else None
            if shape != box.shape:
                where = f" at {key!r}" if key else ""
                raise ValueError(
                    f"the goal has shape {shape}{where}, expected {box.shape}; give one "
                    "observation of the real environment, in its units"
                )
            if is_image(box) and np.asarray(parts[key]).dtype != np.uint8:
                raise ValueError(
                    f"the goal has {np.asarray(parts[key]).dtype} pixels, expected uint8 from 0 to "
                    "255; give the image as the environment returns it"
                )
