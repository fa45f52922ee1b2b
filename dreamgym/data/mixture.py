"""Several datasets read as one, each with a weight."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from dreamgym.data.bounds import OutsideChannel
from dreamgym.data.dataset import Dataset
from dreamgym.data.episodes import Episode
from dreamgym.data.frame_skip import FrameSkip
from dreamgym.data.segments import Sampler, SegmentBatch
from dreamgym.data.skipped_dataset import SkippedDataset
from dreamgym.data.spaces import same_spaces
from dreamgym.data.teaching import Lessons
from dreamgym.errors import DatasetError

Array = NDArray[Any]


class Mixture:
    """A sampler that draws each segment from one of several samplers, chosen by its weight.

    Args:
        samplers: samplers, at least one, over datasets of the same spaces, with segments of the
            same length.
        weights: one weight per sampler, at least 0 and not all 0; they need not add up to one.

    Raises:
        ValueError: the numbers of samplers and weights differ, or a weight is out of range.
    """

    def __init__(self, samplers: Sequence[Sampler], weights: Sequence[float]) -> None:
        shares = np.asarray(weights, dtype=np.float64)
        if not samplers or shares.shape != (len(samplers),):
            raise ValueError(
                f"got {len(samplers)} samplers and {shares.size} weights; expected one weight per "
                "sampler"
            )
        if not np.isfinite(shares).all() or (shares < 0).any() or shares.sum() <= 0:
            raise ValueError(
                f"the weights are {list(weights)}; each must be at least 0, and not all of them 0"
            )
        self._samplers = list(samplers)
        self._shares = shares / shares.sum()

    def draw(self, batch_size: int, rng: np.random.Generator) -> SegmentBatch:
        """Draw `batch_size` segments; the same generator state gives the same segments."""
        origin = rng.choice(len(self._samplers), size=batch_size, p=self._shares)
        counts = np.bincount(origin, minlength=len(self._samplers)).tolist()
        batches = [
            sampler.draw(count, rng)
            for sampler, count in zip(self._samplers, counts, strict=True)
            if count
        ]
        return _interleave(batches, origin)

    def draw_distinct(self, limit: int, rng: np.random.Generator) -> SegmentBatch:
        """Draw up to `limit` different segments, fewer of a sampler that has fewer than its share.

        Their order is random.
        """
        counts = rng.multinomial(limit, self._shares).tolist()
        batches = [
            sampler.draw_distinct(count, rng)
            for sampler, count in zip(self._samplers, counts, strict=True)
            if count
        ]
        origin = np.repeat(np.arange(len(batches)), [len(batch.mask) for batch in batches])
        return _interleave(batches, rng.permutation(origin))


def _interleave(batches: list[SegmentBatch], origin: Array) -> SegmentBatch:
    """Merge one batch per origin into one, with the segments in the order of `origin`.

    Args:
        batches: batches of the origins that occur, in increasing order.
        origin: `(B,)` origin of each segment of the result.
    """
    order = np.argsort(np.argsort(origin, kind="stable"), kind="stable")
    fields = zip(*batches, strict=True)
    return SegmentBatch(*(_concatenate(list(parts), order) for parts in fields))


def _concatenate(parts: list[Any], order: Array) -> Any:
    if isinstance(parts[0], dict):
        return {key: _concatenate([part[key] for part in parts], order) for key in parts[0]}
    return np.concatenate(parts)[order]


class MixedDataset:
    """Several datasets read as one: segments come from each by its weight.

    Episodes are numbered through: those of the first dataset, then those of the second, and so on.
    It offers what fitting needs of a `Dataset`. The datasets stay open: closing them is the
    caller's job.

    Args:
        parts: pairs of a dataset and its weight. The datasets have the same spaces and frame skip;
            a weight is at least 0, and not all weights are 0.

    Raises:
        DatasetError: there is no dataset, or their spaces or frame skips differ.
        ValueError: a weight is out of range.
    """

    def __init__(self, parts: Sequence[tuple[Dataset | SkippedDataset, float]]) -> None:
        if not parts:
            raise DatasetError("there is no dataset in the mixture", remedy="give at least one")
        self.datasets = [dataset for dataset, _ in parts]
        self.weights = [float(weight) for _, weight in parts]
        if not all(0 <= weight < np.inf for weight in self.weights) or not sum(self.weights):
            raise ValueError(
                f"the weights are {self.weights}; each must be at least 0, and not all of them 0"
            )
        first = self.datasets[0]
        for other in self.datasets[1:]:
            if other.frame_skip != first.frame_skip:
                raise DatasetError(
                    f"its frame skip is {other.frame_skip}, that of {first.path} is "
                    f"{first.frame_skip}",
                    path=other.path,
                    remedy="read all of them with the same frame skip",
                )
            if not same_spaces(other, first):
                raise DatasetError(
                    f"its spaces are not those of {first.path}",
                    path=other.path,
                    remedy="mix datasets of one environment, choose the keys they share, or "
                    "convert foreign files with the same spaces (`--env ENV`)",
                )
        self.path = Path("+".join(dataset.path.name for dataset in self.datasets))
        ends = np.cumsum([dataset.num_episodes for dataset in self.datasets])
        self._firsts = np.concatenate([[0], ends[:-1]])

    @property
    def observation_space(self) -> gym.Space[Any]:
        """Observation space of one environment."""
        return self.datasets[0].observation_space

    @property
    def action_space(self) -> gym.Space[Any]:
        """Action space of one environment."""
        return self.datasets[0].action_space

    @property
    def frame_skip(self) -> FrameSkip:
        """Frame skip of all datasets."""
        return self.datasets[0].frame_skip

    @property
    def env_spec(self) -> str | None:
        """JSON of Gymnasium's `EnvSpec`, of the first dataset that has one."""
        return next((dataset.env_spec for dataset in self.datasets if dataset.env_spec), None)

    @property
    def policy(self) -> str:
        """Names of the policies that chose the actions."""
        return " + ".join(dict.fromkeys(dataset.policy for dataset in self.datasets))

    @property
    def random_actions(self) -> Array:
        """`(E,)` bool, see `Dataset.random_actions`."""
        return np.concatenate([dataset.random_actions for dataset in self.datasets])

    @property
    def terminated(self) -> Array:
        """`(E,)` bool, see `Dataset.terminated`."""
        return np.concatenate([dataset.terminated for dataset in self.datasets])

    @property
    def problems(self) -> tuple[str, ...]:
        """Reasons for which fitting refuses the mixture: those that all of its datasets have."""
        if not all(dataset.problems for dataset in self.datasets):
            return ()
        return tuple(problem for dataset in self.datasets for problem in dataset.problems)

    @property
    def num_episodes(self) -> int:
        """Number of episodes in all datasets."""
        return sum(dataset.num_episodes for dataset in self.datasets)

    @property
    def num_steps(self) -> int:
        """Number of environment steps in all datasets."""
        return sum(dataset.num_steps for dataset in self.datasets)

    @property
    def lengths(self) -> Array:
        """`(E,)` int64, number of transitions of each episode."""
        return np.concatenate([dataset.lengths for dataset in self.datasets])

    @property
    def time_limit(self) -> int | None:
        """Longest time limit of the datasets; None if one of them shows none."""
        limits = [dataset.time_limit for dataset in self.datasets]
        known = [limit for limit in limits if limit is not None]
        return max(known) if known and len(known) == len(limits) else None

    @property
    def in_memory(self) -> bool:
        """Whether all rows of all datasets are held in memory."""
        return all(dataset.in_memory for dataset in self.datasets)

    @property
    def checksum(self) -> str:
        """SHA-256 over the checksums of the datasets, in hexadecimal."""
        text = json.dumps([dataset.checksum for dataset in self.datasets])
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def selection(self) -> dict[str, Any]:
        """Which part of the datasets is used, and their weights, JSON-plain."""
        return {**self.datasets[0].selection, "weights": self.weights}

    def episode(self, index: int) -> Episode:
        """Return one episode, see `Dataset.episode`."""
        dataset, local_index = self._locate(index)
        return dataset.episode(local_index)

    def actions(self, index: int) -> Array:
        """Return the actions of one episode, see `Dataset.actions`."""
        dataset, local_index = self._locate(index)
        return dataset.actions(local_index)

    def split(self, held_out: float = 0.1, seed: int = 0) -> tuple[Array, Array]:
        """Split the episodes of every dataset by the same share, see `Dataset.split`.

        A dataset of a single episode is not split, unless all are: its episode is for training.
        """
        sizes = [dataset.num_episodes for dataset in self.datasets]
        whole = (np.arange(1), np.arange(0))
        splits = [
            whole if size == 1 < max(sizes) else dataset.split(held_out, seed)
            for size, dataset in zip(sizes, self.datasets, strict=True)
        ]
        training, kept = (
            np.concatenate(
                [split[side] + first for split, first in zip(splits, self._firsts, strict=True)]
            )
            for side in (0, 1)
        )
        return training, kept

    def in_blocks(self) -> MixedDataset:
        """Return this mixture with single episodes in blocks, see `Dataset.in_blocks`."""
        blocks = [dataset.in_blocks() for dataset in self.datasets]
        if all(new is old for new, old in zip(blocks, self.datasets, strict=True)):
            return self
        return MixedDataset(list(zip(blocks, self.weights, strict=True)))

    def segments(self, episodes: Sequence[int] | Array, length: int) -> Mixture:
        """Return a sampler of segments of some episodes, by the weights of their datasets."""
        chosen = np.asarray(episodes, dtype=np.int64).reshape(-1)
        samplers, weights = [], []
        for dataset, first, weight in zip(
            self.datasets, self._firsts.tolist(), self.weights, strict=True
        ):
            local = chosen[(chosen >= first) & (chosen < first + dataset.num_episodes)] - first
            if len(local):
                samplers.append(dataset.segments(local, length))
                weights.append(weight)
        if not sum(weights):
            raise DatasetError(
                "there are no episodes with a weight above 0 to draw segments from", path=self.path
            )
        return Mixture(samplers, weights)

    def windows(
        self, episodes: Sequence[int] | Array, steps: Sequence[int] | Array, length: int
    ) -> SegmentBatch:
        """Return the segments at given places, see `Dataset.windows`."""
        chosen, first_steps = np.asarray(episodes, np.int64), np.asarray(steps, np.int64)
        origin = np.searchsorted(self._firsts, chosen, side="right") - 1
        batches = [
            self.datasets[part].windows(
                chosen[origin == part] - self._firsts[part], first_steps[origin == part], length
            )
            for part in np.unique(origin).tolist()
        ]
        return _interleave(batches, origin)

    def verify(self) -> None:
        """Verify every episode, see `Dataset.verify`."""
        for dataset in self.datasets:
            dataset.verify()

    def outside_observations(self) -> dict[str, list[OutsideChannel]]:
        """Return the channels with values outside their bounds, by observation key."""
        joined: dict[str, list[OutsideChannel]] = {}
        for dataset in self.datasets:
            for key, channels in dataset.outside_observations().items():
                joined.setdefault(key, []).extend(channels)
        return joined

    def lessons(self) -> list[Lessons]:
        """Return rewards, actions and ends of each dataset, for the findings of `data.teaching`."""
        return [lessons for dataset in self.datasets for lessons in dataset.lessons()]

    def _locate(self, index: int) -> tuple[Dataset | SkippedDataset, int]:
        """Return the dataset of an episode, and the index of the episode there."""
        if not 0 <= index < self.num_episodes:
            raise IndexError(f"episode {index} of {self.num_episodes} in {self.path}")
        part = int(np.searchsorted(self._firsts, index, side="right")) - 1
        return self.datasets[part], index - int(self._firsts[part])


PathOrDataset = str | os.PathLike[str] | Dataset | SkippedDataset
AnyDataset = Dataset | SkippedDataset | MixedDataset
DatasetSource = PathOrDataset | MixedDataset | Sequence[tuple[PathOrDataset, float]]
"""What `open_dataset` takes."""


@contextmanager
def open_dataset(dataset: DatasetSource) -> Iterator[AnyDataset]:
    """Open a dataset for the block; an open dataset is used unchanged, and stays open.

    Args:
        dataset: a dataset, its path, or pairs of one of those and a weight, which are mixed.

    Raises:
        DatasetError: one of them cannot be opened, or they do not belong together.
    """
    with ExitStack() as stack:

        def open_part(part: PathOrDataset) -> Dataset | SkippedDataset:
            if isinstance(part, Dataset | SkippedDataset):
                return part
            return stack.enter_context(Dataset(part))

        if isinstance(dataset, MixedDataset):
            yield dataset
        elif isinstance(dataset, Dataset | SkippedDataset | str | os.PathLike):
            yield open_part(dataset)
        else:
            yield MixedDataset([(open_part(part), weight) for part, weight in dataset])
