"""Random segments of fixed length, as world models are trained on, and their prefetching."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from dreamgym.data.frame_skip import FrameSkip, borrowed_steps
from dreamgym.data.storage import Column

Array = NDArray[Any]
Item = TypeVar("Item")

_POLL_SECONDS = 0.1


class SegmentBatch(NamedTuple):
    """`B` segments of `L` transitions, that is `L + 1` observations, in raw units.

    Where a segment reaches past the end of its episode, the last observation is repeated, the other
    arrays are zero, and `mask` is False. Truncation is left out on purpose: a model must not learn
    it.

    Attributes:
        observation: `(B, L + 1, *shape)` in the space's dtype, or a dict of such arrays by key.
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


class Sampler(Protocol):
    """A source of random batches of segments."""

    def draw(self, batch_size: int, rng: np.random.Generator) -> SegmentBatch:
        """Draw `batch_size` segments; the same generator state gives the same segments."""
        ...

    def draw_distinct(self, limit: int, rng: np.random.Generator) -> SegmentBatch:
        """Draw up to `limit` segments that all begin at different transitions."""
        ...


class SegmentSource:
    """The columns that segments are read from, and the place of each episode in them.

    Args:
        observations: the observation column, or columns by key for a Dict space.
        action: rows of actions; the last row of an episode is zero.
        reward: rows of rewards; the last row of an episode is zero.
        starts: `(E,)` first row of each episode.
        lengths: `(E,)` number of transitions, `T`, of each episode.
        terminated: `(E,)` bool, whether the last observation of each episode is terminal.

    Attributes:
        in_blocks: whether the episodes are blocks of one, whose last rows are not zero.
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
        self.in_blocks = False
        self.action = action
        self.reward = reward
        self.starts = starts
        self.lengths = lengths
        num_rows = int((starts + lengths).max()) + 1 if len(starts) else 0
        self.terminal = np.zeros(num_rows, dtype=bool)
        self.terminal[(starts + lengths - 1)[terminated]] = True


class SegmentReader:
    """Reads segments at given rows.

    With a frame skip of `k`, a transition of a segment spans `k` environment steps: every `k`-th
    observation is read, rewards are summed, and a transition is terminal if one of its environment
    steps is. With `"blocks"` all actions are kept, `(B, L, k, ...)`; with `"repeated"` only the
    first of each block. A transition in which the episode terminates is kept: its next observation
    is the episode's last, and the missing actions are replaced (`frame_skip.borrowed_steps`). A
    transition in which the episode is truncated or cut off is padding.

    Args:
        source: the columns and the episodes.
        length: `L`, transitions in a segment, at least 1.
        skip: the frame skip.
    """

    def __init__(self, source: SegmentSource, length: int, skip: FrameSkip) -> None:
        self.length, self.skip = length, skip
        self._source = source
        self._offsets = np.arange(length * skip.steps + 1)

    def read(self, first: Array, left: Array) -> SegmentBatch:
        """Read the segments that begin at rows `first`.

        Args:
            first: `(B,)` first row of each segment.
            left: `(B,)` environment steps to read from there, as `usable_steps` returns them; what
                lies beyond is padding.
        """
        first, left = first[:, None], left[:, None]
        rows, offsets = first + self._offsets, self._offsets[:-1]
        mask = offsets < left
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
        if source.in_blocks:
            batch.action[~mask] = 0
            batch.reward[~mask] = 0
        return batch if self.skip.steps == 1 else self._to_blocks(batch, first)

    def _to_blocks(self, batch: SegmentBatch, first: Array) -> SegmentBatch:
        """Combine a batch of environment steps into transitions of `skip.steps` steps."""
        shape = (len(batch.mask), self.length, self.skip.steps)
        real_steps = batch.mask.reshape(shape)
        mask = np.asarray(real_steps.any(axis=2))
        actions = batch.action.reshape(*shape, *batch.action.shape[2:])
        actions[~real_steps] = 0
        if self.skip.actions == "repeated":
            actions = actions[:, :, 0]
        else:
            missing = np.asarray(mask[:, :, None] & ~real_steps)
            if missing.any():
                actions[missing] = self._borrowed_actions(missing, first)
        return SegmentBatch(
            observation=batch.observation,
            action=actions,
            reward=np.where(real_steps, batch.reward.reshape(shape), 0).sum(axis=2),
            terminated=np.asarray((batch.terminated.reshape(shape) & real_steps).any(axis=2)),
            mask=mask,
        )

    def _borrowed_actions(self, missing: Array, first: Array) -> Array:
        """Return actions for the environment steps of a block that follow a termination."""
        source = self._source
        segment, block, step = np.nonzero(missing)
        row = first[segment, 0] + block * self.skip.steps + step
        episode = np.searchsorted(source.starts, first[segment, 0], side="right") - 1
        start, length = source.starts[episode], source.lengths[episode]
        return source.action.take((start + borrowed_steps(row - start, length))[:, None])[:, 0]


def usable_steps(left: Array, terminated: Array, skip: FrameSkip) -> Array:
    """Return how many of the `left` environment steps of an episode belong to transitions.

    An incomplete last block counts only if the episode terminates in it.
    """
    return np.where(terminated, left, left - left % skip.steps)


class SegmentSampler:
    """Draws segments whose first transition is uniform over all transitions of the episodes.

    With a frame skip a segment may begin at any environment step that a whole transition follows;
    with repeated actions only at every `k`-th step of an episode, where a new action was chosen.

    Args:
        source: the columns and the episodes.
        episodes: `(K,)` indices of the episodes to draw from.
        length: `L`, transitions in a segment, at least 1.
        skip: the frame skip, see `SegmentReader`; none by default.

    Raises:
        ValueError: the episodes hold no whole transition.
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
            self._keep_whole_transitions(skip, np.repeat(lengths, lengths), source)

    @property
    def num_transitions(self) -> int:
        """Number of transitions at which a segment may begin."""
        return len(self._first)

    def draw(self, batch_size: int, rng: np.random.Generator) -> SegmentBatch:
        """Draw `batch_size` segments; the same generator state gives the same segments."""
        return self.at(rng.integers(self.num_transitions, size=batch_size))

    def draw_distinct(self, limit: int, rng: np.random.Generator) -> SegmentBatch:
        """Draw up to `limit` segments that all begin at different transitions, in random order."""
        count = min(limit, self.num_transitions)
        return self.at(rng.choice(self.num_transitions, count, replace=False))

    def at(self, transitions: Array) -> SegmentBatch:
        """Return the segments that begin at given transitions.

        Args:
            transitions: `(B,)` indices, counted through the episodes.
        """
        return self._reader.read(self._first.take(transitions), self._left.take(transitions))

    def _keep_whole_transitions(
        self, skip: FrameSkip, lengths: Array, source: SegmentSource
    ) -> None:
        terminated = source.terminal.take(self._first + self._left - 1)
        left = usable_steps(self._left, terminated, skip)
        keep = left > 0
        if skip.actions == "repeated":
            keep &= (lengths - self._left) % skip.steps == 0
        self._first, self._left = self._first[keep], left[keep]
        if not len(self._first):
            raise ValueError(f"no episode has the {skip.steps} steps of one transition")


