"""A wrapper that writes down what passes through it."""

from __future__ import annotations

import os
from typing import Any, SupportsFloat

import gymnasium as gym

from dreamgym.data.builder import EpisodeBuilder
from dreamgym.data.errors import DatasetError
from dreamgym.data.schema import DatasetMetadata
from dreamgym.data.signals import uninterrupted
from dreamgym.data.writer import DatasetWriter


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
