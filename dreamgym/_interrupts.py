"""Delay Ctrl-C until a critical section is complete."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C until the block is left, and handle it then.

    A block that commits an episode and counts it, for example, is never interrupted halfway. This
    does nothing outside the main thread, which alone receives signals, and where the signal is
    handled outside Python.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGINT)
    if previous is None:
        yield
        return
    delayed: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: delayed.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if delayed and callable(previous):
            previous(*delayed[0])
