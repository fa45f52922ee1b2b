"""Small unfitted worlds: weights are random, shapes and behaviour are the real ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import gymnasium as gym
import numpy as np
import torch

from dreamgym.models import (
    FAMILIES,
    Cosmos3Config,
    DeltaIRISConfig,
    DIAMONDConfig,
    DINOWMConfig,
    Genie,
    GenieConfig,
    GoalReward,
    IRISConfig,
    KnownReward,
    KnownTermination,
    MDNRNNConfig,
    ModelSpec,
    Optimistic,
    Pessimistic,
    PETSConfig,
    VJEPA2ACConfig,
    WorldModel,
)
from dreamgym.models.base import State, zero_action
from dreamgym.models.iris import QuantiserConfig, TransformerConfig
from dreamgym.models.observations import Observation
from dreamgym.models.statistics import Moments, Statistics
from dreamgym.models.wrappers import EnsembleConfig
from dreamgym.world.start_states import StartStates
from dreamgym.world.world import World
from tests import frozen_encoders, tiny_cosmos

ACTION_SPACES = {
    "discrete": gym.spaces.Discrete(3),
    "box": gym.spaces.Box(np.float32([-2, 0]), np.float32([2, 1])),
    "multi-discrete": gym.spaces.MultiDiscrete([2, 3]),
}


TENSORS = {"output": "torch", "autoreset_mode": "SameStep"}
"""Options of a dream that stays on the device and whose steps hold the last observation."""

MOMENTS = Moments(
    mean=torch.tensor([0.0, 0.1, -0.2, 0.3]),
    std=torch.tensor([1.0, 0.5, 2.0, 1.5]),
    # So wide that no dream leaves it: episodes end when a test makes them end.
    low=torch.full((4,), -1e6),
    high=torch.full((4,), 1e6),
    delta_std=torch.tensor([0.1, 0.2, 0.3, 0.4]),
)
STATISTICS = Statistics(
    observation={"": MOMENTS},
    reward_mean=torch.tensor(0.5),
    reward_std=torch.tensor(2.0),
    worst_return=torch.tensor(-30.0),
)


def small_model(kind: str, action: str = "discrete", seed: int = 0) -> WorldModel:
    """Return a model with random weights, of four numbers in [-3, 3] or of small images.

    Args:
        kind: a family, with its default config, or a key of `SPECIAL`.
        action: a key of `ACTION_SPACES`.
        seed: seed of the weights.
    """
    torch.manual_seed(seed)
    model = SPECIAL[kind](action) if kind in SPECIAL else built(ModelSpec(family=kind), action)
    return model.eval().requires_grad_(False)


NUMBERS = gym.spaces.Box(-3.0, 3.0, (4,), np.float32)
IMAGES = gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)


def built(spec: ModelSpec, action: str, space: gym.Space = NUMBERS) -> WorldModel:
    model = spec.build(space, ACTION_SPACES[action])
    model.set_statistics(STATISTICS)
    return model


def small_pets(action: str, **settings) -> WorldModel:
    config = PETSConfig(hidden=16, layers=2, members=3, elites=2, **settings)
    return built(ModelSpec(family="pets", config=config), action)


def small_ensemble(action: str, **settings) -> WorldModel:
    member = ModelSpec(family="mdn-rnn", config=MDNRNNConfig(hidden=8, trunk=8, head=8))
    config = EnsembleConfig(member=member, members=3, elites=2, **settings)
    return built(ModelSpec(family="ensemble", config=config), action)


def small_diamond(action: str, **settings) -> WorldModel:
    config = DIAMONDConfig(
        image_size=8,
        channels=(8, 8),
        condition=16,
        reward_channels=(8, 8),
        reward_condition=8,
        hidden=8,
        **settings,
    )
    return built(ModelSpec(family="diamond", config=config), action, IMAGES)


def small_iris(action: str, **settings) -> WorldModel:
    config = IRISConfig(
        **{
            "image_size": 8,
            "channels": (8, 8, 8),
            "latent": 8,
            "tokeniser_updates": 0,
            "quantiser": QuantiserConfig(levels=(4, 4)),
            "transformer": TransformerConfig(context=5, width=16, blocks=2, heads=2),
            **settings,
        }
    )
    return built(ModelSpec(family="iris", config=config), action, IMAGES)


def small_delta(action: str, **settings) -> WorldModel:
    config = DeltaIRISConfig(
        **{
            "image_size": 8,
            "channels": (8, 8),
            "halved": (True, False),
            "latent": 2,
            "tokeniser_updates": 0,
            "quantiser": QuantiserConfig(levels=(4, 4)),
            "transformer": TransformerConfig(context=4, width=16, blocks=2, heads=2),
            **settings,
        }
    )
    return built(ModelSpec(family="delta-iris", config=config), action, IMAGES)


def small_genie(action: str, **settings) -> Genie:
    config = GenieConfig(
        **{
            "image_size": 8,
            "channels": (8, 8, 8),
            "latent": 8,
            "quantiser": QuantiserConfig(levels=(4, 4)),
            "context": 2,
            "width": 16,
            "blocks": 2,
            "heads": 2,
            "action_width": 8,
            "action_blocks": 1,
            "steps": 2,
            "tokeniser_updates": 0,
            "action_updates": 0,
            **settings,
        }
    )
    return built(ModelSpec(family="genie", config=config), action, IMAGES)


def dino_config(**settings) -> DINOWMConfig:
    """Return a tiny config, whose encoder is made at the first call."""
    sizes = {"blocks": 1, "heads": 2, "head_width": 8, "mlp": 32, "cells": 2, "hidden": 16}
    encoder, side = frozen_encoders.folder("dinov2"), frozen_encoders.SIDE
    return DINOWMConfig(**{"encoder": encoder, "image_size": side, **sizes, **settings})


def small_dino(action: str, **settings) -> WorldModel:
    return built(ModelSpec(family="dino-wm", config=dino_config(**settings)), action, IMAGES)


def vjepa2_config(**settings) -> VJEPA2ACConfig:
    """Return a tiny config, whose encoder is made at the first call."""
    sizes = {"blocks": 1, "heads": 2, "width": 24, "mlp": 2, "cells": 2, "hidden": 16}
    encoder, side = frozen_encoders.folder("vjepa2"), frozen_encoders.SIDE
    return VJEPA2ACConfig(**{"encoder": encoder, "image_size": side, **sizes, **settings})


def small_vjepa2(action: str, **settings) -> WorldModel:
    spec = ModelSpec(family="vjepa2-ac", config=vjepa2_config(**settings))
    return built(spec, action, IMAGES)


def cosmos_config(**settings) -> Cosmos3Config:
    """Return a config of a tiny pipeline, which is made at the first call."""
    inputs = {"domain": "pusht", "fps": 10.0, "steps": 1, "cells": 2, "hidden": 16}
    here = {"pipeline": tiny_cosmos.folder(), "guardrail": False, "precision": "float32"}
    return Cosmos3Config(**{**inputs, **here, **settings})


FRAMES = gym.spaces.Box(0, 255, (tiny_cosmos.SIDE, tiny_cosmos.SIDE, 3), np.uint8)
BLOCKS = gym.spaces.Box(-1.0, 1.0, (tiny_cosmos.BLOCK * tiny_cosmos.ACTION,), np.float32)


def small_cosmos(action: str, **settings) -> WorldModel:
    """Return a model of blocks of actions, the only ones that it takes."""
    spec = ModelSpec(family="cosmos3", config=cosmos_config(**settings))
    model = spec.build(FRAMES, BLOCKS)
    model.set_statistics(STATISTICS)
    return model


def nested(action: str) -> WorldModel:
    known = KnownReward(small_ensemble(action), "CartPole-v1")
    return GoalReward(Pessimistic(known, weight=0.5), GOAL, threshold=0.01)


GOAL = np.float32([0.5, -0.5, 1.0, 0.0])

SPECIAL: dict[str, Callable[[str], WorldModel]] = {
    "ensemble": small_ensemble,
    "ensemble ts-inf": lambda action: small_ensemble(action, propagation="ts-inf"),
    "pets ts-inf": lambda action: small_pets(action, propagation="ts-inf", uncertainty="max-sigma"),
    "pessimistic": lambda action: Pessimistic(small_pets(action), weight=0.5),
    "optimistic": lambda action: Optimistic(small_pets(action), weight=0.5),
    "known-reward": lambda action: KnownReward(small_model("mdn-rnn", action), "CartPole-v1"),
    "known-termination": lambda action: KnownTermination(small_pets(action), "CartPole-v1"),
    "goal-reward": lambda action: GoalReward(small_model("mdn-rnn", action), GOAL, leaves=("z",)),
    "nested": nested,
    "diamond": small_diamond,
    "iris": small_iris,
    "delta-iris": small_delta,
    "genie": small_genie,
    "dino-wm": small_dino,
    "vjepa2-ac": small_vjepa2,
    "cosmos3": small_cosmos,
}
"""Families without a default config, small configs, and wrappers around models."""

OF_IMAGES = ("diamond", "iris", "delta-iris", "genie", "dino-wm", "vjepa2-ac")
"""Families that take images, and no vectors without them."""

PRETRAINED = {"dino-wm": dino_config, "vjepa2-ac": vjepa2_config}
"""Tiny configs of families whose default config is that of a large pretrained encoder."""

ELSEWHERE = ("cosmos3",)
"""Families with other spaces or slow steps, whose package's tests import those of the contract."""

