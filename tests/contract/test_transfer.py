"""Contract: a policy sees in the real environment exactly what it saw in the dream.

The dream's own filter makes start states of recorded episodes. The same observations and actions,
replayed through an environment, must give the same features: layout, dtype, scale, frame skip,
action blocks and normalisation are then equal, for every family.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import dreamgym
from dreamgym.data import Dataset, FrameSkip, with_frame_skip
from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.models import ModelSpec, WorldModel
from dreamgym.models.base import as_segment, filter_states
from dreamgym.models.spec import unsupported
from dreamgym.transfer import LatentAgent, LatentObservation, LatentVectorObservation
from dreamgym.world.world import World
from tests.small_worlds import ACTION_SPACES as BASES
from tests.small_worlds import (
    ALONE,
    KINDS,
    OF_IMAGES,
    PRETRAINED,
    SPECIAL,
    STATISTICS,
    small_model,
    world_of,
)

STEPS, SEED = 12, 11
OF_NUMBERS = [kind for kind in KINDS if kind[0] not in OF_IMAGES]
FAMILIES_ALONE = sorted({kind for kind, _ in OF_NUMBERS} - {*SPECIAL})


class Drift(gym.Env):
    """Four numbers that actions move; the model need not know them, only filter them."""

    observation_space = gym.spaces.Box(-3.0, 3.0, (4,), np.float32)

    def __init__(self, action="discrete"):
        self.action_space = BASES[action]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        self.place = self.np_random.uniform(-1, 1, 4)
        return self.place.astype(np.float32), {}

    def step(self, action):
        self.steps += 1
        push = np.resize(np.ravel(np.asarray(action, np.float64)), 4)
        self.place = np.clip(
            0.8 * self.place + 0.2 * push + self.np_random.normal(0, 0.1, 4), -3, 3
        )
        return self.place.astype(np.float32), 0.0, False, self.steps == STEPS, {}


class Picture(gym.Env):
    """Random pictures, of which the filter must not care."""

    observation_space = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    action_space = BASES["discrete"]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._picture(), {}

    def step(self, action):
        self.steps += 1
        return self._picture(), 0.0, False, self.steps == 4, {}

    def _picture(self):
        return self.np_random.integers(0, 256, (64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder, paths = tmp_path_factory.mktemp("drift"), {}
    for action in BASES:
        path = folder / f"{action}.h5"
        paths[action] = dreamgym.record(Drift(action), steps=3 * STEPS, out=path, seed=11)
    return paths


def noise_of(seed: int, steps: int, model: WorldModel) -> torch.Tensor:
    """Return the noise that the wrapper's filter draws in an episode, (1, steps, noise_dim)."""
    number = int(np.random.SeedSequence((seed, 1)).generate_state(1)[0])
    generator = torch.Generator().manual_seed(number)
    drawn = [torch.rand((1, model.noise_dim), generator=generator) for _ in range(steps)]
    return torch.stack(drawn, 1)


def in_dream(world: World, dataset, seed: int):
    """Return what a dream shows of the states of episode 0, (L + 1, F), and the dream's spaces.

    The states are those of the filter that makes start states, with the wrapper's noise.
    """
    model, length = world.model, int(dataset.lengths[0])
    segment = as_segment(dataset.windows([0], [0], length), torch.device("cpu"))
    with torch.no_grad():
        states = filter_states(model, segment, noise_of(seed, length + 1, model))
    dream = DreamVectorEnv(world, length + 1, view="latent", output="numpy")
    dream.reset(seed=0)
    state = dream.get_state()
    features = dream.set_state(
        state._replace(model={name: leaf[0] for name, leaf in states.items()})
    )
    actions = segment.action[0].numpy().astype(world.action_space.dtype)
    return features, actions, dream


