"""Callbacks for Stable-Baselines3's algorithms."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy

from dreamgym.data.policies import as_batch
from dreamgym.errors import TrainingError
from dreamgym.train.monitoring import Progress


class BatchedTruncationValues(BaseCallback):
    """Bootstrap all truncated rows of a step with one value forward pass.

    The on-policy algorithms of Stable-Baselines3 add `gamma * V(terminal_observation)` to the
    reward of each truncated row, with one forward pass a row (their issue 633). In a dream many
    rows are truncated in the same step. This callback adds the same numbers in one pass and then
    marks the infos of these rows as not truncated, so that they are not added twice. Put it last in
    a list of callbacks: later ones no longer see `TimeLimit.truncated`.

    Raises:
        TrainingError: at the start of training, if the algorithm is off-policy (such an algorithm
            keeps `TimeLimit.truncated` in its replay buffer and needs no bootstrap here).
    """

    def _init_callback(self) -> None:
        if not isinstance(self.model, OnPolicyAlgorithm):
            raise TrainingError(
                f"BatchedTruncationValues is for on-policy algorithms (PPO, A2C), got "
                f"{type(self.model).__name__}; leave the callback out"
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
        final = as_batch([infos[row]["terminal_observation"] for row in rows])
        # in place: this array goes into the rollout buffer
        self.locals["rewards"][rows] += self._gamma * self.values(final)
        for row in rows:
            infos[row]["TimeLimit.truncated"] = False
        return True

    def values(self, observation: Any) -> NDArray[np.float32]:
        """Return the values (B,) of observations (B, ...)."""
        policy: ActorCriticPolicy = self.model.policy  # type: ignore[assignment]
        with torch.no_grad():
            values = policy.predict_values(policy.obs_to_tensor(observation)[0])
        return values.cpu().numpy().ravel()


class LearningCurve(BaseCallback):
    """Record the mean return of finished dreams over the training steps, and report progress.

    Attributes:
        points: (steps, mean return of the dreams that ended since the last point), in the real
            environment's units; there is no point where no dream ended.
    """

    def __init__(self, total: int, every: int, progress: Progress | None = None) -> None:
        """Make an empty curve.

        Args:
            total: steps of the whole training, for `progress`.
            every: least number of steps between two points.
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
            self._add_point()
        return True

    def _on_training_end(self) -> None:
        if not self.points or self.points[-1][0] < self.num_timesteps:
            self._add_point()

    def _add_point(self) -> None:
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
