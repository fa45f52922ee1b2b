"""Callbacks for Stable-Baselines3's learners."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy

from dreamgym.errors import TrainingError

Progress = Callable[[int, int, dict[str, float]], None]


class BatchedTruncationValues(BaseCallback):
    """Bootstrap every truncated row of a step with one value forward pass instead of one a row.

    An on-policy learner of Stable-Baselines3 adds `gamma * V(terminal_observation)` to the reward
    of each truncated row, with a forward pass for each (its issue 633). In a dream many rows are
    truncated in the same step. This callback adds the same numbers in one pass and then marks
    those rows' infos as not truncated, so that the learner does not add them again. Put it last
    in a list of callbacks: those after it no longer see `TimeLimit.truncated`.

    Raises:
        TrainingError: at the start of training, when the learner is not on-policy (the others keep
            `TimeLimit.truncated` in their replay buffer and need no value here).
    """

    def _init_callback(self) -> None:
        if not isinstance(self.model, OnPolicyAlgorithm):
            raise TrainingError(
                f"BatchedTruncationValues is for on-policy learners (PPO, A2C), not for "
                f"{type(self.model).__name__}; leave it out"
            )
        self._gamma = self.model.gamma

    def _on_step(self) -> bool:
        infos: list[dict[str, Any]] = self.locals["infos"]
        rows = [
            int(row)
            for row in np.flatnonzero(self.locals["dones"])
            if infos[row].get("TimeLimit.truncated", False)
            and infos[row].get("terminal_observation") is not None
        ]
        if not rows:
            return True
        final = _stack([infos[row]["terminal_observation"] for row in rows])
        policy: ActorCriticPolicy = self.model.policy  # type: ignore[assignment]
        with torch.no_grad():
            values = policy.predict_values(policy.obs_to_tensor(final)[0])
        # the array itself is changed: it is the one that goes into the rollout buffer
        self.locals["rewards"][rows] += self._gamma * values.cpu().numpy().ravel()
        for row in rows:
            infos[row]["TimeLimit.truncated"] = False
        return True


class LearningCurve(BaseCallback):
    """Keep the mean return of the dreams that ended against the steps taken, and show progress.

    Attributes:
        points: (steps, mean return of the dreams that ended since the last point), in the real
            environment's units; no point where none ended.
    """

    def __init__(self, total: int, every: int, progress: Progress | None = None) -> None:
        """Prepare a curve.

        Args:
            total: steps of the whole training, for `progress`.
            every: steps between two points, at least.
            progress: called with (steps done, total, figures) at each point.
        """
        super().__init__()
        self.points: list[tuple[int, float]] = []
        self._total = total
        self._every = every
        self._progress = progress
        self._next = every
        self._returns: list[float] = []
        self._lengths: list[int] = []

    def _on_step(self) -> bool:
        infos = self.locals["infos"]
        for row in np.flatnonzero(self.locals["dones"]):
            episode = infos[row].get("episode")
            if episode is not None:
                self._returns.append(episode["r"])
                self._lengths.append(episode["l"])
        if self.num_timesteps >= self._next:
            self._next = self.num_timesteps + self._every
            self._point()
        return True

    def _on_training_end(self) -> None:
        if not self.points or self.points[-1][0] < self.num_timesteps:
            self._point()

    def _point(self) -> None:
        figures: dict[str, float] = {}
        if self._returns:
            figures = {
                "dream return": float(np.mean(self._returns)),
                "dream length": float(np.mean(self._lengths)),
            }
            self.points.append((self.num_timesteps, figures["dream return"]))
            self._returns.clear()
            self._lengths.clear()
        if self._progress is not None:
            self._progress(min(self.num_timesteps, self._total), self._total, figures)


def _stack(observations: list[Any]) -> Any:
    if isinstance(observations[0], dict):
        return {
            key: np.stack([observation[key] for observation in observations])
            for key in observations[0]
        }
    return np.stack(observations)
