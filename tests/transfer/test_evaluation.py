from __future__ import annotations

import copy
import json

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import PPO

from dreamgym.errors import PolicyError
from dreamgym.transfer import (
    EpisodePlan,
    TransferError,
    compare_policies,
    evaluate,
    run_episodes,
)


def balance(observation):
    """A decent linear controller of CartPole, for one observation or a batch."""
    return (observation @ np.array([0.1, 0.3, 1.0, 1.0]) > 0).astype(int)


class ActsOnce:
    """A predict() that returns a single action for a batch."""

    def predict(self, observation, deterministic=False):
        return np.zeros(1, int)


def by_hand(env_id, act, seeds):
    """Run one episode after the other in one environment, as a reference for `evaluate`."""
    env, returns, lengths = gym.make(env_id), [], []
    for seed in seeds:
        observation, _ = env.reset(seed=seed)
        total, length, over = 0.0, 0, False
        while not over:
            observation, reward, terminated, truncated, _ = env.step(act(observation[None])[0])
            total, length, over = total + reward, length + 1, terminated or truncated
        returns.append(total)
        lengths.append(length)
    return returns, lengths


def test_it_agrees_with_episodes_run_by_hand():
    result = evaluate(balance, "CartPole-v1", episodes=20, seed=7)
    returns, lengths = by_hand("CartPole-v1", balance, range(7, 27))
    assert result.returns.tolist() == returns
    assert result.lengths.tolist() == lengths
    assert result.steps == sum(lengths)
    assert result.mean == pytest.approx(np.mean(returns))
    assert result.std == pytest.approx(np.std(returns))
    assert result.interval[0] <= result.mean <= result.interval[1]
    assert result.episodes == 20
    assert json.loads(json.dumps(result.as_dict()))["return_mean"] == result.mean


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_the_number_of_environments_side_by_side_changes_nothing(env_id):
    """Bit for bit: a network's rounding must not depend on the other rows of the batch."""
    policy = PPO("MlpPolicy", gym.make(env_id), seed=0, device="cpu").policy
    results = [
        run_episodes(policy, env_id, EpisodePlan(episodes=7, seed=3, num_envs=lanes))
        for lanes in (1, 3, 32)
    ]
    for result in results[1:]:
        np.testing.assert_array_equal(result.returns, results[0].returns)
        np.testing.assert_array_equal(result.lengths, results[0].lengths)


def test_random_episodes_do_not_depend_on_the_number_of_environments():
    one, many = (
        run_episodes("random", "CartPole-v1", EpisodePlan(episodes=12, num_envs=lanes))
        for lanes in (1, 7)
    )
    np.testing.assert_array_equal(one.returns, many.returns)
    assert 12 < one.mean < 40
    assert len(set(one.returns)) > 3


def test_random_actions_are_even_and_differ_between_steps():
    taken = []

    class Watched(gym.Wrapper):
        def step(self, action):
            taken.append(int(action))
            return super().step(action)

    evaluate("random", lambda: Watched(gym.make("CartPole-v1")), episodes=30)
    assert np.mean(taken) == pytest.approx(0.5, abs=0.1)


def test_truncation_ends_an_episode():
    result = evaluate("random", "Pendulum-v1", episodes=3)
    assert result.lengths.tolist() == [200] * 3
    spec = copy.deepcopy(gym.spec("CartPole-v1"))
    spec.max_episode_steps = 5
    assert evaluate(balance, spec.to_json(), episodes=4).lengths.tolist() == [5] * 4


def test_the_keyword_arguments_of_a_spec_are_kept():
    spec = gym.make("CartPole-v1", sutton_barto_reward=True).spec
    result = evaluate("random", spec.to_json(), episodes=3)
    assert result.returns.tolist() == [-1.0] * 3
    assert evaluate("random", spec, episodes=3).returns.tolist() == [-1.0] * 3


def test_a_class_path_in_a_spec_is_not_imported():
    spec = json.loads(gym.spec("CartPole-v1").to_json())
    spec["entry_point"] = "nothing.such:Env"
    assert evaluate("random", json.dumps(spec), episodes=1).episodes == 1


