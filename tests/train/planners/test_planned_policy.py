"""A planner as a policy: filtering, rows, goals, the public functions, and a policy's prior."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import dreamgym
from dreamgym.cli import app
from dreamgym.data.policies import Policy
from dreamgym.models import FAMILIES, GoalReward
from dreamgym.train import TrainConfig, TrainingError
from dreamgym.train.planners import (
    CategoricalCEMConfig,
    CEMConfig,
    ICEMConfig,
    PlannedPolicy,
    PolicyPrior,
)
from tests.small_worlds import small_world, world_of
from tests.train.planners.point_world import BOX, OBSERVATION, PointConfig, PointWorld

QUICK = ICEMConfig(horizon=4, candidates=12, elites=3, iterations=2)
PENDULUM = "Pendulum-MDNRNN-v0"


def observations(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)


def test_a_row_acts_the_same_alone_in_any_place_and_after_pickling():
    world = small_world(action="box")
    policy = PlannedPolicy(world, QUICK)
    assert isinstance(policy, Policy)
    policy.reset([0, 1, 2], [5, 6, 7])
    seen = [observations(3, t) for t in range(3)]
    together = [policy.act(each, [0, 1, 2]) for each in seen]
    other = pickle.loads(pickle.dumps(policy))  # noqa: S301 - made in this test
    other.reset([9], [6])
    for each, actions in zip(seen, together, strict=True):
        (alone,) = other.act([each[1]], [9])
        assert world.action_space.contains(alone)
        np.testing.assert_allclose(alone, actions[1], atol=1e-3)
    policy.reset([1], [8])
    assert not np.allclose(policy.act(observations(3), [0, 1, 2])[1], together[0][1])


def test_a_plan_is_carried_out_as_far_as_execute_says():
    world = world_of(PointWorld(OBSERVATION, BOX, PointConfig(target=(2.0, 0.0))))
    config = CEMConfig(horizon=4, candidates=100, elites=10, iterations=8, execute=3)
    policy = PlannedPolicy(world, config)
    policy.reset([0], [0])
    plans = []
    original = policy.planner.plan
    policy.planner.plan = lambda *arguments: plans.append(1) or original(*arguments)
    point, taken = np.zeros(2, np.float32), []
    for _ in range(6):
        (action,) = policy.act([point], [0])
        taken.append(action)
        point = point + action
    assert len(plans) == 2
    np.testing.assert_allclose(point, [2.0, 0.0], atol=0.2)


def test_rows_pursue_their_own_goals(monkeypatch):
    monkeypatch.setitem(FAMILIES, "point", PointWorld)
    model = GoalReward(PointWorld(OBSERVATION, BOX), np.zeros(2, np.float32))
    policy = PlannedPolicy(world_of(model), CEMConfig(horizon=2, iterations=8))
    goals = np.float32([[0.5, 1.0], [-0.5, -1.0]])
    policy.reset([0, 1], [0, 1])
    policy.set_goals([0, 1], goals)
    policy.reset([0], [3])  # a new episode keeps its goal
    actions = policy.act(np.zeros((2, 2), np.float32), [0, 1])
    np.testing.assert_allclose(actions, goals, atol=0.2)
    plain = PlannedPolicy(small_world(action="box"), QUICK)
    with pytest.raises(TrainingError, match="has no goals"):
        plain.set_goals([0], goals[:1])


def test_it_records_evaluates_and_transfers(tmp_path):
    world = dreamgym.load(PENDULUM)
    policy = PlannedPolicy(world, QUICK)
    path = dreamgym.record("Pendulum-v1", steps=10, policy=policy, out=tmp_path / "data.h5", seed=0)
    with dreamgym.Dataset(path) as dataset:
        assert dataset.num_episodes == 1
    result = dreamgym.transfer_policy(policy, world, episodes=2, max_episode_steps=5)
    assert result.view == "observation"
    assert result.real.episodes == result.dream.episodes == 2


def test_planning_is_better_than_chance_in_the_real_pendulum():
    policy = PlannedPolicy(PENDULUM, replace(QUICK, horizon=12, candidates=24))
    limit = {"episodes": 4, "max_episode_steps": 60}
    planned = dreamgym.evaluate(policy, "Pendulum-v1", **limit).mean
    assert planned > dreamgym.evaluate("random", "Pendulum-v1", **limit).mean + 100


@pytest.mark.parametrize(
    ("learner", "algo", "settings"),
    [
        ("sb3", "PPO", {"n_steps": 8, "num_envs": 4}),
        ("sb3", "SAC", {"num_envs": 4, "learner": {"buffer_size": 100, "learning_starts": 8}}),
        ("sb3", "TD3", {"num_envs": 4, "learner": {"buffer_size": 100, "learning_starts": 8}}),
        ("ppo", "PPO", {"n_steps": 8, "num_envs": 4}),
    ],
)
def test_a_trained_policy_values_and_proposes(learner, algo, settings):
    world = small_world(action="box")
    config = TrainConfig(**settings)
    trained = dreamgym.train_policy(world, learner=learner, algo=algo, steps=32, config=config)
    prior = PolicyPrior(trained, world)
    assert prior.discount == trained.card.hyperparameters["gamma"]
    state = {key: leaf[:3] for key, leaf in world.starts.states.items()}
    value = prior.value(state)
    assert value.shape == (3,)
    seen = world.model.decode(state)
    if learner == "ppo":
        expected = trained.network.value(seen) / trained.card.reward_scale
        torch.testing.assert_close(value, expected)
    elif algo == "PPO":
        expected = trained.network.predict_values(seen)[:, 0] / trained.card.reward_scale
        torch.testing.assert_close(value, expected)
    actions = prior.policy(state, torch.zeros(3, 1))
    np.testing.assert_array_equal(actions, trained.predict(seen.numpy())[0])
    policy = PlannedPolicy(world, QUICK, value=prior, proposal=prior)
    policy.reset([0], [0])
    assert world.action_space.contains(policy.act(observations(1), [0])[0])


def test_values_of_discrete_actions(tmp_path):
    world = small_world(action="discrete")
    learner = {"buffer_size": 100, "learning_starts": 8}
    config = TrainConfig(num_envs=4, learner=learner)
    trained = dreamgym.train_policy(world, algo="DQN", steps=32, config=config)
    state = {key: leaf[:3] for key, leaf in world.starts.states.items()}
    assert PolicyPrior(trained, world).value(state).shape == (3,)


def test_the_command_line_plans(tmp_path):
    figures = tmp_path / "result.json"
    run = CliRunner().invoke
    common = ["--world", PENDULUM, "--episodes", "1", "--max-episode-steps", "2"]
    result = run(app, ["transfer", "plan:icem", *common, "--json", str(figures)])
    assert result.exit_code == 0, result.output
    assert json.loads(figures.read_text())["episodes"] == 1
    record = ["record", "Pendulum-v1", "--steps", "2", "--policy", "plan:icem"]
    out = ["--out", str(tmp_path / "data.h5")]
    assert run(app, [*record, "--world", PENDULUM, *out]).exit_code == 0
    assert run(app, [*record, *out, "--overwrite"]).exit_code != 0
    assert run(app, ["transfer", "plan:categorical-cem", *common]).exit_code != 0
    assert run(app, ["transfer", "plan:none", *common]).exit_code != 0


def test_discrete_actions_are_those_of_the_space():
    world = small_world(action="multi-discrete")
    config = CategoricalCEMConfig(horizon=3, candidates=12, elites=3, iterations=1)
    policy = PlannedPolicy(world, config)
    policy.reset([0], [0])
    assert world.action_space.contains(policy.act(observations(1), [0])[0])


class Reach(gym.Env):
    """A point goes to where the info of a reset says."""

    observation_space, action_space = OBSERVATION, BOX

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        self.goal = (self.place + self.np_random.choice([0, 3])).astype(np.float32)
        return self.place, {"goal_observation": self.goal, "is_success": self._reached()}

    def step(self, action):
        self.place = self.place + action
        return self.place, 0.0, False, self._reached(), {"is_success": self._reached()}

    def _reached(self):
        return bool(np.abs(self.place - self.goal).max() < 0.3)


def test_episodes_give_a_planner_their_goals(monkeypatch):
    monkeypatch.setitem(FAMILIES, "point", PointWorld)
    world = world_of(PointWorld(OBSERVATION, BOX))
    goals = world.with_model(GoalReward(world.model, np.zeros(2, np.float32)))
    policy = PlannedPolicy(goals, CEMConfig(horizon=4, candidates=64, elites=8, std=1.0))
    options = {"episodes": 20, "seed": 0, "max_episode_steps": 6}  # more than run side by side
    result = dreamgym.evaluate(policy, Reach, **options)
    assert result.success_rate == 1.0
    assert 0 < result.at_goal.sum() < 20
    assert dreamgym.evaluate("random", Reach, **options).success_rate < 0.5
    with pytest.raises(TrainingError, match="has no goals"):
        dreamgym.evaluate(PlannedPolicy(world, QUICK), Reach, **options)
