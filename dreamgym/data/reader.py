"""Reading a dataset: episodes, splits and random segments."""

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

from dreamgym.data import schema
from dreamgym.data.aside import partial_path, refuse_unfinished
from dreamgym.data.columns import for_models
from dreamgym.data.episode import Episode
from dreamgym.data.errors import DatasetError
from dreamgym.data.foreign_source import is_foreign, open_in_memory
from dreamgym.data.formats import ForeignOptions
from dreamgym.data.native import open_native, open_snapshot
from dreamgym.data.schema import DatasetMetadata
from dreamgym.data.segments import SegmentSampler, SegmentSource
from dreamgym.data.shards import open_shards
from dreamgym.data.source import Source
from dreamgym.data.statistics import episode_returns

Array = NDArray[Any]
DEFAULT_MEMORY = 1 << 30  # bytes


class Dataset:
    """A dataset of episodes, opened for reading.

    Small observations are held in memory; larger ones than `memory` stay in the file and are read
    when asked for. What is held is checked at once, episode by episode: checksum, NaN and
    infinities, actions outside their space.

    Args:
        path: The file, or a folder of them (shards).
        on_bad: What to do with a bad episode: `"raise"` (the default), or `"skip"` it and list it
            in `skipped`. The file is never changed.
        memory: Bytes of observations to hold in memory at most.
        foreign: What a foreign dataset does not say by itself; such a one is read into memory.

    Raises:
        DatasetError: It is no dataset, it is damaged, or an episode is bad; the message names path,
            key, episode and row.
        UnsupportedSpaceError: It has a space that this dreamgym does not know.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        on_bad: Literal["raise", "skip"] = "raise",
        memory: int = DEFAULT_MEMORY,
        foreign: ForeignOptions | None = None,
    ) -> None:
        if on_bad not in ("raise", "skip"):
            raise ValueError(f"on_bad is {on_bad!r}; it must be 'raise' or 'skip'")
        given = Path(path)
        refuse_unfinished(given)
        self.skipped: list[str] = []
        if is_foreign(given):
            options = foreign or ForeignOptions()
            source, self.skipped = open_in_memory(given, memory, options, on_bad)
        else:
            source = (open_shards if given.is_dir() else open_native)(given, memory)
        self._adopt(source, on_bad)

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

    def _adopt(self, source: Source, on_bad: str) -> None:
        self._source = source
        self.path = source.path
        self.metadata: DatasetMetadata = source.metadata
        try:
            self._keep_good(on_bad)
        except BaseException:
            source.close()
            raise
        self._segment_source = self._make_segment_source()

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
        """
        if not -self.num_episodes <= index < self.num_episodes:
            raise IndexError(f"episode {index} of {self.num_episodes} in {self.path}")
        header = self._table.header(index)
        start, length = header["start"], header["length"]
        stop = start + length
        observations = {
            key: column.read(start, stop + 1).copy()
            for key, column in self._source.observations.items()
        }
        is_dict = isinstance(self.observation_space, spaces.Dict)
        return Episode(
            observations=observations if is_dict else observations[schema.SINGLE_KEY],
            actions=self._source.action.read(start, stop).copy(),
            rewards=self._source.reward.read(start, stop).copy(),
            terminated=bool(header["terminated"]),
            truncated=bool(header["truncated"]),
            complete=bool(header["complete"]),
            seed=None if header["seed"] == schema.NO_SEED else header["seed"],
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
        if not 0.0 < held_out < 1.0:
            raise ValueError(f"held_out is {held_out}; it must lie between 0 and 1")
        if self.num_episodes < 2:
            problem = f"it has {self.num_episodes} episode; at least 2 are needed to hold one out"
            raise DatasetError(problem, path=self.path, remedy="record more steps")
        count = min(max(1, round(held_out * self.num_episodes)), self.num_episodes - 1)
        order = np.random.default_rng(seed).permutation(self.num_episodes)
        return np.sort(order[count:]), np.sort(order[:count])

    def verify(self) -> None:
        """Read everything, also what stays in the file, and raise at the first bad episode.

        Opening verifies what is held in memory; this does the rest, at the speed of the disk.

        Raises:
            DatasetError: A checksum does not fit, or a value is not finite.
        """
        for error in self._source.audit():
            raise error.at(path=self.path)

    def segments(
        self,
        episodes: Sequence[int] | Array,
        length: int,
        *,
        frame_skip: int = 1,
        keys: Sequence[str] | None = None,
    ) -> SegmentSampler:
        """A sampler of segments of some of the episodes.

        Args:
            episodes: Their indices.
            length: `L`, transitions in a segment, at least 1.
            frame_skip: Steps of the environment in one transition, see `SegmentSampler`.
            keys: Observation keys to read, of a Dict space; all where it is not given.

        Raises:
            DatasetError: There are no episodes to draw from, or no such observation key.
            IndexError: One of them does not exist.
            ValueError: `length` or `frame_skip` is below 1.
        """
        if length < 1:
            raise ValueError(f"length is {length}; a segment has at least 1 transition")
        if frame_skip < 1:
            raise ValueError(f"frame_skip is {frame_skip}; at least 1")
        chosen = np.asarray(episodes, dtype=np.int64).reshape(-1)
        if not len(chosen):
            raise DatasetError("there are no episodes to draw segments from", path=self.path)
        if chosen.min() < 0 or chosen.max() >= self.num_episodes:
            raise IndexError(f"episodes {chosen.min()} to {chosen.max()} of {self.num_episodes}")
        source = self._segment_source if keys is None else self._make_segment_source(keys)
        return SegmentSampler(source, chosen, length, frame_skip)

    def _keep_good(self, on_bad: str) -> None:
        self._table = self._source.table
        bad = set()
        for error in self._source.audit(self._source.held()):
            if on_bad == "raise":
                raise error.at(path=self.path)
            bad.add(error.episode)
            self.skipped.append(str(error.at(path=self.path)))
        if bad:
            good = [index for index in range(len(self._table)) if index not in bad]
            if not good:
                raise DatasetError(f"all {len(bad)} episodes are bad", path=self.path)
            self._table = self._table.select(np.array(good))

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
            observations = {key: observations[key] for key in keys}
        return SegmentSource(
            observations if is_dict else observations[schema.SINGLE_KEY],
            action=for_models(self._source.action),
            reward=self._source.reward,
            starts=self._table.start,
            lengths=self._table.length,
            terminated=self._table.terminated,
        )
