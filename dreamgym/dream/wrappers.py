"""Vector wrappers on tensors: what Gymnasium's own do with NumPy, on the device and without a sync.

They stand around a `DreamVectorEnv` with output="torch" in SameStep mode, in any order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from torch import Tensor

from dreamgym.dream.inference import leave_inference_mode


class RunningMoments:
    """Mean and variance of all rows so far, merged batch by batch.

    (Chan, Golub and LeVeque 1983, "Algorithms for Computing the Sample Variance", eq. 2.1.)

    Args:
        shape: of one row.
        device: where rows come from.
        epsilon: added to the variance before a root is taken.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device, epsilon: float = 1e-8) -> None:
        self.epsilon = epsilon
        self.count = torch.zeros((), device=device, dtype=torch.int64)
        self.mean = torch.zeros(shape, device=device)
        self.variance = torch.ones(shape, device=device)

    def update(self, rows: Tensor, weight: Tensor | None = None) -> None:
        """Take in rows.

        Args:
            rows: (N, *shape).
            weight: (N,) bool, which of them count; None for all. If none does, nothing changes.
        """
        count, mean, variance = _moments(rows, weight)
        total = self.count + count
        share = count / total.clamp(min=1)
        shift = mean - self.mean
        between = shift.square() * share * (1 - share)
        self.variance = self.variance * (1 - share) + variance * share + between
        self.mean = self.mean + shift * share
        self.count = total

    def standardise(self, rows: Tensor) -> Tensor:
        """Rows less the mean, over the standard deviation."""
        return (rows - self.mean) / (self.variance + self.epsilon).sqrt()

    def scale(self, rows: Tensor) -> Tensor:
        """Rows over the standard deviation, not shifted."""
        return rows / (self.variance + self.epsilon).sqrt()

    def state_dict(self) -> dict[str, Tensor]:
        """What to save with the agent."""
        return {"count": self.count, "mean": self.mean, "variance": self.variance}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from what was saved.

        Raises:
            ValueError: something is missing or of another shape.
        """
        for name, mine in self.state_dict().items():
            if name not in state or state[name].shape != mine.shape:
                given = tuple(state[name].shape) if name in state else "missing"
                raise ValueError(f"{name} is {given}; wanted shape {tuple(mine.shape)}")
            setattr(self, name, state[name].to(mine.device, mine.dtype).clone())


def _moments(rows: Tensor, weight: Tensor | None) -> tuple[Tensor | int, Tensor, Tensor]:
    """How many rows (N, *shape) count, their mean and variance; zeros where none does."""
    if weight is None:
        return rows.shape[0], rows.mean(0), rows.var(0, unbiased=False)
    counted = weight.view(-1, *[1] * (rows.ndim - 1))
    count = weight.sum()
    divisor = count.clamp(min=1)
    mean = torch.where(counted, rows, 0.0).sum(0) / divisor
    # Chosen, not multiplied: a row that does not count may hold anything, NaN included.
    squares = torch.where(counted, (rows - mean).square(), 0.0)
    return count, mean, squares.sum(0) / divisor


Step = tuple[Any, Tensor, Tensor, Tensor, dict[str, Any]]


class TensorWrapper(VectorWrapper):
    """Base of the wrappers here.

    Raises:
        ValueError: the environment gives NumPy, another mode than SameStep, or a Dict.
    """

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        options = getattr(env.unwrapped, "options", None)
        if options is not None and options.output != "torch":
            raise ValueError(
                f"{type(self).__name__} works on tensors; make the dream with output='torch'"
            )
        if env.metadata.get("autoreset_mode") is not AutoresetMode.SAME_STEP:
            raise ValueError(
                f"{type(self).__name__} needs autoreset_mode='SameStep': the true last observation "
                "comes with the step that ends an episode"
            )
        if env.single_observation_space.shape is None:
            raise ValueError(f"{type(self).__name__} works on one tensor, not on a Dict of them")
        self.device: torch.device = env.unwrapped.device  # type: ignore[attr-defined]

    def reset(self, **arguments: Any) -> tuple[Tensor, dict[str, Any]]:
        """Reset, and change the first observations."""
        mask = (arguments.get("options") or {}).get("reset_mask")
        rows = None if mask is None else torch.as_tensor(mask, device=self.device)
        with leave_inference_mode():
            observation, info = self.env.reset(**arguments)
            return self.begun(observation, rows), info

    def begun(self, observation: Tensor, rows: Tensor | None) -> Tensor:
        """What is made of first observations; `rows` (N,) bool were reset, or all (None)."""
        return observation

    def _wide(self, rows: Tensor) -> Tensor:
        """Rows (N,) against observations (N, ...)."""
        return rows.view(-1, *[1] * len(self.single_observation_space.shape or ()))

    def step(self, actions: Any) -> Step:
        """Step, and change what came of it."""
        with leave_inference_mode():
            return self.after(*self.env.step(actions))

    def after(
        self,
        observation: Tensor,
        reward: Tensor,
        terminated: Tensor,
        truncated: Tensor,
        info: dict[str, Any],
    ) -> Step:
        """What is made of a step's result."""
        return observation, reward, terminated, truncated, info


