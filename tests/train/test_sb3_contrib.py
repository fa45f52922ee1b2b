"""sb3-contrib's algorithms: trained by name, saved, read, and behind the adapter."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.train import LEARNERS, TrainConfig, load_policy, train_policy
from dreamgym.train.sb3 import BatchedTruncationValues, SB3VecEnv

contrib = pytest.importorskip("sb3_contrib")


@pytest.mark.parametrize("algo", LEARNERS["sb3-contrib"].algorithms)
def test_an_algorithm_is_trained_saved_and_read(discrete_world, box_world, tmp_path, algo):
    world = discrete_world if algo in ("QRDQN", "TRPO") else box_world
    config = TrainConfig(num_envs=4, batch_size=8, net_arch=(8,))
    if algo != "TRPO":
        config = TrainConfig(
            num_envs=4, batch_size=8, net_arch=(8,), learner={"learning_starts": 16}
        )
    policy = train_policy(world, algo=algo, steps=48, out=tmp_path / "p", config=config)
    read = load_policy(tmp_path / "p.zip", world=world)
    assert read.card.learner == policy.card.learner == "sb3-contrib"
    if algo == "QRDQN":
        assert read.network.quantile_net.n_quantiles == 25, "not the library's 200"
    batch = np.stack([world.observation_space.sample() for _ in range(5)])
    np.testing.assert_allclose(read.predict(batch)[0], policy.predict(batch)[0], rtol=1e-5)


def recurrent_rollout(world, callback):
    env = SB3VecEnv(DreamVectorEnv(world, 16, device="cpu"))
    settings = {"n_steps": 12, "batch_size": 96, "n_epochs": 1, "seed": 0, "device": "cpu"}
    agent = contrib.RecurrentPPO("MlpLstmPolicy", env, **settings)
    return agent.learn(16 * 12, callback=callback)


def test_recurrent_ppo_bootstraps_from_the_memory_of_each_truncated_row(box_world):
    stock = recurrent_rollout(box_world, None)
    batched = recurrent_rollout(box_world, BatchedTruncationValues())
    for key in ("rewards", "returns", "advantages", "values"):
        ours, theirs = getattr(batched.rollout_buffer, key), getattr(stock.rollout_buffer, key)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5, err_msg=key)


@pytest.mark.parametrize(
    ("learner", "policy", "settings"),
    [
        ("MaskablePPO", "MlpPolicy", {"n_steps": 8, "batch_size": 32}),
        ("RecurrentPPO", "MlpLstmPolicy", {"n_steps": 8, "batch_size": 32}),
        ("ARS", "MlpPolicy", {"n_delta": 2, "n_eval_episodes": 4}),
    ],
)
def test_other_algorithms_train_behind_the_adapter_as_they_are(
    discrete_world, learner, policy, settings
):
    env = SB3VecEnv(
        DreamVectorEnv(discrete_world, 4, device="cpu"),
        action_masks=lambda observations: np.eye(3, dtype=bool)[np.ones(len(observations), int)],
    )
    agent = getattr(contrib, learner)(policy, env, seed=0, device="cpu", **settings)
    before = [each.clone() for each in agent.policy.parameters()]
    assert agent.learn(32).num_timesteps >= 32
    after = list(agent.policy.parameters())
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    if learner == "MaskablePPO":
        assert (agent.rollout_buffer.actions == 1).all(), "other actions are forbidden"