def test_a_module_named_by_a_spec_is_not_imported():
    with pytest.raises(TransferError, match="not imported from a file"):
        evaluate("random", '{"id": "this:CartPole-v1"}', episodes=1)


def test_progress_is_reported_after_each_episode():
    reported = []
    evaluate("random", "CartPole-v1", episodes=20, progress=lambda *given: reported.append(given))
    assert reported == [(done, 20) for done in range(1, 21)]


def test_environments_are_closed_even_when_the_policy_fails():
    closed = []

    class Watched(gym.Wrapper):
        def close(self):
            closed.append(self)
            super().close()

    def broken(observation):
        raise RuntimeError("no idea")

    with pytest.raises(RuntimeError, match="no idea"):
        evaluate(broken, lambda: Watched(gym.make("CartPole-v1")), episodes=3)
    assert len(closed) == 3


def test_environments_are_closed_even_when_the_next_cannot_be_made():
    made, closed = [], []

    class Watched(gym.Wrapper):
        def close(self):
            closed.append(self)
            super().close()

    def fail_at_the_third():
        if len(made) == 2:
            raise OSError("no port is free")
        made.append(Watched(gym.make("CartPole-v1")))
        return made[-1]

    with pytest.raises(OSError, match="no port"):
        evaluate("random", fail_at_the_third, episodes=5)
    assert set(closed) == set(made)
    assert len(made) == 2


def test_deterministic_is_passed_on():
    received = set()

    class Policy:
        def predict(self, observation, deterministic=False):
            received.add(deterministic)
            return np.zeros(len(observation), int), None

    evaluate(Policy(), "CartPole-v1", episodes=1)
    evaluate(Policy(), "CartPole-v1", episodes=1, deterministic=False)
    assert received == {True, False}


def test_dict_observations():
    class Split(gym.ObservationWrapper):
        def __init__(self):
            super().__init__(gym.make("CartPole-v1"))
            low, high = self.env.observation_space.low, self.env.observation_space.high
            self.observation_space = gym.spaces.Dict(
                place=gym.spaces.Box(low[:2], high[:2]), angle=gym.spaces.Box(low[2:], high[2:])
            )

        def observation(self, observation):
            return {"place": observation[:2], "angle": observation[2:]}

    def act(observation):
        return balance(np.concatenate([observation["place"], observation["angle"]]))

    split = evaluate(act, Split, episodes=4)
    np.testing.assert_array_equal(
        split.returns, evaluate(balance, "CartPole-v1", episodes=4).returns
    )


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("CartPole-v7", "CartPole-v"),
        ("CartPol-v1", "nearest registered id is 'CartPole-v1'"),
        ("nothing_such:Thing-v0", "nothing_such.*not installed"),
        ("{not json", "cannot be read"),
        ('{"name": "CartPole-v1"}', "no 'id'"),
        (42, "int"),
    ],
)
def test_environments_that_do_not_exist_are_refused(env, message):
    with pytest.raises(TransferError, match=message):
        evaluate("random", env, episodes=1)


def test_an_environment_object_and_a_vector_environment_are_refused():
    with pytest.raises(TransferError, match="a function that makes"):
        evaluate("random", gym.make("CartPole-v1"), episodes=1)
    with pytest.raises(TransferError, match=r"made a .*Vector"):
        evaluate("random", lambda: gym.make_vec("CartPole-v1", num_envs=2), episodes=1)


def test_policies_that_do_not_fit_are_refused_with_both_spaces():
    policy = PPO("MlpPolicy", gym.make("Pendulum-v1"), device="cpu")
    with pytest.raises(TransferError, match=r"observation space is Box.*\(3,\).*\(4,\)"):
        evaluate(policy, "CartPole-v1", episodes=1)
    with pytest.raises(PolicyError, match=r"shape \(1,\); expected \(\)"):
        evaluate(lambda observation: np.zeros(1, int), "CartPole-v1", episodes=1)
    with pytest.raises(PolicyError, match="dtype float64; expected whole numbers"):
        evaluate(lambda observation: 0.5, "CartPole-v1", episodes=1)
    with pytest.raises(PolicyError, match=r"\(1,\).*expected \(32, \.\.\.\)"):
        evaluate(ActsOnce(), "CartPole-v1", episodes=1)
    with pytest.raises(TransferError, match="'random'"):
        evaluate("best", "CartPole-v1", episodes=1)
    with pytest.raises(TransferError, match="dict"):
        evaluate({}, "CartPole-v1", episodes=1)


