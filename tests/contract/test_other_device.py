"""Contract: everything runs on a device other than the CPU, shown without a GPU.

On the stand-in, an operation on tensors of two devices raises, as on CUDA.
"""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

import dreamgym
from dreamgym.cli import main
from dreamgym.data import Dataset
from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.dream.wrappers import RescaleAction
from dreamgym.models import Genie, ModelSpec
from dreamgym.models.base import model_device
from dreamgym.play.session import PlaySession
from dreamgym.train import TrainConfig, clone_policy, load_policy
from dreamgym.train.planners.policy import PlannedPolicy
from dreamgym.trust import RankingConfig, WatchedVectorEnv, report
from dreamgym.world.replays import replay
from tests.small_worlds import ALONE, ONE_EACH, small_world
from tests.stand_in_device import OnDevice, stand_in_device

ENVS, LIMIT = 3, 6
FITTED = [(kind, action) for kind, action in ONE_EACH if kind in (*ALONE, "ensemble")]


@pytest.fixture
def device(request):
    with stand_in_device(**getattr(request, "param", {})) as name:
        yield name
        assert OnDevice.made


class Noise(gym.Env):
    """Random observations and rewards of any spaces, in episodes of 12 steps."""

    def __init__(self, observation_space: gym.Space, action_space: gym.Space) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        ends = bool(self.np_random.random() < 0.1)
        reward = float(self.np_random.normal())
        return self.observation_space.sample(), reward, ends, self.steps == 12, {}


def dream(world, device: str, output: str, mode: str) -> None:
    """Step and reset dreams, set their state, and close them."""
    env = DreamVectorEnv(
        world, ENVS, device=device, output=output, autoreset_mode=mode, view="latent"
    )
    to = np.asarray if output == "numpy" else lambda array: torch.as_tensor(array).to(device)
    env.reset(seed=0)
    for _ in range(8):  # a world's episodes have seven
        env.step(to(env.action_space.sample()))
    if mode == "Disabled":
        env.reset(options={"reset_mask": to(np.array([True, False, True]))})
    env.set_state(env.get_state())
    env.close()


