"""Timing things side by side: in turns, the median over the turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import torch

Call = Callable[[], Any]

WARM_UP = 2
"""Calls before the clock runs: what is compiled may be compiled once more in the second."""

CLEAN = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
"""How a process is begun that has nothing of this one; the first way imports torch once."""


class Apart:
    """A call in another process; see `apart`.

    Args:
        asked: where that process waits for its turn.
    """

    def __init__(self, asked: Connection) -> None:
        self._asked = asked

    def seconds(self, repeats: int) -> float:
        """What so many calls take."""
        try:
            self._asked.send(repeats)
            taken: float = self._asked.recv()
        except (EOFError, OSError) as error:
            raise RuntimeError("what runs apart has ended: its own error is above") from error
        return taken


@contextmanager
def apart(make: Callable[..., Call], *arguments: Any) -> Iterator[Apart]:
    """A call in a process of its own, which waits while it is not its turn.

    What one thing does to its process, others do not gain or suffer from: a dream has freed memory
    kept for the next step (`dreamgym.dream.memory`), which nobody has who does not use dreams.

    Args:
        make: makes the call; a function of a module.
        *arguments: of `make`; they are pickled.
    """
    context = get_context(CLEAN)
    context.set_forkserver_preload(["torch"])  # where there is no such server, it does nothing
    asked, theirs = context.Pipe()
    given = (theirs, torch.get_num_threads(), make, arguments)
    process = context.Process(target=_serve, args=given, daemon=True)
    process.start()
    theirs.close()
    try:
        yield Apart(asked)
    finally:
        asked.close()
        process.join()


def _serve(asked: Connection, threads: int, make: Callable[..., Call], arguments: Any) -> None:
    torch.set_num_threads(threads)
    call = make(*arguments)
    while True:
        try:
            repeats = asked.recv()
        except EOFError:
            return
        asked.send(_seconds(call, repeats, _clock()))


def side_by_side(calls: dict[str, Call | Apart], *, turn: float, turns: int) -> dict[str, float]:
    """Seconds that one call of each takes.

    On a CPU it is the process's own time, which other processes do not take part in; on a GPU it is
    the time that passes until the device is done.

    Args:
        calls: what to time, by name.
        turn: seconds that each has in each turn, about.
        turns: how many.
    """
    clock = _clock()
    repeats = {name: _repeats(call, turn, clock) for name, call in calls.items()}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            taken[name].append(_seconds(call, repeats[name], clock) / repeats[name])
    return {name: median(seconds) for name, seconds in taken.items()}


def _clock() -> Callable[[], float]:
    return time.perf_counter if torch.cuda.is_available() else time.process_time


def _repeats(call: Call | Apart, turn: float, clock: Callable[[], float]) -> int:
    """Calls that fill a turn; also warms up."""
    _seconds(call, WARM_UP, clock)
    repeats, seconds = 1, _seconds(call, 1, clock)
    while seconds < turn / 4:
        repeats *= 2
        seconds = _seconds(call, repeats, clock)
    return max(1, round(repeats * turn / seconds))


def _seconds(call: Call | Apart, repeats: int, clock: Callable[[], float]) -> float:
    if isinstance(call, Apart):
        return call.seconds(repeats)
    _wait()
    begun = clock()
    for _ in range(repeats):
        call()
    _wait()
    return clock() - begun


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
