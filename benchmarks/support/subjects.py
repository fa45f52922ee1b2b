"""Subjects of `dream.py`: worlds, their dreams, and the plain steps to compare with."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch

from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.world.world import World
from support import worlds
from support.baselines import plain_family, plain_mdn_rnn, plain_rssm
from support.side_by_side import Apart, apart

Step = Callable[[], Any]

OFTEN = {"termination": 1.0, "max_episode_steps": [1, 600]}
"""Of heads that say nothing of ends: rows reset at their horizons, one in three hundred a step."""
SAMPLED: dict[str, Any] = {}


class Subject(NamedTuple):
    """One world to measure.

    Attributes:
        name: name in the rows.
        world: function that makes the world.
        options: options of its dreams.
        plain: function that makes the plain step with N rows.
        bars: required ratio to the plain step, by (rows, dtype).
        share: required share of the products in a float32 step of 1,024 rows.
    """

    name: str
    world: Callable[[], World]
    options: dict[str, Any]
    plain: Callable[[int], Step] | None
    bars: dict[tuple[int, str], float]
    share: float


SUBJECTS = [
    Subject(
        "V-M-C Car",
        worlds.v_m_c,
        SAMPLED,
        plain_mdn_rnn,
        {(1024, "float32"): 2.5, (1024, "bfloat16"): 3.5, (1, "float32"): 1.2},
        0.62,
    ),
    Subject(
        "RSSM 512, 32x32",
        worlds.rssm,
        OFTEN,
        plain_rssm,
        {(1024, "float32"): 2.5, (1024, "bfloat16"): 4.0, (1, "float32"): 1.2},
        0.70,
    ),
    Subject(
        "LeWM",
        worlds.lewm,
        OFTEN,
        None,
        {(1024, "float32"): 2.3, (1024, "bfloat16"): 3.5, (1, "float32"): 1.2},
        0.69,
    ),
]


def a_dream(world: World, count: int, **options: Any) -> DreamVectorEnv:
    """Return a dream that was reset."""
    options = {"output": "torch", "autoreset_mode": "SameStep", "view": "latent", **options}
    env = DreamVectorEnv(world, count, **options)
    env.reset(seed=0)
    return env


def stepping(env: DreamVectorEnv) -> Step:
    """Return a step of the dream, always with the same actions."""
    space: Any = env.single_action_space
    action = worlds.actions(env.num_envs, env.device, space)
    return lambda: env.step(action)


def model_alone(env: DreamVectorEnv) -> Step:
    """Return the prepared model's step, from the dream's current state and with given noise."""
    space: Any = env.single_action_space
    action = worlds.actions(env.num_envs, env.device, space)
    model, state = env.engine.model, env.get_state().model
    noise = torch.rand(env.num_envs, model.noise_dim, device=env.device)

    @torch.no_grad()
    def step() -> Any:
        return model.step(state, action, noise, 1.0)

    return step


def plain_apart(subject: Subject, count: int) -> AbstractContextManager[Apart]:
    """Return the plain step with N rows, in a separate process."""
    if subject.plain:
        return apart(subject.plain, count)
    return apart(unprepared, subject.world, count)


def unprepared(world: Callable[[], World], count: int) -> Step:
    """Return the plain step of a family without a baseline: its own step, not prepared."""
    made = world()
    return plain_family(made, worlds.actions(count, "cpu", made.model.action_space))  # type: ignore[arg-type]
