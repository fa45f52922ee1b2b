"""Timing things side by side: in turns, in one process, the median over the turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch


def side_by_side(
    calls: dict[str, Callable[[], Any]], *, turn: float, turns: int
) -> dict[str, float]:
    """Seconds that one call of each takes.

    On a CPU it is the process's own time, which other processes do not take part in; on a GPU it is
    the time that passes until the device is done.

    Args:
        calls: what to time, by name.
        turn: seconds that each has in each turn, about.
        turns: how many.
    """
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    repeats = {name: _repeats(call, turn, clock) for name, call in calls.items()}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            taken[name].append(_seconds(call, repeats[name], clock) / repeats[name])
    return {name: median(seconds) for name, seconds in taken.items()}


def _repeats(call: Callable[[], Any], turn: float, clock: Callable[[], float]) -> int:
    """Calls that fill a turn; also warms up."""
    call()
    repeats, seconds = 1, _seconds(call, 1, clock)
    while seconds < turn / 4:
        repeats *= 2
        seconds = _seconds(call, repeats, clock)
    return max(1, round(repeats * turn / seconds))


def _seconds(call: Callable[[], Any], repeats: int, clock: Callable[[], float]) -> float:
    _wait()
    begun = clock()
    for _ in range(repeats):
        call()
    _wait()
    return clock() - begun


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
