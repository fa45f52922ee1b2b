"""Leaving a caller's inference mode, in which a dream's state would turn into inference tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def outside_inference(*, traced: bool | None = None) -> Iterator[None]:
    """Leave inference mode without changing whether gradients are traced.

    `torch.inference_mode(False)` alone would switch them on.

    Args:
        traced: whether to trace gradients; None for what the caller has.
    """
    keep = torch.is_grad_enabled() if traced is None else traced
    with torch.inference_mode(False), torch.set_grad_enabled(keep):
        yield
