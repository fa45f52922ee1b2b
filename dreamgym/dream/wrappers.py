"""Vector wrappers on tensors: counterparts of Gymnasium's NumPy wrappers, without host syncs.

They wrap a `DreamVectorEnv` with output="torch", and each other in any order. Those that look at
episodes need its SameStep mode; `ClipAction`, `RescaleAction` and `ScaleReward` take any.
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

from dreamgym._device import own_torch_modes
from dreamgym.data.spaces import is_float

StepResult = tuple[Any, Tensor, Tensor, Tensor, dict[str, Any]]
"""Observations, rewards, terminated, truncated and infos."""

ANY_MODE = tuple(AutoresetMode)
"""Modes of a wrapper that does not look at episodes."""


class RunningMoments:
    """Running mean and variance of rows, merged batch by batch.

    (Chan, Golub and LeVeque 1983, "Algorithms for Computing the Sample Variance", eq. 2.1.)

    Args:
        shape: shape of one row.
        device: device of the rows.
        epsilon: added to the variance before a square root is taken.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device, epsilon: float = 1e-8) -> None:
        self.epsilon = epsilon
        self.count = torch.zeros((), device=device, dtype=torch.int64)
        self.mean = torch.zeros(shape, device=device, dtype=torch.float32)
        self.variance = torch.ones(shape, device=device, dtype=torch.float32)

    def update(self, rows: Tensor, mask: Tensor | None = None) -> None:
        """Add rows.

        Args:
            rows: (N, *shape).
            mask: (N,) bool, rows to add; None for all. If none is true, nothing changes.
        """
        count, mean, variance = _batch_moments(rows, mask)
        total = self.count + count
        share = count / total.clamp(min=1)
        shift = mean - self.mean
        between = shift.square() * share * (1 - share)
        self.variance = self.variance * (1 - share) + variance * share + between
        self.mean = self.mean + shift * share
        self.count = total

    def standardise(self, rows: Tensor) -> Tensor:
        """Subtract the mean and divide by the standard deviation."""
        return (rows - self.mean) / (self.variance + self.epsilon).sqrt()

    def scale(self, rows: Tensor) -> Tensor:
        """Divide by the standard deviation, without a shift."""
        return rows / (self.variance + self.epsilon).sqrt()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors to save with the agent."""
        return {"count": self.count, "mean": self.mean, "variance": self.variance}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from saved tensors.

        Raises:
            ValueError: a tensor is missing or has another shape.
        """
        for name, current in self.state_dict().items():
            if name not in state or state[name].shape != current.shape:
                actual = tuple(state[name].shape) if name in state else "missing"
                raise ValueError(f"{name} is {actual}; expected shape {tuple(current.shape)}")
            setattr(self, name, state[name].to(current.device, current.dtype).clone())


def _batch_moments(rows: Tensor, mask: Tensor | None) -> tuple[Tensor | int, Tensor, Tensor]:
    """Return number, mean and variance of the masked rows (N, *shape); zeros if there are none."""
    if mask is None:
        return rows.shape[0], rows.mean(0), rows.var(0, unbiased=False)
    counted = mask.view(-1, *[1] * (rows.ndim - 1))
    count = mask.sum()
    divisor = count.clamp(min=1)
    mean = torch.where(counted, rows, 0.0).sum(0) / divisor
    # Selected and not multiplied: rows that do not count may hold NaN.
    squares = torch.where(counted, (rows - mean).square(), 0.0)
    return count, mean, squares.sum(0) / divisor


