"""What a policy is worth in the real environment."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from dreamgym.errors import TransferError
from dreamgym.transfer.policies import BATCH, Policy, PolicyRunner
from dreamgym.transfer.real import EnvSource, env_maker, make_env

_CHUNK_ELEMENTS = 4_000_000  # indices drawn at a time: 32 MB


def bootstrap_means(
    values: NDArray[np.float64], *, resamples: int = 10_000, seed: int = 0
) -> NDArray[np.float64]:
    """Means of `resamples` samples drawn with replacement from `values`.

    Args:
        values: (n,), n >= 1.
        resamples: how many samples of size n are drawn.
        seed: of a generator of its own; the global generators are not touched.

    Returns:
        (resamples,) float64.
    """
    values = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK_ELEMENTS // len(values))
    means = np.empty(resamples)
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        means[start:stop] = values[rng.integers(0, len(values), (stop - start, len(values)))].mean(
            1
        )
    return means


def mean_interval(
    values: NDArray[np.float64], *, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile-bootstrap interval of the mean (Efron 1979).

    Args:
        values: (n,), n >= 1; with n = 1 the interval is that one value.
        confidence: the share of resampled means inside, in (0, 1).
        seed: of the resampling.

    Returns:
        (low, high), in the units of `values`.
    """
    return _percentiles(bootstrap_means(values, seed=seed), confidence)


def difference_interval(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile-bootstrap interval of mean(first) - mean(second), two independent samples.

    Args:
        first: (n,), n >= 1.
        second: (m,), m >= 1.
        confidence: the share of resampled differences inside, in (0, 1).
        seed: of the resampling.

    Returns:
        (low, high), in the units of the values.
    """
    # two different streams: the same indices in both would correlate the resamples
    streams = np.random.SeedSequence(seed).generate_state(2)
    difference = bootstrap_means(first, seed=int(streams[0])) - bootstrap_means(
        second, seed=int(streams[1])
    )
    return _percentiles(difference, confidence)


def _percentiles(means: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


Progress = Callable[[int, int], None]


# away from the small seeds that data and training use: no real start is shared with them
EVALUATION_SEED = 10_000


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Returns of one policy over some episodes.

    Attributes:
        returns: (episodes,) float64, undiscounted, in the environment's units.
        lengths: (episodes,) int64, steps; of a world with a frame skip, its own.
        seconds: wall-clock time of the episodes.
        steps: over all episodes, of the environment without any frame skip; None for as many as
            the lengths say.
        interval: 95% percentile-bootstrap interval of the mean return.
    """

    returns: NDArray[np.float64] = field(repr=False)
    lengths: NDArray[np.int64] = field(repr=False)
    seconds: float
    steps: int | None = None
    interval: tuple[float, float] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "interval", mean_interval(self.returns))
        if self.steps is None:
            object.__setattr__(self, "steps", int(self.lengths.sum()))

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(self.returns.mean())

    @property
    def std(self) -> float:
        """Standard deviation of the returns between episodes (population)."""
        return float(self.returns.std())

    @property
    def episodes(self) -> int:
        """Number of episodes."""
        return len(self.returns)

    def as_dict(self) -> dict[str, Any]:
        """The figures as plain JSON values."""
        return {
            "return_mean": self.mean,
            "return_std": self.std,
            "return_interval": list(self.interval),
            "length_mean": float(self.lengths.mean()),
            "episodes": self.episodes,
            "steps": self.steps,
            "seconds": self.seconds,
        }


@dataclass(frozen=True, kw_only=True)
class EpisodePlan:
    """Which episodes to run, and how many side by side.

    Attributes:
        episodes: how many; episode k is reset with `seed + k`.
        seed: of episode 0.
        num_envs: real environments side by side, at most 32. It changes the time, never the result.
        deterministic: whether a policy with `predict` is asked for its most likely action.
    """

    episodes: int = 100
    seed: int = EVALUATION_SEED
    num_envs: int = 16
    deterministic: bool = True

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise TransferError(f"episodes is {self.episodes}; wanted at least 1")
        if not 1 <= self.num_envs <= BATCH:
            raise TransferError(f"num_envs is {self.num_envs}; wanted 1 to {BATCH}")
        if self.seed < 0:
            raise TransferError(f"seed is {self.seed}; wanted 0 or more")


