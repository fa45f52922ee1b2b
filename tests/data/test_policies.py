"""The policy protocol: what users pass, in one or several rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from dreamgym.data import Dataset, FrameSkip, PredictPolicy, SkipFrames, record
from dreamgym.data.policies import Policy, as_batch, as_rows, make_policy
from dreamgym.errors import PolicyError


@pytest.fixture
def cartpole() -> gym.Env[Any, Any]:
    return gym.make("CartPole-v1")


class Counter:
    """A recurrent policy of CartPole: it acts by the number of steps since the episode's start."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        self.batches.append(len(observation))
        steps = np.zeros(len(observation), int) if state is None else state[0]
        steps = np.where(episode_start, 0, steps)
        return (steps >= 2).astype(int), (steps + 1,)


@pytest.mark.parametrize("name", ["random", "sticky:0.5", "sticky-random", "held:3"])
def test_random_rows_do_not_depend_on_each_other(name: str) -> None:
    env = gym.make("Pendulum-v1")
    policy, alone = make_policy(name, env), make_policy(name, env)
    policy.reset([0, 1], [5, 6])
    both = [policy.act(np.zeros((2, 3)), [0, 1]) for _ in range(12)]
    alone.reset([0], [6])
    np.testing.assert_array_equal(
        [actions[1] for actions in both], [alone.act([None], [0])[0] for _ in range(12)]
    )


def test_a_recurrent_policy_keeps_its_memory_by_row_and_forgets_it_at_a_reset(
    cartpole: gym.Env[Any, Any],
) -> None:
    counter = Counter()
    policy = make_policy(counter, cartpole, min_batch=4)
    observations = np.zeros((2, 4), np.float32)
    policy.reset([0, 1], [0, 0])
    actions = [policy.act(observations, [0, 1]) for _ in range(2)]
    policy.reset([1], [1])
    actions += [policy.act(observations, [0, 1]) for _ in range(3)]
    assert np.array(actions).T.tolist() == [[0, 0, 1, 1, 1], [0, 0, 0, 0, 1]]
    assert set(counter.batches) == {4}, "the batch size never changes"


def test_a_recurrent_policy_records_with_its_memory(tmp_path: Path) -> None:
    path = record("CartPole-v1", steps=60, out=tmp_path / "d.h5", policy=Counter())
    with Dataset(path) as dataset:
        assert dataset.policy == "predict:Counter sampled"
        for index in range(len(dataset)):
            actions = dataset.episode(index).actions
            assert actions.tolist() == [int(step >= 2) for step in range(len(actions))]


def test_rows_may_be_fewer_than_were_reset(cartpole: gym.Env[Any, Any]) -> None:
    class Lean:
        def predict(self, observation: Any, deterministic: bool = False) -> Any:
            return (observation[:, 2] > 0).astype(int)

    policy = make_policy(Lean(), cartpole)
    policy.reset([0, 1, 2], [0, 0, 0])
    lean = np.zeros((2, 4), np.float32)
    lean[1, 2] = 1.0
    assert list(policy.act(lean, [0, 2])) == [0, 1]
    assert list(policy.act(list(lean[::-1]), [0, 2])) == [1, 0]


def test_actions_of_a_frame_skip_are_spread_over_its_steps() -> None:
    class Blocks:
        frame_skip = FrameSkip(steps=3)
        action_space = gym.spaces.MultiDiscrete([2, 2, 2])
        calls = 0

        def predict(self, observation: Any, deterministic: bool = False) -> Any:
            self.calls += 1
            return np.array([[0, 1, 1]])

    blocks = Blocks()
    env = gym.make("CartPole-v1")
    policy = make_policy(blocks, env)
    policy.reset([0], [0])
    assert [policy.act([None], [0])[0] for _ in range(5)] == [0, 1, 1, 0, 1]
    policy.reset([0], [1])
    assert policy.act([None], [0])[0] == 0, "the rest of a block does not outlive its episode"
    assert blocks.calls == 3
    skipping = make_policy(blocks, SkipFrames(env, steps=3))
    skipping.reset([0], [0])
    np.testing.assert_array_equal(skipping.act([None], [0])[0], [0, 1, 1])
    with pytest.raises(PolicyError, match="FrameSkip"):
        make_policy(blocks, env, unroll=False)


