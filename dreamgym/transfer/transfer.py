"""From a policy and its world to two figures: its return in the dream and in reality."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.errors import TransferError
from dreamgym.train.policy import TrainedPolicy
from dreamgym.transfer.evaluation import (
    EVALUATION_SEED,
    Evaluation,
    Progress,
    difference_interval,
    evaluate,
)
from dreamgym.transfer.latent import LatentObservation
from dreamgym.transfer.policies import Policy, check_spaces
from dreamgym.transfer.real import EnvSource, env_maker, make_env
from dreamgym.world.world import World


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """One policy's return in the real environment and in the dream it was trained in.

    Attributes:
        real: episodes in the real environment.
        dream: as many episodes in the dream, from beginnings of episodes, with the real time limit.
            With a frame skip, lengths are in the dream's steps in both.
        env_id: of the real environment, None where it was made by a function without a spec.
        view: what the policy sees, "observation" or "latent".
        gap_interval: 95% bootstrap interval of the gap.
    """

    real: Evaluation
    dream: Evaluation
    env_id: str | None
    view: str
    gap_interval: tuple[float, float] = field(init=False)

    def __post_init__(self) -> None:
        interval = difference_interval(self.dream.returns, self.real.returns)
        object.__setattr__(self, "gap_interval", interval)

    @property
    def gap(self) -> float:
        """Mean dream return minus mean real return of the same policy."""
        return self.dream.mean - self.real.mean

    def as_dict(self) -> dict[str, Any]:
        """The figures as plain JSON values."""
        return {
            "env_id": self.env_id,
            "view": self.view,
            "episodes": self.real.episodes,
            "real_return_mean": self.real.mean,
            "real_return_std": self.real.std,
            "real_return_interval": list(self.real.interval),
            "real_length_mean": float(self.real.lengths.mean()),
            "dream_return_mean": self.dream.mean,
            "dream_return_std": self.dream.std,
            "dream_return_interval": list(self.dream.interval),
            "dream_length_mean": float(self.dream.lengths.mean()),
            "gap": self.gap,
            "gap_interval": list(self.gap_interval),
            "real_steps": self.real.steps,
            "real_seconds": self.real.seconds,
            "dream_seconds": self.dream.seconds,
        }


def transfer_policy(
    policy: TrainedPolicy | Policy | str | Path,
    world: World,
    *,
    episodes: int = 100,
    seed: int = EVALUATION_SEED,
    env: EnvSource | None = None,
    progress: Progress | None = None,
) -> Transfer:
    """Measure a policy in the real environment and in the dream.

    A policy trained on the latent view acts in the real environment through `LatentObservation`;
    one trained on observations acts in it as it is.

    Args:
        policy: a `TrainedPolicy`, the path of a policy's zip, or anything that `evaluate` takes.
            One without a `view` is taken to see the world's default view.
        world: the world it was trained in.
        episodes: in the real environment, and as many in the dream.
        seed: real episode k is reset with `seed + k`; the dream with `seed`.
        env: the real environment, where it is not the one that the world names.
        progress: called with (episodes done, episodes) of the real ones.

    Returns:
        Both returns, their intervals and the gap.

    Raises:
        TransferError: no real environment is known, or its spaces or the world's do not fit.
        PolicyFileError: the file of the policy cannot be used.
    """
    if isinstance(policy, str | Path):
        from dreamgym.train import load_policy  # the learner library is needed for a file only

        policy = load_policy(policy, world=world)
    view = getattr(policy, "view", None) or world.default_view
    maker = _real_maker(world, env, view)
    probe = make_env(maker)
    env_id = probe.spec.id if probe.spec is not None else None
    limit = _time_limit(probe, world)
    try:
        check_spaces(policy, probe)
    finally:
        probe.close()
    real = evaluate(policy, maker, episodes=episodes, seed=seed, progress=progress)
    dream = _dream_episodes(policy, world, view=view, episodes=episodes, seed=seed, limit=limit)
    return Transfer(real=real, dream=dream, env_id=env_id, view=view)


def _real_maker(world: World, env: EnvSource | None, view: str) -> Callable[[], gym.Env]:
    if env is None and world.env_spec is None:
        raise TransferError(
            f"the world {world.name} does not say which real environment it was fitted on; pass "
            "env= (an id, an EnvSpec, or a function that makes one)"
        )
    maker = world.real_env if env is None else _adapted(world, env_maker(env))
    if view == "latent":
        return lambda: LatentObservation(make_env(maker), world)
    return lambda: make_env(maker)


def _adapted(world: World, maker: Callable[[], gym.Env]) -> Callable[[], gym.Env]:
    return lambda: world.adapted(make_env(maker))


def _time_limit(env: gym.Env, world: World) -> int:
    if env.spec is not None and env.spec.max_episode_steps is not None:
        return world.frame_skip.count(env.spec.max_episode_steps)
    return world.real_limit or world.horizon


def _dream_episodes(
    policy: Any, world: World, *, view: str, episodes: int, seed: int, limit: int
) -> Evaluation:
    # exactly one episode a row: taking the first `episodes` that end would prefer short ones
    begin = time.perf_counter()
    env = DreamVectorEnv(
        world,
        episodes,
        view=view,
        output="numpy",
        starts="beginnings",
        max_episode_steps=limit,
        autoreset_mode="SameStep",
    )
    returns = np.zeros(episodes)
    lengths = np.zeros(episodes, np.int64)
    running = np.ones(episodes, bool)
    try:
        observation, _ = env.reset(seed=seed)
        while running.any():
            action = _actions(policy, observation)
            observation, reward, terminated, truncated, _ = env.step(action)
            returns += np.where(running, reward, 0.0)
            lengths += running
            running &= ~(np.asarray(terminated) | np.asarray(truncated))
    finally:
        env.close()
    return Evaluation(returns=returns, lengths=lengths, seconds=time.perf_counter() - begin)


def _actions(policy: Any, observation: Any) -> Any:
    if not hasattr(policy, "predict"):
        return policy(observation)
    answer = policy.predict(observation, deterministic=True)
    return answer[0] if isinstance(answer, tuple) else answer