def check_same_view(world: World, dataset, make, seed: int) -> None:
    """Compare dream, wrapper, vector wrapper and recording agent on the first episode."""
    features, actions, dream = in_dream(world, dataset, seed)
    env = LatentObservation(make(), world)
    envs = LatentVectorObservation(
        SyncVectorEnv([lambda: world.adapted(make())] * 2, autoreset_mode=AutoresetMode.SAME_STEP),
        world,
    )
    assert env.observation_space == dream.single_observation_space
    assert env.observation_space == envs.single_observation_space
    assert env.action_space == dream.single_action_space == envs.single_action_space
    plain = world.adapted(make())
    observation, _ = plain.reset(seed=seed)
    policy = Watches(dream)
    agent = LatentAgent(policy, world)
    agent.reset([0], [int(np.random.SeedSequence((seed, 1)).generate_state(1)[0])])
    seen, side_by_side = [env.reset(seed=seed)[0]], [envs.reset(seed=seed)[0][0]]
    for action in actions:
        seen.append(env.step(action)[0])
        rows, *_, info = envs.step(np.stack([action] * 2))
        side_by_side.append(info["final_obs"][0] if "final_obs" in info else rows[0])
    for rows in (seen, side_by_side):
        assert rows[0].dtype == features.dtype
        np.testing.assert_allclose(rows, features, rtol=1e-4, atol=1e-5)
    # The agent's noise continues with the seeds of its actions, so its first features are compared.
    agent.act([observation], [0])
    assert policy.seen[0].dtype == features.dtype
    np.testing.assert_allclose(policy.seen[0][0], features[0], rtol=1e-4, atol=1e-5)


class Watches:
    """A policy of the latent view that keeps what it saw."""

    view, name = "latent", "watches"

    def __init__(self, dream):
        self.action_space, self.seen = dream.single_action_space, []

    def seeded(self, seed):
        return nullcontext()

    def predict(self, observation, deterministic=False):
        self.seen.append(observation)
        return np.stack([self.action_space.sample() for _ in observation]), None


@pytest.mark.parametrize(("kind", "action"), OF_NUMBERS)
def test_the_real_environment_shows_what_the_dream_shows(kind, action, recorded):
    world = world_of(small_model(kind, action))
    with Dataset(recorded[action]) as dataset:
        check_same_view(world, dataset, lambda: Drift(action), dataset.episode(0).seed)


@pytest.mark.parametrize("skip", [FrameSkip(steps=3), FrameSkip(steps=3, actions="repeated")])
@pytest.mark.parametrize("family", FAMILIES_ALONE)
def test_so_it_does_with_a_frame_skip(family, skip, tmp_path):
    policy = f"held:{skip.steps}" if skip.actions == "repeated" else "random"
    path = dreamgym.record(Drift("box"), steps=24, out=tmp_path / "d", seed=SEED, policy=policy)
    torch.manual_seed(0)
    model = ModelSpec(family=family).build(Drift.observation_space, skip.space(BASES["box"]))
    model.set_statistics(STATISTICS)
    world = replace(world_of(model.eval().requires_grad_(False)), frame_skip=skip)
    with Dataset(path) as dataset:
        seed = dataset.episode(0).seed
        check_same_view(world, with_frame_skip(dataset, skip), lambda: Drift("box"), seed)


TAKE_IMAGES = [
    family
    for family in ALONE
    if family in PRETRAINED or not unsupported(family, Picture.observation_space, BASES["discrete"])
]


@pytest.mark.parametrize("family", TAKE_IMAGES)
def test_so_it_does_with_images(family, tmp_path):
    path = dreamgym.record(Picture(), steps=8, out=tmp_path / "d", seed=SEED)
    torch.manual_seed(0)
    config = PRETRAINED[family]() if family in PRETRAINED else None
    model = ModelSpec(family=family, config=config).build(
        Picture.observation_space, BASES["discrete"]
    )
    world = world_of(model.eval().requires_grad_(False))
    with Dataset(path) as dataset:
        check_same_view(world, dataset, Picture, dataset.episode(0).seed)
