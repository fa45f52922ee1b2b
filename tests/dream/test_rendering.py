"""Frames: drawn by the real environment where possible, and only when they are read."""

from __future__ import annotations

import sys

import gymnasium as gym
import numpy as np
import pytest
import torch

from dreamgym.dream.rendering import BAR_GAP, BAR_HEIGHT, BAR_WIDTH, STATE_SETTERS, Frames, Renderer
from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.models import MDNRNNConfig, ModelSpec
from dreamgym.world.start_states import StartStates
from dreamgym.world.world import World
from tests.small_worlds import small_world

ENVS = 4096


def build_world(env: gym.Env) -> World:
    """Return a world of a real environment with an unfitted model."""
    return world_on(env.observation_space, env.action_space, env.spec.to_json())


def world_on(observations: gym.Space, actions: gym.Space, env_spec: str | None = None) -> World:
    """Return a world on these spaces with an unfitted model."""
    spec = ModelSpec(family="mdn-rnn", config=MDNRNNConfig(hidden=8, trunk=8, head=8))
    model = spec.build(observations, actions).eval()
    return World(
        model=model.requires_grad_(False),
        starts=StartStates(states=model.initial(4), num_episode_starts=4),
        env_spec=env_spec,
        horizon=5,
        provenance={},
        quality={},
        name="small",
    )


@pytest.mark.parametrize("name", [*STATE_SETTERS])
def test_an_observation_is_drawn_as_its_environment_draws_it(name):
    pytest.importorskip("pygame", reason="the environment's own renderer needs pygame")
    version = {"CartPole": 1, "Pendulum": 1, "Acrobot": 1}.get(name, 0)
    env = gym.make(f"{name}-v{version}", render_mode="rgb_array")
    renderer = Renderer(build_world(env))
    observation, _ = env.reset(seed=3)
    env.action_space.seed(0)
    for _ in range(4):
        observation, *_ = env.step(env.action_space.sample())
        drawn = renderer.draw(torch.as_tensor(observation).unsqueeze(0))
        env.unwrapped.last_u = None  # Pendulum's arrow: the torque is not in the observation
        assert np.array_equal(drawn, env.render())
    renderer.close()
    env.close()


def assert_frames_are_bars(world: World) -> None:
    with pytest.warns(RuntimeWarning, match="frames are plots"):
        env = DreamVectorEnv(
            world,
            2,
            render_mode="rgb_array",
            device="cpu",
            output="torch",
            autoreset_mode="SameStep",
        )
    assert env.renderer.env is None
    assert env.renderer.set_state is None
    env.reset(seed=0)
    values = world.observation_space.shape[0]
    assert env.render()[1].shape == (BAR_HEIGHT, BAR_GAP + values * (BAR_WIDTH + BAR_GAP), 3)
    env.close()


def test_without_pygame_frames_are_bars(monkeypatch):
    monkeypatch.setitem(sys.modules, "pygame", None)
    assert_frames_are_bars(build_world(gym.make("CartPole-v1")))


def test_frames_of_a_wrapped_environment_are_bars():
    wrapped = gym.wrappers.RescaleAction(gym.make("Pendulum-v1"), -1.0, 1.0)
    assert_frames_are_bars(build_world(wrapped))


@pytest.mark.parametrize(
    ("channels", "shown"),
    [(1, [0, 0, 0]), (2, [1, 1, 1]), (3, [0, 1, 2]), (4, [1, 2, 3]), (6, [3, 4, 5])],
)
def test_images_of_any_number_of_channels_are_frames_of_three(channels, shown):
    space = gym.spaces.Box(0, 255, (64, 64, channels), np.uint8)
    world = world_on(space, gym.spaces.Discrete(2))
    space.seed(0)
    image = space.sample()
    drawn = Renderer(world).draw(torch.as_tensor(image).unsqueeze(0))
    assert drawn.dtype == np.uint8
    assert np.array_equal(drawn, image[..., shown])


def test_a_video_of_one_of_many_dreams_decodes_one_row_a_step(tmp_path):
    pytest.importorskip("moviepy", reason="RecordVideo writes with moviepy")
    env = DreamVectorEnv(
        small_world(),
        ENVS,
        view="latent",
        render_mode="rgb_array",
        device="cpu",
        output="torch",
        autoreset_mode="SameStep",
    )
    decoded = []
    decode = env.engine.model.decode

    def counted(state):
        decoded.append(len(state["z"]))
        return decode(state)

    env.engine.model.decode = counted
    video = gym.wrappers.vector.RecordVideo(
        env, str(tmp_path), record_first_only=True, video_length=5
    )
    video.reset(seed=0)
    for _ in range(5):
        video.step(torch.zeros(ENVS, dtype=torch.int64))
    video.close()
    assert list(tmp_path.glob("*.mp4"))
    assert set(decoded) == {1}
    assert 5 <= len(decoded) <= 6  # one frame a step, and one for the reset


def test_frames_show_the_state_at_render_and_not_when_they_are_read():
    envs = [
        DreamVectorEnv(
            small_world(),
            4,
            render_mode="rgb_array",
            device="cpu",
            output="torch",
            autoreset_mode="SameStep",
        )
        for _ in range(2)
    ]
    for env in envs:
        env.reset(seed=0)
    now, later = envs[0].render()[2], envs[1].render()
    for step in range(3):
        envs[1].step(torch.full((4,), step))
    assert np.array_equal(later[2], now)
    assert not np.array_equal(envs[1].render()[2], now)


def test_frames_are_a_sequence():
    frames = Frames(lambda row: np.full((1, 1, 3), row, np.uint8), 5)
    assert len(frames) == 5
    assert frames[-1].max() == 4
    assert [int(frame.max()) for frame in frames[1:3]] == [1, 2]
    assert len(list(frames)) == 5
    with pytest.raises(IndexError, match="frame 5 of 5"):
        frames[5]
