"""Taking in actions: shape, kind and range, checked before the engine sees them."""

from __future__ import annotations

from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from dreamgym.dream.noise import row_keys, uniforms
from dreamgym.dream.state import MODEL_PREFIX, Dreams
from dreamgym.models import Decodes
from dreamgym.world.world import World

FEW = 16

"""Up to so many numbers, Python compares them faster than torch can be asked to."""


TOLERANCE = 1e-5

"""How far outside its bounds a Box action may lie, relative to the width: rounding, no more."""


class ActionValidator:
    """Turns what a caller gives into the tensor that a model takes.

    Args:
        space: action space of one environment.
        num_envs: rows.
        device: where the dreams are.
        looks: whether to refuse actions outside the space, which asks the device.
    """

    def __init__(
        self, space: gym.Space, num_envs: int, device: torch.device, *, looks: bool
    ) -> None:
        self.space, self.device, self.looks = space, device, looks
        self.shape = (num_envs, *(space.shape or ()))
        self.continuous = isinstance(space, gym.spaces.Box)
        if isinstance(space, gym.spaces.Box):
            low, high = space.low, space.high
            # An infinite bound has no width to be relative to, and needs none.
            slack = TOLERANCE * np.where(np.isfinite(high - low), high - low, 0.0)
            low, high = low - slack, high + slack
        elif isinstance(space, gym.spaces.Discrete):
            low, high = np.asarray(space.start), np.asarray(space.start + space.n - 1)
        elif isinstance(space, gym.spaces.MultiDiscrete):
            low, high = np.asarray(space.start), np.asarray(space.start + space.nvec - 1)
        else:
            raise TypeError(f"actions from {space} cannot be dreamt")
        self.dtype = torch.float32 if self.continuous else torch.int64
        # Of every row: a comparison with bounds that are broadcast takes six times as long.
        self.low, self.high = (
            torch.as_tensor(bound, device=device).to(self.dtype).expand(self.shape).contiguous()
            for bound in (low, high)
        )
        count = int(np.prod(self.shape))
        self._bounds = self._bounds_of_all() if looks and count <= FEW else None

    def __call__(self, actions: Any) -> Tensor:
        """Check and convert.

        Args:
            actions: (N, ...) tensor, array or list.

        Raises:
            ValueError: another shape, kind or device, or (where it looks) outside the space.
        """
        if isinstance(actions, Tensor) and self._is_as_wanted(actions):
            taken = actions
        else:
            taken = self._converted(actions)
        if self.looks:
            self._check_range(taken)
        return taken

    def _is_as_wanted(self, actions: Tensor) -> bool:
        return (
            actions.dtype is self.dtype
            and actions.device == self.device
            and actions.shape == self.shape
        )

    def _converted(self, actions: Any) -> Tensor:
        """The same as a tensor of the wanted dtype; see `__call__`."""
        try:
            given = actions if isinstance(actions, Tensor) else torch.as_tensor(np.asarray(actions))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"actions of type {type(actions).__name__} are no numbers ({error}); give "
                f"{self.shape}: one of {self.space} for each environment"
            ) from error
        if given.shape != self.shape:
            raise ValueError(
                f"actions have shape {tuple(given.shape)}; give {self.shape}: one of "
                f"{self.space} for each environment"
            )
        kind_fits = given.dtype.is_floating_point == self.continuous and not given.is_complex()
        if not kind_fits or given.dtype == torch.bool:
            wanted = "floating-point numbers" if self.continuous else "whole numbers"
            raise ValueError(f"actions have dtype {given.dtype}; give {wanted} for {self.space}")
        if isinstance(actions, Tensor) and given.device != self.device:
            raise ValueError(
                f"actions are on {given.device} and the dream on {self.device}; "
                f"move them with .to({str(self.device)!r})"
            )
        return given.to(self.device, self.dtype)

    def _bounds_of_all(self) -> list[tuple[float, float]]:
        """The least and the greatest of each number of all rows, in order."""
        low, high = (bound.reshape(-1).tolist() for bound in (self.low, self.high))
        return list(zip(low, high, strict=True))

    def _check_range(self, actions: Tensor) -> None:
        if self._bounds is not None:
            for x, (low, high) in zip(actions.reshape(-1).tolist(), self._bounds, strict=True):
                if not low <= x <= high:
                    break
            else:
                return
        # Two calls where nothing is wrong; what is no number equals nothing.
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
    """Refuse a device that draws other random numbers than a CPU; looks once in a process.

    They come from products of whole numbers of 64 bits, which not every kind of device has.

    Raises:
        ValueError: its numbers are others, or it cannot draw them.
    """
    counters = torch.tensor([[0, 1, 2**40], [3, 2**50, 2**62]])

    def drawn(where: torch.device) -> Tensor:
        env, step = counters.to(where)
        seed = torch.tensor(2**62 + 1, device=where)
        return uniforms(row_keys(seed, env, step, env + step), 5).cpu()

    try:
        right = torch.equal(drawn(device), drawn(torch.device("cpu")))
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device={str(device)!r} cannot draw this dream's random numbers "
            f"({str(error).splitlines()[0]}); give device='cpu'"
        ) from error
    if not right:
        raise ValueError(
            f"device={str(device)!r} computes other whole numbers of 64 bits than a CPU, so its "
            "random numbers would be wrong; give device='cpu'"
        )


