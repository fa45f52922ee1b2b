"""Callbacks for Stable-Baselines3's algorithms."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy

from dreamgym.data.policies import as_batch
from dreamgym.dream.watch import TrainingAlarm, WatchedVectorEnv, watch
from dreamgym.errors import TrainingError
from dreamgym.train.monitoring import Progress
from dreamgym.train.sb3.vec_env import SB3VecEnv


class BatchedTruncationValues(BaseCallback):
    """Bootstrap all truncated rows of a step with one value forward pass.

    The on-policy algorithms of Stable-Baselines3 add `gamma * V(terminal_observation)` to the
    reward of each truncated row, with one forward pass a row (their issue 633). In a dream many
    rows are truncated in the same step. This callback adds the same numbers in one pass and then
    marks the infos of these rows as not truncated, so that they are not added twice. Put it last in
    a list of callbacks: later ones no longer see `TimeLimit.truncated`. sb3-contrib's RecurrentPPO
    has its value from the memory that its network has after the step.

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
        self.locals["rewards"][rows] += self._gamma * self.values(final, rows)
        for row in rows:
            infos[row]["TimeLimit.truncated"] = False
        return True

    def values(self, observation: Any, rows: Sequence[int]) -> NDArray[np.float32]:
        """Return the values (B,) of observations (B, ...) that follow in `rows` of the step."""
        policy: ActorCriticPolicy = self.model.policy  # type: ignore[assignment]
        memory: tuple[Any, ...] = ()
        if "lstm_states" in self.locals:  # RecurrentPPO: the memory of these rows after the step
            states = self.locals["lstm_states"].vf
            of_rows = tuple(state[:, rows].contiguous() for state in states)
            memory = of_rows, torch.zeros(len(rows), device=self.model.device)
        with torch.no_grad():
            values = policy.predict_values(policy.obs_to_tensor(observation)[0], *memory)
        return values.cpu().numpy().ravel()


class AlarmCallback(BaseCallback):
    """Watch the dream that an algorithm trains in, see `dreamgym.trust.watch`.

    The dream inside the algorithm's `SB3VecEnv` is replaced by a watched one when the training
    starts. At the response "stop", the training ends as if its steps were done.

    Args:
        evaluate: function of the algorithm's model that returns the real returns of some episodes,
            which costs real steps; None for no comparison with the real environment.
        evaluate_every: dream steps between two of its calls.
        **options: options of `watch`.

    Attributes:
        watched: the watched dream; None before the training.

    Raises:
        TrainingError: at the start of training, if the algorithm does not train in a dream.
    """

    def __init__(
        self,
        *,
        evaluate: Callable[[Any], Any] | None = None,
        evaluate_every: int = 100_000,
        **options: Any,
    ) -> None:
        super().__init__()
        self.watched: WatchedVectorEnv | None = None
        self._options, self._evaluate, self._every = options, evaluate, evaluate_every
        self._next, self._stopped = evaluate_every, False
        self._returns: list[float] = []
        self._dream: list[tuple[float, float]] = []
        self._real: list[tuple[float, float, float]] = []

    @property
    def alarms(self) -> list[TrainingAlarm]:
        """Alarms raised so far."""
        return [] if self.watched is None else self.watched.alarms

    def _init_callback(self) -> None:
        env = self.training_env.unwrapped if self.training_env is not None else None
        if not isinstance(env, SB3VecEnv):
            raise TrainingError(
                f"AlarmCallback watches a dream, and the algorithm trains in "
                f"{type(env).__name__}; give it SB3VecEnv(dream)"
            )
        options = dict(self._options)
        if options.get("response") == "stop":  # here a callback can end the training
            options["response"] = "warn"
            options["on_alarm"] = self._stop
        inner: Any = env.env
        self.watched = inner if isinstance(inner, WatchedVectorEnv) else watch(inner, **options)
        env.env = self.watched

    def _stop(self, alarm: TrainingAlarm) -> None:
        self._stopped = True
        self._options.get("on_alarm", _print)(alarm)

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self._returns.append(info["episode"]["r"])
        if self._evaluate is not None and self.num_timesteps >= self._next:
            self._next = self.num_timesteps + self._every
            real = np.asarray(self._evaluate(self.model), float).ravel()
            error = float(real.std() / len(real) ** 0.5)
            self._real.append((self.num_timesteps, float(real.mean()), error))
            if self._returns:
                self._dream.append((self.num_timesteps, float(np.mean(self._returns))))
                self._returns.clear()
            if self.watched is not None:
                self.watched.check_returns(self._dream, self._real)
        return not self._stopped


def _print(alarm: TrainingAlarm) -> None:
    warnings.warn(f"training stops: {alarm.name}: {alarm.sentence}", UserWarning, stacklevel=3)


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
