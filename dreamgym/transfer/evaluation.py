"""The return of a policy in the real environment, with its confidence interval."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from dreamgym.data.episodes import reward_to_float
from dreamgym.data.policies import Policy, PolicyLike, PredictPolicy, check_action, make_policy
from dreamgym.data.recording import Progress
from dreamgym.errors import DatasetError, TransferError
from dreamgym.transfer.real import EnvSource, env_maker, make_env

EVALUATION_SEED = 10_000
"""Default seed of episode 0, far from the small seeds that recordings and trainings use."""

BATCH = 32
"""Rows of every call to a policy's `predict`, and the most environments side by side.

A matrix product may round differently for another number of rows, and an episode must not depend on
how many run beside it.
"""

ENDLESS = 10_000
"""Steps without an end after which an environment without a time limit is taken to be endless."""

_CHUNK_ELEMENTS = 4_000_000  # bootstrap indices drawn at a time: 32 MB


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Returns of one policy over some episodes.

    Attributes:
        returns: (episodes,) float64, undiscounted, in the environment's units.
        lengths: (episodes,) int64, in steps; with a frame skip, in steps of the world.
        truncated: (episodes,) bool, episodes that were truncated and not terminated; by default
            none.
        seconds: wall-clock time of the episodes.
        steps: steps of the environment without any frame skip, over all episodes; by default the
            sum of the lengths.
        interval: 95% percentile-bootstrap interval of the mean return.
    """

    returns: NDArray[np.float64] = field(repr=False)
    lengths: NDArray[np.int64] = field(repr=False)
    seconds: float
    steps: int | None = None
    truncated: NDArray[np.bool_] | None = field(default=None, repr=False)
    interval: tuple[float, float] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "interval", mean_interval(self.returns))
        if self.steps is None:
            object.__setattr__(self, "steps", int(self.lengths.sum()))
        if self.truncated is None:
            object.__setattr__(self, "truncated", np.zeros(len(self.lengths), bool))

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
        """Return the figures as JSON-plain values."""
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
        episodes: number of episodes; episode k is reset with `seed + k`.
        seed: seed of episode 0.
        num_envs: real environments side by side, at most 32. It changes the time, not the result,
            unless actions are sampled by `predict`.
        deterministic: whether a policy with `predict` is asked for its most likely action.
        max_episode_steps: steps after which an episode is truncated, if it has not ended before;
            None for the environment's own time limit.
    """

    episodes: int = 100
    seed: int = EVALUATION_SEED
    num_envs: int = 16
    deterministic: bool = True
    max_episode_steps: int | None = None

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise TransferError(f"episodes is {self.episodes}; expected at least 1")
        if not 1 <= self.num_envs <= BATCH:
            raise TransferError(f"num_envs is {self.num_envs}; expected 1 to {BATCH}")
        if self.seed < 0:
            raise TransferError(f"seed is {self.seed}; expected 0 or more")
        if self.max_episode_steps is not None and self.max_episode_steps < 1:
            raise TransferError(
                f"max_episode_steps is {self.max_episode_steps}; expected at least 1"
            )


def evaluate(  # noqa: PLR0913 - what to run is six of them
    policy: PolicyLike,
    env: EnvSource,
    *,
    episodes: int = 100,
    seed: int = EVALUATION_SEED,
    deterministic: bool = True,
    max_episode_steps: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Run a policy in the real environment and measure its return.

    Args:
        policy: a name such as "random", a function from one observation to one action, an object
            with `predict` (a `TrainedPolicy`, a Stable-Baselines3 model), or a `Policy`; see
            `dreamgym.data.policies.make_policy`.
        env: an id, an `EnvSpec` or its JSON, or a callable that makes a `gym.Env`.
        episodes: number of episodes; each runs to its termination or truncation.
        seed: episode k is reset with `seed + k`, independent of the episodes beside it.
        deterministic: whether `predict` is asked for the most likely action.
        max_episode_steps: steps after which an episode is truncated, if it has not ended before;
            None for the environment's own time limit. A task without an end needs it.
        progress: called with (episodes done, episodes) after each episode.

    Returns:
        Returns and lengths of all episodes, their mean and its 95% interval.

    Raises:
        PolicyError: this is not a policy, its spaces are not the environment's, or what it returned
            is not an action.
        TransferError: there is no such environment, or it has no time limit and an episode has not
            ended after 10,000 steps.
    """
    plan = EpisodePlan(
        episodes=episodes,
        seed=seed,
        deterministic=deterministic,
        max_episode_steps=max_episode_steps,
    )
    return run_episodes(policy, env, plan, progress=progress)


def run_episodes(
    policy: PolicyLike, env: EnvSource, plan: EpisodePlan, *, progress: Progress | None = None
) -> Evaluation:
    """Run the episodes of a plan; as `evaluate`, with a choice of the number of environments."""
    maker = env_maker(env)
    start = time.perf_counter()
    with ExitStack() as stack:
        envs: list[gym.Env] = []
        for _ in range(min(plan.num_envs, plan.episodes)):
            envs.append(make_env(maker))
            stack.callback(envs[-1].close)
        made = make_policy(
            policy, envs[0], deterministic=plan.deterministic, min_batch=BATCH, unroll=False
        )
        if isinstance(made, PredictPolicy):
            made.use_masks_of(envs)
        return _run(made, envs, plan, progress, start)


