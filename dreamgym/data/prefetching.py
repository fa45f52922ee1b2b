"""Batches read ahead by one thread while the last one is worked on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import numpy as np

from dreamgym.data.segments import Sampler, SegmentBatch

_POLL_SECONDS = 0.1


def prefetch(
    sampler: Sampler, batch_size: int, rng: np.random.Generator, *, ahead: int = 2
) -> Iterator[SegmentBatch]:
    """Batches without end, the same as `sampler.draw` would give one after the other.

    One thread is enough: reading by position lets go of Python's lock while the system copies, and
    more threads, or worker processes, were slower in every measurement. Close the iterator (or let
    go of it) to end the thread.

    Args:
        sampler: Where they come from.
        batch_size: Segments in a batch.
        rng: Belongs to the thread until the iterator is closed.
        ahead: Batches to hold ready at most; memory is bounded by that many and two more.

    Raises:
        Whatever drawing raises, at the batch where it happens.
    """
    ready: queue.Queue[SegmentBatch | BaseException] = queue.Queue(maxsize=ahead)
    stop = threading.Event()

    def offer(item: SegmentBatch | BaseException) -> None:
        while not stop.is_set():
            try:
                ready.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return

    def work() -> None:
        try:
            while not stop.is_set():
                offer(sampler.draw(batch_size, rng))
        except BaseException as error:  # handed to whoever iterates, who raises it
            offer(error)

    thread = threading.Thread(target=work, name="dreamgym-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
