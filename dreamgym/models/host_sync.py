"""Whether a step may ask the device something, such as whether any row has ended.

On a CPU nothing waits for an answer, and work that nobody needs can be left out. Elsewhere asking
means waiting, and a step that is compiled or captured is the same whatever the numbers are.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class _Asking(threading.local):
    forbidden = False


_ASKING = _Asking()


def host_sync_allowed(device: torch.device) -> bool:
    """Whether a step on this device may ask it something now."""
    if torch.compiler.is_compiling():
        return False
    return device.type == "cpu" and not _ASKING.forbidden


@contextmanager
def forbid_host_sync() -> Iterator[None]:
    """Have steps ask nothing within the block, on a CPU neither."""
    before, _ASKING.forbidden = _ASKING.forbidden, True
    try:
        yield
    finally:
        _ASKING.forbidden = before
