"""What an opened dataset says about itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dreamgym._files import partial_path, refuse_unfinished
from dreamgym.data import layout
from dreamgym.data.episodes import Episode
from dreamgym.data.formats import ForeignOptions
from dreamgym.data.formats.source import open_source
from dreamgym.data.frame_skip import FrameSkip
from dreamgym.data.hdf5.reader import open_snapshot
from dreamgym.data.metadata import DatasetMetadata
from dreamgym.data.segments import (
    SegmentBatch,
    SegmentReader,
    SegmentSampler,
    SegmentSource,
    usable,
)
from dreamgym.data.statistics import episode_returns
from dreamgym.data.storage import EpisodeTable, Source, for_models
from dreamgym.errors import DatasetError


class Described:
    """Gives the fields of `metadata` by their own names."""

    metadata: DatasetMetadata

    @property
    def observation_space(self) -> gym.Space[Any]:
        """Of one environment."""
        return self.metadata.observation_space

    @property
    def action_space(self) -> gym.Space[Any]:
        """Of one environment."""
        return self.metadata.action_space

    @property
    def env_spec(self) -> str | None:
        """JSON of Gymnasium's `EnvSpec`."""
        return self.metadata.env_spec

    @property
    def env_id(self) -> str | None:
        """Id of the environment that it was recorded from."""
        return self.metadata.env_id

    @property
    def policy(self) -> str:
        """What chose the actions, in words."""
        return self.metadata.policy

    @property
    def frame_skip(self) -> FrameSkip:
        """None of it; see `SkippedDataset`."""
        return FrameSkip()


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
            observations if is_dict else observations[layout.SINGLE_KEY],
            action=for_models(self._source.action),
            reward=self._source.reward,
            starts=self._table.start,
            lengths=self._table.length,
            terminated=self._table.terminated,
        )


DEFAULT_MEMORY = 1 << 30  # bytes