class EpisodeStatistics(TensorWrapper):
    """Mean return and length of the episodes that ended, summed up on the device.

    The dream itself says the return and the length of each episode in `info["episode"]`.
    """

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        self._sums = torch.zeros(3, device=self.device)

    def after(
        self, observation: Any, reward: Any, terminated: Any, truncated: Any, info: Any
    ) -> Step:
        """Add the episodes that ended."""
        ended = info["_episode"].float()
        # Sums that go on for ever must not hold the graph of every step behind them.
        returns, lengths = info["episode"]["r"].detach(), info["episode"]["l"]
        self._sums = self._sums + torch.stack(
            [ended.sum(), (returns * ended).sum(), (lengths * ended).sum()]
        )
        return observation, reward, terminated, truncated, info

    def pop(self) -> dict[str, Tensor]:
        """`episodes` since last asked, and their mean `return` and `length` (NaN if none ended)."""
        episodes, returns, lengths = self._sums.unbind()
        self._sums = torch.zeros_like(self._sums)
        return {"episodes": episodes, "return": returns / episodes, "length": lengths / episodes}


class NormalizeObservation(TensorWrapper):
    """Observations less their running mean, over their running standard deviation.

    Attributes:
        moments: running mean and variance; save its `state_dict` with the agent.
        update_running_mean: whether further observations change them; as in Gymnasium.
    """

    def __init__(self, env: VectorEnv, epsilon: float = 1e-8) -> None:
        super().__init__(env)
        shape = env.single_observation_space.shape
        self.moments = RunningMoments(shape or (), self.device, epsilon)
        self.update_running_mean = True
        space = gym.spaces.Box(-np.inf, np.inf, shape, np.float32)
        self.single_observation_space = space
        self.observation_space = batch_space(space, self.num_envs)

    def begun(self, observation: Tensor, rows: Tensor | None) -> Tensor:
        """Normalise; the first observations of the rows that were reset count."""
        if self.update_running_mean:
            # Rows that go on were counted when they were given.
            self.moments.update(observation.float(), rows)
        return self.moments.standardise(observation.float())

    def after(
        self, observation: Any, reward: Any, terminated: Any, truncated: Any, info: Any
    ) -> Step:
        """Normalise the observation and the true last one, by the same moments."""
        observation = self._normal(observation)
        info = {**info, "final_obs": self.moments.standardise(info["final_obs"])}
        return observation, reward, terminated, truncated, info

    def _normal(self, observation: Tensor) -> Tensor:
        if self.update_running_mean:
            self.moments.update(observation.detach().float())
        return self.moments.standardise(observation.float())


