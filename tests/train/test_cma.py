"""Evolution of controllers: common random numbers, resuming, the file, and that it learns."""

from __future__ import annotations

import json

import gymnasium as gym
import numpy as np
import pytest
import torch

import dreamgym
from dreamgym.train import LEARNERS, PolicyFileError, TrainConfig, TrainingError, load_policy
from dreamgym.train.cma import Controller, Evolution, EvolutionConfig
from dreamgym.train.cma import evolution as module
from tests.small_worlds import ACTION_SPACES, small_world

SMALL = {"popsize": 6, "rollouts": 3}
GENERATION = 6 * 3 * 7


@pytest.fixture(scope="module")
def world():
    return small_world(action="box", horizon=7)


def train(world, steps, **learner):
    config = TrainConfig(learner={**SMALL, **learner})
    return dreamgym.train_policy(world, algo="CMA-ES", seed=3, steps=steps, config=config)


@pytest.mark.parametrize("hidden", [(), (5,)], ids=["linear", "mlp"])
@pytest.mark.parametrize("action", sorted(ACTION_SPACES))
def test_a_controller_acts_within_the_space_and_each_vector_for_itself(action, hidden):
    space = ACTION_SPACES[action]
    controller = Controller(space, [0.5] * 4, [2.0] * 4, hidden)
    weights = torch.randn(3, controller.size, generator=torch.Generator().manual_seed(0)) * 3
    observation = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(1))
    actions = controller.act(weights, observation)
    each_action = actions.flatten(0, 1).numpy()
    assert all(space.contains(each.astype(space.dtype)[()]) for each in each_action)
    for index in range(3):
        own = slice(index, index + 1)
        alone = controller.act(weights[own], observation[own])
        torch.testing.assert_close(alone, actions[own])
    assert len({str(each.tolist()) for each in actions.flatten(0, 1)}) > 1


def test_a_linear_controller_is_an_affine_map():
    space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    controller = Controller(space, [1.0, 2.0, 3.0], [2.0, 2.0, 2.0])
    assert controller.size == (3 + 1) * 2
    weights = torch.arange(8.0).unsqueeze(0)
    observation = torch.tensor([[[3.0, 2.0, 5.0]]])
    expected = torch.tensor([1.0, 0.0, 1.0]) @ weights[0, :6].view(3, 2) + weights[0, 6:]
    torch.testing.assert_close(controller.act(weights, observation)[0, 0], expected)


def test_all_candidates_have_the_same_random_numbers(world, monkeypatch):
    config = EvolutionConfig(popsize=4, rollouts=3, sigma0=1e-9)
    dream = dreamgym.DreamVectorEnv(world, 12, output="torch", autoreset_mode="SameStep")
    controller = Controller(world.action_space, [0.0] * 4, [1.0] * 4)
    evolution = Evolution(controller.size, config, 0)
    fitness, steps = module.generation(dream, controller, evolution, config, 0)
    np.testing.assert_allclose(fitness, fitness[0], rtol=1e-4)
    assert 0 < steps <= 12 * 7
    evolution.tell(fitness)
    other, _ = module.generation(dream, controller, evolution, config, 0)
    assert not np.allclose(other, fitness)


def test_training_is_reproducible_and_leaves_the_global_generators_alone(world):
    np.random.seed(5)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = train(world, 3 * GENERATION), train(world, 3 * GENERATION)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert torch.equal(first.network.weights, second.network.weights)
    assert first.card.curve == second.card.curve
    assert first.network.weights.any()


def test_training_goes_on_from_a_file_as_if_it_had_not_stopped(world, tmp_path):
    whole = train(world, 5 * GENERATION)
    half = int(whole.card.curve[1][0])
    path = train(world, half).save(tmp_path / "half")
    assert path.suffix == ".cma"
    rest = train(world, 5 * GENERATION, resume=str(path))
    assert torch.equal(rest.network.weights, whole.network.weights)
    assert rest.card.curve == whole.card.curve
    with pytest.raises(TrainingError, match="another sigma0"):
        train(world, 5 * GENERATION, resume=str(path), sigma0=0.5)


def test_a_saved_controller_acts_as_before_and_fits_the_world(world, tmp_path):
    policy = train(world, GENERATION, hidden=[3])
    path = policy.save(tmp_path / "policy")
    loaded = load_policy(path, world=world)
    assert loaded.card == policy.card
    assert loaded.card.learner == "cma"
    observation = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    batch = loaded.predict(observation)[0]
    np.testing.assert_array_equal(batch, policy.predict(observation)[0])
    np.testing.assert_allclose(loaded.predict(observation[2])[0], batch[2], rtol=1e-6)
    one = loaded.predict(observation[:1])[0]
    assert one.shape == (1, 2)
    assert loaded.save(tmp_path / "again").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("action", ["discrete", "multi-discrete"])
def test_a_policy_of_discrete_actions_acts_in_the_environments_space(action):
    world = small_world(action=action)
    policy = train(world, 1)
    actions, _ = policy.predict(np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32))
    assert all(world.action_space.contains(each) for each in actions)


def test_a_file_that_is_not_a_controller_is_refused(tmp_path):
    path = tmp_path / "broken.cma"
    path.write_bytes(b"no tensors")
    with pytest.raises(PolicyFileError, match="not a controller"):
        load_policy(path)
    from safetensors.torch import save_file

    save_file({"weights": torch.zeros(1)}, path, {"dreamgym": json.dumps({})})
    with pytest.raises(PolicyFileError, match="not a controller"):
        load_policy(path)


def test_settings_that_do_not_apply_are_refused(world):
    for config, message in (
        (TrainConfig(gamma=0.9), "gamma does not apply"),
        (TrainConfig(learner={"population": 3}), "no 'population'"),
        (TrainConfig(learner={"popsize": 1}), "popsize is 1"),
        (TrainConfig(learner={"sigma0": 0.0}), "sigma0 is 0"),
    ):
        with pytest.raises(TrainingError, match=message):
            dreamgym.train_policy(world, algo="CMA-ES", config=config)


@pytest.mark.parametrize(
    ("view", "rollouts", "sigma0", "hidden"),
    [("observation", 8, 1.0, [8]), ("latent", 16, 0.1, [])],
)
def test_the_defaults_are_those_of_the_view(world, view, rollouts, sigma0, hidden):
    config = TrainConfig(view=view, learner={"popsize": 2})
    card = dreamgym.train_policy(world, algo="CMA-ES", steps=1, config=config).card
    assert card.hyperparameters["rollouts"] == rollouts
    assert card.hyperparameters["sigma0"] == sigma0
    assert card.policy["hidden"] == hidden


def test_a_controller_learns_in_the_dream_of_cartpole():
    linear = {"popsize": 16, "rollouts": 4, "sigma0": 0.1, "hidden": []}
    config = TrainConfig(learner=linear, horizon=100)
    policy = dreamgym.train_policy(
        "CartPole-MDNRNN-v0", learner="cma", algo="CMA-ES", steps=60_000, config=config
    )
    first, last = policy.curve[0][1], policy.curve[-1][1]
    assert first < 60 < 90 < last
    assert LEARNERS["cma"].algorithms == ("CMA-ES",)
