"""A frame skip from end to end: data, world, dream, policy, real environment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import dreamgym
from dreamgym import FitConfig, World
from dreamgym.data import Dataset, FrameSkip, SkipFrames, SkippedDataset, frame_skip_of
from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.errors import WorldError
from dreamgym.models import KnownReward, MDNRNNConfig
from dreamgym.train import TrainConfig, load_policy
from dreamgym.transfer import LatentObservation, TransferError, evaluate, transfer_policy
from dreamgym.world import load, replay

QUICK = FitConfig(
    updates=60,
    batch_size=32,
    segment_length=8,
    evaluate_every=30,
    starts=64,
    model=MDNRNNConfig(hidden=32, trunk=32, head=32),
)
BLOCKS = FrameSkip(steps=2)
REPEATED = FrameSkip(steps=2, actions="repeated")


def fitted(folder: Path, env_id: str, skip: FrameSkip, policy: str) -> tuple[World, Path]:
    path = folder / "data.h5"
    dreamgym.record(env_id, steps=1500, out=path, seed=0, policy=policy)
    with Dataset(path) as dataset:
        dreamgym.fit(SkippedDataset(dataset, skip), out=folder / "world", config=QUICK)
    return load(folder / "world"), path


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Path]:
    return fitted(tmp_path_factory.mktemp("pendulum"), "Pendulum-v1", BLOCKS, "sticky:0.8")


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Path]:
    return fitted(tmp_path_factory.mktemp("cartpole"), "CartPole-v1", REPEATED, "held:2")


@pytest.fixture(params=["pendulum", "cartpole"])
def world(request: pytest.FixtureRequest) -> World:
    return request.getfixturevalue(request.param)[0]


def test_a_world_keeps_its_frame_skip(
    pendulum: tuple[World, Path], cartpole: tuple[World, Path]
) -> None:
    for (world, _), skip, space, horizon in (
        (pendulum, BLOCKS, gym.spaces.Box(-2, 2, (2,)), 100),  # 200 real steps
        (cartpole, REPEATED, gym.spaces.Discrete(2), 200),  # 250, but at most 200
    ):
        assert world.frame_skip == skip
        assert world.action_space == space
        assert 15 <= world.horizon <= horizon
        assert world.provenance["fit"]["frame_skip"] == skip.to_json()
        assert world.provenance["dataset_steps"] == 1500
        dream = DreamVectorEnv(world, 3, output="torch", autoreset_mode="SameStep")
        assert dream.single_action_space == space
        assert dream.horizon == world.horizon
    assert pendulum[0].real_limit == 100
    assert cartpole[0].real_limit == 250


def test_the_card_describes_the_frame_skip(pendulum: tuple[World, Path], tmp_path: Path) -> None:
    folder = pendulum[0].save(tmp_path / "copy")
    assert "each of 2 steps of the environment" in (folder / "README.md").read_text()


def test_a_world_with_a_malformed_frame_skip_is_refused(world: World, tmp_path: Path) -> None:
    folder = world.save(tmp_path / "w")
    description = folder / "world.json"
    for bad in ('{"steps": 0', '{"steps": 2, "actions": "x"', '{"step": 2'):
        text = description.read_text()
        begin = text.index('"frame_skip": {')
        end = text.index("}", begin)
        description.write_text(text[:begin] + f'"frame_skip": {bad}' + text[end:])
        with pytest.raises(WorldError, match="cannot be understood"):
            load(folder)
        description.write_text(text)


def test_the_real_environment_takes_skipped_steps(world: World) -> None:
    env = world.real_env()
    assert frame_skip_of(env) == world.frame_skip
    assert env.action_space == world.action_space
    env.action_space.seed(0)
    env.reset(seed=0)
    lengths, steps, over = 0, 0, False
    while not over:
        _, _, terminated, truncated, info = env.step(env.action_space.sample())
        lengths, steps, over = lengths + 1, steps + info["env_steps"], terminated or truncated
    assert lengths == -(-steps // 2)
    if world.env_id == "Pendulum-v1":
        assert (lengths, steps) == (100, 200)
    # Not wrapped a second time; another frame skip is refused.
    assert world.adapted(env) is env
    with pytest.raises(WorldError, match="FrameSkip"):
        world.adapted(SkipFrames(gym.make(world.env_id), steps=3))


def test_the_observation_of_a_latent_policy_is_filtered_in_the_same_steps(world: World) -> None:
    """A plain environment gets the frame skip; one that has it keeps it."""
    plain = LatentObservation(gym.make(world.env_id), world)
    wrapped = LatentObservation(world.real_env(), world)
    check_env(LatentObservation(world.real_env(), world), skip_render_check=True)
    assert plain.action_space == wrapped.action_space == world.action_space
    wrapped.action_space.seed(1)
    np.testing.assert_array_equal(plain.reset(seed=3)[0], wrapped.reset(seed=3)[0])
    for _ in range(4):
        action = wrapped.action_space.sample()
        one, two = plain.step(action), wrapped.step(action)
        np.testing.assert_array_equal(one[0], two[0])
        assert one[1:] == two[1:]


@pytest.mark.parametrize("view", ["observation", "latent"])
def test_a_policy_trained_in_the_dream_transfers_to_the_real_environment(
    world: World, view: str, tmp_path: Path
) -> None:
    pytest.importorskip("stable_baselines3")
    config = TrainConfig(num_envs=8, view=view)
    policy = dreamgym.train_policy(world, steps=512, seed=0, out=tmp_path / "p.zip", config=config)
    assert policy.frame_skip == world.frame_skip
    read = load_policy(tmp_path / "p.zip", world=world)
    assert read.frame_skip == world.frame_skip
    result = transfer_policy(read, world, episodes=4)
    plain = transfer_policy(read, world, episodes=4, env=world.env_id)
    assert plain.real.returns.tolist() == result.real.returns.tolist()
    figures = result.as_dict()
    assert figures["real_steps"] == result.real.steps
    lengths = result.real.lengths
    assert 2 * lengths.sum() - len(lengths) <= result.real.steps <= 2 * lengths.sum()
    if world.env_id == "Pendulum-v1":
        assert lengths.tolist() == [100] * 4
        assert figures["dream_length_mean"] <= 100
        assert (result.real.returns < -100).all()  # the sum of 200 rewards, not of 100
    else:
        assert result.real.returns.sum() == result.real.steps  # one for each environment step
    if view == "observation":
        with pytest.raises(TransferError, match=r"FrameSkip|action space"):
            evaluate(read, world.env_id, episodes=1)
        real = evaluate(read, world.real_env, episodes=4)
        assert real.returns.tolist() == result.real.returns.tolist()


def test_starts_from_a_dataset_use_its_frame_skip(pendulum: tuple[World, Path]) -> None:
    world, path = pendulum
    dream = DreamVectorEnv(world, 5, starts=str(path), output="torch", autoreset_mode="SameStep")
    observation, _ = dream.reset(seed=0)
    assert torch.isfinite(observation).all()
    with Dataset(path) as dataset:
        replayed = replay(world, SkippedDataset(dataset, BLOCKS).episode(0))
    assert len(replayed.real) == 101  # 200 steps in blocks of two


def test_a_world_of_two_datasets(tmp_path: Path) -> None:
    paths = [
        dreamgym.record("CartPole-v1", steps=300, out=tmp_path / f"{seed}.h5", seed=seed)
        for seed in (0, 1)
    ]
    config = replace(QUICK, updates=2, starts=8)
    with Dataset(paths[0]) as a, Dataset(paths[1]) as b:
        parts = [(SkippedDataset(each, BLOCKS), 1.0) for each in (a, b)]
        world = dreamgym.fit(parts, config=config)
    assert world.frame_skip == BLOCKS
    assert world.action_space == gym.spaces.MultiDiscrete([2, 2])
    assert world.provenance["fit"]["weights"] == [1.0, 1.0]


def test_a_known_reward_of_one_step_is_refused_for_several(pendulum) -> None:
    world, _ = pendulum
    with pytest.raises(WorldError, match="reward of one real step"):
        world.with_model(KnownReward(world.model, "Pendulum-v1"))
