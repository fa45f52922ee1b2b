"""What is drawn for each episode: horizons, temperatures and start states."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy import stats

import dreamgym
from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.world.start_states import StartStates, burn_in
from tests.small_worlds import TENSORS, small_world

ENVS = 4096


def make_env(num_envs: int = ENVS, **options) -> DreamVectorEnv:
    env = DreamVectorEnv(small_world(), num_envs, view="latent", **{**TENSORS, **options})
    env.reset(seed=0)
    return env


def test_horizons_are_uniform_on_the_range_and_drawn_for_each_episode():
    env = make_env(max_episode_steps=[2, 5], termination=1.0)
    first = env.dreams.horizon
    counts = torch.bincount(first, minlength=6)[2:]
    assert counts.sum() == ENVS
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4
    for _ in range(2):
        *_, truncated, _ = env.step(np.zeros(ENVS, int))
    assert torch.equal(truncated, first == 2)
    assert len(set(env.dreams.horizon[truncated].tolist())) == 4


def test_temperatures_are_uniform_on_the_range_and_drawn_for_each_episode():
    env = make_env(temperature=[0.5, 1.5], max_episode_steps=1)
    first = env.dreams.temperature
    assert stats.kstest(first.numpy(), stats.uniform(0.5, 1.0).cdf).pvalue > 1e-4
    env.step(np.zeros(ENVS, int))
    assert not torch.equal(env.dreams.temperature, first)


@pytest.mark.parametrize("given", [1.3, "range", "rows"])
def test_one_temperature_can_be_given_as_a_number_a_range_or_rows(given):
    plain = make_env(16, temperature=1.3)
    given = {"range": [1.3, 1.3], "rows": np.full(16, 1.3)}.get(given, given)
    other = make_env(16, temperature=given)
    actions = np.zeros(16, int)
    torch.testing.assert_close(plain.step(actions)[0], other.step(actions)[0])


def test_rows_keep_their_temperatures_across_episodes():
    temperatures = torch.linspace(0.5, 2.0, 64)
    env = make_env(64, temperature=temperatures, max_episode_steps=1)
    for _ in range(3):
        env.step(np.zeros(64, int))
        assert torch.equal(env.dreams.temperature, temperatures)


@pytest.mark.parametrize("given", [torch.full((16,), 1.3), np.full(16, 1.3, np.float32)])
def test_temperatures_that_the_caller_overwrites_do_not_change_the_dream(given):
    env = make_env(16, temperature=given, max_episode_steps=1)
    given[:] = 9.0
    env.step(np.zeros(16, int))
    assert torch.equal(env.dreams.temperature, torch.full((16,), 1.3))


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["temperature", "max_episode_steps"])
def test_numbers_that_are_not_finite_are_refused(name, number):
    for given in (number, [1, number]):
        with pytest.raises(ValueError, match=f"{name}=.*give a finite number"):
            make_env(16, **{name: given})


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
def test_a_row_temperature_that_is_not_finite_is_refused(number):
    temperatures = torch.ones(16)
    temperatures[3] = number
    with pytest.raises(ValueError, match=f"holds {number}; give finite numbers"):
        make_env(16, temperature=temperatures)


def start_rows(env: DreamVectorEnv) -> torch.Tensor:
    """Return the row of the world's bank from which each environment started."""
    bank = env.world.starts.states["z"]
    return (env.dreams.model["z"][:, None] == bank[None]).all(-1).int().argmax(1)


def test_a_mixture_of_starts_has_its_weights_and_is_uniform_within_a_bank():
    env = make_env(starts={"episode_starts": 3, "bank": 1})
    rows = start_rows(env)
    first = env.world.starts.num_episode_starts
    share = (rows < first).float().mean()
    assert share == pytest.approx(0.75 + 0.25 * first / 64, abs=0.03)
    counts = torch.bincount(rows, minlength=64)[:first]
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_starts_anywhere_are_the_other_half_of_the_bank():
    rows = start_rows(make_env(starts="anywhere"))
    first = small_world().starts.num_episode_starts
    assert int(rows.min()) == first
    assert set(rows.tolist()) == set(range(first, 64))


def test_starts_can_be_given_as_states():
    world = small_world()
    one = {key: leaf[7:8] for key, leaf in world.starts.states.items()}
    for given in (one, StartStates(states=one, num_episode_starts=1)):
        env = DreamVectorEnv(world, 5, starts=given, output="torch", autoreset_mode="SameStep")
        env.reset(seed=0)
        assert torch.equal(env.dreams.model["z"], one["z"].expand(5, -1))


def test_starts_of_another_precision_are_cast_and_those_of_another_kind_refused():
    world = small_world()
    one = {key: leaf[7:8] for key, leaf in world.starts.states.items()}
    double = {key: leaf.double() for key, leaf in one.items()}
    for given in (double, StartStates(states=double, num_episode_starts=1)):
        env, plain = (
            DreamVectorEnv(world, 5, starts=starts, output="torch", autoreset_mode="SameStep")
            for starts in (given, one)
        )
        env.reset(seed=0), plain.reset(seed=0)
        assert env.dreams.model["z"].dtype == torch.float32
        actions = np.zeros(5, int)
        assert torch.equal(env.step(actions)[0], plain.step(actions)[0])
    integers = {**one, "z": one["z"].long()}
    with pytest.raises(ValueError, match=r"'z' holds torch.int64.*give floating-point numbers"):
        DreamVectorEnv(world, 5, starts=integers, output="torch", autoreset_mode="SameStep")


def test_starts_can_be_a_dataset_of_the_same_environment(tmp_path):
    data = dreamgym.record("CartPole-v1", steps=300, out=tmp_path / "a.h5", seed=0)
    other = dreamgym.record("CartPole-v1", steps=300, out=tmp_path / "b.h5", seed=9)
    config = dreamgym.FitConfig(updates=2, starts=8, segment_length=5)
    world = dreamgym.fit(data, config=config)
    env = gym.make_vec("dreamgym/World-v0", world=world, num_envs=64, starts=str(other))
    observations, _ = env.reset(seed=0)
    with dreamgym.Dataset(other) as dataset:
        real = np.concatenate(
            [dataset.episode(i).observations for i in range(len(dataset.lengths))]
        )
        expected = burn_in(world.model, dataset, np.arange(dataset.num_episodes), length=5)
    distance = np.abs(observations[:, None] - real[None]).max(-1).min(1)
    assert float(distance.max()) < 1e-5
    h = env.unwrapped.dreams.model["h"]
    assert float((h[:, None] - expected.states["h"][None]).abs().amax(-1).amin(1).max()) < 1e-6
    pendulum = dreamgym.record("Pendulum-v1", steps=400, out=tmp_path / "c.h5", seed=0)
    with pytest.raises(ValueError, match="same environment"):
        DreamVectorEnv(world, 2, starts=str(pendulum), output="torch", autoreset_mode="SameStep")
