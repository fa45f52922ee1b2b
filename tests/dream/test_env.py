"""The single environment and its ids: env checkers, specs, horizons, fresh processes."""

from __future__ import annotations

import pickle
import subprocess
import sys
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_env_sb3

import dreamgym
from dreamgym.dream.env import DreamEnv
from tests.small_worlds import small_world


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(small_world().save(tmp_path_factory.mktemp("worlds") / "small"))


@pytest.fixture(scope="module")
def box_folder(tmp_path_factory) -> str:
    return str(small_world(action="box").save(tmp_path_factory.mktemp("worlds") / "box"))


@pytest.mark.filterwarnings("ignore:.*For Box action spaces, we recommend.*")
@pytest.mark.filterwarnings("ignore:.*A Box observation space m.*")
@pytest.mark.parametrize("view", ["observation", "latent"])
def test_both_env_checkers_pass(folder, view):
    env = gym.make("dreamgym/World-v0", world=folder, view=view, render_mode="rgb_array")
    check_env(env.unwrapped)
    check_env_sb3(env.unwrapped)


@pytest.mark.filterwarnings("ignore:.*recommend.*")
def test_both_env_checkers_pass_with_box_actions(box_folder):
    env = gym.make("dreamgym/World-v0", world=box_folder)
    check_env(env.unwrapped, skip_render_check=True)
    check_env_sb3(env.unwrapped)


def test_it_returns_numpy_and_python_scalars(folder):
    env = DreamEnv(folder)
    observation, info = env.reset(seed=0)
    assert isinstance(observation, np.ndarray)
    assert info == {}
    observation, reward, terminated, truncated, info = env.step(1)
    assert isinstance(reward, float)
    assert isinstance(info["uncertainty"], float)
    assert type(terminated) is bool
    assert type(truncated) is bool


def steps_until_the_end(env: gym.Env) -> int:
    env.reset(seed=0)
    for step in range(1, 1000):
        *_, terminated, truncated, _ = env.step(0)
        if terminated or truncated:
            assert truncated
            assert not terminated
            return step
    return 1000


@pytest.mark.parametrize(("requested", "horizon"), [(None, 7), (3, 3), (20, 20)])
def test_max_episode_steps_shortens_and_lengthens(folder, requested, horizon):
    options = {} if requested is None else {"max_episode_steps": requested}
    env = gym.make("dreamgym/World-v0", world=folder, termination=1.0, **options)
    assert steps_until_the_end(env) == horizon
    envs = gym.make_vec("dreamgym/World-v0", world=folder, num_envs=2, **options)
    assert envs.unwrapped.horizon == horizon


def test_minus_one_is_no_limit(folder):
    env = gym.make("dreamgym/World-v0", world=folder, termination=1.0, max_episode_steps=-1)
    assert steps_until_the_end(env) == 1000


def test_make_vec_makes_the_vector_env_and_sync_the_single_one(folder):
    envs = gym.make_vec("dreamgym/World-v0", world=folder, num_envs=3)
    assert isinstance(envs, dreamgym.DreamVectorEnv)
    assert envs.num_envs == 3
    sync = gym.make_vec("dreamgym/World-v0", world=folder, num_envs=2, vectorization_mode="sync")
    observation, _ = sync.reset(seed=0)
    assert observation.shape == (2, 4)
    sync.step(np.zeros(2, int))


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_gymnasiums_vector_of_single_dreams_has_the_mode_that_was_asked_for(folder, vectorization):
    make = partial(gym.make_vec, "dreamgym/World-v0", world=folder, num_envs=2, max_episode_steps=2)
    with pytest.raises(ValueError, match=r"vector_kwargs=.*SameStep"):
        make(vectorization_mode="sync", autoreset_mode="SameStep")
    envs = make(vectorization_mode=vectorization, vector_kwargs={"autoreset_mode": "SameStep"})
    try:
        envs.reset(seed=[1, 2])
        envs.step(np.zeros(2, int))
        observation, _, terminated, truncated, info = envs.step(np.zeros(2, int))
        assert (terminated | truncated).all()
        assert not np.allclose(observation[0], info["final_obs"][0])
    finally:
        envs.close()


def test_specs_survive_json_and_pickle(folder):
    options = {"world": folder, "temperature": 1.5, "view": "latent", "termination": 0.5}
    spec = gym.make("dreamgym/World-v0", **options).spec
    for copied in (
        gym.envs.registration.EnvSpec.from_json(spec.to_json()),
        pickle.loads(pickle.dumps(spec)),  # noqa: S301
    ):
        env = gym.make(copied)
        assert env.unwrapped.view == "latent"
        assert env.unwrapped.dreams.options.temperature == 1.5
    vector = gym.make_vec("dreamgym/World-v0", num_envs=4, autoreset_mode="NextStep", **options)
    spec = gym.envs.registration.EnvSpec.from_json(vector.spec.to_json())
    assert gym.make_vec(spec).num_envs == 4


def test_a_spec_keeps_the_requested_horizon(folder):
    env = gym.make("dreamgym/World-v0", world=folder, termination=1.0, max_episode_steps=20)
    remade = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert steps_until_the_end(remade) == 20


def test_a_missing_or_misspelt_world_is_refused(folder):
    for make in (gym.make, gym.make_vec):
        with pytest.raises(TypeError, match="did you mean 'world'"):
            make("dreamgym/World-v0", wrold=folder)
        with pytest.raises(TypeError, match="give world="):
            make("dreamgym/World-v0")


def test_a_misspelt_keyword_is_refused_with_the_nearest(folder):
    for make in (gym.make, gym.make_vec):
        with pytest.raises(TypeError, match="did you mean 'temperature'"):
            make("dreamgym/World-v0", world=folder, temprature=1.0)


def test_the_module_prefix_works_in_a_fresh_process(folder):
    code = (
        "import gymnasium as gym\n"
        f"env = gym.make('dreamgym:dreamgym/World-v0', world={folder!r})\n"
        "env.reset(seed=0); env.step(0)\n"
        f"envs = gym.make_vec('dreamgym:dreamgym/World-v0', world={folder!r}, num_envs=2)\n"
        "envs.reset(seed=0); envs.step([0, 1])\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_step_after_the_end_is_refused(folder):
    env = DreamEnv(folder, max_episode_steps=1)
    env.reset(seed=0)
    env.step(0)
    with pytest.raises(RuntimeError, match=r"end.*: call reset\(\) first"):
        env.step(0)


@pytest.mark.parametrize("action", ["left", None, [[1], [2, 3]]], ids=str)
def test_actions_that_are_not_numbers_are_refused(action):
    env = DreamEnv(small_world())
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"not numbers|inhomogeneous"):
        env.step(action)
