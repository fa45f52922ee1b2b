"""What is refused of a caller, and how it is said."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from dreamgym.dream.noise import row_keys, uniforms
from dreamgym.dream.state import MODEL_PREFIX, Dreams
from dreamgym.models import Decodes
from dreamgym.world import World


@cache
def noise_is_right(device: torch.device) -> None:
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


def view_exists(world: World, view: str) -> None:
    """Refuse to show observations of a world that cannot decode them."""
    if view == "observation" and not isinstance(world.model, Decodes):
        raise ValueError(
            f"view='observation' needs a decoder, which a {world.family} world has not; "
            "pass view='latent'"
        )


def none_done(dreams: Dreams) -> None:
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


def same_kind(given: Any, wanted: Dreams) -> None:
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
