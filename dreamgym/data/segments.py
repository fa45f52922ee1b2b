"""Random segments of fixed length, for fitting."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from dreamgym.data.frame_skip import FrameSkip, borrowed
from dreamgym.data.storage import Column

Array = NDArray[Any]


class SegmentBatch(NamedTuple):
    """`B` segments of `L` transitions, that is `L + 1` observations, in raw units.

    Where a segment reaches past the end of its episode, the last observation is repeated, the rest
    is zero, and `mask` is False. Truncation is not here: it is nothing that a model should learn.

    Attributes:
        observation: `(B, L + 1, *shape)` in the space's dtype, or a dict of such by key.
        action: `(B, L, ...)`; entry `t` leaves observation `t`. Discrete: `(B, L)` int64; Box of
            floats: float32.
        reward: `(B, L)` float32, the reward for action `t`.
        terminated: `(B, L)` bool, True where observation `t + 1` is terminal.
        mask: `(B, L)` bool, True where the transition is real.
    """

    observation: Array | dict[str, Array]
    action: Array
    reward: Array
    terminated: Array
    mask: Array


class SegmentSource:
    """What a sampler draws from: columns in native rows, and where the episodes lie in them.

    Args:
        observations: The column, or columns by key where the space is a Dict.
        action: Rows of actions, the last row of an episode zero.
        reward: Rows of rewards, the last row of an episode zero.
        starts: `(E,)` first row of each episode.
        lengths: `(E,)` number of transitions, `T`, of each episode.
        terminated: `(E,)` bool.
    """

    def __init__(
        self,
        observations: Column | Mapping[str, Column],
        *,
        action: Column,
        reward: Column,
        starts: Array,
        lengths: Array,
        terminated: Array,
    ) -> None:
        self.observations = observations
        self.action = action
        self.reward = reward
        self.starts = starts
        self.lengths = lengths
        num_rows = int((starts + lengths).max()) + 1 if len(starts) else 0
        self.terminal = np.zeros(num_rows, dtype=bool)
        self.terminal[(starts + lengths - 1)[terminated]] = True


class Sampler(Protocol):
    """What gives batches of segments."""

    def draw(self, batch_size: int, rng: np.random.Generator) -> SegmentBatch:
        """`batch_size` segments; the same generator state gives the same segments."""
        ...


class SegmentReader:
    """Reads segments by where they begin.

    With a frame skip, a transition of a segment spans `k` steps of the environment: the
    observations are every `k`-th, the rewards are summed, and a transition is terminal where one of
    its steps is. Of the actions between, all are kept, `(B, L, k, ...)`, or where they are repeated
    the first. A transition within which the episode terminates is kept: its last observation is
    the episode's, and the missing actions are borrowed (`frame_skip.borrowed`). One within which
    the episode is truncated or cut off is no transition: it is padding.

    Args:
        source: The columns and the episodes.
        length: `L`, at least 1, the number of transitions in a segment.
        skip: The frame skip.
    """

    def __init__(self, source: SegmentSource, length: int, skip: FrameSkip) -> None:
        self.length, self.skip = length, skip
        self._source = source
        self._steps = np.arange(length * skip.steps + 1)

    def read(self, first: Array, left: Array) -> SegmentBatch:
        """The segments that begin at rows `first` `(B,)`, with `left` `(B,)` steps to read there.

        `left` is what `usable` gave: what lies beyond is padding.
        """
        first, left = first[:, None], left[:, None]
        rows, steps = first + self._steps, self._steps[:-1]
        mask = steps < left
        np.minimum(rows, first + left, out=rows)
        leaving = np.ascontiguousarray(rows[:, :-1])
        source = self._source
        batch = SegmentBatch(
            observation=_take(source.observations, rows[:, :: self.skip.steps]),
            action=source.action.take(leaving),
            reward=source.reward.take(leaving),
            terminated=source.terminal.take(leaving),
            mask=mask,
        )
        return batch if self.skip.steps == 1 else self._in_blocks(batch, first)

    def _in_blocks(self, batch: SegmentBatch, first: Array) -> SegmentBatch:
        shape = (len(batch.mask), self.length, self.skip.steps)
        taken = batch.mask.reshape(shape)
        whole = np.asarray(taken.any(axis=2))
        actions = batch.action.reshape(*shape, *batch.action.shape[2:])
        actions[~taken] = 0
        if self.skip.actions == "repeated":
            actions = actions[:, :, 0]
        else:
            missing = np.asarray(whole[:, :, None] & ~taken)
            if missing.any():
                actions[missing] = self._borrowed(missing, first)
        return SegmentBatch(
            observation=batch.observation,
            action=actions,
            reward=np.where(taken, batch.reward.reshape(shape), 0).sum(axis=2),
            terminated=np.asarray((batch.terminated.reshape(shape) & taken).any(axis=2)),
            mask=whole,
        )

    def _borrowed(self, missing: Array, first: Array) -> Array:
        """Actions for the steps of whole blocks that were not taken any more."""
        source = self._source
        segment, block, step = np.nonzero(missing)
        row = first[segment, 0] + block * self.skip.steps + step
        episode = np.searchsorted(source.starts, first[segment, 0], side="right") - 1
        start, length = source.starts[episode], source.lengths[episode]
        return source.action.take((start + borrowed(row - start, length))[:, None])[:, 0]


def usable(left: Array, terminated: Array, skip: FrameSkip) -> Array:
    """Steps of the `left` ones that make whole transitions; a terminated episode's last do."""
    return np.where(terminated, left, left - left % skip.steps)


