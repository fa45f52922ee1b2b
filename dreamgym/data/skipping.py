"""An environment whose steps span several of the environment inside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from dreamgym.data.dataset import Dataset, Described, split_episodes
from dreamgym.data.episodes import Episode
from dreamgym.data.frame_skip import ActionsOf, FrameSkip, borrowed
from dreamgym.data.segments import Sampler, SegmentBatch
from dreamgym.errors import DatasetError


class SkipFrames(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Takes several steps at once: the real environment of a world with a frame skip.

    It stops where the environment ends within a step, whether by termination or truncation: a time
    limit inside counts steps of the environment. Rewards are summed, the observation and the info
    are the last ones, and `info["env_steps"]` says how many steps were taken.

    Args:
        env: whose actions are a Box, Discrete or MultiDiscrete.
        steps: as in `FrameSkip`.
        actions: as in `FrameSkip`.
    """

    def __init__(self, env: gym.Env[Any, Any], steps: int, actions: ActionsOf = "blocks") -> None:
        gym.utils.RecordConstructorArgs.__init__(self, steps=steps, actions=actions)
        gym.Wrapper.__init__(self, env)
        self.frame_skip = FrameSkip(steps=steps, actions=actions)
        self.action_space = self.frame_skip.space(env.action_space)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Take the steps of one action.

        Raises:
            ValueError: the action has another shape.
        """
        total, taken = 0.0, 0
        for single in self.frame_skip.single(action, self.env.action_space):
            observation, reward, terminated, truncated, info = self.env.step(single)
            total, taken = total + float(reward), taken + 1
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, {**info, "env_steps": taken}


def frame_skip_of(env: Any) -> FrameSkip:
    """The frame skip of an environment, or of one inside its wrappers."""
    while env is not None:
        if isinstance(env, SkipFrames):
            return env.frame_skip
        env = getattr(env, "env", None) if isinstance(env, gym.Wrapper) else None
    return FrameSkip()


Array = NDArray[Any]


class SkippedDataset(Described):
    """A dataset whose steps span several of the one inside, see `FrameSkip`.

    `fit` fits a world to it whose dreams take such steps too. Episodes are counted without those
    too short for one step. A step within which an episode terminates is kept; one within which it
    was truncated or cut off is left out, and the episode is then one that was cut off.

    Args:
        dataset: Its steps are those of the environment. Closing this closes nothing.
        frame_skip: How many of them are one, and what the action is then.

    Raises:
        DatasetError: No episode is long enough; or the action is to be repeated, and an episode has
            different ones within a step.
    """

    def __init__(self, dataset: Dataset, frame_skip: FrameSkip) -> None:
        self.dataset, self._skip = dataset, frame_skip
        self.metadata, self.path = dataset.metadata, dataset.path
        lengths, k = np.asarray(dataset.lengths), frame_skip.steps
        blocks = np.where(dataset.terminated, -(-lengths // k), lengths // k)
        self._numbers = np.flatnonzero(blocks)
        self.lengths = blocks[self._numbers]
        if not len(self._numbers):
            raise DatasetError(
                f"no episode has the {k} steps that a frame skip of {k} takes for one; the longest "
                f"has {lengths.max()}",
                path=self.path,
                remedy="skip fewer frames",
            )
        if frame_skip.actions == "repeated":
            for index in self._numbers.tolist():
                self._refuse_changes(index)

    @property
    def frame_skip(self) -> FrameSkip:
        """How many steps of the environment are one."""
        return self._skip

    @property
    def action_space(self) -> gym.Space[Any]:
        """Of one environment with this frame skip."""
        return self._skip.space(self.dataset.action_space)

    @property
    def num_episodes(self) -> int:
        """Episodes that have a step."""
        return len(self._numbers)

    @property
    def num_steps(self) -> int:
        """Steps of the environment in all episodes of the dataset inside."""
        return self.dataset.num_steps

    @property
    def in_memory(self) -> bool:
        """Nothing is read from the file any more."""
        return self.dataset.in_memory

    @property
    def checksum(self) -> str:
        """Of the dataset inside."""
        return self.dataset.checksum

    @property
    def selection(self) -> dict[str, Any]:
        """What of the dataset is used, JSON-plain."""
        skip = {"frame_skip": self._skip.to_json()} if self._skip.steps > 1 else {}
        return {**self.dataset.selection, **skip}

    def episode(self, index: int) -> Episode:
        """See `Dataset.episode`; rewards are summed."""
        number = int(self._numbers[index])
        whole, k, blocks = self.dataset.episode(number), self._skip.steps, int(self.lengths[index])
        steps = np.arange(blocks * k)
        after = steps >= whole.length
        steps[after] = borrowed(steps[after], whole.length)
        taken = min(whole.length, blocks * k)
        rows = np.minimum(np.arange(blocks + 1) * k, taken)
        rewards = np.pad(whole.rewards[:taken], (0, blocks * k - taken)).reshape(blocks, k)
        actions = whole.actions[steps].reshape(blocks, k, *whole.actions.shape[1:])
        ended = taken == whole.length
        return Episode(
            observations=_rows(whole.observations, rows),
            actions=self._skip.joined(actions, self.dataset.action_space),
            rewards=rewards.sum(1),
            terminated=whole.terminated,
            truncated=whole.truncated and ended,
            complete=whole.complete and ended,
            seed=whole.seed,
            env_index=whole.env_index,
        )

    def actions(self, index: int) -> Array:
        """The actions of the environment itself, `(T, ...)`, one for each of its steps."""
        return self.dataset.actions(int(self._numbers[index]))

    def split(self, held_out: float = 0.1, seed: int = 0) -> tuple[Array, Array]:
        """See `Dataset.split`."""
        return split_episodes(self, held_out, seed)

    def segments(self, episodes: Sequence[int] | Array, length: int) -> Sampler:
        """See `Dataset.segments`; of blocks, a segment may begin at any step of the environment."""
        chosen = self._numbers[np.asarray(episodes, dtype=np.int64).reshape(-1)]
        return _Joining(self.dataset.segments(chosen, length, frame_skip=self._skip), self._joined)

    def windows(
        self, episodes: Sequence[int] | Array, steps: Sequence[int] | Array, length: int
    ) -> SegmentBatch:
        """See `Dataset.windows`; steps are this dataset's own."""
        begin = np.asarray(steps, dtype=np.int64) * self._skip.steps
        chosen = self._numbers[np.asarray(episodes, dtype=np.int64)]
        return self._joined(self.dataset.windows(chosen, begin, length, frame_skip=self._skip))

    def verify(self) -> None:
        """See `Dataset.verify`."""
        self.dataset.verify()

    def _joined(self, batch: SegmentBatch) -> SegmentBatch:
        if self._skip.steps == 1 or self._skip.actions == "repeated":
            return batch
        joined = self._skip.joined(batch.action, self.dataset.action_space)
        return batch._replace(action=joined)

    def _refuse_changes(self, index: int) -> None:
        """Refuse an episode in which an action does not last."""
        actions, k = self.dataset.actions(index), self._skip.steps
        steps = np.arange(len(actions))
        same = (actions == actions[steps - steps % k]).reshape(len(actions), -1).all(1)
        if not same.all():
            raise DatasetError(
                f"an action is not held for the {k} steps that the frame skip repeats it",
                path=self.path,
                episode=index,
                row=int(np.flatnonzero(~same)[0]),
                remedy=f"take actions='blocks', which keeps all of them, or record with the policy "
                f"'held:{k}'",
            )


class _Joining:
    """A sampler whose blocks of actions are laid out as the action space has them."""

    def __init__(self, sampler: Sampler, joined: Any) -> None:
        self._sampler, self._joined = sampler, joined

    def draw(self, batch_size: int, rng: np.random.Generator) -> SegmentBatch:
        """See `Sampler.draw`."""
        batch: SegmentBatch = self._joined(self._sampler.draw(batch_size, rng))
        return batch


def skipping(dataset: Dataset, frame_skip: FrameSkip) -> Dataset | SkippedDataset:
    """A dataset read with a frame skip, or as it is where nothing is skipped."""
    return dataset if frame_skip.steps == 1 else SkippedDataset(dataset, frame_skip)


def _rows(observations: Any, rows: Array) -> Any:
    if isinstance(observations, dict):
        return {key: values[rows] for key, values in observations.items()}
    return observations[rows]
