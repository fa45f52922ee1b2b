"""A dataset read with a frame skip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from dreamgym.data.bounds import OutsideChannel
from dreamgym.data.dataset import Dataset, split_episodes
from dreamgym.data.episodes import Episode
from dreamgym.data.frame_skip import FrameSkip, borrowed_steps
from dreamgym.data.layout import index_rows
from dreamgym.data.segments import Sampler, SegmentBatch
from dreamgym.data.teaching import Lessons
from dreamgym.errors import DatasetError

Array = NDArray[Any]


class SkippedDataset:
    """A dataset whose steps each span several environment steps, see `FrameSkip`.

    A world fitted to it dreams in such steps too. Episodes too short for one step are left out of
    the count. A step in which the episode terminates is kept; a step in which the episode is
    truncated or cut off is dropped, and the episode then counts as cut off.

    Args:
        dataset: the dataset of environment steps. It stays open: closing it is the caller's job.
        frame_skip: how many environment steps one step spans, and what its action is.

    Raises:
        DatasetError: no episode is long enough for one step; or actions are `"repeated"`, but an
            episode has different actions within a step.
    """

    def __init__(self, dataset: Dataset, frame_skip: FrameSkip) -> None:
        self.dataset, self.frame_skip = dataset, frame_skip
        self.metadata, self.path = dataset.metadata, dataset.path
        lengths, k = np.asarray(dataset.lengths), frame_skip.steps
        num_steps = np.where(dataset.terminated, -(-lengths // k), lengths // k)
        self._numbers = np.flatnonzero(num_steps)  # index in `dataset` of each episode
        self.lengths = num_steps[self._numbers]
        if not len(self._numbers):
            raise DatasetError(
                f"no episode has the {k} environment steps of one step with a frame skip of {k}; "
                f"the longest has {lengths.max()}",
                path=self.path,
                remedy="skip fewer frames",
            )
        if frame_skip.actions == "repeated":
            for number in self._numbers.tolist():
                self._check_actions_repeat(number)

    @property
    def observation_space(self) -> gym.Space[Any]:
        """Observation space of one environment."""
        return self.dataset.observation_space

    @property
    def action_space(self) -> gym.Space[Any]:
        """Action space of one environment with this frame skip."""
        return self.frame_skip.space(self.dataset.action_space)

    @property
    def env_spec(self) -> str | None:
        """JSON of Gymnasium's `EnvSpec`."""
        return self.dataset.env_spec

    @property
    def env_id(self) -> str | None:
        """Id of the recorded environment."""
        return self.dataset.env_id

    @property
    def policy(self) -> str:
        """Name of the policy that chose the actions."""
        return self.dataset.policy

    @property
    def random_actions(self) -> Array:
        """`(E,)` bool, see `Dataset.random_actions`."""
        return self.dataset.random_actions[self._numbers]

    @property
    def terminated(self) -> Array:
        """`(E,)` bool, see `Dataset.terminated`."""
        return self.dataset.terminated[self._numbers]

    @property
    def problems(self) -> tuple[str, ...]:
        """Reasons for which fitting refuses the dataset, see `Dataset.problems`."""
        return self.dataset.problems

    @property
    def num_episodes(self) -> int:
        """Number of episodes of at least one step."""
        return len(self._numbers)

    @property
    def num_steps(self) -> int:
        """Number of environment steps in all episodes of the underlying dataset."""
        return self.dataset.num_steps

    @property
    def time_limit(self) -> int | None:
        """Environment steps after which episodes are truncated, see `Dataset.time_limit`."""
        return self.dataset.time_limit

    @property
    def in_memory(self) -> bool:
        """Whether all rows are held in memory."""
        return self.dataset.in_memory

    @property
    def checksum(self) -> str:
        """Checksum of the underlying dataset."""
        return self.dataset.checksum

    @property
    def selection(self) -> dict[str, Any]:
        """Which part of the dataset is used and how, JSON-plain."""
        skip = {"frame_skip": self.frame_skip.to_json()} if self.frame_skip.steps > 1 else {}
        return {**self.dataset.selection, **skip}

    def episode(self, index: int) -> Episode:
        """Return one episode, see `Dataset.episode`; the rewards of a step are summed."""
        number = int(self._numbers[index])
        source = self.dataset.episode(number)
        k, num_blocks = self.frame_skip.steps, int(self.lengths[index])
        steps = np.arange(num_blocks * k)
        missing = steps >= source.length
        steps[missing] = borrowed_steps(steps[missing], source.length)
        covered = min(source.length, num_blocks * k)  # environment steps that are used
        rows = np.minimum(np.arange(num_blocks + 1) * k, covered)
        rewards = np.pad(source.rewards[:covered], (0, num_blocks * k - covered))
        actions = source.actions[steps].reshape(num_blocks, k, *source.actions.shape[1:])
        reaches_end = covered == source.length
        return Episode(
            observations=index_rows(source.observations, rows),
            actions=self.frame_skip.join(actions, self.dataset.action_space),
            rewards=rewards.reshape(num_blocks, k).sum(1),
            terminated=source.terminated,
            truncated=source.truncated and reaches_end,
            complete=source.complete and reaches_end,
            seed=source.seed,
            env_index=source.env_index,
        )

    def actions(self, index: int) -> Array:
        """Return the environment actions of one episode, `(T, ...)`, one per environment step."""
        return self.dataset.actions(int(self._numbers[index]))

    def split(self, held_out: float = 0.1, seed: int = 0) -> tuple[Array, Array]:
        """Split the episodes into training and held-out ones, see `Dataset.split`."""
        return split_episodes(self.num_episodes, self.path, held_out, seed)

    def in_blocks(self) -> SkippedDataset:
        """Return this dataset with its only episode in blocks, see `Dataset.in_blocks`."""
        blocks = self.dataset.in_blocks(self.frame_skip.steps)
        return self if blocks is self.dataset else SkippedDataset(blocks, self.frame_skip)

    def segments(self, episodes: Sequence[int] | Array, length: int) -> Sampler:
        """Return a sampler of segments, see `Dataset.segments`.

        With `"blocks"`, a segment may begin at any environment step.
        """
        numbers = self._numbers[np.asarray(episodes, dtype=np.int64).reshape(-1)]
        sampler = self.dataset.segments(numbers, length, frame_skip=self.frame_skip)
        return _BlockSampler(sampler, self)

    def windows(
        self, episodes: Sequence[int] | Array, steps: Sequence[int] | Array, length: int
    ) -> SegmentBatch:
        """Return the segments at given places, see `Dataset.windows`.

        Args:
            episodes: `(B,)` episode indices of this dataset.
            steps: `(B,)` step indices of this dataset, in units of skipped steps.
            length: transitions in a segment, at least 1.
        """
        env_steps = np.asarray(steps, dtype=np.int64) * self.frame_skip.steps
        numbers = self._numbers[np.asarray(episodes, dtype=np.int64)]
        batch = self.dataset.windows(numbers, env_steps, length, frame_skip=self.frame_skip)
        return self.join_actions(batch)

    def verify(self) -> None:
        """Verify every episode, see `Dataset.verify`."""
        self.dataset.verify()

    def outside_observations(self) -> dict[str, list[OutsideChannel]]:
        """Return the channels with values outside their bounds, by observation key."""
        return self.dataset.outside_observations()

    def lessons(self) -> list[Lessons]:
        """Return its rewards, actions and ends, for the findings of `data.teaching`."""
        return self.dataset.lessons()

    def join_actions(self, batch: SegmentBatch) -> SegmentBatch:
        """Return a batch with its blocks of environment actions as actions of `action_space`."""
        if self.frame_skip.steps == 1 or self.frame_skip.actions == "repeated":
            return batch
        joined = self.frame_skip.join(batch.action, self.dataset.action_space)
        return batch._replace(action=joined)

    def _check_actions_repeat(self, number: int) -> None:
        """Raise unless the actions of one episode are constant within each step."""
        actions, k = self.dataset.actions(number), self.frame_skip.steps
        steps = np.arange(len(actions))
        same = (actions == actions[steps - steps % k]).reshape(len(actions), -1).all(1)
        if not same.all():
            raise DatasetError(
                f"an action is not held for the {k} steps of the frame skip",
                path=self.path,
                episode=number,
                row=int(np.flatnonzero(~same)[0]),
                remedy="pass actions='blocks', which keeps all of them, or record with the policy "
                f"'held:{k}'",
            )


class _BlockSampler:
    """A sampler whose blocks of actions are joined into actions of the dataset's action space."""

    def __init__(self, sampler: Sampler, dataset: SkippedDataset) -> None:
        self._sampler, self._dataset = sampler, dataset

    def draw(self, batch_size: int, rng: np.random.Generator) -> SegmentBatch:
        """See `Sampler.draw`."""
        return self._dataset.join_actions(self._sampler.draw(batch_size, rng))

    def draw_distinct(self, limit: int, rng: np.random.Generator) -> SegmentBatch:
        """See `Sampler.draw_distinct`."""
        return self._dataset.join_actions(self._sampler.draw_distinct(limit, rng))


def with_frame_skip(dataset: Dataset, frame_skip: FrameSkip) -> Dataset | SkippedDataset:
    """Return the dataset read with a frame skip, or the dataset itself if nothing is skipped."""
    return dataset if frame_skip.steps == 1 else SkippedDataset(dataset, frame_skip)