class TensorWrapper(VectorWrapper):
    """Base class of the wrappers: override `on_action`, `on_reset` and `on_step`.

    Args:
        env: environment to wrap.

    Attributes:
        modes: autoreset modes in which the wrapper works.

    Raises:
        ValueError: the environment returns NumPy arrays, is in another mode, or has a Dict
            observation space and the wrapper does not work in every mode.
    """

    modes: tuple[AutoresetMode, ...] = (AutoresetMode.SAME_STEP,)

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        options = getattr(env.unwrapped, "options", None)
        if options is not None and options.output != "torch":
            raise ValueError(
                f"{type(self).__name__} works on tensors; make the dream with output='torch'"
            )
        self.device: torch.device = env.unwrapped.device  # type: ignore[attr-defined]
        if self.modes is ANY_MODE:  # it does not look at episodes
            return
        if self.autoreset_mode not in self.modes:
            raise ValueError(
                f"{type(self).__name__} needs autoreset_mode="
                f"{' or '.join(repr(mode.value) for mode in self.modes)}, in which the last "
                "observation comes with the step that ends an episode"
            )
        if env.single_observation_space.shape is None:
            raise ValueError(
                f"{type(self).__name__} works on one tensor, and the observation space is "
                f"{env.single_observation_space}"
            )

    @property
    def autoreset_mode(self) -> AutoresetMode | None:
        """Autoreset mode of the environment."""
        return self.env.metadata.get("autoreset_mode")

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """See `DreamVectorEnv.call`."""
        return self.env.call(name, *args, **kwargs)  # type: ignore[attr-defined]

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """See `DreamVectorEnv.get_attr`."""
        return self.env.get_attr(name)  # type: ignore[attr-defined]

    def set_attr(self, name: str, values: Any) -> None:
        """See `DreamVectorEnv.set_attr`."""
        self.env.set_attr(name, values)  # type: ignore[attr-defined]

    def reset(self, **arguments: Any) -> tuple[Tensor, dict[str, Any]]:
        """Reset, and apply `on_reset` to the observations."""
        mask = (arguments.get("options") or {}).get("reset_mask")
        rows = None if mask is None else torch.as_tensor(mask, device=self.device)
        with own_torch_modes():
            observation, info = self.env.reset(**arguments)
            return self.on_reset(observation, rows), info

    def step(self, actions: Any) -> StepResult:
        """Apply `on_action` to the actions, step, and apply `on_step` to the result."""
        with own_torch_modes():
            return self.on_step(*self.env.step(self.on_action(actions)))

    def on_action(self, actions: Any) -> Any:
        """Transform the actions (N, ...) before a step."""
        return actions

    def on_reset(self, observation: Tensor, rows: Tensor | None) -> Tensor:
        """Transform the observations after a reset.

        Args:
            observation: (N, ...).
            rows: (N,) bool, rows that were reset; None for all.
        """
        return observation

    def on_step(
        self,
        observation: Tensor,
        reward: Tensor,
        terminated: Tensor,
        truncated: Tensor,
        info: dict[str, Any],
    ) -> StepResult:
        """Transform the result of a step."""
        return observation, reward, terminated, truncated, info

    def _expand(self, rows: Tensor) -> Tensor:
        """Reshape (N,) to broadcast against observations (N, ...)."""
        return rows.view(-1, *[1] * len(self.single_observation_space.shape or ()))


class EpisodeStatistics(TensorWrapper):
    """Mean return and length of the episodes that ended, summed on the device.

    Args:
        env: environment to wrap, in SameStep or Disabled mode. Returns are those of the rewards
            that it returns.
    """

    modes = (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED)

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        self._sums = torch.zeros(3, device=self.device, dtype=torch.float32)
        # Ones, returns and lengths of the episodes that run, (3, N).
        self._running = torch.zeros(3, self.num_envs, device=self.device, dtype=torch.float32)
        self._running[0] = 1

    def on_reset(self, observation: Tensor, rows: Tensor | None) -> Tensor:
        """Restart the rows that were reset."""
        reset = torch.ones_like(self._running[0], dtype=torch.bool) if rows is None else rows
        self._running[1:] = torch.where(reset, 0.0, self._running[1:])
        return observation

    def on_step(
        self, observation: Any, reward: Any, terminated: Any, truncated: Any, info: Any
    ) -> StepResult:
        """Add the episodes that ended."""
        ended = terminated | truncated
        # Detached: running sums would keep the autograd graph of every step.
        self._running[1] += reward.detach()
        self._running[2] += 1
        self._sums = self._sums + torch.where(ended, self._running, 0.0).sum(1)
        self._running[1:] = torch.where(ended, 0.0, self._running[1:])
        return observation, reward, terminated, truncated, info

    def pop(self) -> dict[str, Tensor]:
        """Return and clear `episodes`, their number, and their mean `return` and `length`.

        The means are NaN if no episode ended since the last call.
        """
        episodes, returns, lengths = self._sums.unbind()
        self._sums = torch.zeros_like(self._sums)
        return {"episodes": episodes, "return": returns / episodes, "length": lengths / episodes}


