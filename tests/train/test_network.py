"""The network that learners on tensors train, its distributions, actions and file."""

from __future__ import annotations

import json
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dreamgym.errors import PolicyFileError, TrainingError
from dreamgym.train import LEARNERS, TrainConfig, load_policy, train_policy
from dreamgym.train.network import SUFFIX, ActionCodec, ActorCritic

SPACES = [
    gym.spaces.Box(np.float32([-2, 0]), np.float32([2, 1])),
    gym.spaces.Box(-3, 5, (2, 2), np.int64),
    gym.spaces.Discrete(3, start=-1),
    gym.spaces.MultiDiscrete([[2, 3], [4, 2]], start=[[0, 1], [-2, 0]]),
]
OBSERVATIONS = gym.spaces.Box(-1, 1, (2, 3), np.float32)


def make(space: gym.Space) -> ActorCritic:
    torch.manual_seed(0)
    return ActorCritic(OBSERVATIONS, space, net_arch=(8,), mean=[0.0] * 6, std=[1.0] * 6)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_actions_lie_in_the_space_however_far_the_network_goes(space):
    network = make(space)
    batch = np.stack([OBSERVATIONS.sample() for _ in range(64)])
    with torch.no_grad():
        network.log_std.fill_(3.0)
    for deterministic in (True, False):
        actions, _ = network.predict(batch, deterministic=deterministic)
        assert actions.shape == (64, *space.shape)
        assert all(action in space for action in actions)
    one, _ = network.predict(batch[0])
    assert one in space
    np.testing.assert_array_equal(one, network.predict(batch[:1])[0][0])


def test_the_bounds_are_minus_one_and_one_and_every_class_is_reached():
    box, discrete = ActionCodec(SPACES[0]), ActionCodec(SPACES[2])
    ends = box(torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.0, 9.0]]))
    assert ends.tolist() == [[-2, 0], [2, 1], [0, 1]]
    assert discrete(torch.tensor([[0], [2]])).tolist() == [-1, 1]
    with pytest.raises(TrainingError, match="infinite bound"):
        ActionCodec(gym.spaces.Box(-np.inf, 1.0, (1,)))


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_log_probabilities_and_entropies_are_those_of_torch(space):
    network = make(space)
    torch.manual_seed(1)
    outputs = torch.randn(500, network.codec.outputs)
    action = network.sample(outputs, network.noise(500))
    log_prob, entropy = network.log_prob(outputs, action)
    if network.codec.continuous:
        torch_own = torch.distributions.Normal(outputs, network.log_std.exp())
        expected = torch_own.log_prob(action).sum(-1), torch_own.entropy().sum(-1)
    else:
        parts = outputs.split(network.codec.sizes, -1)
        choices = [torch.distributions.Categorical(logits=part) for part in parts]
        expected = (
            sum(each.log_prob(action[:, i]) for i, each in enumerate(choices)),
            sum(each.entropy() for each in choices),
        )
    torch.testing.assert_close(log_prob, expected[0])
    torch.testing.assert_close(entropy, expected[1])


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_the_gradients_of_probabilities_and_entropies_are_those_of_autograd(space):
    network = make(space).double()
    torch.manual_seed(1)
    network.log_std.data.normal_()
    outputs = torch.randn(50, network.codec.outputs, dtype=torch.double, requires_grad=True)
    action = network.sample(outputs, network.noise(50)).detach()
    by_log_prob, by_entropy = torch.randn(50, dtype=torch.double), 0.3
    log_prob, entropy = network.log_prob(outputs, action)
    loss = (by_log_prob * log_prob).sum() + by_entropy * entropy.sum()
    sources = (outputs, network.log_std)
    expected = torch.autograd.grad(loss, sources, allow_unused=True, materialize_grads=True)
    found = network.log_prob_gradients(outputs, action, by_log_prob, by_entropy)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_actions_are_drawn_as_often_as_they_are_probable(space):
    network, rows = make(space), 20_000
    outputs = torch.randn(1, network.codec.outputs).expand(rows, -1)
    action = network.sample(outputs, network.noise(rows, torch.Generator().manual_seed(0)))
    if network.codec.continuous:
        scaled = (action - outputs) / network.log_std.exp()
        torch.testing.assert_close(scaled.mean(0), torch.zeros(len(scaled[0])), atol=0.03, rtol=0)
        torch.testing.assert_close(scaled.std(0), torch.ones(len(scaled[0])), atol=0.03, rtol=0)
        return
    for choice, logits in zip(action.T, outputs[0].split(network.codec.sizes), strict=True):
        found = torch.bincount(choice, minlength=len(logits)) / rows
        torch.testing.assert_close(found, logits.softmax(-1), atol=0.015, rtol=0)


@pytest.mark.parametrize(
    "learner", [name for name, each in LEARNERS.items() if each.suffix == SUFFIX]
)
def test_a_policy_is_saved_and_read_and_acts_as_before(box_world, tmp_path, learner):
    pytest.importorskip(LEARNERS[learner].requires)
    config = TrainConfig(num_envs=4, n_steps=4, batch_size=8, net_arch=(8, 4))
    policy = train_policy(box_world, learner=learner, steps=16, out=tmp_path / "p", config=config)
    path = tmp_path / "p.safetensors"
    read = load_policy(tmp_path / "p", world=box_world)
    assert read.card == policy.card
    assert read.card.learner == learner
    assert read.card.steps == 16
    initial = train_policy(
        box_world, learner=learner, steps=16, config=replace(config, learning_rate=1e-9)
    )
    assert policy.name != initial.name, "it was not trained"
    batch = np.stack([box_world.observation_space.sample() for _ in range(5)])
    np.testing.assert_array_equal(read.predict(batch)[0], policy.predict(batch)[0])
    assert read.name == policy.name
    weights = load_file(path)
    for damaged in (
        {name: leaf for name, leaf in weights.items() if name != "log_std"},
        {**weights, "log_std": torch.zeros(3)},
    ):
        save_file(damaged, path, {"dreamgym": json.dumps(policy.card.as_dict())})
        with pytest.raises(PolicyFileError, match="no policy can be built"):
            load_policy(path)
    save_file(weights, path)
    with pytest.raises(PolicyFileError, match="not a policy of dreamgym"):
        load_policy(path)
    newer = replace(policy.card, schema=99)
    save_file(weights, path, {"dreamgym": json.dumps(newer.as_dict())})
    with pytest.raises(PolicyFileError, match="newer"):
        load_policy(path)


@pytest.mark.parametrize("name", ["rate-0.001", "p.zip"])
def test_what_follows_a_point_in_a_name_is_no_suffix(discrete_world, tmp_path, name):
    config = TrainConfig(num_envs=4, n_steps=4, net_arch=(8,))
    out = tmp_path / name
    policy = train_policy(discrete_world, learner="ppo", steps=16, config=config, out=out)
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.safetensors"]
    assert load_policy(out).name == policy.name


def test_equal_seeds_give_equal_policies_and_others_do_not(discrete_world):
    config = TrainConfig(num_envs=4, n_steps=4, net_arch=(8,))
    state = torch.get_rng_state()
    one, two, other = (
        train_policy(discrete_world, learner="ppo", steps=32, seed=seed, config=config)
        for seed in (0, 0, 1)
    )
    assert one.name == two.name != other.name
    assert torch.equal(torch.get_rng_state(), state)


def test_unknown_settings_are_refused(discrete_world):
    with pytest.raises(TrainingError, match=r"buffer_size=3 does not apply.*n_steps"):
        train_policy(discrete_world, learner="ppo", config=TrainConfig(learner={"buffer_size": 3}))
