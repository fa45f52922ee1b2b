"""Training that goes on from a policy, and batches with real transitions."""

from __future__ import annotations

import warnings
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

import dreamgym
from dreamgym import TrainingError, WorldError
from dreamgym.data import Dataset, FrameSkip, with_frame_skip
from dreamgym.train import LEARNERS, TrainConfig, load_policy, train_policy
from dreamgym.train.sb3 import SB3VecEnv
from dreamgym.train.sb3.replay import MixedReplayBuffer, real_transitions
from tests.small_worlds import small_world

QUICK = TrainConfig(num_envs=16, n_steps=8, batch_size=64)
FEW = {"learner": {"buffer_size": 1000, "learning_starts": 32}, "num_envs": 4, "batch_size": 16}


@pytest.fixture(scope="module")
def cartpole_data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "cartpole.h5"
    return dreamgym.record("CartPole-v1", steps=300, out=path, seed=3)


def weights(policy):
    return torch.cat([p.detach().flatten() for p in policy.network.parameters()])


@pytest.mark.parametrize("algo", ["SAC", "TD3"])
def test_an_off_policy_algorithm_goes_on_from_a_file(box_world, algo, tmp_path):
    config = TrainConfig(**FEW)
    train_policy(box_world, algo=algo, steps=128, config=config, out=tmp_path / "first")
    first = load_policy(tmp_path / "first")
    again = train_policy(box_world, algo=algo, steps=64, config=config, initial=first)
    assert not torch.equal(weights(again), weights(first))
    assert again.card.hyperparameters["learning_starts"] == 16
    if algo == "SAC":
        start = float(again.card.hyperparameters["ent_coef"].removeprefix("auto_"))
        assert start == pytest.approx(first.card.learned["ent_coef"], rel=1e-6)


def test_a_policy_of_another_algorithm_or_world_is_no_start(discrete_world, box_world):
    first = train_policy(discrete_world, steps=128, config=QUICK)
    with pytest.raises(TrainingError, match="algorithm of the policy to go on from is 'PPO'"):
        train_policy(discrete_world, algo="A2C", steps=128, initial=first)
    with pytest.raises(TrainingError, match="view of the policy"):
        train_policy(discrete_world, config=TrainConfig(view="latent"), initial=first)
    with pytest.raises(TrainingError, match="does not fit the world"):
        train_policy(box_world, steps=128, config=QUICK, initial=first)


def test_a_batch_has_its_share_of_real_transitions():
    dreamt = MixedReplayBuffer(
        50, *_spaces(), "cpu", real=_filled(reward=1.0), share=0.25, n_envs=1
    )
    dreamt.rewards[:], dreamt.full = -1.0, True
    batch = dreamt.sample(64)
    assert batch.rewards.shape == (64, 1)
    assert int((batch.rewards == 1.0).sum()) == 16
    assert int((dreamt.sample(2).rewards == 1.0).sum()) == 1


def _spaces():
    world = small_world(action="discrete")
    return world.observation_space, world.action_space


def _filled(reward):
    from stable_baselines3.common.buffers import ReplayBuffer

    buffer = ReplayBuffer(50, *_spaces(), "cpu")
    buffer.rewards[:], buffer.full = reward, True
    return buffer


def test_real_transitions_are_those_of_the_dataset(cartpole_data):
    env = SB3VecEnv(
        dreamgym.DreamVectorEnv("CartPole-MDNRNN-v0", 2, output="numpy", autoreset_mode="SameStep"),
        reward_scale=0.5,
    )
    with Dataset(cartpole_data) as data:
        buffer = real_transitions(data, env)
        episode = data.episode(0)
    assert buffer.size() == 300
    rows = slice(0, episode.length)
    np.testing.assert_array_equal(buffer.observations[rows, 0], episode.observations[:-1])
    np.testing.assert_array_equal(buffer.next_observations[rows, 0], episode.observations[1:])
    np.testing.assert_array_equal(buffer.actions[rows, 0, 0], episode.actions)
    assert (buffer.rewards == 0.5).all()
    assert buffer.dones[rows, 0].tolist() == [0] * (episode.length - 1) + [1]


