"""The return of policies in the real environment, with confidence intervals."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from dreamgym.data.episodes import reward_to_float
from dreamgym.data.policies import Policy, PolicyLike, PredictPolicy, check_action, make_policy
from dreamgym.data.recording import Progress
from dreamgym.errors import DatasetError, TransferError
from dreamgym.transfer.intervals import interval, iqm, mean_interval, share_interval
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

SUCCESS_KEYS = ("is_success", "success")
"""Where environments report in `info` whether the task is done."""

AT_GOAL = "at_goal"
"""Key of a reset's info: whether the episode begins at the goal."""

GOAL = "goal_observation"
"""Key of a reset's info: the observation that the episode is to reach."""


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
        success: (episodes,) bool, what the info of an episode's last step reports as "is_success"
            or "success"; None where it reports neither.
        at_goal: (episodes,) bool, episodes that began at the goal: the info of the reset reported
            success, or a goal world says so. They count in the returns, and not in `success_rate`;
            by default none.
        interval: 95% percentile-bootstrap interval of the mean return.
    """

    returns: NDArray[np.float64] = field(repr=False)
    lengths: NDArray[np.int64] = field(repr=False)
    seconds: float
    steps: int | None = None
    truncated: NDArray[np.bool_] | None = field(default=None, repr=False)
    success: NDArray[np.bool_] | None = field(default=None, repr=False)
    at_goal: NDArray[np.bool_] | None = field(default=None, repr=False)
    interval: tuple[float, float] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "interval", mean_interval(self.returns))
        if self.steps is None:
            object.__setattr__(self, "steps", int(self.lengths.sum()))
        for name in ("truncated", "at_goal"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, np.zeros(len(self.lengths), bool))

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(self.returns.mean())

    @property
    def std(self) -> float:
        """Standard deviation of the returns between episodes (population)."""
        return float(self.returns.std())

    @property
    def median(self) -> float:
        """Median return."""
        return float(np.median(self.returns))

    @property
    def iqm(self) -> float:
        """Interquartile mean return: the mean of the middle half."""
        return float(iqm(self.returns))

    @cached_property
    def median_interval(self) -> tuple[float, float]:
        """95% percentile-bootstrap interval of the median."""
        return interval(np.median, self.returns)

    @cached_property
    def iqm_interval(self) -> tuple[float, float]:
        """95% percentile-bootstrap interval of the interquartile mean."""
        return interval(iqm, self.returns)

    @property
    def success_rate(self) -> float | None:
        """Share of successes among the episodes that did not begin at the goal.

        None where the environment reports no success, or all episodes began at the goal.
        """
        successes = self._successes()
        return None if successes is None else float(successes.mean())

    @cached_property
    def success_interval(self) -> tuple[float, float] | None:
        """95% Wilson interval of `success_rate`; None where there is none."""
        successes = self._successes()
        return None if successes is None else share_interval(successes)

    def _successes(self) -> NDArray[np.bool_] | None:
        """Return the successes of episodes that did not begin at the goal."""
        if self.success is None:
            return None
        counted = self.success[~np.asarray(self.at_goal, bool)]
        return counted if len(counted) else None

    @property
    def episodes(self) -> int:
        """Number of episodes."""
        return len(self.returns)

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as JSON-plain values."""
        figures: dict[str, Any] = {
            "return_mean": self.mean,
            "return_std": self.std,
            "return_interval": list(self.interval),
            "return_median": self.median,
            "return_median_interval": list(self.median_interval),
            "return_iqm": self.iqm,
            "return_iqm_interval": list(self.iqm_interval),
            "length_mean": float(self.lengths.mean()),
            "episodes": self.episodes,
            "steps": self.steps,
            "seconds": self.seconds,
        }
        began = int(np.asarray(self.at_goal).sum())
        if self.success is not None:
            rate = self.success_interval
            figures["success_rate"] = self.success_rate
            figures["success_interval"] = None if rate is None else list(rate)
        if self.success is not None or began:
            figures["episodes_at_goal"] = began
        return figures


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Several policies in the same episodes.

    Attributes:
        evaluations: the result of each policy, by name; episode k of all of them was reset with the
            same seed.
    """

    evaluations: dict[str, Evaluation]

    def difference(self, first: str, second: str) -> tuple[float, tuple[float, float]]:
        """Return the mean of the first policy's returns minus the second's, and its interval.

        The returns are paired by their seeds, so what an episode's start contributes to both
        cancels: the interval is often much narrower than that of independent episodes.

        Args:
            first: name of a policy.
            second: name of a policy.

        Returns:
            The mean difference, and its 95% percentile-bootstrap interval.

        Raises:
            KeyError: there is no policy of that name.
        """
        paired = self.evaluations[first].returns - self.evaluations[second].returns
        return float(paired.mean()), mean_interval(paired)

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as JSON-plain values, with the differences to the first policy."""
        names = list(self.evaluations)
        differences = {}
        for name in names[1:]:
            mean, bounds = self.difference(name, names[0])
            differences[name] = {"to": names[0], "mean": mean, "interval": list(bounds)}
        policies = {name: each.as_dict() for name, each in self.evaluations.items()}
        return {"policies": policies, "differences": differences}


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
        videos: folder for videos of the first episodes, `seed-10000-episode-0.mp4` and so on; None
            for no videos.
        video_episodes: number of videos; there are at most `num_envs`.
    """

    episodes: int = 100
    seed: int = EVALUATION_SEED
    num_envs: int = 16
    deterministic: bool = True
    max_episode_steps: int | None = None
    videos: str | Path | None = None
    video_episodes: int = 3

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
        if self.video_episodes < 1:
            raise TransferError(f"video_episodes is {self.video_episodes}; expected at least 1")


def evaluate(  # noqa: PLR0913 - what to run is six of them
    policy: PolicyLike,
    env: EnvSource,
    *,
    episodes: int = 100,
    seed: int = EVALUATION_SEED,
    deterministic: bool = True,
    max_episode_steps: int | None = None,
    videos: str | Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Run a policy in the real environment and measure its return.

    Args:
        policy: a name such as "random", a function from one observation to one action, an object
            with `predict` (a `TrainedPolicy`, a Stable-Baselines3 model), or a `Policy`; see
            `dreamgym.data.policies.make_policy`. A policy with `set_goals` (a `PlannedPolicy`) is
            given the goal of each episode, where the info of the reset has a `goal_observation`.
        env: an id, an `EnvSpec` or its JSON, or a callable that makes a `gym.Env`.
        episodes: number of episodes; each runs to its termination or truncation.
        seed: episode k is reset with `seed + k`, independent of the episodes beside it.
        deterministic: whether `predict` is asked for the most likely action.
        max_episode_steps: steps after which an episode is truncated, if it has not ended before;
            None for the environment's own time limit. A task without an end needs it.
        videos: folder for videos of the first three episodes; None for no videos. An environment
            that is made by a callable must have `render_mode="rgb_array"`.
        progress: called with (episodes done, episodes) after each episode.

    Returns:
        Returns and lengths of all episodes; mean, median and interquartile mean with 95% intervals;
        and the success rate where the environment reports success.

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
        videos=videos,
    )
    return run_episodes(policy, env, plan, progress=progress)


def compare_policies(
    policies: Mapping[str, PolicyLike],
    env: EnvSource,
    plan: EpisodePlan | None = None,
    *,
    progress: Callable[..., None] | None = None,
) -> Comparison:
    """Run several policies in the same episodes of the real environment.

    Args:
        policies: the policies by name, each as `evaluate` takes it.
        env: the environment, as `evaluate` takes it.
        plan: which episodes to run; by default 100. The videos of each policy are in a folder of
            its name.
        progress: called with (episodes done, episodes) over all policies, after each episode.

    Returns:
        The result of each policy, and paired differences between them.

    Raises:
        PolicyError: see `evaluate`.
        TransferError: see `evaluate`; or there is no policy.
    """
    plan = plan or EpisodePlan()
    if not policies:
        raise TransferError("no policy was given; expected a dict of at least one by name")
    results: dict[str, Evaluation] = {}
    for index, (name, policy) in enumerate(policies.items()):

        def report(done: int, total: int, before: int = index * plan.episodes) -> None:
            if progress is not None:
                progress(before + done, total * len(policies))

        videos = None if plan.videos is None else Path(plan.videos) / _file_name(name)
        results[name] = run_episodes(policy, env, replace(plan, videos=videos), progress=report)
    return Comparison(evaluations=results)


def _file_name(name: str) -> str:
    """Return a policy's name without characters that a folder's name cannot have."""
    plain = "".join(each if each.isalnum() or each in "-_." else "-" for each in name)
    return plain.strip(".") or "policy"


def run_episodes(
    policy: PolicyLike, env: EnvSource, plan: EpisodePlan, *, progress: Progress | None = None
) -> Evaluation:
    """Run the episodes of a plan; as `evaluate`, with a choice of the number of environments."""
    rendered = {} if plan.videos is None else {"render_mode": "rgb_array"}
    maker = env_maker(env, **rendered)
    start = time.perf_counter()
    with ExitStack() as stack:
        envs: list[gym.Env] = []
        for row in range(min(plan.num_envs, plan.episodes)):
            envs.append(make_env(maker))
            stack.callback(envs[-1].close)
            if plan.videos is not None and row < plan.video_episodes:
                envs[-1] = _filmed(envs[-1], Path(plan.videos), plan.seed + row)
                stack.callback(envs[-1].close)
        made = make_policy(
            policy, envs[0], deterministic=plan.deterministic, min_batch=BATCH, unroll=False
        )
        if isinstance(made, PredictPolicy):
            made.use_masks_of(envs)
        return _run(made, envs, plan, progress, start)


def _filmed(env: gym.Env, folder: Path, seed: int) -> gym.Env:
    """Return an environment that writes a video of its first episode, which has this seed."""
    if env.render_mode != "rgb_array":
        raise TransferError(
            f"videos need an environment with render_mode='rgb_array', {env} has "
            f"{env.render_mode!r}; pass an id, or a function that makes one with it"
        )
    return gym.wrappers.RecordVideo(
        env,
        str(folder),
        name_prefix=f"seed-{seed}",
        episode_trigger=lambda episode: episode == 0,
        disable_logger=True,
    )


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
    truncations, at_goal = np.zeros(plan.episodes, bool), np.zeros(plan.episodes, bool)
    successes: dict[int, bool | None] = {}
    limit, endless = plan.max_episode_steps, _endless_after(envs[0], plan)
    episodes = dict(enumerate(range(len(envs))))  # episode by row
    policy.reset(list(episodes), [plan.seed + episode for episode in episodes.values()])
    observations = {}
    for row, env in enumerate(envs):
        observations[row], info = env.reset(seed=plan.seed + row)
        at_goal[row] = _begins_at_goal(info)
        _give_goal(policy, row, info)
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
            successes[episode] = _success(info)
            finished += 1
            if progress is not None:
                progress(finished, plan.episodes)
            if started == plan.episodes:
                del episodes[row]
                continue
            episodes[row] = started
            policy.reset([row], [plan.seed + started])
            observations[row], info = env.reset(seed=plan.seed + started)
            at_goal[started] = _begins_at_goal(info)
            _give_goal(policy, row, info)
            started += 1
    return Evaluation(
        returns=returns,
        lengths=lengths,
        truncated=truncations,
        success=_as_array(successes),
        at_goal=at_goal,
        seconds=time.perf_counter() - start,
        steps=steps,
    )


def _success(info: Mapping[str, Any]) -> bool | None:
    """Return what an info says about success; None where it says nothing."""
    found = [info[key] for key in SUCCESS_KEYS if key in info]
    return bool(np.any(found[0])) if found else None


def _begins_at_goal(info: Mapping[str, Any]) -> bool:
    """Return whether the info of a reset says that the episode begins at the goal."""
    return bool(info[AT_GOAL]) if AT_GOAL in info else bool(_success(info))


def _give_goal(policy: Policy, row: int, info: Mapping[str, Any]) -> None:
    """Give a policy that takes goals, such as a `PlannedPolicy`, the one of an episode."""
    if GOAL in info and hasattr(policy, "set_goals"):
        policy.set_goals([row], [info[GOAL]])


def _as_array(successes: Mapping[int, bool | None]) -> NDArray[np.bool_] | None:
    """Return the successes (episodes,); None where no episode reported any.

    An episode that ends without a report, where others have one, has not succeeded: some
    environments report success only.
    """
    if all(each is None for each in successes.values()):
        return None
    return np.array([bool(successes[episode]) for episode in sorted(successes)])


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