class NormalizeObservation(TensorWrapper):
    """Observations minus their running mean, divided by their running standard deviation.

    Args:
        env: environment to wrap.
        epsilon: added to the variance.

    Attributes:
        moments: running mean and variance; save its `state_dict` with the agent.
        update_running_mean: whether new observations update them; as in Gymnasium.
    """

    def __init__(self, env: VectorEnv, epsilon: float = 1e-8) -> None:
        super().__init__(env)
        shape = env.single_observation_space.shape
        self.moments = RunningMoments(shape or (), self.device, epsilon)
        self.update_running_mean = True
        space = gym.spaces.Box(-np.inf, np.inf, shape, np.float32)
        self.single_observation_space = space
        self.observation_space = batch_space(space, self.num_envs)

    def on_reset(self, observation: Tensor, rows: Tensor | None) -> Tensor:
        """Count the rows that were reset, and normalise."""
        if self.update_running_mean:
            # The observations of other rows were counted when their step returned them.
            self.moments.update(observation.float(), rows)
        return self.moments.standardise(observation.float())

    def on_step(
        self, observation: Any, reward: Any, terminated: Any, truncated: Any, info: Any
    ) -> StepResult:
        """Normalise the observation, and the last one of episodes that ended, alike."""
        if self.update_running_mean:
            self.moments.update(observation.detach().float())
        observation = self.moments.standardise(observation.float())
        info = {**info, "final_obs": self.moments.standardise(info["final_obs"])}
        return observation, reward, terminated, truncated, info


class NormalizeReward(TensorWrapper):
    """Rewards divided by the running standard deviation of the discounted return.

    Args:
        env: environment to wrap.
        gamma: discount of the return.
        epsilon: added to the variance.
    """

    def __init__(self, env: VectorEnv, gamma: float = 0.99, epsilon: float = 1e-8) -> None:
        super().__init__(env)
        self.gamma = gamma
        self.moments = RunningMoments((), self.device, epsilon)
        self.update_running_mean = True
        self._discounted = torch.zeros(self.num_envs, device=self.device, dtype=torch.float32)

    def on_reset(self, observation: Tensor, rows: Tensor | None) -> Tensor:
        """Restart the returns of the rows that were reset."""
        reset = torch.ones_like(self._discounted, dtype=torch.bool) if rows is None else rows
        self._discounted = torch.where(reset, 0.0, self._discounted)
        return observation

    def on_step(
        self, observation: Any, reward: Any, terminated: Any, truncated: Any, info: Any
    ) -> StepResult:
        """Scale the reward by the spread of returns, this step's included."""
        discounted = self._discounted * self.gamma + reward.detach()
        if self.update_running_mean:
            self.moments.update(discounted)
        self._discounted = torch.where(terminated | truncated, 0.0, discounted)
        return observation, self.moments.scale(reward), terminated, truncated, info


class ScaleReward(TensorWrapper):
    """Rewards times a constant.

    Args:
        env: environment to wrap.
        factor: the constant.
    """

    modes = ANY_MODE

    def __init__(self, env: VectorEnv, factor: float) -> None:
        super().__init__(env)
        self.factor = factor

    def on_step(
        self, observation: Any, reward: Any, terminated: Any, truncated: Any, info: Any
    ) -> StepResult:
        """Scale the reward."""
        return observation, reward * self.factor, terminated, truncated, info


class ClipAction(TensorWrapper):
    """Actions clipped to the space; a policy may act in all real numbers.

    Args:
        env: environment to wrap.

    Raises:
        ValueError: the action space is not a Box; see also `TensorWrapper`.
    """

    modes = ANY_MODE

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        box = _box_of_floats(self, env.single_action_space)
        self._low, self._high = (
            torch.as_tensor(bound, dtype=torch.float32).to(self.device)
            for bound in (box.low, box.high)
        )
        self.single_action_space = gym.spaces.Box(-np.inf, np.inf, box.shape, np.float32)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def on_action(self, actions: Tensor) -> Tensor:
        """Clip the actions."""
        return actions.clamp(self._low, self._high)