ALONE = [*sorted({*FAMILIES} - {*SPECIAL}), *OF_IMAGES]
"""Families that are no wrappers."""

KINDS = [
    *((family, action) for family in ALONE for action in ACTION_SPACES),
    *zip(
        [kind for kind in SPECIAL if kind not in (*ALONE, *ELSEWHERE)],
        itertools.cycle(ACTION_SPACES),
    ),
]
"""What the contract is tested on: families on every action space, wrappers on one."""

ONE_EACH = list({kind: (kind, action) for kind, action in reversed(KINDS)}.values())
"""Every kind once, for slow tests whose result does not depend on the action space."""


def small_world(kind: str = "mdn-rnn", action: str = "discrete", horizon: int = 7) -> World:
    """Return a world of a small model; see `world_of`."""
    return world_of(small_model(kind, action), horizon)


def world_of(model: WorldModel, horizon: int = 7) -> World:
    """Return a world of a model with 64 random start states; the first 16 are episode starts."""
    return World(
        model=model,
        starts=StartStates(states=random_state(model, 64, seed=1), num_episode_starts=16),
        env_spec=None,
        horizon=horizon,
        provenance={"dataset": "none"},
        quality={"reward_rmse": 0.5},
        name="small",
    )


def random_state(model: WorldModel, batch: int, seed: int = 0) -> State:
    """Return a state with random leaves: standard normal floats, integers from observations.

    Which integers make sense is the model's own affair (tokens, lengths), so these leaves are taken
    from a state that has observed something.
    """
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, leaf in model.initial(batch).items():
        if leaf.is_floating_point():
            state[key] = torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype)
        else:
            state[key] = observed_state(model, batch, seed)[key]
    return state


