"""Memory use of dreams: per row for each family, and the peak with many rows."""

from __future__ import annotations

import multiprocessing
import resource
import sys
from pathlib import Path

import torch

from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.errors import PretrainedError
from dreamgym.models import FAMILIES
from dreamgym.world.world import World
from support import worlds
from support.reporting import Row, below

MANY = 65_536
MOST = 1.0
"""GB at the peak."""
STEPS = 4
STATM, STATUS = Path("/proc/self/statm"), Path("/proc/self/status")
UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes of what the system calls one."""


def memory_rows() -> list[Row]:
    """Measure the bytes per row of every family's state, and the peak memory with many rows."""
    rows = [
        Row(name=f"{name}: a row's state", value=worlds.state_bytes(make()), unit="bytes")
        for name, make in (
            ("V-M-C Car", worlds.v_m_c),
            ("RSSM 512, 32x32", worlds.rssm),
            ("RSSM v3-12M", worlds.rssm_12m),
            ("LeWM", worlds.lewm),
        )
    ]
    for name in FAMILIES:
        try:
            world = worlds.family(name)
        except (TypeError, ValueError, PretrainedError):
            continue  # no config of its own, no images, or an encoder that is not here
        size = worlds.state_bytes(world)
        rows.append(Row(name=f"{name}, default: a row's state", value=size, unit="bytes"))
    rows.append(below(f"V-M-C Car, {MANY} envs: peak", _peak_of_many() / 1e9, "GB", MOST))
    return rows


def _peak_of_many() -> float:
    """Return the bytes that dreams add to a process at the peak of a few steps."""
    if torch.cuda.is_available():
        return _many("cuda")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_many, ("cpu",))


def _many(device: str) -> float:
    torch.set_num_threads(1)
    world = worlds.v_m_c()
    _run(world, 64, device)  # libraries take their own at the first step
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        _run(world, MANY, device)
        return float(torch.cuda.max_memory_allocated() - before)
    before = _resident()
    _run(world, MANY, device)
    return _peak() - before


def _resident() -> float:
    """Return the current memory of this process in bytes; its peak if the system does not tell."""
    if STATM.exists():
        return int(STATM.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT


def _peak() -> float:
    """Return the peak memory of this process in bytes; `ru_maxrss` would include its parent's."""
    if STATUS.exists():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return float(line.split()[1]) * 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT)


def _run(world: World, count: int, device: str) -> None:
    options = {"output": "torch", "autoreset_mode": "SameStep", "view": "latent"}
    env = DreamVectorEnv(world, count, device=device, **options)
    env.reset(seed=0)
    action = worlds.actions(count, device)
    for _ in range(STEPS):
        env.step(action)
    env.close()
