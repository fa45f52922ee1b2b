"""One episode of a policy in each of several dreams."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dreamgym.data.policies import PolicyLike, check_action, make_policy
from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.models.base import model_device
from dreamgym.transfer.evaluation import Evaluation
from dreamgym.world.world import World


class DreamStep(NamedTuple):
    """One step of all dreams.

    Attributes:
        env: the dreams after the step.
        reward: (N,) rewards.
        counted: (N,) bool, rows that were in their first episode.
        ended: (N,) bool, rows whose first episode this step ended.
        info: the step's info.
    """

    env: DreamVectorEnv
    reward: NDArray[Any]
    counted: NDArray[np.bool_]
    ended: NDArray[np.bool_]
    info: dict[str, Any]


def run_dream_episodes(
    policy: PolicyLike,
    world: World,
    *,
    limits: NDArray[np.integer],
    seed: int,
    temperature: float = 1.0,
    on_step: Callable[[DreamStep], None] | None = None,
) -> Evaluation:
    """Run exactly one episode a row: the first ones that end would favour short ones.

    Dreams start where real episodes started, on the device of the world; of one on the CPU they
    take CUDA where there is one.

    Args:
        policy: policy to run; one without an attribute `view` is taken to see the world's default
            view.
        world: world to dream in.
        limits: (N,) steps after which each of N dreams is truncated.
        seed: seed of the dreams; the policy's row k is reset with `seed + k`.
        temperature: temperature of the dreams.
        on_step: called after every step.

    Returns:
        The N episodes.
    """
    episodes, started = len(limits), time.perf_counter()
    device = model_device(world.model)
    env = DreamVectorEnv(
        world,
        episodes,
        view=getattr(policy, "view", None) or world.default_view,
        starts="episode_starts",
        max_episode_steps=int(limits.max()),
        temperature=temperature,
        autoreset_mode="SameStep",
        device="auto" if device.type == "cpu" else str(device),
    )
    returns, lengths = np.zeros(episodes), np.zeros(episodes, np.int64)
    running, truncations = np.ones(episodes, bool), np.zeros(episodes, bool)
    rows = list(range(episodes))
    try:
        made = make_policy(policy, env, deterministic=True)
        observation, _ = env.reset(seed=seed)
        made.reset(rows, [seed + row for row in rows])
        while running.any():
            actions = [
                check_action(action, env.single_action_space)
                for action in made.act(observation, rows)
            ]
            observation, reward, terminated, truncated, info = env.step(np.stack(actions))
            returns += np.where(running, reward, 0.0)
            lengths += running
            reset = np.asarray(terminated) | np.asarray(truncated)
            ended = running & (reset | (lengths == limits))
            truncations |= ended & ~np.asarray(terminated)
            if on_step is not None:
                on_step(DreamStep(env, np.asarray(reward), running, ended, info))
            running = running & ~ended
            restarted = np.flatnonzero(reset).tolist()  # their further episodes are not counted
            if restarted:
                made.reset(restarted, [seed + row for row in restarted])
    finally:
        env.close()
    return Evaluation(
        returns=returns,
        lengths=lengths,
        truncated=truncations,
        seconds=time.perf_counter() - started,
    )
