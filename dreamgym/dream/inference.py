"""Leaving a caller's inference mode, in which a dream's state would turn into inference tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

_AS_IT_IS = nullcontext()


def leave_inference_mode(*, traced: bool | None = None) -> AbstractContextManager[Any]:
    """Leave inference mode without changing whether gradients are traced.

    `torch.inference_mode(False)` alone would switch them on.

    Args:
        traced: whether to trace gradients; None for what the caller has.

    Returns:
        To be entered at once.
    """
    enabled = torch.is_grad_enabled()
    keep = enabled if traced is None else traced
    if torch.is_inference_mode_enabled():
        return _left(keep)
    # Most steps need no change, or only one: each costs as much as an operation.
    return _AS_IT_IS if enabled == keep else torch.set_grad_enabled(keep)


@contextmanager
def _left(keep: bool) -> Iterator[None]:
    with torch.inference_mode(False), torch.set_grad_enabled(keep):
        yield
