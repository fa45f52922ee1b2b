"""Small real environments and episodes for the tests of the data room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from dreamgym.data import DatasetMetadata, DatasetWriter, Episode

IMAGE = (16, 16, 3)


def picture(state: np.ndarray) -> np.ndarray:
    """A small image that follows from CartPole's state and tells states apart."""
    flat = np.resize(np.frombuffer(state.astype(np.float32).tobytes(), dtype=np.uint8), IMAGE)
    return np.ascontiguousarray(flat)


def image_cartpole(**kwargs: Any) -> gym.Env:
    """CartPole that shows uint8 images."""
    env = gym.make("CartPole-v1", **kwargs)
    return gym.wrappers.TransformObservation(env, picture, spaces.Box(0, 255, IMAGE, np.uint8))


def dict_cartpole(**kwargs: Any) -> gym.Env:
    """CartPole that shows a Dict: an image, a vector in float64, and a key that needs escaping."""
    env = gym.make("CartPole-v1", **kwargs)
    space = spaces.Dict(
        {
            "pixels": spaces.Box(0, 255, IMAGE, np.uint8),
            "a/b %.": spaces.Box(-np.inf, np.inf, (4,), np.float64),
            "angle": spaces.Box(-np.inf, np.inf, (), np.float32),
        }
    )

    def observe(state: np.ndarray) -> dict[str, Any]:
        return {"pixels": picture(state), "a/b %.": state.astype(np.float64), "angle": state[2]}

    return gym.wrappers.TransformObservation(env, observe, space)


def random_episode(
    observation_space: gym.Space,
    action_space: gym.Space,
    length: int,
    rng: np.random.Generator,
    **flags: Any,
) -> Episode:
    """An episode of random values that fit the spaces."""
    observation_space.seed(int(rng.integers(2**31)))
    action_space.seed(int(rng.integers(2**31)))
    drawn = [observation_space.sample() for _ in range(length + 1)]
    if isinstance(observation_space, spaces.Dict):
        observations: Any = {key: np.stack([o[key] for o in drawn]) for key in drawn[0]}
    else:
        observations = np.stack(drawn)
    ended = {"terminated": True, "truncated": False, "complete": True} | flags
    return Episode(
        observations=observations,
        actions=np.stack([action_space.sample() for _ in range(length)]),
        rewards=rng.normal(size=length).astype(np.float32),
        **ended,
    )


def write(path: Path, episodes: list[Episode], metadata: DatasetMetadata) -> Path:
    """A native dataset of the given episodes."""
    with DatasetWriter(path, metadata) as writer:
        for episode in episodes:
            writer.add(episode)
    return path


def vector_metadata(**kwargs: Any) -> DatasetMetadata:
    """Of an environment with three numbers to see and two actions."""
    return DatasetMetadata(
        observation_space=spaces.Box(-10, 10, (3,)), action_space=spaces.Discrete(2), **kwargs
    )


def write_random(path: Path, lengths: list[int], metadata: DatasetMetadata | None = None) -> Path:
    """A native dataset of random episodes of the given lengths, seeded."""
    metadata = metadata or vector_metadata()
    rng = np.random.default_rng(lengths)
    episodes = [
        random_episode(metadata.observation_space, metadata.action_space, length, rng, seed=i)
        for i, length in enumerate(lengths)
    ]
    return write(path, episodes, metadata)


def assert_same_episode(left: Episode, right: Episode) -> None:
    """Bit for bit, dtypes included."""
    assert isinstance(left.observations, dict) == isinstance(right.observations, dict)
    a, b = left.observations, right.observations
    pairs = [(a[k], b[k]) for k in a] if isinstance(a, dict) else [(a, b)]
    pairs += [(left.actions, right.actions), (left.rewards, right.rewards)]
    for x, y in pairs:
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)
    for name in ("terminated", "truncated", "complete", "seed", "env_index"):
        assert getattr(left, name) == getattr(right, name), name
