"""A policy's actor on tensors acts as its `predict` does, and can be exported."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3

from dreamgym.train.actions import environment_actions, learner_action_space
from dreamgym.train.cma.controller import Controller
from dreamgym.train.network import ActorCritic
from dreamgym.train.sb3.actor import Actor
from dreamgym.transfer.export.graphs import ReactiveGraph
from dreamgym.transfer.export.onnx_file import open_onnx, write_onnx

SEEN = gym.spaces.Box(-3.0, 3.0, (4,), np.float32)
SPACES = {
    "box": gym.spaces.Box(np.float32([-2, 0]), np.float32([2, 1])),
    "integers": gym.spaces.Box(-5, 5, (2,), np.int8),
    "discrete": gym.spaces.Discrete(3, start=5),
    "multi-discrete": gym.spaces.MultiDiscrete([[2, 3], [4, 2]], start=[[1, 0], [0, 7]]),
}
CASES = [
    *((PPO, action) for action in SPACES),
    *((A2C, "box"), (SAC, "box"), (SAC, "integers"), (TD3, "box"), (DQN, "discrete")),
]


class Blank(gym.Env):
    observation_space = SEEN

    def __init__(self, action_space):
        self.action_space = action_space


def actor_of(algorithm, space):
    options = {} if algorithm in (PPO, A2C) else {"buffer_size": 10}
    model = algorithm("MlpPolicy", Blank(learner_action_space(space)), seed=0, **options)
    for name, parameter in model.policy.named_parameters():  # so that actions leave the bounds
        parameter.data *= 300 if name.startswith("action_net") else 3
    return model.policy, Actor(model.policy, space).eval()


def observations(rows=64):
    return np.random.default_rng(0).uniform(-3, 3, (rows, 4)).astype(np.float32)


@pytest.mark.parametrize(("algorithm", "action"), CASES)
def test_it_acts_as_predict_does(algorithm, action):
    space = SPACES[action]
    policy, actor = actor_of(algorithm, space)
    expected, _ = policy.predict(observations(), deterministic=True)
    with torch.no_grad():
        actions = actor(torch.from_numpy(observations())).numpy()
    np.testing.assert_allclose(actions, environment_actions(expected, space), atol=1e-5)
    assert len(np.unique(actions, axis=0)) > 1


@pytest.mark.parametrize("action", SPACES)
def test_the_networks_of_dreamgym_act_as_their_predict_does(action):
    space, numbers = SPACES[action], {"mean": [0.1] * 4, "std": [2.0] * 4}
    torch.manual_seed(0)
    network = ActorCritic(SEEN, space, **numbers)
    network.actor[-1].weight.data *= 300
    controller = Controller(space, **numbers)
    controller.weights.normal_(std=3)
    with torch.no_grad():
        np.testing.assert_array_equal(
            network(torch.from_numpy(observations())), network.predict(observations())[0]
        )
        acted = controller(torch.from_numpy(observations())).numpy()
    expected = environment_actions(controller.predict(observations())[0], space)
    np.testing.assert_allclose(acted, expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "action"),
    [(PPO, "multi-discrete"), (PPO, "box"), (SAC, "box"), (DQN, "discrete")],
)
def test_it_is_exported(algorithm, action, tmp_path):
    pytest.importorskip("onnxscript")
    _, actor = actor_of(algorithm, SPACES[action])
    graph = ReactiveGraph(actor, (SEEN, SPACES[action])).eval()
    write_onnx(graph, tmp_path / "policy.onnx")
    run = open_onnx(tmp_path / "policy.onnx")
    for row in observations(20):
        with torch.no_grad():
            expected = actor(torch.from_numpy(row[None])).numpy()
        np.testing.assert_allclose(run({"observation": row[None]})["action"], expected, atol=1e-4)