def test_real_transitions_of_a_frame_skip_fill_the_buffer(tmp_path):
    path = dreamgym.record("CartPole-v1", steps=200, out=tmp_path / "data.h5", policy="held:4")
    env = SB3VecEnv(
        dreamgym.DreamVectorEnv("CartPole-MDNRNN-v0", 2, output="numpy", autoreset_mode="SameStep"),
    )
    with Dataset(path) as opened:
        data = with_frame_skip(opened, FrameSkip(steps=4, actions="repeated"))
        buffer = real_transitions(data, env)
        assert buffer.size() == sum(data.lengths) < 60
    assert buffer.rewards.min() >= 1  # no row was left empty
    assert buffer.rewards.max() == 4


def test_dqn_learns_from_both_and_its_file_has_no_data_in_it(cartpole_data, tmp_path):
    config = TrainConfig(real_share=0.1, starts="anywhere", horizon=1, **FEW)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*n_steps")  # not even by default
        policy = train_policy(
            "CartPole-MDNRNN-v0",
            algo="DQN",
            steps=128,
            config=config,
            real_data=cartpole_data,
            out=tmp_path / "policy",
        )
    assert policy.card.hyperparameters["real_share"] == 0.1
    with zipfile.ZipFile(tmp_path / "policy.zip") as archive:
        assert archive.getinfo("data").file_size < 60_000
    load_policy(tmp_path / "policy").predict(np.zeros(4, np.float32))


def test_box_actions_are_stored_as_the_algorithm_scales_them(tmp_path):
    path = dreamgym.record("Pendulum-v1", steps=50, out=tmp_path / "data.h5")
    env = SB3VecEnv(
        dreamgym.DreamVectorEnv("Pendulum-MDNRNN-v0", 1, output="numpy", autoreset_mode="SameStep")
    )
    with Dataset(path) as data:
        buffer, actions = real_transitions(data, env), data.actions(0)
    np.testing.assert_allclose(buffer.actions[:50, 0], actions / 2.0, atol=1e-6)


def test_real_data_of_another_environment_is_refused(tmp_path):
    path = dreamgym.record("MountainCar-v0", steps=10, out=tmp_path / "data.h5")
    config = TrainConfig(real_share=0.1, **FEW)
    with pytest.raises(WorldError, match="give data of the environment"):
        train_policy("CartPole-MDNRNN-v0", algo="DQN", config=config, real_data=path)


@pytest.mark.parametrize(
    ("algo", "settings", "words"),
    [
        ("PPO", {"real_share": 0.1}, "learns from its own steps only"),
        ("DQN", {"real_share": 0.1, "view": "latent"}, "sees the latent view"),
        ("DQN", {"real_share": 0.1, "learner": {"n_steps": 5}}, "targets of one step"),
        ("DQN", {}, "give both"),
    ],
)
def test_real_data_that_no_batch_can_hold_is_refused(cartpole_data, algo, settings, words):
    with pytest.raises(TrainingError, match=words):
        train_policy(
            "CartPole-MDNRNN-v0",
            algo=algo,
            config=TrainConfig(**settings),
            real_data=cartpole_data,
        )
    with pytest.raises(TrainingError, match=r"real_share is 1.0"):
        TrainConfig(real_share=1.0)


def test_a_learner_that_cannot_do_it_refuses_before_anything_is_trained(
    discrete_world, cartpole_data, monkeypatch
):
    first = train_policy(discrete_world, steps=128, config=QUICK)
    poor = replace(LEARNERS["sb3"], goes_on=False, takes_real_data=False)
    monkeypatch.setitem(LEARNERS, "sb3", poor)
    with pytest.raises(TrainingError, match="starts from fresh weights"):
        train_policy(discrete_world, steps=128, config=QUICK, initial=first)
    config = TrainConfig(real_share=0.1)
    with pytest.raises(TrainingError, match="hold no real transitions"):
        train_policy("CartPole-MDNRNN-v0", algo="DQN", config=config, real_data=cartpole_data)
    with pytest.raises(dreamgym.OnlineError, match="fresh_policy=True"):
        dreamgym.improve("CartPole-v1", real_steps=10, out="nowhere")
