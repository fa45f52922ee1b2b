"""Environment wrappers that record every episode to a dataset."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from dreamgym._interrupts import uninterrupted
from dreamgym.data.episodes import EpisodeBuilder, reward_to_float
from dreamgym.data.hdf5.journal import Journal
from dreamgym.data.hdf5.writer import DatasetWriter
from dreamgym.data.layout import index_rows
from dreamgym.data.metadata import DatasetMetadata
from dreamgym.errors import DatasetError

Array = NDArray[Any]


class Recorder(gym.Wrapper[Any, Any, Any, Any]):
    """Records every episode of one environment to a native dataset; it changes nothing else.

    An episode that is cut off, by an early `reset` or by `close`, is kept as incomplete. The file
    gets its name when the recorder is closed: use it as a context manager, or call `close`.

    Args:
        env: the environment.
        out: path of the dataset to create, which must not exist; or an open writer, which the
            caller closes.
        policy: name of the policy that chooses the actions, for the dataset's metadata.
        seed: seed of the whole recording, for the dataset's metadata.
        commit_every: number of episodes in a commit, see `DatasetWriter`; of a dataset to create.
        env_index: index of this environment, among several side by side.
        keep_open: whether every step of the open episode is written at once, to `<out>.open`, so
            that a kill of the process loses none: `recover` then adds it as incomplete. Not with
            `commit_every` above 1.

    Raises:
        DatasetError: `out` exists or cannot be created.
        UnsupportedSpaceError: the environment has a space that dreamgym does not support.
        ValueError: `keep_open`, and a commit of several episodes.
    """

    def __init__(  # noqa: PLR0913 - the dataset's metadata are three of them
        self,
        env: gym.Env[Any, Any],
        out: str | os.PathLike[str] | DatasetWriter,
        *,
        policy: str = "unspecified",
        seed: int | None = None,
        commit_every: int = 1,
        env_index: int = 0,
        keep_open: bool = False,
    ) -> None:
        super().__init__(env)
        if keep_open and isinstance(out, DatasetWriter):
            raise ValueError(
                "keep_open with a DatasetWriter: others may write to it; give the path of a dataset"
            )
        if keep_open and commit_every > 1:
            raise ValueError(
                f"keep_open with commit_every={commit_every}: a kill would lose the episodes that "
                "wait for their commit; give commit_every=1"
            )
        self.env_index = env_index
        self._owns_writer = not isinstance(out, DatasetWriter)
        self.writer = (
            out
            if isinstance(out, DatasetWriter)
            else DatasetWriter(
                out,
                DatasetMetadata.of_env(env, policy=policy, seed=seed),
                commit_every=commit_every,
            )
        )
        self._builder = EpisodeBuilder(env.observation_space, env.action_space, env_index)
        self._error_context = _ErrorContext(self.writer)
        self._journal = Journal(self.writer.path, self.writer.metadata) if keep_open else None

    @property
    def num_steps(self) -> int:
        """Number of steps recorded so far, those of the open episode included."""
        return self.writer.num_steps + max(self._builder.length, 0)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment; an open episode is kept as incomplete.

        Raises:
            DatasetError: the observation does not fit the space.
        """
        self._store()
        observation, info = self.env.reset(seed=seed, options=options)
        with self._error_context:
            self._builder.begin(observation, seed)
            if self._journal is not None:
                self._journal.begin(self.writer.num_episodes, seed, self.env_index, observation)
        return observation, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step the environment and record the transition.

        Raises:
            DatasetError: the action lies outside its space (the environment has not been stepped),
                or the observation or the reward does not fit or is not finite. The steps before are
                kept.
        """
        with self._error_context:
            stored_action = self._builder.check_action(action)
        observation, reward, terminated, truncated, info = self.env.step(action)
        with self._error_context:
            self._builder.append(stored_action, observation, reward)
            if self._journal is not None:
                ends = bool(terminated), bool(truncated)
                self._journal.append(stored_action, observation, reward_to_float(reward), *ends)
        if terminated or truncated:
            self._store(terminated=bool(terminated), truncated=bool(truncated))
        return observation, reward, terminated, truncated, info

    def finish(self) -> None:
        """Keep the open episode as incomplete and close the file; the environment stays open."""
        try:
            if not self.writer.closed:
                self._store()
        finally:
            if self._owns_writer:
                self.writer.close()
        if self._journal is not None:
            self._journal.close()

    def close(self) -> None:
        """Keep the open episode as incomplete, and close the file and the environment."""
        try:
            self.finish()
        finally:
            super().close()

    def _store(self, *, terminated: bool = False, truncated: bool = False) -> None:
        _store_episode(self._builder, self.writer, terminated=terminated, truncated=truncated)


class VectorRecorder(gym.vector.VectorWrapper):
    """Records every episode of every sub-environment to one dataset; it changes nothing else.

    All autoreset modes are supported. With `NEXT_STEP`, the step after an episode's end, whose
    action is ignored, is not recorded. With `SAME_STEP`, the true last observation is taken from
    `info["final_obs"]`. With `DISABLED`, a sub-environment that has ended is not recorded until a
    reset with its `reset_mask`. Episodes that are cut off are kept as incomplete.

    Args:
        env: the vector environment; its outputs are NumPy arrays.
        out: path of the dataset to create, which must not exist.
        policy: name of the policy that chooses the actions, for the dataset's metadata.
        seed: seed of the whole recording, for the dataset's metadata.
        commit_every: number of episodes in a commit, see `DatasetWriter`.

    Raises:
        DatasetError: `out` exists or cannot be created, or the environment declares no autoreset
            mode.
        UnsupportedSpaceError: the environment has a space that dreamgym does not support.
    """

    def __init__(
        self,
        env: gym.vector.VectorEnv,
        out: str | os.PathLike[str],
        *,
        policy: str = "unspecified",
        seed: int | None = None,
        commit_every: int = 1,
    ) -> None:
        super().__init__(env)
        self._mode = _autoreset_mode(env)
        metadata = DatasetMetadata.of_env(env, policy=policy, seed=seed)
        self.writer = DatasetWriter(out, metadata, commit_every=commit_every)
        self._builders = [
            EpisodeBuilder(env.single_observation_space, env.single_action_space, index)
            for index in range(env.num_envs)
        ]
        self._error_contexts = [
            _ErrorContext(self.writer, f"sub-environment {index}: ")
            for index in range(env.num_envs)
        ]

    @property
    def num_steps(self) -> int:
        """Number of steps recorded so far, those of the open episodes included."""
        return self.writer.num_steps + sum(max(b.length, 0) for b in self._builders)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Reset all sub-environments, or those of `options["reset_mask"]`.

        Raises:
            DatasetError: an observation does not fit the space.
        """
        mask = (options or {}).get("reset_mask")
        indices = range(self.num_envs) if mask is None else np.flatnonzero(mask).tolist()
        for index in indices:
            self._store(index)
        observations, info = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        seeds = _env_seeds(seed, self.num_envs)
        for index in indices:
            self._begin(index, index_rows(observations, index), seeds[index])
        return observations, info

    def step(self, actions: Any) -> tuple[Any, Array, Array, Array, dict[str, Any]]:
        """Step the environment and record the transitions.

        Raises:
            DatasetError: an action lies outside its space (the environment has not been stepped),
                or an observation or a reward does not fit or is not finite. The steps before are
                kept.
        """
        stored_actions = [
            self._check_action(index, actions[index]) if builder.length >= 0 else None
            for index, builder in enumerate(self._builders)
        ]
        observations, rewards, terminated, truncated, info = self.env.step(actions)
        for index, action in enumerate(stored_actions):
            done = bool(terminated[index] or truncated[index])
            observation = index_rows(observations, index)
            if action is None:  # no episode was open
                if self._mode is AutoresetMode.NEXT_STEP:
                    self._begin(index, observation, None)
                continue
            last = self._final_observation(info, index, observation) if done else observation
            with self._error_contexts[index]:
                self._builders[index].append(action, last, rewards[index])
            if done:
                self._store(index, bool(terminated[index]), bool(truncated[index]))
                if self._mode is AutoresetMode.SAME_STEP:
                    self._begin(index, observation, None)
        return observations, rewards, terminated, truncated, info

    def close(self, **kwargs: Any) -> None:
        """Keep the open episodes as incomplete, and close the file and the environment."""
        try:
            try:
                if not self.writer.closed:
                    for index in range(len(self._builders)):
                        self._store(index)
            finally:
                self.writer.close()
        finally:
            super().close(**kwargs)

    def _final_observation(self, info: dict[str, Any], index: int, observation: Any) -> Any:
        """Return the true last observation of an episode that has just ended."""
        if self._mode is not AutoresetMode.SAME_STEP:
            return observation
        final, has_final = info.get("final_obs"), info.get("_final_obs")
        if final is None or (has_final is not None and not has_final[index]):
            raise DatasetError(
                f"sub-environment {index} ended, but info holds no final_obs for it",
                path=self.writer.path,
                remedy="an environment that resets in the same step (SAME_STEP) must return its "
                "last observation in info['final_obs']",
            )
        return index_rows(final, index)

    def _check_action(self, index: int, action: Any) -> Array:
        with self._error_contexts[index]:
            return self._builders[index].check_action(action)

    def _begin(self, index: int, observation: Any, seed: int | None) -> None:
        with self._error_contexts[index]:
            self._builders[index].begin(observation, seed)

    def _store(self, index: int, terminated: bool = False, truncated: bool = False) -> None:
        _store_episode(
            self._builders[index], self.writer, terminated=terminated, truncated=truncated
        )