@pytest.mark.parametrize(("kind", "action"), ONE_EACH)
def test_dreams_run(device, kind, action):
    world = small_world(kind, action)
    dream(world, device, "torch", "SameStep")
    dream(world, device, "numpy", "NextStep")
    dream(world, device, "torch", "Disabled")
    assert model_device(world.model).type == "cpu"


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "action"), FITTED)
def test_a_model_fits_is_measured_and_filters_its_data(device, kind, action, tmp_path):
    small = small_world(kind, action)
    spec, space = ModelSpec.of(small.model), small.model.data_action_space
    env = Noise(small.observation_space, space)
    data = dreamgym.record(env, steps=60, out=tmp_path / "d.h5", seed=0)
    settings = {"updates": 2, "batch_size": 2, "evaluate_every": 2, "starts": 8}
    settings["segment_length"] = 4  # the smallest windows of a transformer here
    config = dreamgym.default_config(spec.family, model=spec.config, device=device, **settings)
    world = dreamgym.fit(data, tmp_path / "world", family=spec.family, seed=0, config=config)
    assert OnDevice.made
    assert model_device(world.model).type == "cpu"
    dream(world, device, "torch", "SameStep")
    if not isinstance(small.model, Genie):  # whose dreams take other actions than its data has
        clone_policy(world.to(device), data, updates=2)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Data, a world that was fitted to it, and a policy of its latents; made on the CPU."""
    folder = tmp_path_factory.mktemp("device")
    data = dreamgym.record(
        "Pendulum-v1", steps=80, out=folder / "d.h5", seed=0, max_episode_steps=LIMIT
    )
    config = dreamgym.default_config("mdn-rnn", updates=2, batch_size=2, starts=8)
    world = dreamgym.fit(data, folder / "world", family="mdn-rnn", seed=0, config=config)
    training = TrainConfig(num_envs=4, n_steps=4, batch_size=8, view="latent")
    policy = dreamgym.train_policy(world, learner="ppo", steps=16, config=training)
    policy.save(folder / "policy.zip")
    return folder


@pytest.fixture
def policy(recorded):
    """The policy. Tests name it before `device`: loading it tries shapes in float64 on "meta"."""
    return load_policy(recorded / "policy.zip")


def test_a_world_moves_as_a_copy_and_is_saved_from_anywhere(device, recorded, tmp_path):
    world = dreamgym.load(recorded / "world")
    moved = world.to(device)
    tensors = *moved.model.parameters(), *moved.model.buffers(), *moved.starts.states.values()
    assert all(isinstance(tensor, OnDevice) for tensor in tensors)
    assert model_device(world.model).type == "cpu"
    assert moved.to(device) is moved
    dream(moved, "cpu", "torch", "SameStep")  # dreams of it elsewhere leave it where it is
    assert model_device(moved.model).type == device
    again = dreamgym.load(moved.save(tmp_path / "again"))
    for name, weight in again.model.state_dict().items():
        assert torch.equal(weight, world.model.state_dict()[name])
    with pytest.raises(ValueError, match="cannot be used here"):
        world.to("cuda:99")


@pytest.mark.parametrize("learner", ["ppo", "sb3", "cma"])
def test_policies_train(device, learner, recorded):
    settings = {"num_envs": 4, "n_steps": 4, "batch_size": 8}
    if learner == "cma":
        settings = {"learner": {"popsize": 4, "rollouts": 2}}
    config = TrainConfig(device=device, **settings)
    dreamgym.train_policy(recorded / "world", learner=learner, steps=16, config=config)


def test_policies_are_carried_over(policy, device, recorded):
    world = dreamgym.load(recorded / "world").to(device)
    assert policy.view == "latent"
    dreamgym.transfer_policy(policy, world, episodes=2, max_episode_steps=LIMIT)


def test_a_world_is_reported_on(policy, device, recorded):
    world = dreamgym.load(recorded / "world").to(device)
    brief = RankingConfig(episodes=2)
    found = report(world, recorded / "d.h5", [policy, "random"], ranking=brief)
    assert found.figures["limits"]
    assert found.figures["ranking"]


def test_a_world_plans_and_replays(device, recorded):
    world = dreamgym.load(recorded / "world").to(device)
    planned = PlannedPolicy(world, "icem")
    dreamgym.evaluate(planned, "Pendulum-v1", episodes=1, max_episode_steps=2)
    with Dataset(recorded / "d.h5") as data:
        episode = data.episode(0)
    assert replay(world, episode, samples=2).dreamt.shape == (2, LIMIT + 1, 3)


@pytest.mark.parametrize("moved", [False, True])
def test_dreams_are_watched_wrapped_drawn_and_played(device, recorded, moved):
    world, data = dreamgym.load(recorded / "world"), recorded / "d.h5"
    if moved:
        world = world.to(device)
    options = {"output": "torch", "autoreset_mode": "SameStep", "device": device}
    mixed = DreamVectorEnv(world, ENVS, starts={"bank": 1, str(data): 1}, **options)
    watched = WatchedVectorEnv(RescaleAction(mixed))
    watched.reset(seed=0)
    for _ in range(8):
        watched.step(torch.ones(ENVS, 1).to(device))
    drawn = DreamVectorEnv(world, ENVS, device=device, render_mode="rgb_array")
    drawn.reset(seed=0)
    assert len(drawn.render()) == ENVS
    drawn.close()
    PlaySession(world, device=device, data=data).close()


@pytest.mark.parametrize("device", [{"float64": True}], indirect=True)
def test_verbs_take_the_device(device, recorded, capsys, tmp_path):
    def exit_code(*words: object) -> int:
        with pytest.raises(SystemExit) as leave:
            main([str(word) for word in words])
        return leave.value.code or 0

    world, policy, data = (recorded / name for name in ("world", "policy.zip", "d.h5"))
    of_world = "--world", world, "--episodes", 2, "--max-episode-steps", 3
    for line in (
        ("evaluate", policy, *of_world),
        ("transfer", policy, *of_world),
        ("report", world, "--data", data, "--out", tmp_path / "page.html"),
    ):
        OnDevice.made = 0
        assert exit_code(*line, "--device", device) == 0
        assert OnDevice.made
        assert exit_code(*line, "--device", "cuda:99") != 0
        assert "cannot be used here" in capsys.readouterr().err
    assert exit_code("evaluate", policy, "--env", "Pendulum-v1", "--device", device) != 0
    assert "name one with --world" in capsys.readouterr().err