def _run(
    policy: Policy,
    envs: list[gym.Env],
    plan: EpisodePlan,
    progress: Progress | None,
    start: float,
) -> Evaluation:
    """Run all episodes, row k of the policy in environment k; `start` is when the clock began."""
    returns = np.zeros(plan.episodes)
    lengths = np.zeros(plan.episodes, np.int64)
    truncations = np.zeros(plan.episodes, bool)
    limit, endless = plan.max_episode_steps, _endless_after(envs[0], plan)
    episodes = dict(enumerate(range(len(envs))))  # episode by row
    policy.reset(list(episodes), [plan.seed + episode for episode in episodes.values()])
    observations = {row: env.reset(seed=plan.seed + row)[0] for row, env in enumerate(envs)}
    started, finished, steps = len(envs), 0, 0
    while episodes:
        rows = list(episodes)
        actions = policy.act([observations[row] for row in rows], rows)
        for row, action in zip(rows, actions, strict=True):
            env, episode = envs[row], episodes[row]
            step = env.step(check_action(action, env.action_space))
            observations[row], reward, terminated, truncated, info = step
            steps += info.get("env_steps", 1)
            returns[episode] += _reward_of(env, reward, int(lengths[episode]))
            lengths[episode] += 1
            truncated = truncated or lengths[episode] == limit
            if not (terminated or truncated):
                if endless is not None and lengths[episode] == endless:
                    raise TransferError(_no_end(env, endless))
                continue
            truncations[episode] = not terminated
            finished += 1
            if progress is not None:
                progress(finished, plan.episodes)
            if started == plan.episodes:
                del episodes[row]
                continue
            episodes[row] = started
            policy.reset([row], [plan.seed + started])
            observations[row] = env.reset(seed=plan.seed + started)[0]
            started += 1
    return Evaluation(
        returns=returns,
        lengths=lengths,
        truncated=truncations,
        seconds=time.perf_counter() - start,
        steps=steps,
    )


def _endless_after(env: gym.Env, plan: EpisodePlan) -> int | None:
    """Return the steps after which an episode is given up; None where a time limit ends it."""
    spec = env.spec
    limited = spec is not None and spec.max_episode_steps is not None
    return None if limited or plan.max_episode_steps is not None else ENDLESS


def _no_end(env: gym.Env, steps: int) -> str:
    name = env.spec.id if env.spec is not None else str(env.unwrapped)
    return (
        f"an episode of {name} has not ended after {steps:,} steps, and the environment has no "
        "time limit: its return is not defined. Pass max_episode_steps= (--max-episode-steps on "
        "the command line), the number of steps to compare policies over"
    )


def _reward_of(env: gym.Env, reward: Any, step: int) -> float:
    """Return a reward as a float; an error names the environment and the step."""
    try:
        value = reward_to_float(reward)
        if not math.isfinite(value):
            raise DatasetError(
                f"it is {value}", remedy="expected a finite number; mend the environment's reward"
            )
        return value
    except DatasetError as error:
        raise TransferError(
            f"{env}: reward of step {step}: {error.problem}; {error.remedy}"
        ) from None


def mean_interval(
    values: NDArray[np.float64], *, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile-bootstrap interval of the mean (Efron 1979).

    Args:
        values: (n,), n >= 1; with n = 1 the interval is that one value.
        confidence: share of the resampled means inside the interval, in (0, 1).
        seed: seed of the resampling.

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
    """Return the percentile-bootstrap interval of mean(first) - mean(second), independent samples.

    Args:
        first: (n,), n >= 1.
        second: (m,), m >= 1.
        confidence: share of the resampled differences inside the interval, in (0, 1).
        seed: seed of the resampling.

    Returns:
        (low, high), in the units of the values.
    """
    # two different streams: the same indices in both would correlate the resamples
    streams = np.random.SeedSequence(seed).generate_state(2)
    difference = bootstrap_means(first, seed=int(streams[0])) - bootstrap_means(
        second, seed=int(streams[1])
    )
    return _percentiles(difference, confidence)


def bootstrap_means(
    values: NDArray[np.float64], *, resamples: int = 10_000, seed: int = 0
) -> NDArray[np.float64]:
    """Return the means of `resamples` samples drawn with replacement from `values`.

    Args:
        values: (n,), n >= 1.
        resamples: number of samples, of size n each.
        seed: seed of a private generator; the global generators are not changed.

    Returns:
        (resamples,) float64.
    """
    values = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK_ELEMENTS // len(values))
    means = np.empty(resamples)
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        indices = rng.integers(0, len(values), (stop - start, len(values)))
        means[start:stop] = values[indices].mean(1)
    return means


def _percentiles(means: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)
