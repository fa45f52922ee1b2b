"""Several datasets at once, each by its weight."""

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

from dreamgym.data.dataset import Dataset
from dreamgym.data.episodes import Episode
from dreamgym.data.frame_skip import FrameSkip
from dreamgym.data.segments import Sampler, SegmentBatch
from dreamgym.data.skipping import SkippedDataset
from dreamgym.errors import DatasetError

Array = NDArray[Any]


class Mixture:
    """Draws each segment from one of several samplers, chosen by its weight.

    Args:
        samplers: At least one, over datasets of the same spaces, with segments of the same length.
        weights: One for each, not negative, not all zero; they need not add up to one.

    Raises:
        ValueError: The numbers of samplers and weights differ, or a weight is out of range.
    """

    def __init__(self, samplers: Sequence[Sampler], weights: Sequence[float]) -> None:
        shares = np.asarray(weights, dtype=np.float64)
        if not samplers or shares.shape != (len(samplers),):
            raise ValueError(
                f"{len(samplers)} samplers and {shares.size} weights; one each, please"
            )
        if not np.isfinite(shares).all() or (shares < 0).any() or shares.sum() <= 0:
            raise ValueError(f"the weights are {list(weights)}; at least 0, and not all 0")
        self._samplers = list(samplers)
        self._shares = shares / shares.sum()

    def draw(self, batch_size: int, rng: np.random.Generator) -> SegmentBatch:
        """`batch_size` segments; the same generator state gives the same segments."""
        which = rng.choice(len(self._samplers), size=batch_size, p=self._shares)
        counts = np.bincount(which, minlength=len(self._samplers)).tolist()
        batches = [
            sampler.draw(count, rng)
            for sampler, count in zip(self._samplers, counts, strict=True)
            if count
        ]
        return _in_place(batches, which)


def _in_place(batches: list[SegmentBatch], which: Array) -> SegmentBatch:
    """Batches that lie one after the other by number: each segment to its place in `which`."""
    place = np.argsort(np.argsort(which, kind="stable"), kind="stable")
    return SegmentBatch(*(_joined(list(parts), place) for parts in zip(*batches, strict=True)))


def _joined(parts: list[Any], place: Array) -> Any:
    if isinstance(parts[0], dict):
        return {key: _joined([part[key] for part in parts], place) for key in parts[0]}
    return np.concatenate(parts)[place]


