"""Frame skip: steps of several environment steps, read from data and taken in an environment."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dreamgym.data import (
    Dataset,
    DatasetError,
    DatasetMetadata,
    Episode,
    FrameSkip,
    MixedDataset,
    SkipFrames,
    SkippedDataset,
    frame_skip_of,
    open_dataset,
    record,
)
from dreamgym.data.frame_skip import borrowed_steps
from tests.data.samples import image_cartpole, random_episode, write

ACTIONS = {
    "discrete": spaces.Discrete(3, start=-1),
    "multi-discrete": spaces.MultiDiscrete([2, 3]),
    "box": spaces.Box(np.float32([-2, 0]), np.float32([2, 1])),
    "matrix": spaces.Box(-1, 1, (2, 2)),
}
SKIPS = [FrameSkip(steps=k, actions=a) for k in (1, 2, 3, 7) for a in ("blocks", "repeated")]
numbers = itertools.count()


def held(episode: Episode, steps: int) -> Episode:
    """Return the same episode with each action repeated for some steps."""
    first = np.arange(episode.length) // steps * steps
    return Episode(**{**vars(episode), "actions": episode.actions[first]})


def a_dataset(folder: Path, kind: str, skip: FrameSkip, ends: list[tuple[int, bool]]) -> Dataset:
    """Write and open random episodes of given lengths, each terminated or truncated."""
    metadata = DatasetMetadata(
        observation_space=spaces.Box(-9, 9, (3,)), action_space=ACTIONS[kind]
    )
    rng = np.random.default_rng(len(ends))
    episodes = [
        random_episode(
            metadata.observation_space,
            metadata.action_space,
            length,
            rng,
            terminated=end,
            truncated=not end,
        )
        for length, end in ends
    ]
    if skip.actions == "repeated":
        episodes = [held(episode, skip.steps) for episode in episodes]
    return Dataset(write(folder / f"{next(numbers)}.h5", episodes, metadata))


ENDS = st.lists(st.tuples(st.integers(1, 16), st.booleans()), min_size=1, max_size=4)


def long_enough(skip: FrameSkip, ends: list[tuple[int, bool]]) -> list[int]:
    return [i for i, (n, end) in enumerate(ends) if end or n >= skip.steps]


@given(ENDS, st.sampled_from(SKIPS), st.sampled_from([*ACTIONS]))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_skipped_episodes_match_their_definition(
    tmp_path: Path, ends: list[tuple[int, bool]], skip: FrameSkip, kind: str
) -> None:
    dataset, kept = a_dataset(tmp_path, kind, skip, ends), long_enough(skip, ends)
    if not kept:
        with pytest.raises(DatasetError, match="no episode has the"):
            SkippedDataset(dataset, skip)
        return
    skipped = SkippedDataset(dataset, skip)
    assert skipped.num_episodes == len(kept)
    assert skipped.action_space == skip.space(ACTIONS[kind])
    assert skipped.num_steps == dataset.num_steps
    for index, number in enumerate(kept):
        whole, episode = dataset.episode(number), skipped.episode(index)
        np.testing.assert_array_equal(skipped.actions(index), dataset.actions(number))
        assert episode.length == skipped.lengths[index] == len(episode.rewards)
        np.testing.assert_array_equal(
            episode.observations[:-1], whole.observations[: -1 : skip.steps][: episode.length]
        )
        last = min(whole.length, episode.length * skip.steps)
        np.testing.assert_array_equal(episode.observations[-1], whole.observations[last])
        assert episode.rewards.sum() == pytest.approx(whole.rewards[:last].sum(), abs=1e-4)
        # Terminal transitions are kept, and none is added.
        assert episode.terminated == whole.terminated == ends[number][1]
        assert not episode.terminated or last == whole.length
        assert episode.truncated == (whole.truncated and last == whole.length)
        for t, action in enumerate(episode.actions):
            assert skipped.action_space.contains(action)
            singles = skip.split(action, dataset.action_space)
            assert len(singles) == skip.steps
            real = whole.actions[t * skip.steps : (t + 1) * skip.steps]
            np.testing.assert_array_equal(np.stack(singles)[: len(real)], real)


@given(ENDS, st.sampled_from(SKIPS), st.sampled_from([*ACTIONS]), st.integers(1, 5))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_windows_and_segments_match_the_episodes(
    tmp_path: Path, ends: list[tuple[int, bool]], skip: FrameSkip, kind: str, length: int
) -> None:
    """A window equals that part of the episode; a segment begins at some step of one."""
    if not long_enough(skip, ends):
        return
    dataset = a_dataset(tmp_path, kind, skip, ends)
    skipped = SkippedDataset(dataset, skip)
    places = [(i, t) for i, n in enumerate(skipped.lengths.tolist()) for t in range(n)]
    windows = skipped.windows(*zip(*places, strict=True), length)
    for row, (index, t) in enumerate(places):
        episode = skipped.episode(index)
        real = min(length, episode.length - t)
        assert windows.mask[row].tolist() == [True] * real + [False] * (length - real)
        np.testing.assert_array_equal(windows.action[row, :real], episode.actions[t : t + real])
        np.testing.assert_array_equal(windows.reward[row, :real], episode.rewards[t : t + real])
        observed = episode.observations[np.minimum(np.arange(t, t + length + 1), episode.length)]
        np.testing.assert_array_equal(windows.observation[row], observed)
        ended = np.arange(t, t + length) == episode.length - 1
        np.testing.assert_array_equal(windows.terminated[row], ended & episode.terminated)
        assert not windows.action[row, real:].any()
        assert not windows.reward[row, real:].any()
    batch = skipped.segments(np.arange(skipped.num_episodes), length).draw(
        200, np.random.default_rng(0)
    )
    assert batch.action.shape[2:] == (skipped.action_space.shape or ())
    assert batch.mask[:, 0].all()
    firsts = np.concatenate([dataset.episode(i).observations[:-1] for i in range(len(dataset))])
    assert (batch.observation[:, None, 0] == firsts[None]).all(-1).any(1).all()
    if skip.actions == "repeated" or skip.steps == 1:
        known = {window.tobytes() for window in windows.observation}
        assert {segment.tobytes() for segment in batch.observation} <= known


@given(st.integers(1, 4), st.sampled_from([2, 3, 7]), st.data())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_segments_of_blocks_begin_at_any_step(
    tmp_path: Path, length: int, k: int, data: st.DataObject
) -> None:
    """They are compared with plain segments of `length * k` transitions from the same rows."""
    ends = data.draw(ENDS)
    skip = FrameSkip(steps=k)
    if not long_enough(skip, ends):
        return
    dataset = a_dataset(tmp_path, "matrix", skip, ends)
    every = np.arange(len(dataset))
    sampler, plain = (
        dataset.segments(every, length, frame_skip=k),
        dataset.segments(every, length * k),
    )
    steps = plain.at(np.arange(plain.num_transitions))
    shape = (plain.num_transitions, length, k)
    taken = steps.mask.reshape(shape)
    whole = taken.all(2) | steps.terminated.reshape(shape).any(2)
    usable = whole[:, 0]
    assert sampler.num_transitions == usable.sum()
    blocks = sampler.at(np.arange(sampler.num_transitions))
    np.testing.assert_array_equal(blocks.mask, whole[usable])
    np.testing.assert_array_equal(blocks.terminated, steps.terminated.reshape(shape).any(2)[usable])
    real = taken[usable] & whole[usable][:, :, None]
    actions = steps.action.reshape(*shape, 2, 2)[usable]
    np.testing.assert_array_equal(blocks.action[real], actions[real])
    rewards = np.where(real, steps.reward.reshape(shape)[usable], 0).sum(2)
    np.testing.assert_allclose(blocks.reward, rewards, rtol=1e-5, atol=1e-6)
    ahead = steps.observation[usable, ::k][:, 1:]
    np.testing.assert_array_equal(blocks.observation[:, 1:][blocks.mask], ahead[blocks.mask])


def test_actions_after_the_end_do_not_reveal_it(tmp_path: Path) -> None:
    """In a dream all blocks are whole: a model that read the end off them would never end one."""
    rng = np.random.default_rng(0)
    metadata = DatasetMetadata(
        observation_space=spaces.Box(-9, 9, (3,)), action_space=spaces.Box(-1, 1, (1,))
    )
    episodes = [
        random_episode(metadata.observation_space, metadata.action_space, n, rng)
        for n in rng.integers(5, 40, 400).tolist()
    ]
    with Dataset(write(tmp_path / "d.h5", episodes, metadata)) as dataset:
        skipped = SkippedDataset(dataset, FrameSkip(steps=5))
        batch = skipped.segments(np.arange(400), 4).draw(4000, rng)
    last, others = batch.action[batch.terminated], batch.action[batch.mask & ~batch.terminated]
    # Uniform on [-1, 1]: as much spread, as little repetition, and no zeros.
    np.testing.assert_allclose(last.std(0), others.std(0), rtol=0.1)
    assert (last != 0).all()
    assert (np.diff(last, axis=1) == 0).mean() < 0.06
    held_back = [np.corrcoef(last[:, i], last[:, i + 1])[0, 1] for i in range(4)]
    assert np.abs(held_back).max() < 0.15


@given(st.integers(1, 10**6), st.integers(0, 10**6))
def test_borrowed_steps_lie_in_the_episode(length: int, beyond: int) -> None:
    steps = borrowed_steps(np.array([length + beyond]), length)
    assert 0 <= steps[0] < length
    np.testing.assert_array_equal(
        steps, borrowed_steps(np.array([length + beyond]), np.array([length]))
    )


def test_actions_that_change_within_a_step_are_refused(tmp_path: Path) -> None:
    plain = record("CartPole-v1", steps=200, out=tmp_path / "plain.h5", seed=1)
    same = record("CartPole-v1", steps=200, out=tmp_path / "held.h5", seed=1, policy="held:2")
    skip = FrameSkip(steps=2, actions="repeated")
    with (
        Dataset(plain) as dataset,
        pytest.raises(
            DatasetError, match=r"episode 0, row \d+: an action is not held for the 2 .*'held:2'"
        ),
    ):
        SkippedDataset(dataset, skip)
    with Dataset(same) as dataset:
        skipped = SkippedDataset(dataset, skip)
        assert skipped.action_space == spaces.Discrete(2)
        assert skipped.selection == {"frame_skip": {"steps": 2, "actions": "repeated"}}
        assert skipped.lengths.tolist() == [-(-n // 2) for n in dataset.lengths.tolist()]


def test_images_in_the_file_are_read_the_same(tmp_path: Path) -> None:
    path = record(image_cartpole(), steps=150, out=tmp_path / "d.h5")
    skip = FrameSkip(steps=3)
    with Dataset(path, memory=0) as left, Dataset(path) as held_in_memory:
        batches = [
            SkippedDataset(d, skip).segments([0, 1, 2], 4).draw(30, np.random.default_rng(1))
            for d in (left, held_in_memory)
        ]
        for a, b in zip(*batches, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_mixture_of_skipped_datasets(tmp_path: Path) -> None:
    paths = [record("CartPole-v1", steps=100, out=tmp_path / f"{s}.h5", seed=s) for s in (0, 1)]
    with Dataset(paths[0]) as a, Dataset(paths[1]) as b:
        skip = FrameSkip(steps=2)
        one, two = SkippedDataset(a, skip), SkippedDataset(b, skip)
        with open_dataset([(one, 1.0), (two, 2.0)]) as mixed:
            assert mixed.frame_skip == skip
            assert mixed.action_space == spaces.MultiDiscrete([2, 2])
            batch = mixed.segments(np.arange(mixed.num_episodes), 3).draw(
                20, np.random.default_rng(0)
            )
            assert batch.action.shape == (20, 3, 2)
            last = mixed.num_episodes - 1
            windows = mixed.windows([last, 0, last], [0, 1, 1], 2)
            for row, (part, index, t) in enumerate(
                [(two, two.num_episodes - 1, 0), (one, 0, 1), (two, two.num_episodes - 1, 1)]
            ):
                expected = part.windows([index], [t], 2)
                for actual, single in zip(windows, expected, strict=True):
                    np.testing.assert_array_equal(actual[row], single[0])
        with pytest.raises(DatasetError, match="frame skip"):
            MixedDataset([(one, 1.0), (b, 1.0)])


class Counter(gym.Env):
    """Gives reward 1 per step, and keeps every action that it was passed."""

    def __init__(self, action_space: gym.Space, ends: int) -> None:
        self.observation_space = spaces.Box(0, np.inf, (1,))
        self.action_space, self.ends = action_space, ends

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.taken: list[Any] = []
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(action)
        self.taken.append(action)
        now = len(self.taken)
        return np.full(1, now, np.float32), 1.0, now == self.ends, False, {"now": now}


@given(st.sampled_from([*ACTIONS]), st.sampled_from(SKIPS), st.integers(1, 12), st.integers(1, 12))
def test_the_wrapper_takes_the_environment_steps_of_an_action(
    kind: str, skip: FrameSkip, ends: int, limit: int
) -> None:
    """A step is cut short where the environment ends; a time limit counts environment steps."""
    inner = Counter(ACTIONS[kind], ends)
    env = SkipFrames(gym.wrappers.TimeLimit(inner, limit), steps=skip.steps, actions=skip.actions)
    assert frame_skip_of(gym.wrappers.OrderEnforcing(env)) == skip == frame_skip_of(env)
    env.action_space.seed(ends)
    env.reset(seed=0)
    expected: list[Any] = []
    total, over = 0.0, False
    while not over:
        action = env.action_space.sample()
        expected += skip.split(action, inner.action_space)
        before = len(inner.taken)
        observation, reward, terminated, truncated, info = env.step(action)
        total, over = total + reward, terminated or truncated
        assert reward == info["env_steps"] == len(inner.taken) - before
        assert observation[0] == info["now"] == len(inner.taken)
        assert info["env_steps"] == skip.steps or over
    assert total == len(inner.taken) == min(ends, limit)
    assert terminated == (ends <= limit)
    assert truncated == (limit <= ends)
    for given_action, taken in zip(expected, inner.taken, strict=False):
        np.testing.assert_array_equal(given_action, taken)


def test_gymnasiums_env_checker_passes() -> None:
    for name in ("CartPole-v1", "Pendulum-v1"):
        env = SkipFrames(gym.make(name), steps=2)
        check_env(env, skip_render_check=True)
        again = gym.make(env.spec)
        assert again.action_space == env.action_space


def test_invalid_settings_and_actions_are_refused() -> None:
    for settings_, message in (
        ({"steps": 0}, "steps=0"),
        ({"steps": True}, "steps=True"),
        ({"steps": 2, "actions": "sometimes"}, "'sometimes'"),
    ):
        with pytest.raises(ValueError, match=message):
            FrameSkip(**settings_)
    env = SkipFrames(gym.make("CartPole-v1"), steps=3)
    env.reset()
    with pytest.raises(ValueError, match=r"shape \(2,\).*3 actions of Discrete"):
        env.step(np.array([0, 1]))
    assert FrameSkip(steps=1, actions="repeated") == FrameSkip()