@pytest.mark.parametrize("plan", [{"episodes": 0}, {"num_envs": 0}, {"num_envs": 33}, {"seed": -1}])
def test_plans_out_of_range_are_refused_by_name(plan):
    with pytest.raises(TransferError, match=next(iter(plan))):
        EpisodePlan(**plan)


def test_a_reward_may_be_an_array_of_one_number():
    def make(shape):
        env = gym.make("CartPole-v1")
        return gym.wrappers.TransformReward(env, lambda reward: np.full(shape, reward))

    expected = evaluate(balance, "CartPole-v1", episodes=2)
    result = evaluate(balance, lambda: make((1,)), episodes=2)
    assert result.returns.tolist() == expected.returns.tolist()
    with pytest.raises(TransferError, match=r"reward of step 0: its shape is \(2,\); expected one"):
        evaluate(balance, lambda: make((2,)), episodes=2)
    unknown = gym.wrappers.TransformReward(gym.make("CartPole-v1"), lambda reward: float("nan"))
    with pytest.raises(TransferError, match="reward of step 0: it is nan; expected a finite"):
        evaluate(balance, lambda: unknown, episodes=1)


class Endless(gym.Env):
    """A point that drifts for ever; `cut` steps after a reset it truncates itself."""

    observation_space = gym.spaces.Box(-10, 10, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, cut=None):
        self.cut = cut

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.zeros(2, np.float32), 1.0, False, self.steps == self.cut, {}


def test_a_task_without_an_end_is_refused_with_what_to_pass(monkeypatch):
    monkeypatch.setattr("dreamgym.transfer.evaluation.ENDLESS", 50)
    with pytest.raises(TransferError, match=r"Endless.* not ended after 50 steps.*max_episode_st"):
        evaluate("random", Endless, episodes=1)
    with pytest.raises(TransferError, match="max_episode_steps is 0"):
        evaluate("random", Endless, episodes=1, max_episode_steps=0)


def test_a_time_limit_may_be_longer_than_what_an_endless_task_is_given(monkeypatch):
    monkeypatch.setattr("dreamgym.transfer.evaluation.ENDLESS", 50)
    assert evaluate("random", "Pendulum-v1", episodes=1).lengths.tolist() == [200]


def test_episodes_are_truncated_after_max_episode_steps():
    endless = evaluate("random", Endless, episodes=3, max_episode_steps=7)
    assert endless.lengths.tolist() == [7] * 3
    assert endless.returns.tolist() == [7.0] * 3
    assert endless.truncated.all()
    ends_itself = evaluate("random", lambda: Endless(cut=5), episodes=3, max_episode_steps=7)
    assert ends_itself.lengths.tolist() == [5] * 3
    falls = evaluate(lambda observation: 0, "CartPole-v1", episodes=3, max_episode_steps=400)
    assert not falls.truncated.any()


def test_median_and_interquartile_mean_stand_beside_the_mean():
    result = evaluate("random", "CartPole-v1", episodes=12)
    ordered = np.sort(result.returns)
    assert result.median == np.median(ordered)
    assert result.iqm == pytest.approx(ordered[3:-3].mean())
    figures = json.loads(json.dumps(result.as_dict()))
    for name in ("median", "iqm"):
        low, high = figures[f"return_{name}_interval"]
        assert low <= figures[f"return_{name}"] <= high
    assert "success_rate" not in figures