class MixedDataset:
    """Several datasets, read as one: segments come from each by its weight.

    Episodes are counted through: those of the first dataset, then those of the second, and so on.
    It has what fitting needs of a `Dataset`. Closing it closes none of them.

    Args:
        parts: Datasets of the same spaces and frame skip, each with its weight: at least 0, and not
            all 0.

    Raises:
        DatasetError: There is none, or their spaces or frame skips differ.
        ValueError: A weight is out of range.
    """

    def __init__(self, parts: Sequence[tuple[Dataset | SkippedDataset, float]]) -> None:
        if not parts:
            raise DatasetError("there is no dataset in the mixture", remedy="give at least one")
        self.datasets = [dataset for dataset, _ in parts]
        self.weights = [float(weight) for _, weight in parts]
        if not all(0 <= weight < np.inf for weight in self.weights) or not sum(self.weights):
            raise ValueError(f"the weights are {self.weights}; at least 0, and not all 0")
        first = self.datasets[0]
        for other in self.datasets[1:]:
            if other.frame_skip != first.frame_skip:
                raise DatasetError(
                    f"its frame skip is {other.frame_skip}, that of {first.path} "
                    f"{first.frame_skip}",
                    path=other.path,
                    remedy="read all of them with the same frame skip",
                )
            if (other.observation_space, other.action_space) != (
                first.observation_space,
                first.action_space,
            ):
                raise DatasetError(
                    f"its spaces are not those of {first.path}",
                    path=other.path,
                    remedy="mix datasets of one environment, or choose the keys they share",
                )
        self.path = Path("+".join(dataset.path.name for dataset in self.datasets))
        ends = np.cumsum([dataset.num_episodes for dataset in self.datasets])
        self._firsts = np.concatenate([[0], ends[:-1]])

    @property
    def observation_space(self) -> gym.Space[Any]:
        """Of one environment."""
        return self.datasets[0].observation_space

    @property
    def action_space(self) -> gym.Space[Any]:
        """Of one environment."""
        return self.datasets[0].action_space

    @property
    def frame_skip(self) -> FrameSkip:
        """Of all of them."""
        return self.datasets[0].frame_skip

    @property
    def env_spec(self) -> str | None:
        """JSON of Gymnasium's `EnvSpec`, of the first dataset that has one."""
        return next((each.env_spec for each in self.datasets if each.env_spec), None)

    @property
    def policy(self) -> str:
        """What chose the actions, in words."""
        return " + ".join(dict.fromkeys(dataset.policy for dataset in self.datasets))

    @property
    def num_episodes(self) -> int:
        """In all of them."""
        return sum(dataset.num_episodes for dataset in self.datasets)

    @property
    def num_steps(self) -> int:
        """In all of them."""
        return sum(dataset.num_steps for dataset in self.datasets)

    @property
    def lengths(self) -> Array:
        """`(E,)` int64, transitions in each episode."""
        return np.concatenate([dataset.lengths for dataset in self.datasets])

    @property
    def in_memory(self) -> bool:
        """Nothing is read from a file any more."""
        return all(dataset.in_memory for dataset in self.datasets)

    @property
    def checksum(self) -> str:
        """SHA-256, in hexadecimal, over the checksums of the datasets."""
        text = json.dumps([dataset.checksum for dataset in self.datasets])
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def selection(self) -> dict[str, Any]:
        """What of the datasets is used, JSON-plain."""
        return {**self.datasets[0].selection, "weights": self.weights}

    def episode(self, index: int) -> Episode:
        """See `Dataset.episode`."""
        part, own = self._place(index)
        return part.episode(own)

    def actions(self, index: int) -> Array:
        """See `Dataset.actions`."""
        part, own = self._place(index)
        return part.actions(own)

    def _place(self, index: int) -> tuple[Dataset | SkippedDataset, int]:
        """The dataset of an episode, and its index there."""
        if not 0 <= index < self.num_episodes:
            raise IndexError(f"episode {index} of {self.num_episodes} in {self.path}")
        part = int(np.searchsorted(self._firsts, index, side="right")) - 1
        return self.datasets[part], index - int(self._firsts[part])

    def split(self, held_out: float = 0.1, seed: int = 0) -> tuple[Array, Array]:
        """Divide the episodes of every dataset alike, see `Dataset.split`."""
        halves = [dataset.split(held_out, seed) for dataset in self.datasets]
        fitted, kept = (
            np.concatenate(
                [half[side] + first for half, first in zip(halves, self._firsts, strict=True)]
            )
            for side in (0, 1)
        )
        return fitted, kept

    def segments(self, episodes: Sequence[int] | Array, length: int) -> Mixture:
        """A sampler of segments of some of the episodes, by the weights of their datasets."""
        chosen = np.asarray(episodes, dtype=np.int64).reshape(-1)
        samplers, weights = [], []
        for dataset, first, weight in zip(
            self.datasets, self._firsts.tolist(), self.weights, strict=True
        ):
            own = chosen[(chosen >= first) & (chosen < first + dataset.num_episodes)] - first
            if len(own):
                samplers.append(dataset.segments(own, length))
                weights.append(weight)
        if not sum(weights):
            raise DatasetError("no episodes to draw segments from have a weight", path=self.path)
        return Mixture(samplers, weights)

    def windows(
        self, episodes: Sequence[int] | Array, steps: Sequence[int] | Array, length: int
    ) -> SegmentBatch:
        """See `Dataset.windows`."""
        chosen, begin = np.asarray(episodes, np.int64), np.asarray(steps, np.int64)
        which = np.searchsorted(self._firsts, chosen, side="right") - 1
        batches = [
            self.datasets[part].windows(
                chosen[which == part] - self._firsts[part], begin[which == part], length
            )
            for part in np.unique(which).tolist()
        ]
        return _in_place(batches, which)

    def verify(self) -> None:
        """See `Dataset.verify`."""
        for dataset in self.datasets:
            dataset.verify()


PathOrDataset = str | os.PathLike[str] | Dataset | SkippedDataset


AnyDataset = Dataset | SkippedDataset | MixedDataset


@contextmanager
def opened(
    given: PathOrDataset | MixedDataset | Sequence[tuple[PathOrDataset, float]],
) -> Iterator[AnyDataset]:
    """A dataset as it is, or opened from its path and closed again; several with weights mixed.

    Args:
        given: A dataset, its path, or pairs of one of those and a weight.

    Raises:
        DatasetError: One of them cannot be opened, or they do not belong together.
    """
    with ExitStack() as stack:

        def one(each: PathOrDataset) -> Dataset | SkippedDataset:
            if isinstance(each, Dataset | SkippedDataset):
                return each
            return stack.enter_context(Dataset(each))

        if isinstance(given, MixedDataset):
            yield given
        elif isinstance(given, Dataset | SkippedDataset | str | os.PathLike):
            yield one(given)
        else:
            yield MixedDataset([(one(each), weight) for each, weight in given])