def check_view(world: World, view: str) -> None:
    """Refuse to show observations of a world that cannot decode them."""
    if view == "observation" and not isinstance(world.model, Decodes):
        raise ValueError(
            f"view='observation' needs a decoder, which a {world.family} world has not; "
            "pass view='latent'"
        )


def check_not_done(dreams: Dreams) -> None:
    """Refuse to go on with an episode that ended; asks the device."""
    if bool(dreams.done.any()):
        rows = dreams.done.nonzero().flatten().tolist()
        raise RuntimeError(
            f"step after the end of rows {rows[:8]}, which do not reset themselves: call reset() "
            "first, or in a vector environment reset(options={'reset_mask': mask}) with those "
            "rows true"
        )


def reset_mask(
    options: dict[str, Any], dreams: Dreams | None, num_envs: int, device: torch.device
) -> Tensor | None:
    """The rows that a reset is asked for, (N,) bool; None for all."""
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


def row_index(rows: Any, num_envs: int, device: torch.device) -> Tensor:
    """Rows to copy from, (N,) int64."""
    index = torch.as_tensor(rows, device=device)
    if index.shape != (num_envs,) or index.dtype.is_floating_point or index.dtype == torch.bool:
        raise ValueError(
            f"rows have dtype {index.dtype} and shape {tuple(index.shape)}; "
            f"give whole numbers of shape ({num_envs},)"
        )
    if not bool(((index >= 0) & (index < num_envs)).all()):
        raise ValueError(f"rows must be at least 0 and below {num_envs}")
    return index.long()


def check_compatible(given: Any, wanted: Dreams) -> None:
    """Refuse what is no dreams, or those of another model, number, or dtype of states.

    Raises:
        TypeError: it is something else.
        ValueError: they are of another kind.
    """
    if not isinstance(given, Dreams):
        raise TypeError(
            f"these are no dreams but a {type(given).__name__}; give what get_state() gives, or "
            "Dreams.from_tensors(...) of tensors by name"
        )
    there, here = (
        {key: _kind(key, leaf) for key, leaf in dreams.tensors().items()}
        for dreams in (given, wanted)
    )
    if there != here:
        differ = sorted(key for key in there | here if there.get(key) != here.get(key))
        raise ValueError(
            f"these dreams are of another kind: {there.get(differ[0], f'no {differ[0]}')}, wanted "
            f"{here.get(differ[0], f'no {differ[0]}')}; give dreams of this world, as many as "
            "there are environments, as get_state() gives them"
        )


def _kind(name: str, leaf: Tensor) -> str:
    """What a leaf is, said; counters may be of any dtype."""
    dtype = f" and {leaf.dtype}" if name.startswith(MODEL_PREFIX) else ""
    return f"{name} of shape {tuple(leaf.shape)}{dtype}"


def temperature_rows(given: Any, num_envs: int, device: torch.device) -> Tensor:
    """A temperature for each environment, (N,) float32, in memory of its own.

    Raises:
        ValueError: another shape, or a number that is not above 0 or not finite.
    """
    # What the caller writes into it later must not change the dream.
    tensor = torch.as_tensor(given, dtype=torch.float32, device=device).clone()
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
