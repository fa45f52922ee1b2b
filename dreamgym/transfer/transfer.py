"""The return of a policy in the real environment beside its return in the dream."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from dreamgym.data.policies import POLICY_NAMES, Policy, PolicyLike, check_action, make_policy
from dreamgym.data.recording import Progress
from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.errors import TransferError
from dreamgym.train.policy import load_policy
from dreamgym.transfer.evaluation import (
    EVALUATION_SEED,
    Evaluation,
    difference_interval,
    evaluate,
)
from dreamgym.transfer.latent import LatentObservation
from dreamgym.transfer.real import EnvSource, env_maker, make_env
from dreamgym.world.world import World, as_world


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """One policy's return in the real environment and in the dream it was trained in.

    Attributes:
        real: episodes in the real environment.
        dream: as many episodes in the dream, from the starts of real episodes and over at most as
            many steps. With a frame skip, the lengths of both are in steps of the dream.
        env_id: id of the real environment; None where it has no spec.
        view: view that the policy sees, "observation" or "latent".
        step_limit: largest number of steps of a dream episode.
        step_limit_reason: where that number comes from, in words.
        gap_interval: 95% bootstrap interval of the gap.
    """

    real: Evaluation
    dream: Evaluation
    env_id: str | None
    view: str
    step_limit: int
    step_limit_reason: str
    gap_interval: tuple[float, float] = field(init=False)

    def __post_init__(self) -> None:
        interval = difference_interval(self.dream.returns, self.real.returns)
        object.__setattr__(self, "gap_interval", interval)

    @property
    def gap(self) -> float:
        """Mean dream return minus mean real return of the same policy."""
        return self.dream.mean - self.real.mean

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as JSON-plain values."""
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
            "step_limit": self.step_limit,
            "step_limit_reason": self.step_limit_reason,
            "gap": self.gap,
            "gap_interval": list(self.gap_interval),
            "real_steps": self.real.steps,
            "real_seconds": self.real.seconds,
            "dream_seconds": self.dream.seconds,
        }


def transfer_policy(  # noqa: PLR0913 - whom to run where is five of them
    policy: PolicyLike | Path,
    world: World | str | Path,
    *,
    episodes: int = 100,
    seed: int = EVALUATION_SEED,
    env: EnvSource | None = None,
    max_episode_steps: int | None = None,
    progress: Progress | None = None,
) -> Transfer:
    """Measure a policy in the real environment and in the dream.

    Both are compared over the same number of steps. Where the real environment truncates its
    episodes, be it by a wrapper or by itself, dreams are truncated after as many steps; where it
    has never truncated one, by its time limit, by that of the data, or else after the longest real
    episode. The result says which.

    A policy of the latent view acts in the real environment through `LatentObservation`; one of the
    observation view acts in it as it is.

    Args:
        policy: a `TrainedPolicy`, the path of a policy's file, or anything that `evaluate` takes.
            A policy without an attribute `view` is taken to see the world's default view.
        world: the world that it was trained in: a world, its folder, or the name of one that ships.
        episodes: number of episodes in the real environment, and in the dream.
        seed: real episode k is reset with `seed + k`; the dream is reset with `seed`.
        env: the real environment, if it is not the one that the world names.
        max_episode_steps: steps of the world after which an episode is truncated, in the real
            environment and in the dream; None for the real environment's own time limit. A task
            without an end needs it.
        progress: called with (episodes done, episodes) in the real environment.

    Returns:
        Both returns, their intervals and the gap.

    Raises:
        PolicyError: this is not a policy, or its spaces are not those of the environment.
        TransferError: no real environment is known, or its spaces are not those of the world.
        PolicyFileError: the policy's file cannot be used.
        WorldError: there is no such world.
    """
    world = as_world(world)
    if isinstance(policy, Path) or _is_path(policy):
        policy = load_policy(str(policy), world=world)
    view = getattr(policy, "view", None) or world.default_view
    maker = _real_env_maker(world, env, view)
    probe = make_env(maker)
    env_id = probe.spec.id if probe.spec is not None else None
    limit = _known_limit(probe, world, max_episode_steps)
    probe.close()
    real = evaluate(
        policy,
        maker,
        episodes=episodes,
        seed=seed,
        max_episode_steps=None if limit is None else limit.steps,
        progress=progress,
    )
    limits, reason = _dream_limits(real, limit)
    dream = _dream_episodes(policy, world, view=view, seed=seed, limits=limits)
    return Transfer(
        real=real,
        dream=dream,
        env_id=env_id,
        view=view,
        step_limit=int(limits.max()),
        step_limit_reason=reason,
    )


