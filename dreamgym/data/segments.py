"""Random segments of fixed length, for fitting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from dreamgym.data.columns import Column

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


class SegmentSampler:
    """Draws segments whose first transition is uniform over all transitions of its episodes.

    With a frame skip of `k`, a transition of a segment spans `k` steps of the environment: the
    observations are every `k`-th, the actions between them are all kept as a block,
    `(B, L, k, ...)`, the rewards are summed, and a transition is terminal where one of its steps
    is. Where the episode ends within a block, the block's last observation is the episode's, and
    the missing actions are zero.

    Args:
        source: The columns and the episodes.
        episodes: `(K,)` indices of the episodes to draw from.
        length: `L`, at least 1, the number of transitions in a segment.
        frame_skip: `k`, at least 1.
    """

    def __init__(
        self, source: SegmentSource, episodes: Array, length: int, frame_skip: int = 1
    ) -> None:
        self.length = length
        self.frame_skip = frame_skip
        self.episodes = episodes
        self._source = source
        lengths, starts = source.lengths[episodes], source.starts[episodes]
        # Row of every transition, and steps left in its episode: one lookup each in `draw`.
        ends = np.cumsum(lengths)
        count = np.arange(lengths.sum())
        self._first = np.repeat(starts + lengths - ends, lengths) + count
        self._left = np.repeat(ends, lengths) - count
        self._steps = np.arange(length * frame_skip + 1)

    @property
    def num_transitions(self) -> int:
        """How many transitions there are to begin at."""
        return len(self._first)

    def draw(self, batch_size: int, rng: np.random.Generator) -> SegmentBatch:
        """`batch_size` segments; the same generator state gives the same segments."""
        return self.at(rng.integers(self.num_transitions, size=batch_size))

    def at(self, transitions: Array) -> SegmentBatch:
        """The segments that begin at the given transitions, `(B,)`, counted over the episodes."""
        first, left = self._first.take(transitions)[:, None], self._left.take(transitions)[:, None]
        rows, steps = first + self._steps, self._steps[:-1]
        mask = steps < left
        np.minimum(rows, first + left, out=rows)
        leaving = np.ascontiguousarray(rows[:, :-1])
        source = self._source
        batch = SegmentBatch(
            observation=_take(source.observations, rows[:, :: self.frame_skip]),
            action=source.action.take(leaving),
            reward=source.reward.take(leaving),
            terminated=source.terminal.take(leaving),
            mask=mask,
        )
        return batch if self.frame_skip == 1 else self._in_blocks(batch)

    def _in_blocks(self, batch: SegmentBatch) -> SegmentBatch:
        shape = (len(batch.mask), self.length, self.frame_skip)
        return SegmentBatch(
            observation=batch.observation,
            action=batch.action.reshape(*shape, *batch.action.shape[2:]),
            reward=batch.reward.reshape(shape).sum(axis=2),
            terminated=np.asarray(batch.terminated.reshape(shape).any(axis=2)),
            mask=batch.mask.reshape(shape)[:, :, 0],
        )


def _take(columns: Column | Mapping[str, Column], rows: Array) -> Array | dict[str, Array]:
    if isinstance(columns, Mapping):
        return {key: column.take(rows) for key, column in columns.items()}
    return columns.take(rows)