def test_a_batch_and_a_list_of_dict_observations_are_the_same() -> None:
    rows = [{"a": np.full(2, k), "b": np.int64(k)} for k in range(3)]
    batch = as_batch(rows)
    assert batch["a"].shape == (3, 2)
    for row, again in zip(rows, as_rows(batch), strict=True):
        np.testing.assert_array_equal(row["a"], again["a"])
        assert row["b"] == again["b"]


def test_a_policy_is_taken_as_it_is(cartpole: gym.Env[Any, Any]) -> None:
    own = PredictPolicy(Counter(), name="mine", deterministic=True)
    assert isinstance(own, Policy)
    assert make_policy(own, cartpole).name == "mine"


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({}, "type dict was given; expected 'random'"),
        (None, "NoneType"),
        (Path("ppo.zip"), "load_policy"),
        ("best", "no policy 'best'; expected 'random'.*load_policy"),
        ("sticky:x", "no number"),
        ("held:0", "at least 1"),
        ("held:x", "no whole number"),
    ],
)
def test_what_is_not_a_policy_is_refused(
    policy: Any, message: str, cartpole: gym.Env[Any, Any]
) -> None:
    with pytest.raises(PolicyError, match=message):
        make_policy(policy, cartpole)


def test_a_policy_of_other_spaces_is_refused_with_both(cartpole: gym.Env[Any, Any]) -> None:
    class Other(Counter):
        observation_space = gym.spaces.Box(-1, 1, (3,), np.float32)

    with pytest.raises(PolicyError, match=r"observation space is Box.*CartPole-v1.*\(4,\)"):
        make_policy(Other(), cartpole)


def test_a_function_of_a_batch_is_refused_with_what_to_pass(cartpole: gym.Env[Any, Any]) -> None:
    policy = make_policy(lambda batch: (batch[:, 2] > 0).astype(int), cartpole)
    with pytest.raises(PolicyError, match=r"one observation at a time; pass.*\[None\]"):
        policy.act(np.zeros((2, 4), np.float32), [0, 1])


def test_an_error_of_a_function_stays_what_it_is(cartpole: gym.Env[Any, Any]) -> None:
    def broken(observation: Any) -> int:
        raise KeyError("of its own")

    with pytest.raises(KeyError, match="of its own"):
        make_policy(broken, cartpole).act(np.zeros((1, 4), np.float32), [0])


def test_a_function_may_return_an_action_and_no_state(cartpole: gym.Env[Any, Any]) -> None:
    policy = make_policy(lambda observation: (np.int64(1), None), cartpole)
    assert policy.act(np.zeros((2, 4), np.float32), [0, 1]) == [1, 1]
    pair = make_policy(lambda observation: (0.5, 0.25), cartpole)
    assert pair.act([None], [0]) == [(0.5, 0.25)], "an action of two numbers"


def test_a_function_that_returns_a_state_is_refused(cartpole: gym.Env[Any, Any]) -> None:
    policy = make_policy(lambda observation: (1, np.zeros(3)), cartpole)
    with pytest.raises(PolicyError, match=r"returned \(action, state\).*pass the object"):
        policy.act(np.zeros((1, 4), np.float32), [0])


def test_a_method_predict_keeps_the_memory_of_its_object(cartpole: gym.Env[Any, Any]) -> None:
    policy = make_policy(Counter().predict, cartpole)
    policy.reset([0], [0])
    actions = [int(policy.act(np.zeros((1, 4), np.float32), [0])[0]) for _ in range(4)]
    assert actions == [0, 0, 1, 1]


def test_predict_is_given_the_masks_of_its_row(cartpole: gym.Env[Any, Any]) -> None:
    class Masked(gym.Wrapper[Any, Any, Any, Any]):
        allowed = 0

        def action_masks(self) -> Any:
            return np.arange(2) == self.allowed

    class Obeys:
        def predict(self, observation, deterministic=False, action_masks=None):
            assert action_masks.shape == (len(observation), 2)
            return action_masks.argmax(1)

    envs = [Masked(cartpole), Masked(cartpole)]
    envs[1].allowed = 1
    policy = make_policy(Obeys(), envs[0], min_batch=4)
    assert isinstance(policy, PredictPolicy)
    policy.use_masks_of(envs)
    policy.reset([0, 1], [0, 0])
    observations = np.zeros((2, 4), np.float32)
    assert [int(action) for action in policy.act(observations, [0, 1])] == [0, 1]
    assert [int(action) for action in policy.act(observations[:1], [1])] == [1]