class Dataset(Segmented):
    """A dataset of episodes, opened for reading.

    Small observations are held in memory; larger ones than `memory` stay in the file and are read
    when asked for. What is held is checked at once, episode by episode: checksum, NaN and
    infinities, actions outside their space. What stays in the file is checked when an episode of
    it is first read by `episode`, or by `verify`; `fit` does so before its first update.

    Args:
        path: The file, or a folder of them (shards).
        on_bad: What to do with a bad episode: `"raise"` (the default), or `"skip"` it and list it
            in `skipped`. The file is never changed.
        memory: Bytes of observations to hold in memory at most.
        foreign: What a foreign dataset does not say by itself.
        keys: Observation keys to use, of a Dict space; all where it is not given.

    Raises:
        DatasetError: It is no dataset, it is damaged, an episode is bad, or there is no such key;
            the message names path, key, episode and row.
        UnsupportedSpaceError: It has a space that this dreamgym does not know.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        on_bad: Literal["raise", "skip"] = "raise",
        memory: int = DEFAULT_MEMORY,
        foreign: ForeignOptions | None = None,
        keys: Sequence[str] | None = None,
    ) -> None:
        if on_bad not in ("raise", "skip"):
            raise ValueError(f"on_bad is {on_bad!r}; it must be 'raise' or 'skip'")
        given = Path(path)
        refuse_unfinished(given)
        source, self.skipped = open_source(given, memory, foreign or ForeignOptions(), on_bad)
        self._adopt(source, on_bad, keys)

    @classmethod
    def snapshot(cls, path: str | os.PathLike[str], *, memory: int = DEFAULT_MEMORY) -> Dataset:
        """The episodes committed so far of a recording that is still going on, or was killed.

        Args:
            path: The dataset that is being made, or its `.partial` file.
            memory: As for `Dataset`.
        """
        given = Path(path)
        where = given if given.exists() else partial_path(given)
        dataset = cls.__new__(cls)
        dataset.skipped = []
        dataset._adopt(open_snapshot(where, memory), "raise")
        return dataset

    def _adopt(self, source: Source, on_bad: str, keys: Sequence[str] | None = None) -> None:
        self._source = source
        self.path = source.path
        self.metadata = source.metadata
        try:
            self._keep_good(on_bad)
            self._segment_source = self._make_segment_source()
            if keys is not None:
                self._segment_source = self._make_segment_source(keys)
                self.metadata = source.metadata.with_keys(keys)
        except BaseException:
            source.close()
            raise

    @property
    def in_memory(self) -> bool:
        """Nothing is read from the file any more."""
        return self._source.in_memory

    @property
    def selection(self) -> dict[str, Any]:
        """What of the dataset is used, JSON-plain; empty where all of it is."""
        if self.metadata is self._source.metadata:
            return {}
        return {"keys": list(self.metadata.observation_boxes())}

    @property
    def num_episodes(self) -> int:
        """Episodes, those cut off included, skipped ones not."""
        return len(self._table)

    @property
    def num_steps(self) -> int:
        """Transitions in all episodes."""
        return self._table.num_steps

    @property
    def lengths(self) -> Array:
        """`(E,)` int64, transitions in each episode."""
        return self._table.length

    @property
    def returns(self) -> Array:
        """`(E,)` float64, undiscounted return of each episode."""
        return episode_returns(self._source.reward, self._table)

    @property
    def checksum(self) -> str:
        """SHA-256, in hexadecimal, over the checksums of the episodes."""
        return self._table.checksum

    def __len__(self) -> int:
        return self.num_episodes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file. What is held in memory stays usable."""
        self._source.close()

    def episode(self, index: int) -> Episode:
        """One episode, in fresh arrays.

        Args:
            index: From 0; negative ones count from the end.

        Raises:
            IndexError: There is no such episode.
            DatasetError: It stays in the file, is read for the first time, and is bad.
        """
        if not -self.num_episodes <= index < self.num_episodes:
            raise IndexError(f"episode {index} of {self.num_episodes} in {self.path}")
        self._verify(index)
        header = self._table.header(index)
        start, length = header["start"], header["length"]
        stop = start + length
        observations = {
            key: self._source.observations[key].read(start, stop + 1).copy()
            for key in self.metadata.observation_boxes()
        }
        is_dict = isinstance(self.observation_space, spaces.Dict)
        return Episode(
            observations=observations if is_dict else observations[layout.SINGLE_KEY],
            actions=self._source.action.read(start, stop).copy(),
            rewards=self._source.reward.read(start, stop).copy(),
            terminated=bool(header["terminated"]),
            truncated=bool(header["truncated"]),
            complete=bool(header["complete"]),
            seed=None if header["seed"] == layout.NO_SEED else header["seed"],
            env_index=header["env_index"],
        )

    def split(self, held_out: float = 0.1, seed: int = 0) -> tuple[Array, Array]:
        """Divide the episodes into those to fit on and those held out; never a window of both.

        Args:
            held_out: Share of the episodes to hold out, in (0, 1); at least one is, and one is not.
            seed: Of the shuffle; the same seed gives the same split.

        Returns:
            Two rising int64 arrays of episode indices: to fit on, and held out.

        Raises:
            DatasetError: There are fewer than two episodes.
        """
        return split_episodes(self, held_out, seed)

    def verify(self) -> None:
        """Verify every episode that was not yet, and raise at the first bad one.

        Opening verifies what is held in memory; this does the rest, at the speed of the disk.
        """
        for index in np.flatnonzero(~self._verified).tolist():
            self._verify(index)

    def _verify(self, index: int) -> None:
        if self._verified[index]:
            return
        for error in self._source.audit_episode(int(self._numbers[index])):
            raise error.at(path=self.path)
        self._verified[index] = True

    def _keep_good(self, on_bad: str) -> None:
        self._table = self._source.table
        bad = set()
        for error in self._source.audit(self._source.held()):
            if on_bad == "raise":
                raise error.at(path=self.path)
            bad.add(error.episode)
            self.skipped.append(str(error.at(path=self.path)))
        # Where each episode stands in the file.
        self._numbers = np.array([i for i in range(len(self._table)) if i not in bad], np.int64)
        if not len(self._numbers):
            raise DatasetError(f"all {len(bad)} episodes are bad", path=self.path)
        if bad:
            self._table = self._table.select(self._numbers)
        self._verified = np.full(len(self._numbers), self.in_memory)


def split_episodes(dataset: Any, held_out: float, seed: int) -> tuple[Array, Array]:
    """See `Dataset.split`; of anything with episodes and a path."""
    count = dataset.num_episodes
    if not 0.0 < held_out < 1.0:
        raise ValueError(f"held_out is {held_out}; it must lie between 0 and 1")
    if count < 2:
        problem = f"it has {count} episode; at least 2 are needed to hold one out"
        raise DatasetError(problem, path=dataset.path, remedy="record more steps")
    kept = min(max(1, round(held_out * count)), count - 1)
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[kept:]), np.sort(order[:kept])