class RescaleAction(TensorWrapper):
    """Actions from [low, high], mapped linearly to the bounds of the space.

    Args:
        env: environment to wrap.
        low: lower bound of the new action space.
        high: upper bound of the new action space.

    Raises:
        ValueError: the action space is not a Box with finite bounds, or `low` is not below `high`;
            see also `TensorWrapper`.
    """

    modes = ANY_MODE

    def __init__(self, env: VectorEnv, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__(env)
        box = _box_of_floats(self, env.single_action_space)
        if not box.is_bounded():
            raise ValueError(f"RescaleAction needs finite bounds, and the action space is {box}")
        if not low < high:
            raise ValueError(f"low={low!r} and high={high!r}: low must be below high")
        self._from = (low, high)
        self._low, self._high = (
            torch.as_tensor(bound, dtype=torch.float32).to(self.device)
            for bound in (box.low, box.high)
        )
        self.single_action_space = gym.spaces.Box(low, high, box.shape, np.float32)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def on_action(self, actions: Tensor) -> Tensor:
        """Rescale the actions; those outside [low, high] stay outside the space."""
        low, high = self._from
        return self._low + (actions - low) * ((self._high - self._low) / (high - low))


def _box_of_floats(wrapper: TensorWrapper, space: gym.Space) -> gym.spaces.Box:
    if isinstance(space, gym.spaces.Box) and is_float(space):
        return space
    raise ValueError(
        f"{type(wrapper).__name__} works on a Box of floating-point actions, and the action space "
        f"is {space}"
    )


class TruncationBootstrap(TensorWrapper):
    """Bootstraps truncated episodes, for learners that treat a truncation as a termination.

    Where an episode is truncated, the reward becomes `reward + gamma * V(final_obs)`, and the
    episode is marked as terminated.
    (Pardo et al. 2018, "Time Limits in Reinforcement Learning", arXiv 1712.00378, eq. 6.)

    Args:
        env: environment to wrap. This should be the outermost wrapper, so that rewards have the
            scale on which the value is learned.
        value: function from observations (N, ...) to values (N,) or (N, 1); called without
            gradients.
        gamma: the learner's discount.
    """

    def __init__(self, env: VectorEnv, value: Callable[[Tensor], Tensor], gamma: float) -> None:
        super().__init__(env)
        self.value, self.gamma = value, gamma

    def on_step(
        self, observation: Any, reward: Any, terminated: Any, truncated: Any, info: Any
    ) -> StepResult:
        """Add the value where an episode is truncated, and mark it as terminated."""
        with torch.no_grad():
            value = self.value(info["final_obs"]).reshape(reward.shape)
        reward = torch.where(truncated, reward + self.gamma * value, reward)
        return observation, reward, terminated | truncated, torch.zeros_like(truncated), info


class FrameStack(TensorWrapper):
    """The last k observations, oldest first, along a new axis after that of the environments.

    At the start of an episode the first observation fills the whole stack.

    Args:
        env: environment to wrap.
        stack_size: number of observations, k.

    Raises:
        ValueError: `stack_size` is below 1; see also `TensorWrapper`.
    """

    def __init__(self, env: VectorEnv, stack_size: int) -> None:
        super().__init__(env)
        if stack_size < 1:
            raise ValueError(f"stack_size={stack_size!r}: give an integer of at least 1")
        self.stack_size = stack_size
        box: Any = env.single_observation_space
        low, high = (np.repeat(bound[None], stack_size, 0) for bound in (box.low, box.high))
        self.single_observation_space = gym.spaces.Box(low, high, dtype=box.dtype)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self._frames: Tensor | None = None

    def on_reset(self, observation: Tensor, rows: Tensor | None) -> Tensor:
        """Fill the stacks of the rows that were reset."""
        stacks = self._repeat(observation)
        if rows is not None and self._frames is not None:
            stacks = torch.where(self._expand(rows), stacks, self._frames)
        self._frames = stacks
        return stacks.clone()

    def on_step(
        self, observation: Any, reward: Any, terminated: Any, truncated: Any, info: Any
    ) -> StepResult:
        """Push the observation; refill the stacks of rows whose episode ended."""
        if self._frames is None:
            raise RuntimeError("step before reset: call reset() first")
        final = torch.cat([self._frames[:, 1:], info["final_obs"][:, None]], 1)
        done = self._expand(terminated | truncated)
        self._frames = torch.where(done, self._repeat(observation), final)
        info = {**info, "final_obs": final}
        return self._frames.clone(), reward, terminated, truncated, info

    def _repeat(self, observation: Tensor) -> Tensor:
        """Return stacks (N, k, ...) of one observation each."""
        return observation[:, None].expand(-1, self.stack_size, *observation.shape[1:]).clone()
