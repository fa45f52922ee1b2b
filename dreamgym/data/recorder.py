"""A wrapper that writes down what passes through it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from dreamgym._interrupts import uninterrupted
from dreamgym.data.episodes import EpisodeBuilder
from dreamgym.data.hdf5.writer import DatasetWriter
from dreamgym.data.metadata import DatasetMetadata
from dreamgym.errors import DatasetError


class Recorder(gym.Wrapper[Any, Any, Any, Any]):
    """Writes every episode of one environment to a native dataset, and changes nothing else.

    An episode that is cut off, by an early `reset` or by `close`, is kept as incomplete. The file
    gets its name when the recorder is closed; use it as a context manager, or call `close`.

    Args:
        env: The environment.
        out: The dataset to make; must not exist. Or an open writer, which stays the caller's to
            close.
        policy: What chooses the actions, in words, for the dataset's metadata.
        seed: Seed of the whole recording, for the metadata.
        env_index: Which of several environments this is.

    Raises:
        DatasetError: `out` exists or cannot be made.
        UnsupportedSpaceError: The environment has a space that dreamgym does not support.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        out: str | os.PathLike[str] | DatasetWriter,
        *,
        policy: str = "unspecified",
        seed: int | None = None,
        env_index: int = 0,
    ) -> None:
        super().__init__(env)
        self.env_index = env_index
        self._owns_writer = not isinstance(out, DatasetWriter)
        self.writer = (
            out
            if isinstance(out, DatasetWriter)
            else DatasetWriter(out, DatasetMetadata.of_env(env, policy=policy, seed=seed))
        )
        self._builder = EpisodeBuilder(env.observation_space, env.action_space, env_index)

    @property
    def num_steps(self) -> int:
        """Steps recorded so far, those of the open episode included."""
        return self.writer.num_steps + max(self._builder.length, 0)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment; an episode that is open is kept as incomplete.

        Raises:
            DatasetError: The observation does not fit the space.
        """
        self._store()
        observation, info = self.env.reset(seed=seed, options=options)
        with self._place():
            self._builder.begin(observation, seed)
        return observation, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step the environment and write down what came of it.

        Raises:
            DatasetError: The action lies outside its space (the environment has not seen it), or
                the observation or reward does not fit, is NaN or infinite; the steps before are
                kept.
        """
        with self._place():
            stored = self._builder.check_action(action)
        observation, reward, terminated, truncated, info = self.env.step(action)
        with self._place():
            self._builder.append(stored, observation, reward)
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

    def close(self) -> None:
        """`finish`, and close the environment."""
        try:
            self.finish()
        finally:
            super().close()

    def _store(self, *, terminated: bool = False, truncated: bool = False) -> None:
        with uninterrupted():
            episode = self._builder.finish(terminated=terminated, truncated=truncated)
            if episode is not None:
                self.writer.add(episode)

    def _place(self) -> _Place:
        return _Place(self.writer)


class _Place:
    """Adds path and episode to a `DatasetError` that passes through; cheap where none does."""

    __slots__ = ("_writer",)

    def __init__(self, writer: DatasetWriter) -> None:
        self._writer = writer

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, DatasetError):
            writer = self._writer
            raise error.at(path=writer.path, episode=writer.num_episodes) from None


Array = NDArray[Any]