def _store_episode(
    builder: EpisodeBuilder, writer: DatasetWriter, *, terminated: bool, truncated: bool
) -> None:
    """Commit the open episode of a builder, if there is one."""
    with uninterrupted():
        episode = builder.finish(terminated=terminated, truncated=truncated)
        if episode is not None:
            writer.add(episode)


class _ErrorContext:
    """Adds path, episode and sub-environment to a `DatasetError` raised in its block.

    A class rather than a generator, since it is entered twice per step.
    """

    __slots__ = ("_prefix", "_writer")

    def __init__(self, writer: DatasetWriter, prefix: str = "") -> None:
        self._writer = writer
        self._prefix = prefix

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, DatasetError):
            raise DatasetError(
                f"{self._prefix}{error.problem}",
                path=error.path or self._writer.path,
                key=error.key,
                episode=self._writer.num_episodes if error.episode is None else error.episode,
                row=error.row,
                remedy=error.remedy,
            ) from None


def _autoreset_mode(env: gym.vector.VectorEnv) -> AutoresetMode:
    """Return the autoreset mode that a vector environment declares.

    Raises:
        DatasetError: it declares none, so that the last observation of an episode is unknown.
    """
    mode = (env.metadata or {}).get("autoreset_mode")
    try:
        return AutoresetMode(mode)
    except ValueError:
        raise DatasetError(
            f"{env} has metadata['autoreset_mode'] = {mode!r}",
            remedy="set it to one of gymnasium.vector.AutoresetMode",
        ) from None


def _env_seeds(seed: int | Sequence[int | None] | None, count: int) -> list[int | None]:
    """Return the seed of each sub-environment, by Gymnasium's rule."""
    if seed is None:
        return [None] * count
    if isinstance(seed, int | np.integer):
        return [int(seed) + index for index in range(count)]
    return list(seed)