class Reach(gym.Env):
    """Succeeds if the action is 1; every third episode begins at the goal."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, key="is_success", only_success=False):
        self.key, self.only_success = key, only_success

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), self._info(seed % 3 == 0)

    def step(self, action):
        return np.zeros(1, np.float32), 0.0, True, False, self._info(bool(action))

    def _info(self, success):
        return {self.key: success} if success or not self.only_success else {}


@pytest.mark.parametrize("key", ["is_success", "success"])
@pytest.mark.parametrize("only_success", [False, True])
def test_success_is_counted_where_the_environment_reports_it(key, only_success):
    def make():
        return Reach(key, only_success)

    result = evaluate(lambda observation: 1, make, episodes=6, seed=0)
    assert result.success_rate == 1.0
    assert result.at_goal.tolist() == [True, False, False] * 2
    turns = iter([1, 0, 1, 0, 1, 1])
    plan = EpisodePlan(episodes=6, seed=0, num_envs=1)
    mixed = run_episodes(lambda observation: next(turns), make, plan)
    assert mixed.success.tolist() == [True, False, True, False, True, True]
    assert mixed.success_rate == 0.75  # of episodes 1, 2, 4 and 5
    figures = json.loads(json.dumps(mixed.as_dict()))
    assert figures["episodes_at_goal"] == 2
    low, high = figures["success_interval"]
    assert 0 <= low <= 0.75 <= high <= 1


def test_only_episodes_at_the_goal_have_no_success_rate():
    result = evaluate(lambda observation: 1, Reach, episodes=1, seed=0)
    assert result.success_rate is None
    assert json.loads(json.dumps(result.as_dict()))["success_rate"] is None


def test_several_policies_share_their_episodes_and_differences_are_paired():
    plan, reported = EpisodePlan(episodes=20, seed=7), []
    policies = {"balance": balance, "again": balance, "random": "random"}
    result = compare_policies(
        policies, "CartPole-v1", plan, progress=lambda *given: reported.append(given)
    )
    assert reported == [(done, 60) for done in range(1, 61)]
    alone = evaluate(balance, "CartPole-v1", episodes=20, seed=7)
    np.testing.assert_array_equal(result.evaluations["balance"].returns, alone.returns)
    assert result.difference("again", "balance") == (0.0, (0.0, 0.0))
    mean, (low, high) = result.difference("balance", "random")
    assert mean == pytest.approx(alone.mean - result.evaluations["random"].mean)
    assert 0 < low <= mean <= high
    figures = json.loads(json.dumps(result.as_dict()))
    assert figures["differences"]["random"]["to"] == "balance"
    assert figures["policies"]["random"]["episodes"] == 20
    with pytest.raises(TransferError, match="no policy"):
        compare_policies({}, "CartPole-v1")


def test_paired_differences_are_surer_than_independent_ones():
    """What the start of an episode contributes to both returns cancels."""
    from dreamgym.transfer.intervals import difference_interval

    policies = {"still": lambda observation: np.float32([0]), "push": lambda _: np.float32([0.1])}
    result = compare_policies(policies, "Pendulum-v1", EpisodePlan(episodes=20))
    _, (low, high) = result.difference("push", "still")
    loose = difference_interval(*(each.returns for each in result.evaluations.values()))
    assert high - low < 0.5 * (loose[1] - loose[0])


def test_videos_show_the_first_episodes(tmp_path):
    pytest.importorskip("moviepy")
    result = evaluate("random", "CartPole-v1", episodes=5, seed=3, videos=tmp_path / "videos")
    names = sorted(path.name for path in (tmp_path / "videos").iterdir())
    assert names == [f"seed-{seed}-episode-0.mp4" for seed in (3, 4, 5)]
    without = evaluate("random", "CartPole-v1", episodes=5, seed=3)
    np.testing.assert_array_equal(result.returns, without.returns)
    with pytest.raises(TransferError, match="render_mode='rgb_array'"):
        evaluate("random", lambda: gym.make("CartPole-v1"), episodes=1, videos=tmp_path)
    with pytest.raises(TransferError, match="video_episodes is 0"):
        EpisodePlan(video_episodes=0)
