from __future__ import annotations

import copy
import dataclasses
import json
import random
import resource
import zipfile

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

from dreamgym.models import ModelSpec
from dreamgym.train import (
    PolicyFileError,
    TrainConfig,
    TrainingError,
    TrainingInterrupted,
    load_policy,
    train_policy,
)
from tests.small_worlds import world_of

QUICK = TrainConfig(num_envs=16, n_steps=16, batch_size=64)


def weights_of(policy):
    return {key: value.clone() for key, value in policy.network.state_dict().items()}


def equal(first, second):
    return all(torch.equal(first[key], second[key]) for key in first)


def test_same_seed_same_policy_and_another_seed_another(discrete_world):
    first, again, other = (
        weights_of(train_policy(discrete_world, seed=seed, steps=512, config=QUICK))
        for seed in (1, 1, 2)
    )
    assert equal(first, again)
    assert not equal(first, other)


def test_global_generators_and_threads_are_unchanged(discrete_world):
    torch.set_num_threads(2)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    train_policy(discrete_world, steps=256, config=TrainConfig(num_envs=16, n_steps=8))
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    assert after == before
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)


def test_progress_and_curve_agree(box_world):
    reported = []
    policy = train_policy(
        box_world,
        steps=1000,
        config=QUICK,
        progress=lambda done, total, figures: reported.append((done, total, figures)),
    )
    assert [done for done, *_ in reported] == [256, 512, 768, 1024]
    assert {total for _, total, _ in reported} == {1024}  # whole rollouts
    assert [figures["dream return"] for *_, figures in reported] == [
        mean for _, mean in policy.curve
    ]
    assert policy.card.steps == 1024


def test_the_zip_is_sb3s_format_and_acts_the_same_however_it_is_read(box_world, tmp_path):
    trained = train_policy(box_world, steps=512, out=tmp_path / "policy", config=QUICK)
    path = tmp_path / "policy.zip"
    read, stock = load_policy(path, world=box_world), PPO.load(path, device="cpu")
    observations = np.stack([box_world.observation_space.sample() for _ in range(64)])
    actions, state = trained.predict(observations)
    assert state is None
    assert actions.shape == (64, 2)
    np.testing.assert_array_equal(read.predict(observations)[0], actions)
    np.testing.assert_array_equal(stock.predict(observations, deterministic=True)[0], actions)
    assert read.card == trained.card
    assert read.algorithm is None
    assert sorted(tmp_path.iterdir()) == [path], "nothing may be left beside the policy"


def test_the_card_has_the_origin_of_the_policy(discrete_world, tmp_path):
    path = tmp_path / "policy.zip"
    train_policy(discrete_world, seed=4, steps=512, out=path, config=QUICK)
    saved = copy.copy(discrete_world).save(tmp_path / "world")
    with zipfile.ZipFile(path) as archive:
        card = json.loads(archive.read("dreamgym.json"))
    assert card["algo"] == "PPO"
    assert card["view"] == "observation"
    assert card["env_id"] is None
    assert card["world"] == "small"
    assert card["seed"] == 4
    assert card["steps"] == 512
    assert card["hyperparameters"]["num_envs"] == 16
    assert card["hyperparameters"]["n_steps"] == 16
    assert card["versions"]["stable_baselines3"]
    assert len(card["curve"]) == 2
    described = json.loads((saved / "world.json").read_text())
    assert card["world_checksum"] in json.dumps(described), "the checksum is the world file's own"


def test_the_policy_takes_raw_observations(discrete_world):
    """Its normaliser has the scales of the dream, so it takes raw real observations."""
    policy = train_policy(discrete_world, steps=256, config=QUICK)
    extractor = policy.network.pi_features_extractor
    raw = extractor.mean + 2 * extractor.std
    torch.testing.assert_close(extractor(raw[None]), torch.full((1, 4), 2.0))
    assert all(value > 0 for value in policy.card.policy["std"])
    assert policy.observation_space == discrete_world.observation_space


def test_the_reward_scale_is_measured_or_given(box_world):
    first, again = (
        train_policy(box_world, seed=seed, steps=256, config=QUICK).card.reward_scale
        for seed in (0, 0)
    )
    assert first == again
    # rewards of this world are of order one, and so is a discounted return of its short dreams
    assert 0.1 < first < 10
    config = TrainConfig(num_envs=16, n_steps=16, batch_size=64, reward_scale=0.5)
    assert train_policy(box_world, steps=256, config=config).card.reward_scale == 0.5


def test_the_latent_view_is_trained_on_features(discrete_world, tmp_path):
    config = TrainConfig(num_envs=16, n_steps=16, batch_size=64, view="latent")
    path = tmp_path / "latent.zip"
    policy = train_policy(discrete_world, steps=256, out=path, config=config)
    assert policy.view == "latent"
    assert policy.observation_space.shape == (discrete_world.model.feature_dim,)
    assert load_policy(path, world=discrete_world).view == "latent"


def test_observations_of_several_keys_are_seen_as_features():
    """No library here learns from a Dict."""
    box = gym.spaces.Box(-3.0, 3.0, (2,), np.float32)
    model = ModelSpec(family="mdn-rnn").build(
        gym.spaces.Dict(arm=box, goal=box), gym.spaces.Discrete(2)
    )
    world = world_of(model.eval().requires_grad_(False))
    assert train_policy(world, steps=256, config=QUICK).view == "latent"
    with pytest.raises(TrainingError, match="pass view='latent'"):
        train_policy(world, steps=256, config=dataclasses.replace(QUICK, view="observation"))


