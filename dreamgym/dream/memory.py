"""Memory use of dreams: estimates per environment, and checks against the free memory."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dreamgym.dream.engine import Engine
from dreamgym.models import WorldModel
from dreamgym.models.base import zero_action
from dreamgym.models.host_sync import forbid_host_sync

LARGEST_KEPT = 31 * 2**20
"""Bytes of the block that raises glibc's mmap threshold, which can rise to 32 MiB (mallopt(3))."""

MEASURED_ROWS = (512, 1024)
"""Rows of two measured steps; memory per row is the slope between them."""

FIXED_BYTES = 1200
"""Bytes of an environment outside the step's tensors: spaces, actions, infos, prefetched noise."""

WORKSPACE_FACTOR = 1.5
"""Peak memory of a step, as a multiple of its tensors: operations also use workspaces."""

MEMORY_INFO = Path("/proc/meminfo")


def keep_freed_memory() -> None:
    """Have glibc keep freed blocks of up to 32 MiB for reuse, instead of returning each to the OS.

    Large tensors of a step would otherwise be mapped, zeroed and unmapped by the system in every
    step. Freeing one large block raises glibc's threshold for that, for the whole process, which
    may from then on keep up to twice as much freed memory. The block is never touched, so it costs
    nothing. With other C libraries this does nothing.
    """
    if _uses_glibc():
        torch.empty(LARGEST_KEPT, dtype=torch.uint8, device="cpu")


def _uses_glibc() -> bool:
    try:
        return bool(os.confstr("CS_GNU_LIBC_VERSION"))
    except (AttributeError, ValueError, OSError):  # Windows; macOS and musl
        return False


class AllocationCounter(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside the block.

    Attributes:
        peak: most bytes held at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak, self._held = 0, 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        outputs = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(outputs):
            if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
                self._count(leaf.untyped_storage())
        return outputs

    def _count(self, storage: torch.UntypedStorage) -> None:
        address = storage._cdata
        if address in self._sizes:
            return
        self._sizes[address] = storage.nbytes()
        self._held += storage.nbytes()
        self.peak = max(self.peak, self._held)
        weakref.finalize(storage, self._release, address)

    def _release(self, address: int) -> None:
        self._held -= self._sizes.pop(address)


def bytes_per_env(engine: Engine) -> int:
    """Return the memory that one more environment takes at the peak of a step; an upper estimate.

    Args:
        engine: engine whose model, view and autoreset mode are measured, with about 1,000 rows.
    """
    few, many = (_peak_bytes(engine, rows) for rows in MEASURED_ROWS)
    slope = (many - few) / (MEASURED_ROWS[1] - MEASURED_ROWS[0])
    return int(WORKSPACE_FACTOR * slope) + FIXED_BYTES


def _peak_bytes(engine: Engine, rows: int) -> int:
    """Return the most bytes that the tensors of a few steps of `rows` rows hold at once."""
    episodes = engine.episodes
    if isinstance(episodes.temperature, Tensor):
        temperature = episodes.temperature[:1].expand(rows).contiguous()
        episodes = episodes._replace(temperature=temperature)
    small = Engine(engine.plain, episodes, engine.options, rows)
    action = zero_action(engine.plain.action_space, rows, engine.device)
    # The masked step, since prefetched noise takes as much for few rows as for many.
    with torch.no_grad(), forbid_host_sync(), AllocationCounter() as counter:
        dreams, _ = small.begin(0)
        for _ in range(2):
            dreams, outcome = small.step(dreams, action)
        del outcome
    return counter.peak


def check_state_memory(model: WorldModel, num_envs: int, device: torch.device) -> None:
    """Check, before anything is allocated, that the device can hold the states.

    Raises:
        ValueError: it cannot; the message says how many environments fit at most.
    """
    state = sum(leaf.numel() * leaf.element_size() for leaf in model.initial(1).values())
    _check(num_envs, state + FIXED_BYTES, device)


def check_memory(engine: Engine) -> None:
    """Check that the device has memory for the steps of an engine with many rows.

    Raises:
        ValueError: it does not have it; the message says how many environments fit.
    """
    if engine.num_envs > MEASURED_ROWS[1]:
        _check(engine.num_envs, bytes_per_env(engine), engine.device)


def _check(num_envs: int, bytes_each: int, device: torch.device) -> None:
    free = free_bytes(device)
    if free is not None and num_envs * bytes_each > free:
        raise ValueError(
            f"num_envs={num_envs} would take about {num_envs * bytes_each / 2**30:.1f} GiB on "
            f"{device}, which has {free / 2**30:.1f} GiB free: about {free // bytes_each} "
            "environments fit"
        )


def free_bytes(device: torch.device) -> int | None:
    """Return the free memory of a device, or None where the system does not tell.

    On systems other than Linux it is an upper bound: the machine's whole memory.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type != "cpu":
        return None
    if MEMORY_INFO.exists():
        for line in MEMORY_INFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):  # includes page cache that can be dropped
                return 1024 * int(line.split()[1])
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows; systems without these names
        return None