def _is_path(policy: Any) -> bool:
    return isinstance(policy, str) and policy.partition(":")[0] not in POLICY_NAMES


def _real_env_maker(world: World, env: EnvSource | None, view: str) -> Callable[[], gym.Env]:
    """Return a function that makes the real environment as a policy of `view` sees it."""
    if env is None and world.env_spec is None:
        raise TransferError(
            f"the world {world.name} does not name the real environment it was fitted to; pass "
            "env= (an id, an EnvSpec, or a function that makes one)"
        )
    maker = world.real_env if env is None else _adapted(world, env_maker(env))
    if view == "latent":
        return lambda: LatentObservation(make_env(maker), world)
    return lambda: make_env(maker)


def _adapted(world: World, maker: Callable[[], gym.Env]) -> Callable[[], gym.Env]:
    return lambda: world.adapted(make_env(maker))


class _Limit(NamedTuple):
    """A time limit that is known before the real environment runs.

    Attributes:
        steps: steps of the world after which an episode is truncated.
        reason: where the number comes from, in words.
    """

    steps: int
    reason: str


def _known_limit(env: gym.Env, world: World, asked: int | None) -> _Limit | None:
    if asked is not None:
        return _Limit(asked, "max_episode_steps was given")
    if env.spec is not None and env.spec.max_episode_steps is not None:
        steps = world.frame_skip.count(env.spec.max_episode_steps)
        return _Limit(steps, "the real environment's time limit")
    if world.real_limit is not None:
        return _Limit(world.real_limit, "the time limit in the data that the world was fitted to")
    return None


def _dream_limits(real: Evaluation, known: _Limit | None) -> tuple[NDArray[np.int64], str]:
    """Return the steps (episodes,) after which each dream is truncated, and where they come from.

    The real episodes themselves show where reality truncates: an environment may count its own
    steps, whatever its spec says. Where these lengths differ, each dream gets that of one real
    episode, so that both have the same distribution of steps; a dream that stands beside a
    terminated real episode gets the longest.
    """
    cut = np.asarray(real.truncated, bool)
    lengths = np.unique(real.lengths[cut])
    if len(lengths) == 1:
        steps = int(lengths[0])
        if known is not None and steps == known.steps:
            return np.full(real.episodes, steps), known.reason
        return np.full(
            real.episodes, steps
        ), f"the real episodes were truncated after {steps} steps"
    if len(lengths):
        limits = np.where(cut, real.lengths, lengths[-1])
        return limits, (
            f"the real episodes were truncated after {lengths[0]} to {lengths[-1]} steps, and each "
            "dream after as many as one of them"
        )
    if known is not None:
        return np.full(real.episodes, known.steps), known.reason
    longest = int(real.lengths.max())
    return np.full(real.episodes, longest), (
        f"no time limit is known, and the longest real episode has {longest} steps"
    )


def _dream_episodes(
    policy: PolicyLike, world: World, *, view: str, seed: int, limits: NDArray[np.int64]
) -> Evaluation:
    """Run exactly one episode a row: the first ones that end would favour short ones.

    Args:
        policy: policy to run.
        world: world to dream in.
        view: view that the policy sees.
        seed: seed of the dream.
        limits: (episodes,) steps after which each episode is truncated.
    """
    episodes = len(limits)
    start = time.perf_counter()
    env = DreamVectorEnv(
        world,
        episodes,
        view=view,
        output="numpy",
        starts="beginnings",
        max_episode_steps=int(limits.max()),
        autoreset_mode="SameStep",
    )
    returns = np.zeros(episodes)
    lengths = np.zeros(episodes, np.int64)
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
            observation, reward, terminated, truncated, _ = env.step(np.stack(actions))
            returns += np.where(running, reward, 0.0)
            lengths += running
            ended = np.asarray(terminated) | np.asarray(truncated)
            truncations |= running & ~np.asarray(terminated) & (ended | (lengths == limits))
            running &= ~ended & (lengths < limits)
            _restart(made, np.flatnonzero(ended).tolist(), seed)
    finally:
        env.close()
    return Evaluation(
        returns=returns,
        lengths=lengths,
        truncated=truncations,
        seconds=time.perf_counter() - start,
    )


def _restart(policy: Policy, rows: list[int], seed: int) -> None:
    """Reset rows whose dream restarted; their further episodes are not counted."""
    if rows:
        policy.reset(rows, [seed + row for row in rows])
