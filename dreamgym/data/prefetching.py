"""Batches read ahead by one thread while the last one is worked on."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

import numpy as np

from dreamgym.data.segments import Sampler, SegmentBatch

_POLL_SECONDS = 0.1
Item = TypeVar("Item")


def prefetch(
    sampler: Sampler, batch_size: int, rng: np.random.Generator, *, ahead: int = 2
) -> Generator[SegmentBatch, None, None]:
    """Batches without end, the same as `sampler.draw` would give one after the other.

    Args:
        sampler: Where they come from.
        batch_size: Segments in a batch.
        rng: Belongs to the thread until the iterator is closed.
        ahead: As for `draw_ahead`.

    Raises:
        Whatever drawing raises, at the batch where it happens.
    """

    def batches() -> Iterator[SegmentBatch]:
        while True:
            yield sampler.draw(batch_size, rng)

    return draw_ahead(batches(), ahead=ahead)


def draw_ahead(items: Iterator[Item], *, ahead: int = 2) -> Generator[Item, None, None]:
    """The same items, made ahead by one thread while the last one is worked on.

    One thread is enough: reading by position lets go of Python's lock while the system copies, and
    more threads, or worker processes, were slower in every measurement. Close the generator (or let
    go of it) to end the thread.

    Args:
        items: Belongs to the thread until the generator is closed.
        ahead: Items to hold ready at most; memory is bounded by that many and two more.

    Raises:
        Whatever making an item raises, at the item where it happens.
    """
    ready: queue.Queue[Item | _Failure | None] = queue.Queue(maxsize=ahead)
    stop = threading.Event()

    def offer(item: Item | _Failure | None) -> None:
        while not stop.is_set():
            try:
                ready.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return

    def work() -> None:
        try:
            for item in items:
                offer(item)
                if stop.is_set():
                    return
            offer(None)
        except BaseException as error:  # handed to whoever iterates, who raises it
            offer(_Failure(error))

    thread = threading.Thread(target=work, name="dreamgym-prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, _Failure):
                raise item.error
            yield item
    finally:
        stop.set()
        thread.join()


class _Failure:
    """An error on its way from the thread."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
