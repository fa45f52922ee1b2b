"""Whether data-dependent control flow (a host sync) is allowed in the current step.

On a CPU, branching on a tensor's value costs nothing and can skip work. On a GPU it makes the host
wait for the device, and a step that is compiled or captured must be the same for all values.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class _HostSync(threading.local):
    forbidden = False


_HOST_SYNC = _HostSync()


def host_sync_allowed(device: torch.device) -> bool:
    """Return whether the current step on this device may branch on the values of tensors."""
    if torch.compiler.is_compiling():
        return False
    return device.type == "cpu" and not _HOST_SYNC.forbidden


@contextmanager
def forbid_host_sync() -> Iterator[None]:
    """Forbid host syncs inside the block, on the CPU as well; for the current thread only."""
    before, _HOST_SYNC.forbidden = _HOST_SYNC.forbidden, True
    try:
        yield
    finally:
        _HOST_SYNC.forbidden = before
