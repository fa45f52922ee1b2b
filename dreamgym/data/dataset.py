"""A dataset of episodes, opened for reading."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dreamgym._files import ClosingContext, local_path, partial_path
from dreamgym.data import layout
from dreamgym.data.bounds import OutsideChannel, outside_observations
from dreamgym.data.episodes import Episode
from dreamgym.data.formats import ForeignOptions
from dreamgym.data.formats.source import open_source
from dreamgym.data.frame_skip import FrameSkip
from dreamgym.data.hdf5.reader import open_snapshot
from dreamgym.data.policies import draws_at_random
from dreamgym.data.segments import (
    SegmentBatch,
    SegmentReader,
    SegmentSampler,
    SegmentSource,
    usable_steps,
)
from dreamgym.data.statistics import episode_returns
from dreamgym.data.storage import Source, as_model_actions
from dreamgym.data.teaching import Lessons
from dreamgym.errors import DatasetError

Array = NDArray[Any]

DEFAULT_MEMORY = 1 << 30  # bytes

MAX_BLOCKS, MIN_BLOCK = 20, 32
"""Number of blocks that a single episode is cut into, and the transitions that a block has."""


class Dataset(ClosingContext):
    """A dataset of episodes, opened for reading.

    Observations are held in memory up to `memory` bytes; the rest stays in the file and is read on
    demand. What is held is verified when the dataset is opened, episode by episode: checksum, NaN
    and infinities, actions outside their space. An episode that stays in the file is verified when
    `episode` first reads it, or by `verify`; `fit` verifies everything before its first update.

    Args:
        path: a file, or a folder of shards; native or foreign.
        on_bad: what to do with a bad episode: `"raise"` (the default), or `"skip"` it and list it
            in `skipped`. The file is never changed.
        memory: bytes of observations to hold in memory at most.
        foreign: what a foreign dataset does not say about itself.
        keys: observation keys of a Dict space to use; all by default. Of a nested name such as
            `observation.state`, the last part will do.

    Raises:
        DatasetError: the path is not a dataset, it is damaged, an episode is bad, or a key does not
            exist; the message names path, key, episode and row.
        UnsupportedSpaceError: the dataset has a space that this version does not support.
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
        source, self.skipped = open_source(local_path(path), memory, foreign, on_bad)
        self._read_from(source, on_bad, keys)

    @classmethod
    def snapshot(cls, path: str | os.PathLike[str], *, memory: int = DEFAULT_MEMORY) -> Dataset:
        """Open the episodes committed so far of a recording that is running or was killed.

        Args:
            path: the dataset being recorded, or its `.partial` file.
            memory: bytes of observations to hold in memory at most.
        """
        path = local_path(path)
        dataset = cls.__new__(cls)
        dataset.skipped = []
        source = open_snapshot(path if path.exists() else partial_path(path), memory)
        dataset._read_from(source, "raise")
        return dataset

    def _read_from(self, source: Source, on_bad: str, keys: Sequence[str] | None = None) -> None:
        self._source = source
        self.path = source.path
        self.metadata = source.metadata
        try:
            self._keep_good_episodes(on_bad)
            if keys is not None:
                keys = [_full_key(key, list(source.observations)) for key in keys]
            self._segment_source = self._make_segment_source(keys)
            if keys is not None:
                self.metadata = source.metadata.with_keys(keys)
        except BaseException:
            source.close()
            raise

    def _keep_good_episodes(self, on_bad: str) -> None:
        self._table = self._source.table
        bad = set()
        for error in self._source.audit(self._source.memory_columns()):
            if on_bad == "raise":
                raise error.at(path=self.path)
            bad.add(error.episode)
            self.skipped.append(str(error.at(path=self.path)))
        # Index in the source of each episode that is kept.
        self._numbers = np.array([i for i in range(len(self._table)) if i not in bad], np.int64)
        if not len(self._numbers):
            raise DatasetError(f"all {len(bad)} episodes are bad", path=self.path)
        if bad:
            self._table = self._table.select(self._numbers)
        self._verified = np.full(len(self._numbers), self.in_memory)

    @property
    def observation_space(self) -> gym.Space[Any]:
        """Observation space of one environment."""
        return self.metadata.observation_space

    @property
    def action_space(self) -> gym.Space[Any]:
        """Action space of one environment."""
        return self.metadata.action_space

    @property
    def env_spec(self) -> str | None:
        """JSON of Gymnasium's `EnvSpec`."""
        return self.metadata.env_spec

    @property
    def env_id(self) -> str | None:
        """Id of the recorded environment."""
        return self.metadata.env_id

    @property
    def policy(self) -> str:
        """Name of the policy that chose the actions."""
        return self.metadata.policy

    @property
    def random_actions(self) -> Array:
        """`(E,)` bool, whether the actions of each episode were drawn at random."""
        policies = self._source.policies or ((self.policy, len(self._source.table)),)
        names, counts = zip(*policies, strict=True)
        return np.repeat([draws_at_random(name) for name in names], counts)[self._numbers]

    @property
    def frame_skip(self) -> FrameSkip:
        """No frame skip; `SkippedDataset` has one."""
        return FrameSkip()

    @property
    def in_memory(self) -> bool:
        """Whether all rows are held in memory."""
        return self._source.in_memory

    @property
    def selection(self) -> dict[str, Any]:
        """Which part of the dataset is used, JSON-plain; empty for all of it."""
        if self.metadata is self._source.metadata:
            return {}
        return {"keys": list(self.metadata.observation_columns())}

    @property
    def problems(self) -> tuple[str, ...]:
        """Reasons for which fitting refuses the dataset as a whole, from its conversion."""
        return self.metadata.problems

    @property
    def num_episodes(self) -> int:
        """Number of episodes: cut-off ones are counted, skipped ones are not."""
        return len(self._table)

    @property
    def num_steps(self) -> int:
        """Number of transitions in all episodes."""
        return self._table.num_steps

    @property
    def lengths(self) -> Array:
        """`(E,)` int64, number of transitions of each episode."""
        return self._table.length

    @property
    def terminated(self) -> Array:
        """`(E,)` bool, whether the last observation of each episode is terminal."""
        return self._table.terminated

    @property
    def time_limit(self) -> int | None:
        """Environment steps after which episodes are truncated, as the data shows it, or None.

        It is the one length that all truncated episodes have, if there are at least two of them and
        no episode is longer.
        """
        table = self._table
        lengths = table.length[table.truncated & table.complete & ~table.terminated]
        same = len(lengths) > 1 and (lengths == lengths[0]).all()
        return int(lengths[0]) if same and lengths[0] == table.length.max() else None

    @property
    def returns(self) -> Array:
        """`(E,)` float64, undiscounted return of each episode."""
        return episode_returns(self._source.reward, self._table)

    @property
    def checksum(self) -> str:
        """SHA-256 over the checksums of the episodes, in hexadecimal."""
        return self._source.table.select(np.unique(self._numbers)).checksum

    def __len__(self) -> int:
        return self.num_episodes

    def close(self) -> None:
        """Close the files. Rows held in memory stay usable."""
        self._source.close()

    def episode(self, index: int) -> Episode:
        """Return one episode, in fresh arrays.

        Args:
            index: episode index from 0; negative ones count from the end.

        Raises:
            IndexError: there is no such episode.
            DatasetError: the episode stays in the file, is read for the first time, and is bad.
        """
        if not -self.num_episodes <= index < self.num_episodes:
            raise IndexError(f"episode {index} of {self.num_episodes} in {self.path}")
        self._verify_episode(index)
        header = self._table.header(index)
        start, length = header["start"], header["length"]
        stop = start + length
        observations = {
            key: self._source.observations[key].read(start, stop + 1).copy()
            for key in self.metadata.observation_columns()
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

    def actions(self, index: int) -> Array:
        """Return the actions of one episode, `(T, ...)`, in the dtype that models take."""
        (number,) = self._check_indices([index])
        start = int(self._table.start[number])
        return self._segment_source.action.read(start, start + int(self._table.length[number]))

    def split(self, held_out: float = 0.1, seed: int = 0) -> tuple[Array, Array]:
        """Split the episodes into training and held-out ones; an episode is never divided.

        Args:
            held_out: share of the episodes to hold out, in (0, 1); at least one episode is held
                out, and at least one is not.
            seed: seed of the shuffle; the same seed gives the same split.

        Returns:
            Two sorted int64 arrays of episode indices: training, and held out.

        Raises:
            DatasetError: there are fewer than two episodes.
        """
        return split_episodes(self.num_episodes, self.path, held_out, seed)

    def in_blocks(self, frame_skip: int = 1) -> Dataset:
        """Return this dataset with its only episode cut into blocks that count as episodes.

        So some of a single long episode can be held out. There are up to 20 blocks of at least 32
        transitions, and the transition between two of them is dropped, so that no observation is in
        both. All but the last block are cut off: neither terminated nor truncated.

        Args:
            frame_skip: environment steps in one transition.

        Returns:
            A dataset on the same open file; the dataset itself where it has several episodes, or
            is too short for two blocks.
        """
        table = self._table
        steps = int(table.length[0]) // frame_skip
        count = min(MAX_BLOCKS, steps // MIN_BLOCK)
        if len(table) > 1 or count < 2:
            return self
        stride = steps // count * frame_skip
        start = np.arange(count, dtype=np.int64) * stride
        length = np.full(count, stride - frame_skip, np.int64)
        length[-1] = int(table.length[0]) - int(start[-1])
        is_last = np.arange(count) == count - 1
        blocks = copy.copy(self)
        blocks._numbers = np.full(count, self._numbers[0])
        blocks._verified = np.full(count, self._verified[0])
        blocks._table = replace(
            table.select(np.zeros(count, np.int64)),
            start=int(table.start[0]) + start,
            length=length,
            terminated=is_last & table.terminated,
            truncated=is_last & table.truncated,
            complete=is_last & table.complete,
        )
        blocks._segment_source = blocks._make_segment_source(self.selection.get("keys"))
        return blocks

    def segments(
        self,
        episodes: Sequence[int] | Array,
        length: int,
        *,
        frame_skip: int | FrameSkip = 1,
        keys: Sequence[str] | None = None,
    ) -> SegmentSampler:
        """Return a sampler of segments of some episodes.

        Args:
            episodes: episode indices.
            length: `L`, transitions in a segment, at least 1.
            frame_skip: environment steps in one transition, see `SegmentReader`.
            keys: observation keys of a Dict space to read; by default those of the dataset.

        Raises:
            DatasetError: there are no episodes, none is long enough for a transition, or a key does
                not exist.
            IndexError: an episode does not exist.
            ValueError: `length` or `frame_skip` is below 1.
        """
        if length < 1:
            raise ValueError(f"length is {length}; a segment has at least 1 transition")
        skip = frame_skip if isinstance(frame_skip, FrameSkip) else FrameSkip(steps=frame_skip)
        numbers = self._check_indices(episodes)
        if not len(numbers):
            raise DatasetError("there are no episodes to draw segments from", path=self.path)
        source = self._segment_source if keys is None else self._make_segment_source(keys)
        try:
            return SegmentSampler(source, numbers, length, skip)
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
        """Return the segments at given places; only their rows are read from the file.

        Rows that stay in the file are not verified, see `verify`.

        Args:
            episodes: `(B,)` episode indices.
            steps: `(B,)` first step of each segment in its episode.
            length: `L`, transitions in a segment, at least 1.
            frame_skip: the frame skip, see `SegmentReader`; none by default.

        Raises:
            IndexError: an episode does not exist, or does not have such a step.
        """
        numbers, first_steps = self._check_indices(episodes), np.asarray(steps, dtype=np.int64)
        skip = frame_skip or FrameSkip()
        left = self._table.length[numbers] - first_steps
        if (first_steps < 0).any() or (left < 1).any():
            raise IndexError(
                f"steps {first_steps.tolist()} are not all within episodes {numbers.tolist()}"
            )
        left = usable_steps(left, self._table.terminated[numbers], skip)
        reader = SegmentReader(self._segment_source, length, skip)
        return reader.read(self._table.start[numbers] + first_steps, left)

    def verify(self) -> None:
        """Verify every episode that has not been verified yet.

        Opening verifies what is held in memory; this reads the rest, at the speed of the disk.

        Raises:
            DatasetError: an episode is bad; the first one is named.
        """
        for index in np.flatnonzero(~self._verified).tolist():
            self._verify_episode(index)

    def outside_observations(self) -> dict[str, list[OutsideChannel]]:
        """Return the channels with values outside their bounds, by observation key."""
        outside = outside_observations(self._source)
        return {key: outside[key] for key in self.metadata.observation_columns()}

    def lessons(self) -> list[Lessons]:
        """Return its rewards, actions and ends, for the findings of `data.teaching`."""
        return [Lessons.of_source(self._source)]

    def _verify_episode(self, index: int) -> None:
        if self._verified[index]:
            return
        for error in self._source.audit_episode(int(self._numbers[index])):
            raise error.at(path=self.path)
        self._verified[self._numbers == self._numbers[index]] = True

    def _check_indices(self, episodes: Sequence[int] | Array) -> Array:
        numbers = np.asarray(episodes, dtype=np.int64).reshape(-1)
        if len(numbers) and (numbers.min() < 0 or numbers.max() >= len(self._table)):
            raise IndexError(
                f"episodes {numbers.min()} to {numbers.max()}: the dataset has {len(self._table)}"
            )
        return numbers

    def _make_segment_source(self, keys: Sequence[str] | None) -> SegmentSource:
        observations = self._source.observations
        is_dict = isinstance(self.observation_space, spaces.Dict)
        if keys is not None:
            missing = [key for key in keys if key not in observations or not is_dict]
            if missing or not keys:
                available = list(observations) if is_dict else "none: its space is not a Dict"
                raise DatasetError(
                    f"it has no observation keys {missing}; it has {available}", path=self.path
                )
            observations = {key: column for key, column in observations.items() if key in keys}
        source = SegmentSource(
            observations if is_dict else observations[layout.SINGLE_KEY],
            action=as_model_actions(self._source.action),
            reward=self._source.reward,
            starts=self._table.start,
            lengths=self._table.length,
            terminated=self._table.terminated,
        )
        source.in_blocks = len(self._numbers) > len(np.unique(self._numbers))
        return source


def split_episodes(count: int, path: Path, held_out: float, seed: int) -> tuple[Array, Array]:
    """Split the indices of `count` episodes at random, see `Dataset.split`."""
    if not 0.0 < held_out < 1.0:
        raise ValueError(f"held_out is {held_out}; it must be between 0 and 1")
    if count < 2:
        raise DatasetError(
            f"it has {count} episode; at least 2 are needed to hold one out",
            path=path,
            remedy="record more steps, or shorter episodes: record(..., max_episode_steps=200), "
            "or --max-episode-steps 200 on the command line, truncates them",
        )
    num_held_out = min(max(1, round(held_out * count)), count - 1)
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[num_held_out:]), np.sort(order[:num_held_out])


def _full_key(name: str, known: Sequence[str]) -> str:
    """Return the key whose last part is `name`, if there is one; else `name`."""
    ends = [key for key in known if key.endswith((f".{name}", f"/{name}"))]
    return ends[0] if name not in known and len(ends) == 1 else name