def prefetch(
    sampler: Sampler, batch_size: int, rng: np.random.Generator, *, buffer_size: int = 2
) -> Generator[SegmentBatch, None, None]:
    """Draw batches endlessly in a background thread.

    The batches are those that calling `sampler.draw` repeatedly would return.

    Args:
        sampler: source of the batches.
        batch_size: segments in a batch.
        rng: generator for the draws; used by the thread until the iterator is closed.
        buffer_size: batches to hold ready, see `prefetch_items`.

    Raises:
        Exception: whatever drawing raises, at the batch where it happens.
    """

    def batches() -> Iterator[SegmentBatch]:
        while True:
            yield sampler.draw(batch_size, rng)

    return prefetch_items(batches(), buffer_size=buffer_size)


def prefetch_items(items: Iterator[Item], *, buffer_size: int = 2) -> Generator[Item, None, None]:
    """Iterate over `items`, computing the next ones in a background thread.

    One thread is enough: positioned reads release the GIL while the system copies, and more
    threads or worker processes were slower in every measurement. Closing the generator, or dropping
    the last reference to it, ends the thread.

    Args:
        items: iterator to read; used by the thread until the generator is closed.
        buffer_size: items to hold ready at most; memory is bounded by two items more.

    Raises:
        Exception: whatever computing an item raises, at the item where it happens.
    """
    ready: queue.Queue[Item | _Failure | None] = queue.Queue(maxsize=buffer_size)
    stop = threading.Event()

    def put(item: Item | _Failure | None) -> None:
        while not stop.is_set():
            try:
                ready.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return

    def work() -> None:
        try:
            for item in items:
                put(item)
                if stop.is_set():
                    return
            put(None)
        except BaseException as error:  # raised again by the consumer
            put(_Failure(error))

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
    """An exception of the worker thread, on its way to the consumer."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _take(columns: Column | Mapping[str, Column], rows: Array) -> Array | dict[str, Array]:
    if isinstance(columns, Mapping):
        return {key: column.take(rows) for key, column in columns.items()}
    return columns.take(rows)