class SegmentSampler:
    """Draws segments whose first transition is uniform over all transitions of its episodes.

    With a frame skip a segment may begin at any step where a whole transition follows; where
    actions are repeated, only at every `k`-th of its episode, where a new action was chosen.

    Args:
        source: The columns and the episodes.
        episodes: `(K,)` indices of the episodes to draw from.
        length: `L`, at least 1, the number of transitions in a segment.
        skip: The frame skip, see `SegmentReader`.

    Raises:
        ValueError: There is no whole transition in the episodes.
    """

    def __init__(
        self, source: SegmentSource, episodes: Array, length: int, skip: FrameSkip | None = None
    ) -> None:
        skip = skip or FrameSkip()
        self.length = length
        self.episodes = episodes
        self._reader = SegmentReader(source, length, skip)
        lengths, starts = source.lengths[episodes], source.starts[episodes]
        # Row of every transition, and steps left in its episode: one lookup each in `draw`.
        ends = np.cumsum(lengths)
        count = np.arange(lengths.sum())
        self._first = np.repeat(starts + lengths - ends, lengths) + count
        self._left = np.repeat(ends, lengths) - count
        if skip.steps > 1:
            self._keep_whole(skip, np.repeat(lengths, lengths), source)

    def _keep_whole(self, skip: FrameSkip, lengths: Array, source: SegmentSource) -> None:
        ended = source.terminal.take(self._first + self._left - 1)
        left = usable(self._left, ended, skip)
        keep = left > 0
        if skip.actions == "repeated":
            keep &= (lengths - self._left) % skip.steps == 0
        self._first, self._left = self._first[keep], left[keep]
        if not len(self._first):
            raise ValueError(f"no episode has the {skip.steps} steps of one transition")

    @property
    def num_transitions(self) -> int:
        """How many transitions there are to begin at."""
        return len(self._first)

    def draw(self, batch_size: int, rng: np.random.Generator) -> SegmentBatch:
        """`batch_size` segments; the same generator state gives the same segments."""
        return self.at(rng.integers(self.num_transitions, size=batch_size))

    def at(self, transitions: Array) -> SegmentBatch:
        """The segments that begin at the given transitions, `(B,)`, counted over the episodes."""
        return self._reader.read(self._first.take(transitions), self._left.take(transitions))


def _take(columns: Column | Mapping[str, Column], rows: Array) -> Array | dict[str, Array]:
    if isinstance(columns, Mapping):
        return {key: column.take(rows) for key, column in columns.items()}
    return columns.take(rows)


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
