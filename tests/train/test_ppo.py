"""The PPO on tensors: its own gradients, optimiser and values against torch's plain ones."""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy

import pytest
import torch
from torch import nn

from dreamgym.dream import DreamVectorEnv, capture
from dreamgym.models.host_sync import forbid_host_sync
from dreamgym.train.network import ActorCritic, tanh_mlp
from dreamgym.train.ppo import PPO, PPOSettings, _backward, _forward
from tests.dream.recorded_graph import RecordedGraph
from tests.small_worlds import small_world


@pytest.mark.parametrize("hidden", [(), (5,), (8, 7)])
def test_the_gradients_of_a_network_are_those_of_autograd(hidden):
    torch.manual_seed(0)
    network, x = tanh_mlp(3, hidden, 2, gain=1.0).double(), torch.randn(9, 3).double()
    by_outputs = torch.randn(9, 2).double()
    expected = network(x)
    gradients = torch.autograd.grad(expected, list(network.parameters()), by_outputs)
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    with torch.no_grad():
        outputs, inputs = _forward(network, x)
        torch.testing.assert_close(outputs, expected)
        _backward(network, inputs, by_outputs)
    torch.testing.assert_close([each.grad for each in network.parameters()], list(gradients))


def learner(world, *, batch_size: int = 42, device: str = "cpu", compile=False, **settings) -> PPO:
    env = DreamVectorEnv(
        world,
        6,
        max_episode_steps=4,
        output="torch",
        autoreset_mode="SameStep",
        device=device,
        compile=compile,
    )
    torch.manual_seed(0)
    size = env.single_observation_space.shape[0]
    spaces = env.single_observation_space, env.single_action_space
    network = ActorCritic(*spaces, net_arch=(8,), mean=[0.0] * size, std=[1.0] * size)
    network = network.to(device)
    options = PPOSettings(n_steps=7, batch_size=batch_size, n_epochs=1, **settings)
    return PPO(env, network, options, seed=0)


@pytest.mark.parametrize("norm", [1e-3, 1e3])
@pytest.mark.parametrize("kind", ["box", "discrete"])
def test_an_update_is_a_step_of_adam_with_a_clipped_gradient(kind, norm, request):
    world = request.getfixturevalue(f"{kind}_world")
    ppo = learner(world, max_grad_norm=norm, ent_coef=0.3)
    plain = deepcopy(ppo.network)  # has parameters of its own
    optimizer = torch.optim.Adam(plain.parameters(), lr=ppo.settings.learning_rate, eps=1e-5)
    rollout = ppo.collect()
    # As of a policy that has changed since: some ratios are beyond the clip range.
    shift = torch.linspace(-0.4, 0.4, rollout.log_prob.numel()).view_as(rollout.log_prob)
    rollout = rollout._replace(log_prob=rollout.log_prob + shift)
    advantage, target = (leaf.flatten() for leaf in ppo.advantages(rollout))
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    observation, action = rollout.observation.flatten(0, 1), rollout.action.flatten(0, 1)
    log_prob, entropy = plain.log_prob(plain.actor(observation), action)
    ratio = (log_prob - rollout.log_prob.flatten()).exp()
    clipped = ratio.clamp(0.8, 1.2)
    gain = torch.minimum(ratio * advantage, clipped * advantage).mean()
    error = (plain.critic(observation).squeeze(-1) - target).square().mean()
    (0.5 * error - gain - 0.3 * entropy.mean()).backward()
    nn.utils.clip_grad_norm_(plain.parameters(), norm)
    optimizer.step()
    before = [each.clone() for each in ppo.network.parameters()]
    ppo.update(rollout)
    for new, expected, old in zip(
        ppo.network.parameters(), plain.parameters(), before, strict=True
    ):
        assert not new.numel() or not torch.equal(new, old)  # classes have no deviation
        torch.testing.assert_close(new, expected, atol=1e-5, rtol=1e-4)


def test_advantages_use_the_last_observation_of_episodes_that_ended(box_world):
    ppo = learner(box_world)
    rollout = ppo.collect()
    assert rollout.done.any()
    assert not rollout.done.all()
    value, following = (
        ppo.network.critic(part).squeeze(-1)
        for part in (rollout.observation, rollout.next_observation)
    )
    gamma, decay = ppo.settings.gamma, ppo.settings.gamma * ppo.settings.gae_lambda
    last = torch.zeros(6)
    expected = torch.empty_like(value)
    for t in reversed(range(7)):
        delta = rollout.reward[t] + gamma * following[t] * ~rollout.terminated[t] - value[t]
        last = expected[t] = delta + decay * last * ~rollout.done[t]
    torch.testing.assert_close(ppo.advantages(rollout)[0], expected)
    with forbid_host_sync():  # as on a GPU
        torch.testing.assert_close(ppo.advantages(rollout)[0], expected)


class BrokenGraph(RecordedGraph):
    """A device whose capture fails after a warm-up."""

    def record(self, work) -> None:
        work()
        raise RuntimeError("operation not permitted when stream is capturing")


ON_A_GRAPH = pytest.mark.parametrize(
    ("device", "graph"),
    [
        ("cpu", RecordedGraph),
        ("cpu", BrokenGraph),
        pytest.param("cuda", capture.CudaGraph, marks=pytest.mark.gpu),
    ],
)


@pytest.mark.parametrize("kind", ["box", "discrete"])
@ON_A_GRAPH
def test_a_captured_update_is_the_plain_one(kind, device, graph, monkeypatch):
    """Minibatches of 16 and a last one of 10, which is not captured."""
    world = small_world("mdn-rnn", kind)
    rollout, networks = None, []
    for captured in (True, False):
        if captured:
            monkeypatch.setitem(capture.GRAPHS, device, graph)
        else:
            monkeypatch.delitem(capture.GRAPHS, device)
        ppo = learner(world, batch_size=16, device=device)
        if rollout is None:
            monkeypatch.delitem(capture.GRAPHS, device)
            rollout = ppo.collect()
            monkeypatch.setitem(capture.GRAPHS, device, graph)
        ppo.generator.manual_seed(1)
        expectation = (
            pytest.warns(RuntimeWarning, match="update cannot be captured here .*not permitted")
            if captured and graph is BrokenGraph
            else nullcontext()
        )
        with expectation:
            ppo.update(rollout)
        ppo.update(rollout)
        networks.append(list(ppo.network.parameters()))
    torch.testing.assert_close(*networks)


@pytest.mark.parametrize("kind", ["box", "discrete"])
@ON_A_GRAPH
def test_a_captured_rollout_is_the_plain_one(kind, device, graph, monkeypatch):
    """Policy and dream are a graph each; after an update the policy's graph has the new weights."""
    world, found = small_world("mdn-rnn", kind), []
    for captured in (True, False):
        if captured:
            monkeypatch.setitem(capture.GRAPHS, device, graph)
        else:
            monkeypatch.delitem(capture.GRAPHS, device)
        ppo = learner(world, batch_size=16, device=device, compile="auto")
        broken = captured and graph is BrokenGraph
        with pytest.warns(RuntimeWarning, match="cannot be captured") if broken else nullcontext():
            first = ppo.collect()
            ppo.update(first)
        second = ppo.collect()
        assert not torch.equal(first.action, second.action)
        found.append([*first, *second])
        if captured and not broken:
            assert ppo.env.stepper.execution == "captured"
            assert ppo._act != ppo._choose
    torch.testing.assert_close(*found)