@pytest.mark.parametrize(
    ("name", "algo", "settings"),
    [
        ("discrete_world", "A2C", {}),
        ("discrete_world", "DQN", {"learner": {"learning_starts": 64, "gradient_steps": 1}}),
        ("box_world", "SAC", {"learner": {"learning_starts": 64, "gradient_steps": 1}}),
        ("box_world", "TD3", {"learner": {"learning_starts": 64, "gradient_steps": 1}}),
        ("box_world", "DDPG", {"learner": {"learning_starts": 64, "gradient_steps": 1}}),
    ],
)
def test_every_algorithm_trains_saves_and_is_read_back(request, tmp_path, name, algo, settings):
    world = request.getfixturevalue(name)
    path = tmp_path / "policy.zip"
    trained = train_policy(
        world, algo=algo, steps=256, out=path, config=TrainConfig(num_envs=16, **settings)
    )
    read = load_policy(path, world=world)
    observations = np.stack([world.observation_space.sample() for _ in range(8)])
    np.testing.assert_array_equal(read.predict(observations)[0], trained.predict(observations)[0])


def test_ctrl_c_saves_the_policy_so_far_and_changes_nothing_else(discrete_world, tmp_path):
    path = tmp_path / "policy.zip"
    path.write_bytes(b"an older policy")

    def stop(done, total, figures):
        if done >= 512:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        train_policy(discrete_world, steps=5000, out=path, config=QUICK, progress=stop)
    error = caught.value
    assert isinstance(error, TrainingInterrupted)
    assert error.path == tmp_path / "policy.interrupted.zip"
    assert error.steps == 512
    assert str(error.path) in str(error)
    assert load_policy(error.path, world=discrete_world).card.steps == 512
    assert path.read_bytes() == b"an older policy"


def test_ctrl_c_without_an_out_says_that_nothing_was_saved(discrete_world):
    def stop(done, total, figures):
        raise KeyboardInterrupt

    with pytest.raises(TrainingInterrupted, match="nothing was saved") as caught:
        train_policy(discrete_world, steps=5000, config=QUICK, progress=stop)
    assert caught.value.path is None


def test_a_full_disk_leaves_no_half_file(discrete_world, tmp_path):
    path = tmp_path / "policy.zip"
    path.write_bytes(b"an older policy")
    policy = train_policy(discrete_world, steps=256, config=QUICK)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(PolicyFileError, match="no space"):
            policy.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"an older policy"
    assert list(tmp_path.iterdir()) == [path]
    assert policy.save(tmp_path / "elsewhere").is_file(), "the policy is not lost"


def test_a_place_that_cannot_be_written_is_refused_before_training(discrete_world, tmp_path):
    (tmp_path / "policy.zip").mkdir()
    (tmp_path / "file").write_text("")
    reported = []
    for out in (tmp_path / "policy.zip", tmp_path / "file" / "policy.zip"):
        with pytest.raises(PolicyFileError, match=r"policy\.zip"):
            train_policy(
                discrete_world,
                out=out,
                config=QUICK,
                progress=lambda *given: reported.append(given),
            )
    assert not reported


@pytest.mark.parametrize(
    ("algo", "config", "message"),
    [
        ("PPQ", TrainConfig(), "'PPO'"),
        ("DQN", TrainConfig(), "DQN acts in Discrete"),
        ("SAC", TrainConfig(n_epochs=3), "n_epochs=3 does not apply to SAC"),
        ("PPO", TrainConfig(learner={"nothing_such": 1}), "nothing_such"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_a_remedy(box_world, algo, config, message):
    with pytest.raises(TrainingError, match=message):
        train_policy(box_world, algo=algo, steps=256, config=config)


def test_steps_of_a_rollout_are_not_taken_for_those_of_a_target():
    with pytest.raises(TrainingError, match="n_steps=5 does not apply to DQN"):
        train_policy("CartPole-MDNRNN-v0", algo="DQN", steps=256, config=TrainConfig(n_steps=5))


@pytest.mark.parametrize(
    "settings",
    [{"num_envs": 0}, {"gamma": 1.5}, {"learning_rate": -1.0}, {"threads": 0}, {"horizon": 0}],
)
def test_settings_out_of_range_are_refused_by_name(settings):
    with pytest.raises(TrainingError, match=next(iter(settings))):
        TrainConfig(**settings)


@pytest.mark.parametrize("settings", [{"steps": 0}, {"seed": -1}])
def test_numbers_out_of_range_are_refused_by_name(discrete_world, settings):
    with pytest.raises(TrainingError, match=next(iter(settings))):
        train_policy(discrete_world, config=QUICK, **settings)


@pytest.mark.parametrize("low", [-np.inf, -1.0])
@pytest.mark.parametrize("algo", ["PPO", "A2C", "SAC", "TD3"])
def test_unbounded_actions_are_refused_before_the_training(box_world, algo, low, monkeypatch):
    """SB3 itself would fail with an AssertionError."""
    space = gym.spaces.Box(low, np.inf, box_world.action_space.shape)
    monkeypatch.setattr(box_world.model, "action_space", space)
    with pytest.raises(TrainingError, match=r"infinite bound.*--env ENV.*action_space=Box"):
        train_policy(box_world, algo=algo, steps=32, config=TrainConfig(num_envs=2))


@pytest.mark.parametrize("algo", ["SAC", "TD3"])
def test_an_action_with_a_single_value_is_refused_where_it_is_scaled(box_world, algo, monkeypatch):
    """SB3 itself would divide by zero, and act with NaN."""
    space = gym.spaces.Box(0.5, 0.5, box_world.action_space.shape)
    monkeypatch.setattr(box_world.model, "action_space", space)
    with pytest.raises(TrainingError, match="single value; use PPO or A2C"):
        train_policy(box_world, algo=algo, steps=32, config=TrainConfig(num_envs=2))
