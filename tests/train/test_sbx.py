"""SBX's networks become networks of torch, and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dreamgym.train import TrainConfig, train_policy
from tests.small_worlds import small_world

pytest.importorskip("sbx")


@pytest.mark.parametrize("action", ["box", "discrete", "multi-discrete"])
def test_the_policy_of_torch_is_the_one_that_jax_trained(action):
    config = TrainConfig(num_envs=4, n_steps=4, batch_size=8, net_arch=(8, 5))
    policy = train_policy(
        small_world(action=action, horizon=2), learner="sbx", steps=32, config=config
    )
    learner, network = policy.algorithm, policy.network
    observation = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    with torch.no_grad():
        standard = network.standardise(torch.from_numpy(observation))
        value, outputs = network.critic(standard), network.actor(standard)
    state = learner.policy.vf_state
    np.testing.assert_allclose(state.apply_fn(state.params, standard.numpy()), value, atol=1e-5)
    state = learner.policy.actor_state
    chosen = np.asarray(state.apply_fn(state.params, standard.numpy()).mode())
    expected = network.mode(outputs).numpy()
    np.testing.assert_allclose(chosen.reshape(6, -1), expected.reshape(6, -1), atol=1e-5)
