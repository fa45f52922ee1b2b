"""Timing side by side: contenders run in turns, and the median over turns counts."""

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
"""Calls before timing starts: the second call may compile once more."""

CLEAN = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
"""Start method of processes that inherit nothing; a fork server imports torch only once."""


class Apart:
    """A call in another process; see `apart`.

    Args:
        connection: connection on which that process waits for its turn.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def seconds(self, repeats: int) -> float:
        """Return the seconds that `calls` calls take."""
        try:
            self._connection.send(repeats)
            taken: float = self._connection.recv()
        except (EOFError, OSError) as error:
            raise RuntimeError("the other process has ended; its error is above") from error
        return taken


@contextmanager
def apart(make: Callable[..., Call], *arguments: Any) -> Iterator[Apart]:
    """Return a call that runs in a separate process, which sleeps between its turns.

    Contenders then do not affect each other: a dream, for example, keeps freed memory for the next
    step (`dreamgym.dream.memory`), which plain code would also profit from in the same process.

    Args:
        make: function of a module that makes the call.
        *arguments: arguments of `make`; they are pickled.
    """
    context = get_context(CLEAN)
    context.set_forkserver_preload(["torch"])  # without a fork server this does nothing
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
    """Return the seconds that one call of each contender takes.

    On a CPU this is process time, which excludes other processes; on a GPU it is wall-clock time
    until the device is done.

    Args:
        calls: calls to time, by name.
        turn: approximate seconds of one turn.
        turns: number of turns of each.
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
    """Return the number of calls that fill a turn; this also warms up."""
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
    started = clock()
    for _ in range(repeats):
        call()
    _wait()
    return clock() - started


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
