"""RLlib's vector environment around a dream, in this process and in a runner."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from dreamgym.dream import DreamVectorEnv
from dreamgym.errors import TrainingError
from dreamgym.train import TrainConfig, load_policy, train_policy
from dreamgym.transfer import evaluate
from tests.train.counting import HORIZON, LAST, counting_world

ray = pytest.importorskip("ray")
pytest.importorskip("ray.rllib")

from ray.cluster_utils import Cluster  # noqa: E402 - the library comes first

from dreamgym.train.rllib import RLlibEnv, make_dream  # noqa: E402

BOX = gym.spaces.Box(-2.0, 6.0, (2,), np.float32)


def test_it_is_a_vector_environment_in_next_step_mode_of_scaled_actions_and_rewards():
    env = RLlibEnv(DreamVectorEnv(counting_world(BOX), 3, output="torch"), reward_scale=0.5)
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert env.single_action_space == gym.spaces.Box(-1.0, 1.0, (2,))
    assert env.action_space.shape == (3, 2)
    observation, info = env.reset(seed=0)
    assert isinstance(observation, np.ndarray)
    assert info == {}
    for _ in range(HORIZON):
        observation, reward, terminated, truncated, info = env.step(np.full((3, 2), 5.0))
    assert truncated.all()
    assert not terminated.any()
    assert reward.tolist() == [0.5] * 3
    assert info == {}
    wrapped = gym.wrappers.vector.ClipReward(
        DreamVectorEnv(counting_world(BOX), 2, autoreset_mode="SameStep"), 0, 1
    )
    with pytest.raises(TrainingError, match="NextStep"):
        RLlibEnv(wrapped)


@pytest.fixture(scope="module")
def cluster():
    """Two nodes on this machine, each with processes and an object store of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        try:
            nodes.add_node(num_cpus=1)
            ray.init(address=nodes.address, log_to_driver=False)
            nodes.wait_for_nodes()
            yield nodes
        finally:
            ray.shutdown()
            nodes.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("dream", {"world": "CartPole-MDNRNN-v0"}),
        ("dreamgym:dreamgym/CartPole-MDNRNN-v0", {}),  # the module is imported by every runner
        ("dreamgym:dreamgym/Pendulum-MDNRNN-v0", {"max_episode_steps": 20}),
    ],
)
def test_runners_in_other_processes_make_their_own_dreams(cluster, name, settings):
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.tune.registry import register_env

    register_env("dream", make_dream)
    config = (
        PPOConfig()
        .environment(name, env_config=settings)
        .env_runners(
            num_env_runners=1,
            num_envs_per_env_runner=8,
            gym_env_vectorize_mode="vector_entry_point",
        )
        .training(train_batch_size_per_learner=256, minibatch_size=64, num_epochs=1)
    )
    algorithm = config.build_algo()
    result = algorithm.train()
    assert result["num_env_steps_sampled_lifetime"] >= 256
    mean = result["env_runners"]["episode_return_mean"]
    assert -20 * 17 < mean < 0 if "Pendulum" in name else mean > LAST
    algorithm.stop()


@pytest.mark.slow
def test_ray_tune_compares_trainings_by_their_real_returns(cluster, tmp_path):
    from ray import tune

    def trial(settings):
        policy = train_policy(
            "CartPole-MDNRNN-v0",
            learner="ppo",
            seed=settings["seed"],
            steps=1024,
            config=TrainConfig(num_envs=16, n_steps=16),
            out=tmp_path / f"seed-{settings['seed']}",
        )
        tune.report({"real return": evaluate(policy, "CartPole-v1", episodes=2).mean})

    tuner = tune.Tuner(
        trial,
        param_space={"seed": tune.grid_search([0, 1])},
        tune_config=tune.TuneConfig(metric="real return", mode="max"),
        run_config=tune.RunConfig(storage_path=str(tmp_path / "tune"), verbose=0),
    )
    results = tuner.fit()
    assert not results.errors
    returns = [each.metrics["real return"] for each in results]
    assert len(returns) == 2
    best = results.get_best_result()
    assert best.metrics["real return"] == max(returns)
    chosen = load_policy(tmp_path / f"seed-{best.config['seed']}")
    assert evaluate(chosen, "CartPole-v1", episodes=2).mean == max(returns)
