"""sb3-contrib's algorithms: trained by name, saved, read, and behind the adapter."""

from __future__ import annotations

import numpy as np
import pytest

from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.train import LEARNERS, TrainConfig, load_policy, train_policy
from dreamgym.train.sb3 import SB3VecEnv

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


def test_recurrent_ppo_trains_behind_the_adapter(box_world):
    env = SB3VecEnv(DreamVectorEnv(box_world, 4, device="cpu"))
    agent = contrib.RecurrentPPO("MlpLstmPolicy", env, n_steps=4, batch_size=8, seed=0)
    assert agent.learn(16).num_timesteps == 16
