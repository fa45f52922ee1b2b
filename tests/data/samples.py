"""Small real environments, episodes and datasets for the tests of `dreamgym.data`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from dreamgym.data import Dataset, DatasetMetadata, DatasetWriter, Episode, SegmentBatch

IMAGE = (16, 16, 3)


def picture(state: np.ndarray) -> np.ndarray:
    """Return a small image that encodes CartPole's state: different states, different images."""
    flat = np.resize(np.frombuffer(state.astype(np.float32).tobytes(), dtype=np.uint8), IMAGE)
    return np.ascontiguousarray(flat)


def image_cartpole(**kwargs: Any) -> gym.Env:
    """Return a CartPole whose observations are uint8 images."""
    env = gym.make("CartPole-v1", **kwargs)
    return gym.wrappers.TransformObservation(env, picture, spaces.Box(0, 255, IMAGE, np.uint8))


def dict_cartpole(**kwargs: Any) -> gym.Env:
    """Return a CartPole with a Dict observation: an image, a float64 vector, and an odd key."""
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
    """Return an episode of random values that fit the spaces."""
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
    """Write a native dataset of the given episodes."""
    with DatasetWriter(path, metadata) as writer:
        for episode in episodes:
            writer.add(episode)
    return path


def vector_metadata(**kwargs: Any) -> DatasetMetadata:
    """Return the metadata of an environment with three observed numbers and two actions."""
    return DatasetMetadata(
        observation_space=spaces.Box(-10, 10, (3,)), action_space=spaces.Discrete(2), **kwargs
    )


def write_random(path: Path, lengths: list[int], metadata: DatasetMetadata | None = None) -> Path:
    """Write a native dataset of seeded random episodes of the given lengths."""
    metadata = metadata or vector_metadata()
    rng = np.random.default_rng(lengths)
    episodes = [
        random_episode(metadata.observation_space, metadata.action_space, length, rng, seed=i)
        for i, length in enumerate(lengths)
    ]
    return write(path, episodes, metadata)


def assert_same_episode(left: Episode, right: Episode) -> None:
    """Assert that two episodes are equal bit for bit, dtypes included."""
    assert isinstance(left.observations, dict) == isinstance(right.observations, dict)
    a, b = left.observations, right.observations
    pairs = [(a[k], b[k]) for k in a] if isinstance(a, dict) else [(a, b)]
    pairs += [(left.actions, right.actions), (left.rewards, right.rewards)]
    for x, y in pairs:
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)
    for name in ("terminated", "truncated", "complete", "seed", "env_index"):
        assert getattr(left, name) == getattr(right, name), name


def slow_segments(dataset: Dataset, episodes: list[int], length: int) -> SegmentBatch:
    """Return every segment of the episodes, built one transition at a time from the definition."""
    rows = []
    for index in episodes:
        episode = dataset.episode(index)
        for first in range(episode.length):
            t = np.arange(first, first + length)
            mask = t < episode.length
            inside = np.minimum(t, episode.length - 1)
            observed = np.minimum(np.append(t, first + length), episode.length)

            def padded(values: np.ndarray, mask: np.ndarray = mask, inside: np.ndarray = inside):
                shape = (-1, *(1,) * (values.ndim - 1))
                return np.where(mask.reshape(shape), values[inside], np.zeros_like(values[:1]))

            observations = episode.observations
            rows.append(
                (
                    {k: v[observed] for k, v in observations.items()}
                    if isinstance(observations, dict)
                    else observations[observed],
                    padded(episode.actions),
                    padded(episode.rewards),
                    mask & (t == episode.length - 1) & episode.terminated,
                    mask,
                )
            )
    first = rows[0][0]
    stacked = [np.stack([row[i] for row in rows]) for i in range(1, 5)]
    if isinstance(first, dict):
        observation = {key: np.stack([row[0][key] for row in rows]) for key in first}
    else:
        observation = np.stack([row[0] for row in rows])
    return SegmentBatch(observation, *stacked)


def assert_same_batch(left: SegmentBatch, right: SegmentBatch) -> None:
    """Assert that two batches are equal bit for bit, dtypes included."""
    pairs = list(zip(left[1:], right[1:], strict=True))
    if isinstance(left.observation, dict):
        assert left.observation.keys() == right.observation.keys()
        pairs += [(left.observation[key], right.observation[key]) for key in left.observation]
    else:
        pairs.append((left.observation, right.observation))
    for a, b in pairs:
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
