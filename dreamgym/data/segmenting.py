"""How a dataset gives segments, windows and bare actions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dreamgym.data import schema
from dreamgym.data.columns import for_models
from dreamgym.data.described import Described
from dreamgym.data.errors import DatasetError
from dreamgym.data.frame_skip import FrameSkip
from dreamgym.data.segments import (
    SegmentBatch,
    SegmentReader,
    SegmentSampler,
    SegmentSource,
    usable,
)
from dreamgym.data.source import Source
from dreamgym.data.table import EpisodeTable

Array = NDArray[Any]


class Segmented(Described):
    """Segments of the episodes of a table, whose rows lie in a source."""

    path: Path
    _source: Source
    _table: EpisodeTable
    _segment_source: SegmentSource

    def segments(
        self,
        episodes: Sequence[int] | Array,
        length: int,
        *,
        frame_skip: int | FrameSkip = 1,
        keys: Sequence[str] | None = None,
    ) -> SegmentSampler:
        """A sampler of segments of some of the episodes.

        Args:
            episodes: Their indices.
            length: `L`, transitions in a segment, at least 1.
            frame_skip: Steps of the environment in one transition, see `SegmentReader`.
            keys: Observation keys to read, of a Dict space; all where it is not given.

        Raises:
            DatasetError: There are no episodes to draw from, none as long as a transition, or no
                such observation key.
            IndexError: One of them does not exist.
            ValueError: `length` or `frame_skip` is below 1.
        """
        if length < 1:
            raise ValueError(f"length is {length}; a segment has at least 1 transition")
        skip = frame_skip if isinstance(frame_skip, FrameSkip) else FrameSkip(steps=frame_skip)
        chosen = self._indices(episodes)
        if not len(chosen):
            raise DatasetError("there are no episodes to draw segments from", path=self.path)
        source = self._segment_source if keys is None else self._make_segment_source(keys)
        try:
            return SegmentSampler(source, chosen, length, skip)
        except ValueError as error:
            raise DatasetError(str(error), path=self.path, remedy="skip fewer frames") from None

    def windows(
        self,
        episodes: Sequence[int] | Array,
        steps: Sequence[int] | Array,
        length: int,
        *,
        frame_skip: FrameSkip | None = None,
    ) -> SegmentBatch:
        """The segments that begin at given places; of the file, only their rows are read.

        What stays in the file is not verified by this, see `verify`.

        Args:
            episodes: `(B,)` indices.
            steps: `(B,)` steps of those episodes, each below its length.
            length: `L`, transitions in a segment, at least 1.
            frame_skip: See `SegmentReader`.

        Raises:
            IndexError: There is no such episode, or it has no such step.
        """
        chosen, begin = self._indices(episodes), np.asarray(steps, dtype=np.int64)
        skip = frame_skip or FrameSkip()
        left = self._table.length[chosen] - begin
        if (begin < 0).any() or (left < 1).any():
            raise IndexError(f"steps {begin.tolist()} are not all in episodes {chosen.tolist()}")
        left = usable(left, self._table.terminated[chosen], skip)
        reader = SegmentReader(self._segment_source, length, skip)
        return reader.read(self._table.start[chosen] + begin, left)

    def actions(self, index: int) -> Array:
        """The actions of one episode, `(T, ...)`, as models take them."""
        (chosen,) = self._indices([index])
        start = int(self._table.start[chosen])
        return self._segment_source.action.read(start, start + int(self._table.length[chosen]))

    @property
    def terminated(self) -> Array:
        """`(E,)` bool, whether the last observation of each episode is terminal."""
        return self._table.terminated

    def _indices(self, episodes: Sequence[int] | Array) -> Array:
        chosen = np.asarray(episodes, dtype=np.int64).reshape(-1)
        if len(chosen) and (chosen.min() < 0 or chosen.max() >= len(self._table)):
            raise IndexError(f"episodes {chosen.min()} to {chosen.max()} of {len(self._table)}")
        return chosen

    def _make_segment_source(self, keys: Sequence[str] | None = None) -> SegmentSource:
        observations = self._source.observations
        is_dict = isinstance(self.observation_space, spaces.Dict)
        if keys is not None:
            missing = [key for key in keys if key not in observations or not is_dict]
            if missing or not keys:
                raise DatasetError(
                    f"it has no observation keys {missing}; it has "
                    f"{list(observations) if is_dict else 'none, for its space is no Dict'}",
                    path=self.path,
                )
            observations = {key: column for key, column in observations.items() if key in keys}
        return SegmentSource(
            observations if is_dict else observations[schema.SINGLE_KEY],
            action=for_models(self._source.action),
            reward=self._source.reward,
            starts=self._table.start,
            lengths=self._table.length,
            terminated=self._table.terminated,
        )