class NormalizeReward(TensorWrapper):
    """Rewards over the running standard deviation of the discounted return, never shifted.

    Args:
        env: to wrap.
        gamma: discount of the return.
        epsilon: added to the variance.
    """

    def __init__(self, env: VectorEnv, gamma: float = 0.99, epsilon: float = 1e-8) -> None:
        super().__init__(env)
        self.gamma = gamma
        self.moments = RunningMoments((), self.device, epsilon)
        self.update_running_mean = True
        self._discounted = torch.zeros(self.num_envs, device=self.device)

    def begun(self, observation: Tensor, rows: Tensor | None) -> Tensor:
        """Returns of the rows that were reset begin anew."""
        again = torch.ones_like(self._discounted, dtype=torch.bool) if rows is None else rows
        self._discounted = torch.where(again, 0.0, self._discounted)
        return observation

    def after(
        self, observation: Any, reward: Any, terminated: Any, truncated: Any, info: Any
    ) -> Step:
        """Scale the reward by the spread of returns, this step's included."""
        discounted = self._discounted * self.gamma + reward.detach()
        if self.update_running_mean:
            self.moments.update(discounted)
        self._discounted = torch.where(terminated | truncated, 0.0, discounted)
        return observation, self.moments.scale(reward), terminated, truncated, info


class ScaleReward(TensorWrapper):
    """Rewards times a fixed number."""

    def __init__(self, env: VectorEnv, factor: float) -> None:
        super().__init__(env)
        self.factor = factor

    def after(
        self, observation: Any, reward: Any, terminated: Any, truncated: Any, info: Any
    ) -> Step:
        """Scale."""
        return observation, reward * self.factor, terminated, truncated, info


class TruncationBootstrap(TensorWrapper):
    """For learners that take a truncation for an end: the value of what was cut off is paid out.

    `reward + gamma * V(final_obs)` where an episode is truncated, which is then marked terminated.
    (Pardo et al. 2018, "Time Limits in Reinforcement Learning", arXiv 1712.00378, eq. 6.)

    Args:
        env: to wrap; outermost, so that rewards are on the scale that the value is learnt on.
        value: from observations (N, ...) to values (N,) or (N, 1); called without gradients.
        gamma: the learner's discount.
    """

    def __init__(self, env: VectorEnv, value: Callable[[Tensor], Tensor], gamma: float) -> None:
        super().__init__(env)
        self.value, self.gamma = value, gamma

    def after(
        self, observation: Any, reward: Any, terminated: Any, truncated: Any, info: Any
    ) -> Step:
        """Pay out, and mark."""
        with torch.no_grad():
            worth = self.value(info["final_obs"]).reshape(reward.shape)
        paid = torch.where(truncated, reward + self.gamma * worth, reward)
        return observation, paid, terminated | truncated, torch.zeros_like(truncated), info


class FrameStack(TensorWrapper):
    """The last k observations, oldest first, along a new axis after the environments.

    At an episode's start the first observation fills the places of those that never were.
    """

    def __init__(self, env: VectorEnv, stack_size: int) -> None:
        super().__init__(env)
        if stack_size < 1:
            raise ValueError(f"stack_size={stack_size!r}: give a whole number of at least 1")
        self.stack_size = stack_size
        box: Any = env.single_observation_space
        low, high = (np.repeat(end[None], stack_size, 0) for end in (box.low, box.high))
        self.single_observation_space = gym.spaces.Box(low, high, dtype=box.dtype)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self._frames: Tensor | None = None

    def begun(self, observation: Tensor, rows: Tensor | None) -> Tensor:
        """Fill the stacks of the rows that were reset."""
        fresh = self._filled(observation)
        if rows is not None and self._frames is not None:
            fresh = torch.where(self._wide(rows), fresh, self._frames)
        self._frames = fresh
        return fresh.clone()

    def after(
        self, observation: Any, reward: Any, terminated: Any, truncated: Any, info: Any
    ) -> Step:
        """Push the observation; rows that ended begin their stack anew."""
        if self._frames is None:
            raise RuntimeError("step before reset: call reset() first")
        last = torch.cat([self._frames[:, 1:], info["final_obs"][:, None]], 1)
        done = self._wide(terminated | truncated)
        self._frames = torch.where(done, self._filled(observation), last)
        info = {**info, "final_obs": last}
        return self._frames.clone(), reward, terminated, truncated, info

    def _filled(self, observation: Tensor) -> Tensor:
        return observation[:, None].expand(-1, self.stack_size, *observation.shape[1:]).clone()