class VectorRecorder(gym.vector.VectorWrapper):
    """Writes every episode of every sub-environment to one dataset, and changes nothing else.

    It minds the environment's autoreset mode: with `NEXT_STEP`, the step after an episode's end,
    whose action is ignored, is not recorded; with `SAME_STEP`, the true last observation is taken
    from `info["final_obs"]`; with `DISABLED`, a sub-environment that has ended is left out until a
    reset with its `reset_mask`. Episodes that are cut off are kept as incomplete.

    Args:
        env: The vector environment; it gives NumPy arrays.
        out: The dataset to make; must not exist.
        policy: What chooses the actions, in words, for the dataset's metadata.
        seed: Seed of the whole recording, for the metadata.

    Raises:
        DatasetError: `out` exists or cannot be made, or the environment names no autoreset mode.
        UnsupportedSpaceError: The environment has a space that dreamgym does not support.
    """

    def __init__(
        self,
        env: gym.vector.VectorEnv,
        out: str | os.PathLike[str],
        *,
        policy: str = "unspecified",
        seed: int | None = None,
    ) -> None:
        super().__init__(env)
        self._mode = autoreset_mode(env)
        metadata = DatasetMetadata.of_env(env, policy=policy, seed=seed)
        self.writer = DatasetWriter(out, metadata)
        self._builders = [
            EpisodeBuilder(env.single_observation_space, env.single_action_space, index)
            for index in range(env.num_envs)
        ]

    @property
    def num_steps(self) -> int:
        """Steps recorded so far, those of the open episodes included."""
        return self.writer.num_steps + sum(max(b.length, 0) for b in self._builders)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Reset all sub-environments, or those of `options["reset_mask"]`.

        Raises:
            DatasetError: An observation does not fit the space.
        """
        mask = (options or {}).get("reset_mask")
        chosen = range(self.num_envs) if mask is None else np.flatnonzero(mask).tolist()
        for index in chosen:
            self._store(index)
        observations, info = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        seeds = _seeds(seed, self.num_envs)
        for index in chosen:
            self._begin(index, _row(observations, index), seeds[index])
        return observations, info

    def step(self, actions: Any) -> tuple[Any, Array, Array, Array, dict[str, Any]]:
        """Step the environment and write down what came of it.

        Raises:
            DatasetError: An action lies outside its space, or an observation or a reward does not
                fit, is NaN or infinite; the steps before are kept.
        """
        stored = [
            self._checked(index, actions[index]) if builder.length >= 0 else None
            for index, builder in enumerate(self._builders)
        ]
        observations, rewards, terminated, truncated, info = self.env.step(actions)
        for index, action in enumerate(stored):
            done = bool(terminated[index] or truncated[index])
            observation = _row(observations, index)
            if action is None:
                if self._mode is AutoresetMode.NEXT_STEP:
                    self._begin(index, observation, None)
                continue
            last = self._last_observation(info, index, observation) if done else observation
            self._append(index, action, last, rewards[index])
            if done:
                self._store(index, bool(terminated[index]), bool(truncated[index]))
                if self._mode is AutoresetMode.SAME_STEP:
                    self._begin(index, observation, None)
        return observations, rewards, terminated, truncated, info

    def close(self, **kwargs: Any) -> None:
        """Keep the open episodes as incomplete, close the file and the environment."""
        try:
            try:
                if not self.writer.closed:
                    for index in range(len(self._builders)):
                        self._store(index)
            finally:
                self.writer.close()
        finally:
            super().close(**kwargs)

    def _last_observation(self, info: dict[str, Any], index: int, observation: Any) -> Any:
        """The observation that an episode truly ended with."""
        if self._mode is not AutoresetMode.SAME_STEP:
            return observation
        final, has = info.get("final_obs"), info.get("_final_obs")
        if final is None or (has is not None and not has[index]):
            raise DatasetError(
                f"sub-environment {index} ended, but info holds no final_obs for it",
                path=self.writer.path,
                remedy="the environment resets at once (SAME_STEP) and must give its last "
                "observation in info['final_obs']",
            )
        return _row(final, index)

    def _checked(self, index: int, action: Any) -> Array:
        try:
            return self._builders[index].check_action(action)
        except DatasetError as error:
            raise self._placed(error, index) from None

    def _begin(self, index: int, observation: Any, seed: int | None) -> None:
        try:
            self._builders[index].begin(observation, seed)
        except DatasetError as error:
            raise self._placed(error, index) from None

    def _append(self, index: int, action: Array, observation: Any, reward: Any) -> None:
        try:
            self._builders[index].append(action, observation, reward)
        except DatasetError as error:
            raise self._placed(error, index) from None

    def _placed(self, error: DatasetError, index: int) -> DatasetError:
        return DatasetError(
            f"sub-environment {index}: {error.problem}",
            path=self.writer.path,
            key=error.key,
            episode=self.writer.num_episodes,
            row=error.row,
            remedy=error.remedy,
        )

    def _store(self, index: int, terminated: bool = False, truncated: bool = False) -> None:
        with uninterrupted():
            episode = self._builders[index].finish(terminated=terminated, truncated=truncated)
            if episode is not None:
                self.writer.add(episode)


def autoreset_mode(env: gym.vector.VectorEnv) -> AutoresetMode:
    """The mode that a vector environment says it resets in.

    Raises:
        DatasetError: It says none, so that nobody can tell which observation ends an episode.
    """
    mode = (env.metadata or {}).get("autoreset_mode")
    try:
        return AutoresetMode(mode)
    except ValueError:
        raise DatasetError(
            f"{env} has metadata['autoreset_mode'] = {mode!r}",
            remedy="set it to one of gymnasium.vector.AutoresetMode",
        ) from None


def _row(batch: Any, index: int) -> Any:
    return (
        {key: rows[index] for key, rows in batch.items()}
        if isinstance(batch, dict)
        else batch[index]
    )


def _seeds(seed: int | Sequence[int | None] | None, count: int) -> list[int | None]:
    """The seed of each sub-environment, as Gymnasium hands them out."""
    if seed is None:
        return [None] * count
    if isinstance(seed, int | np.integer):
        return [int(seed) + index for index in range(count)]
    return list(seed)
