"""Reading a dataset: episodes, splits and random segments."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dreamgym.data import schema
from dreamgym.data.aside import partial_path, refuse_unfinished
from dreamgym.data.episode import Episode
from dreamgym.data.errors import DatasetError
from dreamgym.data.foreign_source import is_foreign, open_directly
from dreamgym.data.formats import ForeignOptions
from dreamgym.data.native import open_native, open_snapshot
from dreamgym.data.segmenting import Segmented
from dreamgym.data.shards import open_shards
from dreamgym.data.source import Source
from dreamgym.data.statistics import episode_returns

Array = NDArray[Any]
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
        self.skipped: list[str] = []
        if is_foreign(given):
            options = foreign or ForeignOptions()
            source, self.skipped = open_directly(given, memory, options, on_bad)
        else:
            source = (open_shards if given.is_dir() else open_native)(given, memory)
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