def evaluate(
    policy: Policy | Literal["random"],
    env: EnvSource,
    *,
    episodes: int = 100,
    seed: int = EVALUATION_SEED,
    deterministic: bool = True,
    progress: Progress | None = None,
) -> Evaluation:
    """Run a policy in the real environment and measure its return.

    Args:
        policy: anything with `predict(observations, deterministic=)`, a callable from a batch of
            observations to a batch of actions, or "random" for uniformly random actions.
        env: an id, an `EnvSpec` or its JSON, or a callable that makes a `gym.Env`.
        episodes: how many; each runs to its termination or truncation.
        seed: episode k is reset with `seed + k`, whatever runs beside it.
        deterministic: whether the policy is asked for its most likely action.
        progress: called with (episodes done, episodes) after each episode.

    Returns:
        Returns and lengths of every episode, their mean and its 95% interval.

    Raises:
        TransferError: no such environment, or the policy's spaces are not the environment's.
    """
    plan = EpisodePlan(episodes=episodes, seed=seed, deterministic=deterministic)
    return run_episodes(policy, env, plan, progress=progress)


def run_episodes(
    policy: Policy | Literal["random"],
    env: EnvSource,
    plan: EpisodePlan,
    *,
    progress: Progress | None = None,
) -> Evaluation:
    """`evaluate` with a plan: the number of environments side by side is chosen too.

    Raises:
        TransferError: as `evaluate`.
    """
    if isinstance(policy, str) and policy != "random":
        raise TransferError(
            f"policy is {policy!r}; the only policy that goes by name is 'random'. A policy in a "
            "file is read with dreamgym.train.load_policy(path)"
        )
    maker = env_maker(env)
    begin = time.perf_counter()
    with ExitStack() as stack:
        envs = []
        for _ in range(min(plan.num_envs, plan.episodes)):
            envs.append(make_env(maker))
            stack.callback(envs[-1].close)
        actor = (
            None
            if isinstance(policy, str)
            else PolicyRunner(policy, envs[0], deterministic=plan.deterministic)
        )
        returns, lengths, steps = _run(actor, envs, plan, progress)
    seconds = time.perf_counter() - begin
    return Evaluation(returns=returns, lengths=lengths, seconds=seconds, steps=steps)


def _run(
    actor: PolicyRunner | None, envs: list[gym.Env], plan: EpisodePlan, progress: Progress | None
) -> tuple[NDArray[np.float64], NDArray[np.int64], int]:
    returns = np.zeros(plan.episodes)
    lengths = np.zeros(plan.episodes, np.int64)
    lanes = [(env, episode, _begin(env, plan.seed + episode)) for episode, env in enumerate(envs)]
    started, finished, steps = len(lanes), 0, 0
    while lanes:
        actions = _actions(actor, lanes)
        still = []
        for (env, episode, _), action in zip(lanes, actions, strict=True):
            observation, reward, terminated, truncated, info = env.step(action)
            steps += info.get("env_steps", 1)
            returns[episode] += float(reward)
            lengths[episode] += 1
            if not (terminated or truncated):
                still.append((env, episode, observation))
                continue
            finished += 1
            if progress is not None:
                progress(finished, plan.episodes)
            if started < plan.episodes:
                still.append((env, started, _begin(env, plan.seed + started)))
                started += 1
        lanes = still
    return returns, lengths, steps


def _begin(env: gym.Env, seed: int) -> Any:
    # the random policy draws from the action space: seeding it by episode keeps an episode
    # independent of which environment runs it and of the episodes before
    env.action_space.seed(seed)
    return env.reset(seed=seed)[0]


def _actions(actor: PolicyRunner | None, lanes: list[tuple[gym.Env, int, Any]]) -> list[Any]:
    if actor is None:
        return [env.action_space.sample() for env, _, _ in lanes]
    return actor.act([observation for _, _, observation in lanes])
