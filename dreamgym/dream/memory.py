"""How much memory dreams take, asked before it is taken."""

from __future__ import annotations

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

"""Bytes: glibc learns from blocks of up to 32 MiB (`M_MMAP_THRESHOLD` of mallopt(3))."""


def keep_freed_memory() -> None:
    """Free one large block that nobody has touched, which costs nothing and is the lesson.

    It holds for the whole process, which from then on may keep up to twice as much of what was
    freed. Other allocators take no notice.
    """
    torch.empty(LARGEST_KEPT, dtype=torch.uint8, device="cpu")


MEASURED_ROWS = (512, 1024)

"""What a row takes is the difference between steps of so many."""


AROUND = 1200

"""Bytes that an environment takes around its steps: spaces, actions, infos, what is drawn ahead."""


UNSEEN = 1.5

"""How much more a step may take than its tensors: what operations use inside themselves."""


MEMORY_INFO = Path("/proc/meminfo")


class Held(TorchDispatchMode):
    """Counts the bytes of the tensors that are made within.

    Attributes:
        peak: most that were held at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak, self._now = 0, 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(given):
            if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
                self._count(leaf.untyped_storage())
        return given

    def _count(self, storage: torch.UntypedStorage) -> None:
        place = storage._cdata
        if place in self._sizes:
            return
        self._sizes[place] = storage.nbytes()
        self._now += storage.nbytes()
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._let_go, place)

    def _let_go(self, place: int) -> None:
        self._now -= self._sizes.pop(place)


def bytes_per_env(engine: Engine) -> int:
    """What one more environment costs at the peak of a step; rather too much than too little.

    Args:
        engine: whose model, view and mode are measured, in steps of a thousand rows.
    """
    few, many = (_peak(engine, rows) for rows in MEASURED_ROWS)
    return int(UNSEEN * (many - few) / (MEASURED_ROWS[1] - MEASURED_ROWS[0])) + AROUND


def _peak(engine: Engine, rows: int) -> int:
    """Bytes that the tensors of some steps of so many rows hold at most."""
    episodes = engine.episodes
    if isinstance(episodes.temperature, Tensor):
        temperature = episodes.temperature[:1].expand(rows).contiguous()
        episodes = episodes._replace(temperature=temperature)
    small = Engine(engine.plain, episodes, engine.options, rows)
    action = zero_action(engine.plain.action_space, rows, engine.device)
    # Noise that is drawn ahead is as much for few rows as for many: here none is.
    with torch.no_grad(), forbid_host_sync(), Held() as held:
        dreams, _ = small.begin(0)
        for _ in range(2):
            dreams, given = small.step(dreams, action)
        del given
    return held.peak


def check_states(model: WorldModel, num_envs: int, device: torch.device) -> None:
    """Refuse more environments than the device can hold the states of: before any is made.

    Raises:
        ValueError: saying how many fit, at most.
    """
    state = sum(leaf.numel() * leaf.element_size() for leaf in model.initial(1).values())
    _check(num_envs, state + AROUND, device)


def check_memory(engine: Engine) -> None:
    """Refuse more environments than the device has memory for; fewer than are measured pass.

    Raises:
        ValueError: saying how many fit.
    """
    if engine.num_envs > MEASURED_ROWS[1]:
        _check(engine.num_envs, bytes_per_env(engine), engine.device)


def _check(wanted: int, each: int, device: torch.device) -> None:
    free = free_bytes(device)
    if free is not None and wanted * each > free:
        raise ValueError(
            f"num_envs={wanted} would take about {wanted * each / 2**30:.1f} GiB on {device}, "
            f"which has {free / 2**30:.1f} GiB free: about {free // each} environments fit"
        )


def free_bytes(device: torch.device) -> int | None:
    """Free memory of a device; None where the system does not tell."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type == "cpu" and MEMORY_INFO.exists():
        for line in MEMORY_INFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):  # what can be had, the page cache included
                return 1024 * int(line.split()[1])
    return None
