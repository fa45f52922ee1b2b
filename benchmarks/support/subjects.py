"""What `dream.py` measures: the worlds, their dreams, and the plain steps beside them."""

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
    """What is measured.

    Attributes:
        name: in the rows.
        world: makes it.
        options: of its dreams.
        plain: makes the plain step of N rows.
        bars: by (rows, dtype), the ratio to plain that is asked for.
    """

    name: str
    world: Callable[[], World]
    options: dict[str, Any]
    plain: Callable[[int], Step] | None
    bars: dict[tuple[int, str], float]


SUBJECTS = [
    Subject(
        "V-M-C Car",
        worlds.v_m_c,
        SAMPLED,
        plain_mdn_rnn,
        {(1024, "float32"): 2.5, (1024, "bfloat16"): 3.5, (1, "float32"): 1.2},
    ),
    Subject(
        "RSSM 512, 32x32",
        worlds.rssm,
        OFTEN,
        plain_rssm,
        {(1024, "float32"): 2.5, (1024, "bfloat16"): 4.0, (1, "float32"): 1.2},
    ),
    Subject(
        "LeWM",
        worlds.lewm,
        OFTEN,
        None,
        {(1024, "float32"): 2.3, (1024, "bfloat16"): 3.5, (1, "float32"): 1.2},
    ),
]


def a_dream(world: World, count: int, **options: Any) -> DreamVectorEnv:
    """A dream that has begun."""
    env = DreamVectorEnv(world, count, view="latent", **options)
    env.reset(seed=0)
    return env


def stepping(env: DreamVectorEnv) -> Step:
    """Its step, under always the same actions."""
    space: Any = env.single_action_space
    action = worlds.actions(env.num_envs, env.device, space)
    return lambda: env.step(action)


def model_alone(env: DreamVectorEnv) -> Step:
    """The arranged model's own step, from where the dream stands, with noise that is there."""
    space: Any = env.single_action_space
    action = worlds.actions(env.num_envs, env.device, space)
    model, state = env.engine.model, env.get_state().model
    noise = torch.rand(env.num_envs, model.noise_dim, device=env.device)

    @torch.no_grad()
    def step() -> Any:
        return model.step(state, action, noise, 1.0)

    return step


def plain_apart(subject: Subject, count: int) -> AbstractContextManager[Apart]:
    """The plain step of N rows, in a process of its own."""
    if subject.plain:
        return apart(subject.plain, count)
    return apart(unprepared, subject.world, count)


def unprepared(world: Callable[[], World], count: int) -> Step:
    """The plain step of a family that has no other: its own, as it is before it is arranged."""
    made = world()
    return plain_family(made, worlds.actions(count, "cpu", made.model.action_space))  # type: ignore[arg-type]