def observed_state(model: WorldModel, batch: int, seed: int = 0) -> State:
    """Return the state after one random observation."""
    noise = torch.rand(batch, model.noise_dim, generator=torch.Generator().manual_seed(seed))
    observation = random_observations(model.observation_space, batch, seed)
    action = zero_action(model.action_space, batch, "cpu")
    return model.observe(model.initial(batch), action, observation, noise)


def random_actions(space: gym.Space, batch: int, seed: int = 0) -> torch.Tensor:
    """Return (batch, ...) random actions of a space."""
    space.seed(seed)
    return torch.as_tensor(np.stack([space.sample() for _ in range(batch)]))


def random_observations(space: gym.Space, batch: int, seed: int = 0) -> Observation:
    """Return (batch, ...) random observations: bytes for images, otherwise standard normals."""
    if isinstance(space, gym.spaces.Dict):
        return {key: random_observations(part, batch, seed) for key, part in space.spaces.items()}
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, *space.shape)
    if space.dtype == np.uint8:
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return torch.randn(shape, generator=generator)


def rows(observation: Observation) -> list:
    """Split a batch of observations into one NumPy observation, or dict of such, per row."""
    if isinstance(observation, dict):
        columns = {key: rows(values) for key, values in observation.items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return list(observation.numpy())
