"""Windows of what a model remembers: leaves (B, context, n), oldest first, a length for each row.

What lies beyond a row's length is zero.
"""

from __future__ import annotations

import torch
from torch import Tensor


def at(window: Tensor, place: Tensor) -> Tensor:
    """Return the entries (B, n) of a window (B, context, n) at places (B,)."""
    index = place.view(-1, 1, 1).expand(-1, 1, window.shape[-1])
    return window.gather(1, index).squeeze(1)


def put(window: Tensor, place: Tensor, value: Tensor) -> Tensor:
    """Return a window (B, context, n) with values (B, n) at places (B,); none at negative ones."""
    return torch.where(_is_at(place, window), value.unsqueeze(1), window)


def push(
    leaves: dict[str, Tensor],
    length: Tensor,
    news: dict[str, Tensor],
    limit: Tensor,
    *,
    slides: bool = False,
) -> tuple[dict[str, Tensor], Tensor]:
    """Append an entry to windows; a full window loses its older half first, or its oldest entry.

    Args:
        leaves: windows (B, context, n) by name.
        length: (B,) entries that are set.
        news: the entries (B, n) to append, by the same names.
        limit: () entries of a full window, from 1 to the context.
        slides: whether a full window loses its oldest entry alone.

    Returns:
        The windows, and their lengths (B,).
    """
    place = torch.where(length >= limit, limit - 1 if slides else limit // 2, length)
    moved = {}
    for key, new in news.items():
        window = leaves[key]
        places = torch.arange(window.shape[1], device=window.device)
        source = places + (length - place).unsqueeze(-1)
        source = source.clamp(max=window.shape[1] - 1).unsqueeze(-1).expand_as(window)
        older = (places < place.unsqueeze(-1)).unsqueeze(-1)
        kept = torch.where(older, window.gather(1, source), torch.zeros_like(window))
        moved[key] = put(kept, place, new.to(window.dtype))
    return moved, place + 1


def _is_at(place: Tensor, window: Tensor) -> Tensor:
    """Return where (B, context, 1) a window (B, context, n) has places (B,)."""
    places = torch.arange(window.shape[1], device=window.device)
    return (places == place.unsqueeze(-1)).unsqueeze(-1)
