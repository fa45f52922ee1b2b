"""Choosing where to compute, and with how many threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def resolve_device(name: str | torch.device) -> torch.device:
    """The device that a name stands for; "auto" is CUDA where there is one, else the CPU.

    Raises:
        ValueError: there is no such device here.
    """
    if str(name) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device={str(name)!r} cannot be used here ({str(error).splitlines()[0]}); "
            'give "auto", "cpu", or a device that torch sees'
        ) from error
    return device


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Use `count` threads inside torch's operations, and what it was before afterwards.

    Small products gain nothing from a second thread, and fall to a third of their speed when
    another process has the core.

    Args:
        count: threads; None leaves torch's own choice.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
