"""What a dataset cannot teach is said by `check` and by `fit`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces

from dreamgym.data import Dataset, DatasetMetadata, Episode, MixedDataset, check
from dreamgym.data.teaching import teaching_findings
from dreamgym.fitting import FitConfig, fit
from tests.data.samples import write

BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)


def dataset(path: Path, lengths, *, ends=None, action_space=None, actions=None, rewards=None):
    """Write episodes of random numbers, of which some property is given.

    Args:
        path: the file.
        lengths: length of each episode.
        ends: whether each episode terminates; by default none does.
        action_space: space of the actions; by default `BOX`.
        actions: function of a length that returns actions.
        rewards: function of a length that returns rewards.
    """
    rng = np.random.default_rng(0)
    actions = actions or (lambda n: rng.uniform(-1, 1, (n, 2)).astype(np.float32))
    rewards = rewards or (lambda n: rng.normal(size=n).astype(np.float32))
    episodes = [
        Episode(
            observations=rng.normal(size=(length + 1, 3)).astype(np.float32),
            actions=actions(length),
            rewards=rewards(length),
            terminated=bool(end),
            truncated=not end,
            complete=True,
        )
        for length, end in zip(lengths, ends or [False] * len(lengths), strict=True)
    ]
    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    metadata = DatasetMetadata(
        observation_space=observation_space, action_space=action_space or BOX
    )
    return write(path, episodes, metadata)


def findings(path: Path) -> list[str]:
    with Dataset(path) as data:
        found = teaching_findings(data.lessons())
    assert set(found) <= set(check(path).notes)
    return found


def test_varied_data_have_no_findings(tmp_path: Path) -> None:
    ends = [True, False] * 10
    assert not findings(dataset(tmp_path / "d.h5", range(20, 40), ends=ends))


def test_a_random_log_of_acrobot_teaches_neither_reward_nor_end(tmp_path: Path) -> None:
    """One of 40 episodes reaches the goal, where alone the reward is not -1."""

    def rewards(length: int) -> np.ndarray:
        values = np.full(length, -1.0, np.float32)
        if length < 500:
            values[-1] = 0.0
        return values

    path = tmp_path / "d.h5"
    dataset(path, [500] * 10 + [162], ends=[False] * 10 + [True], rewards=rewards)
    reward, end = findings(path)
    assert reward.startswith("1 of 5,162 rewards differ from -1, too few")
    assert end.startswith("1 of 11 episodes terminates (in 5,162 steps), too few")


def test_equal_rewards_cannot_teach_the_reward(tmp_path: Path) -> None:
    path = dataset(tmp_path / "d.h5", [10] * 4, rewards=lambda n: np.full(n, 0.5, np.float32))
    (finding,) = findings(path)
    assert finding.startswith("the rewards are all 0.5")


@pytest.mark.parametrize("others", [[], [7, 9, 12, 20, 33]])
def test_terminations_at_one_step_look_like_a_time_limit(tmp_path: Path, others) -> None:
    lengths = [50] * 12 + others
    (finding,) = findings(dataset(tmp_path / "d.h5", lengths, ends=[True] * len(lengths)))
    which = f"12 of {len(lengths)}" if others else "all"
    assert finding.startswith(f"{which} terminated episodes end at the same step, 50, as if a time")


def test_truncation_at_the_longest_step_is_no_reason_for_doubt(tmp_path: Path) -> None:
    lengths = [50] * 12 + [10, 20, 30]
    ends = [False] * 12 + [True] * 3
    path = dataset(tmp_path / "d.h5", lengths, ends=ends)
    assert not [finding for finding in findings(path) if "time limit" in finding]


def test_actions_that_never_change_cannot_teach_what_they_do(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)

    def one_fixed(length: int) -> np.ndarray:
        actions = rng.uniform(-1, 1, (length, 2)).astype(np.float32)
        actions[:, 1] = 0.25
        return actions

    (some,) = findings(dataset(tmp_path / "some.h5", [20] * 3, actions=one_fixed))
    assert some.startswith("the numbers 1 of the actions never change")
    (every,) = findings(
        dataset(tmp_path / "every.h5", [20] * 3, actions=lambda n: np.zeros((n, 2), np.float32))
    )
    assert every.startswith("the actions are all [0.0, 0.0]")


def test_actions_that_are_never_taken_are_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    path = dataset(
        tmp_path / "d.h5",
        [40] * 3,
        action_space=spaces.Discrete(4, start=1),
        actions=lambda n: rng.integers(1, 3, n),
    )
    (finding,) = findings(path)
    assert finding.startswith("the actions 3, 4 of Discrete(4, start=1) are never taken")


def test_a_fit_says_so_once_in_its_alarms(tmp_path: Path) -> None:
    path = dataset(tmp_path / "d.h5", [10] * 4, rewards=lambda n: np.full(n, 0.5, np.float32))
    world = fit(path, config=FitConfig(updates=1, batch_size=4, segment_length=4, starts=16))
    alarms = [alarm for alarm in world.quality["alarms"] if "the rewards are all" in alarm]
    assert len(alarms) == 1


def test_a_mixture_is_judged_as_a_whole(tmp_path: Path) -> None:
    ones, zeros = (
        Dataset(dataset(tmp_path / f"{v}.h5", [10] * 3, rewards=lambda n, v=v: np.full(n, v, "f4")))
        for v in (0, 1)
    )
    with ones, zeros:
        assert not teaching_findings(MixedDataset([(ones, 1.0), (zeros, 1.0)]).lessons())
