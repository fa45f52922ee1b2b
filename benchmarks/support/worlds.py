"""Unfitted worlds of published sizes: random weights step as fast as fitted ones."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import torch

from dreamgym.models import FAMILIES, JEPA, MDNRNN, RSSM, RSSMConfig, State, WorldModel
from dreamgym.world.start_states import StartStates
from dreamgym.world.world import World

STARTS = 256
RARE = -5.7
"""The logit of an end in about three hundred steps."""
HORIZON = 1000
IMAGE = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)
CAR = gym.spaces.Box(np.float32([-1, 0, 0]), np.float32([1, 1, 1]))


def actions(count: int, device: str = "cpu", space: gym.spaces.Box = CAR) -> torch.Tensor:
    """Return actions (count, ...) inside a Box, the same in every run."""
    share = torch.rand(count, *space.shape, generator=torch.Generator().manual_seed(0))
    low, high = torch.from_numpy(space.low), torch.from_numpy(space.high)
    return (low + share * (high - low)).to(device)


def v_m_c() -> World:
    """Return V-M-C for CarRacing: LSTM 256, 5 mixtures for each of 32 latents, linear heads."""
    model = _built(MDNRNN, CAR, MDNRNN.presets["carracing"])
    torch.nn.init.constant_(model.heads.termination.bias, RARE)
    return _world(model)


def rssm() -> World:
    """Return the RSSM of the plain baseline: h 512, z 32 x 32, layers of 512, two-layer heads."""
    published = RSSM.presets["dreamer-v3-12m"]
    config = RSSMConfig(
        deter=512,
        hidden=512,
        stoch=32,
        classes=32,
        blocks=0,
        norm="layer",
        units=512,
        head_layers=2,
        range_margin=None,
        objective=published.objective,
    )
    # What is seen has no part in a step: numbers are made sooner than pixels.
    return _world(_built(RSSM, _box(6), config, _box(4)))


def rssm_12m() -> World:
    """Return DreamerV3's RSSM with 12M parameters."""
    return _world(_built(RSSM, _box(6), RSSM.presets["dreamer-v3-12m"]))


def lewm() -> World:
    """Return LeWM: a predictor of six blocks over three latents of width 192."""
    space = gym.spaces.Box(0, 255, (224, 224, 3), np.uint8)
    return _world(_built(JEPA, _box(10), JEPA.presets["lewm"], space))


def family(name: str) -> World:
    """Return a world of a family's default config, on images if it takes nothing else."""
    return _world(_built(FAMILIES[name], CAR, FAMILIES[name].config_type()))


def published(name: str) -> World:
    """Return a world of a family's preset of its own name, on 64x64 images."""
    return _world(_built(FAMILIES[name], _box(4), FAMILIES[name].presets[name]))


def state_bytes(world: World) -> int:
    """Return the bytes of one row's state."""
    leaves = world.model.initial(1).values()
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves)


def _box(width: int) -> gym.spaces.Box:
    return gym.spaces.Box(-1.0, 1.0, (width,), np.float32)


def _built(
    kind: type[WorldModel], action_space: gym.spaces.Box, config: object, seen: gym.Space = IMAGE
) -> WorldModel:
    torch.manual_seed(0)
    return kind(seen, action_space, config).eval().requires_grad_(False)


@torch.no_grad()
def _world(model: WorldModel) -> World:
    generator = torch.Generator().manual_seed(1)
    state: State = model.initial(STARTS)
    # Any state will do, as long as it is one: categories stay one-hot after a step.
    noise = torch.rand(STARTS, model.noise_dim, generator=generator)
    state, _ = model.step(state, actions(STARTS, space=model.action_space), noise)
    return World(
        model=model,
        starts=StartStates(
            states={k: v.contiguous() for k, v in state.items()}, num_episode_starts=STARTS
        ),
        env_spec=None,
        horizon=HORIZON,
        provenance={},
        quality={},
        name="benchmark",
    )
