"""Checks and conversions of what callers pass in, before the engine sees it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from dreamgym.data.spaces import is_float
from dreamgym.dream.noise import row_keys
from dreamgym.dream.state import MODEL_PREFIX, Dreams
from dreamgym.models import Decodes
from dreamgym.models.splitmix import uniforms
from dreamgym.world.world import World

MAX_PYTHON_NUMBERS = 16
"""Numbers up to which comparing them in Python is faster than calling torch."""

TOLERANCE = 1e-5
"""How far outside its bounds a Box action may lie, relative to their width: rounding only."""


class ActionValidator:
    """Checks actions and converts them to the tensor that a model takes.

    Args:
        space: action space of one environment.
        num_envs: number of rows.
        device: device of the dreams.
        check_bounds: whether to refuse actions outside the space, which is a host sync; otherwise
            they are clipped to it, and NaN stays NaN: it shows in its row, where a replacement
            would hide a policy that has diverged.
    """

    def __init__(
        self, space: gym.Space, num_envs: int, device: torch.device, *, check_bounds: bool
    ) -> None:
        self.space, self.device, self.check_bounds = space, device, check_bounds
        self.shape = (num_envs, *(space.shape or ()))
        self.continuous = isinstance(space, gym.spaces.Box) and is_float(space)
        if isinstance(space, gym.spaces.Box) and self.continuous:
            low, high = (bound.astype(np.float64) for bound in (space.low, space.high))
            tolerance = TOLERANCE if check_bounds else 0.0
            # No tolerance for an infinite bound, whose width is not a number.
            finite = np.isfinite(low) & np.isfinite(high)
            width = np.subtract(high, low, out=np.zeros_like(low), where=finite)
            low, high = low - tolerance * width, high + tolerance * width
        elif isinstance(space, gym.spaces.Box):
            # A model takes int64, in which the largest numbers of uint64 do not fit.
            largest = np.uint64(np.iinfo(np.int64).max)
            high = np.minimum(space.high, largest) if space.dtype == np.uint64 else space.high
            low, high = space.low.astype(np.int64), high.astype(np.int64)
        elif isinstance(space, gym.spaces.Discrete):
            low, high = np.asarray(space.start), np.asarray(space.start + space.n - 1)
        elif isinstance(space, gym.spaces.MultiDiscrete):
            low, high = np.asarray(space.start), np.asarray(space.start + space.nvec - 1)
        else:
            raise TypeError(
                f"expected a Box, Discrete or MultiDiscrete action space, got {space}; wrap the "
                "environment so that its actions are one of these"
            )
        self.dtype = torch.float32 if self.continuous else torch.int64
        # One for each row: a comparison with broadcast bounds takes six times as long.
        self.low, self.high = (
            torch.as_tensor(bound).to(self.dtype).to(device).expand(self.shape).contiguous()
            for bound in (low, high)
        )
        few = int(np.prod(self.shape)) <= MAX_PYTHON_NUMBERS
        self._python_bounds = self._bounds_in_python() if check_bounds and few else None

    def __call__(self, actions: Any) -> Tensor:
        """Check and convert.

        Args:
            actions: (N, ...) tensor, array or list.

        Raises:
            ValueError: Wrong shape, kind of numbers or device; with `check_bounds`, an action
                outside the space.
        """
        if isinstance(actions, Tensor) and self._needs_no_conversion(actions):
            converted = actions
        else:
            converted = self._convert(actions)
        if self.check_bounds:
            self._check_range(converted)
            return converted
        return torch.clamp(converted, self.low, self.high)

    def _needs_no_conversion(self, actions: Tensor) -> bool:
        return (
            actions.dtype is self.dtype
            and actions.device == self.device
            and actions.shape == self.shape
        )

    def _convert(self, actions: Any) -> Tensor:
        """Return the actions as a tensor of the expected dtype; see `__call__`."""
        expected = f"give {self.shape}: one of {self.space} for each environment"
        try:
            tensor = (
                actions if isinstance(actions, Tensor) else torch.as_tensor(np.asarray(actions))
            )
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"actions of type {type(actions).__name__} are not numbers ({error}); {expected}"
            ) from error
        if tensor.shape != self.shape:
            raise ValueError(f"actions have shape {tuple(tensor.shape)}; {expected}")
        right_kind = tensor.dtype.is_floating_point == self.continuous and not tensor.is_complex()
        if not right_kind or tensor.dtype == torch.bool:
            numbers = "floating-point numbers" if self.continuous else "integers"
            raise ValueError(f"actions have dtype {tensor.dtype}; give {numbers} for {self.space}")
        if isinstance(actions, Tensor) and tensor.device != self.device:
            raise ValueError(
                f"actions are on {tensor.device} and the dream is on {self.device}; "
                f"move them with .to({str(self.device)!r})"
            )
        return tensor.to(self.device, self.dtype)

    def _bounds_in_python(self) -> list[tuple[float, float]]:
        """Return the lower and the upper bound of each number of all rows, in order."""
        low, high = (bound.reshape(-1).tolist() for bound in (self.low, self.high))
        return list(zip(low, high, strict=True))

    def _check_range(self, actions: Tensor) -> None:
        if self._python_bounds is not None:
            numbers = zip(actions.reshape(-1).tolist(), self._python_bounds, strict=True)
            if all(low <= x <= high for x, (low, high) in numbers):
                return
        # Two calls where all are inside; NaN is not equal to itself.
        if not torch.equal(torch.clamp(actions, self.low, self.high), actions):
            inside = (actions >= self.low) & (actions <= self.high)
            row = int((~inside).reshape(len(actions), -1).any(1).nonzero()[0])
            raise ValueError(
                f"the action of environment {row} is {actions[row].tolist()}, outside "
                f"{self.space}; "
                + ("clip it (torch.clamp) or " if self.continuous else "")
                + "correct the policy"
            )


@cache
def check_noise(device: torch.device) -> None:
    """Check that a device draws the same noise as a CPU; once a process.

    Noise needs 64-bit integer products, which not every kind of device computes.

    Raises:
        ValueError: Its numbers differ, or it cannot draw them.
    """
    counters = torch.tensor([[0, 1, 2**40], [3, 2**50, 2**62]])

    def draw(where: torch.device) -> Tensor:
        env, step = counters.to(where)
        seed = torch.tensor(2**62 + 1, device=where)
        return uniforms(row_keys(seed, env, step, env + step), 5).cpu()

    try:
        equal = torch.equal(draw(device), draw(torch.device("cpu")))
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device={str(device)!r} cannot draw this dream's random numbers "
            f"({str(error).splitlines()[0]}); give device='cpu'"
        ) from error
    if not equal:
        raise ValueError(
            f"device={str(device)!r} computes other 64-bit integers than a CPU, so its random "
            "numbers would be wrong; give device='cpu'"
        )


def check_view(world: World, view: str) -> None:
    """Check that a world can show this view.

    Raises:
        ValueError: The view is "observation", and the model has no decoder.
    """
    if view == "observation" and not isinstance(world.model, Decodes):
        raise ValueError(
            f"view='observation' needs a decoder, and a {world.family} world has none; "
            "pass view='latent'"
        )


def check_not_done(dreams: Dreams) -> None:
    """Check that no row has ended; this is a host sync.

    Raises:
        RuntimeError: A row has ended and was not reset.
    """
    if bool(dreams.done.any()):
        rows = dreams.done.nonzero().flatten().tolist()
        raise RuntimeError(
            f"step after the end of the episodes of rows {rows[:8]}, which are not reset "
            "automatically: call reset() first, or in a vector environment "
            "reset(options={'reset_mask': mask}) with those rows true"
        )


def parse_seeds(
    seed: Any, num_envs: int, device: torch.device, draw: Callable[[], int]
) -> tuple[int | None, Tensor | None]:
    """Return the seed of all rows, or for a list one key for each row, (N,) int64.

    Args:
        seed: what `reset` got.
        num_envs: N.
        device: device of the keys.
        draw: function that draws the key of a row whose seed is None.

    Raises:
        TypeError: A seed is not an integer.
        ValueError: A list of another length.
    """
    each = list(seed) if isinstance(seed, list | tuple | np.ndarray) else None
    for one in [seed] if each is None else each:
        if one is not None and (isinstance(one, bool) or not isinstance(one, int | np.integer)):
            raise TypeError(f"seed={seed!r}: give an integer, or a list of one for each row")
    if each is None:
        return (None if seed is None else int(seed)), None
    if len(each) != num_envs:
        raise ValueError(f"got {len(each)} seeds for {num_envs} rows; give one for each, or one")
    keys = [draw() if one is None else int(one) for one in each]
    return None, torch.tensor(keys, dtype=torch.int64, device=device)


def parse_reset_mask(
    options: dict[str, Any], dreams: Dreams | None, num_envs: int, device: torch.device
) -> Tensor | None:
    """Return the rows that the options of a reset ask for, (N,) bool; None for all.

    Raises:
        ValueError: Unknown option, wrong shape or dtype, or a mask before the first reset.
    """
    unknown = sorted(set(options) - {"reset_mask"})
    if unknown:
        raise ValueError(f"reset has no option {unknown[0]!r}; known: reset_mask")
    if options.get("reset_mask") is None:
        return None
    mask = torch.as_tensor(options["reset_mask"], device=device)
    if mask.dtype != torch.bool or mask.shape != (num_envs,):
        raise ValueError(
            f"reset_mask has dtype {mask.dtype} and shape {tuple(mask.shape)}; "
            f"give bools of shape ({num_envs},)"
        )
    if dreams is None:
        raise ValueError("reset_mask before the first reset: reset all rows first")
    return mask


def parse_row_index(rows: Any, num_envs: int, device: torch.device) -> Tensor:
    """Return row numbers to copy from, (N,) int64.

    Raises:
        ValueError: Wrong shape or dtype, or a number outside [0, N).
    """
    index = torch.as_tensor(rows, device=device)
    if index.shape != (num_envs,) or index.dtype.is_floating_point or index.dtype == torch.bool:
        raise ValueError(
            f"rows have dtype {index.dtype} and shape {tuple(index.shape)}; "
            f"give integers of shape ({num_envs},)"
        )
    if not bool(((index >= 0) & (index < num_envs)).all()):
        raise ValueError(f"rows must be at least 0 and below {num_envs}")
    return index.long()


def check_compatible(dreams: Any, expected: Dreams) -> None:
    """Check that dreams have the leaves, shapes and dtypes of those of an environment.

    Args:
        dreams: what a caller passed.
        expected: dreams of the environment.

    Raises:
        TypeError: Not a `Dreams`.
        ValueError: Dreams of another model, number of rows, or dtype.
    """
    if not isinstance(dreams, Dreams):
        raise TypeError(
            f"expected Dreams, got {type(dreams).__name__}; pass what get_state() returned, or "
            "Dreams.from_tensors(...) of tensors by name"
        )
    actual_leaves, expected_leaves = (
        {key: _describe_leaf(key, leaf) for key, leaf in value.tensors().items()}
        for value in (dreams, expected)
    )
    if actual_leaves != expected_leaves:
        names = actual_leaves | expected_leaves
        name = min(key for key in names if actual_leaves.get(key) != expected_leaves.get(key))
        raise ValueError(
            f"these dreams do not fit this environment: got "
            f"{actual_leaves.get(name, f'no {name}')}, expected "
            f"{expected_leaves.get(name, f'no {name}')}; pass dreams of this world, as many as "
            "there are environments, as get_state() returns them"
        )


def _describe_leaf(name: str, leaf: Tensor) -> str:
    """Describe the shape of a leaf, and its dtype if it is the model's; counters may differ."""
    dtype = f" and {leaf.dtype}" if name.startswith(MODEL_PREFIX) else ""
    return f"{name} of shape {tuple(leaf.shape)}{dtype}"


def parse_temperatures(temperatures: Any, num_envs: int, device: torch.device) -> Tensor:
    """Return a temperature for each environment, (N,) float32, in memory of its own.

    Raises:
        ValueError: Wrong shape, or a number that is not finite and above 0.
    """
    # Cloned: what the caller later writes into it must not change the dream.
    tensor = torch.as_tensor(temperatures, dtype=torch.float32, device=device).clone()
    if tensor.shape != (num_envs,):
        raise ValueError(
            f"temperature has shape {tuple(tensor.shape)}; give ({num_envs},) numbers, one for "
            "each environment"
        )
    wrong = ~((tensor > 0) & tensor.isfinite())
    if bool(wrong.any()):
        raise ValueError(
            f"temperature holds {tensor[wrong][0].item()}; give finite numbers above 0, one for "
            "each environment"
        )
    return tensor
