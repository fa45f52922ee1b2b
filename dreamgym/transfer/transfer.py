"""The return of a policy in the real environment beside its return in the dream."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from dreamgym._files import local_path
from dreamgym._settings import closest
from dreamgym.data.mixture import DatasetSource
from dreamgym.data.policies import POLICY_NAMES, PolicyLike, as_batch
from dreamgym.data.recording import Progress
from dreamgym.errors import PolicyFileError, TrainingError, TransferError
from dreamgym.models import GoalReward, WorldModel
from dreamgym.models.observations import as_tensors
from dreamgym.train.cloning import clone_policy
from dreamgym.train.policy import load_policy
from dreamgym.transfer.dream_episodes import DreamStep, run_dream_episodes
from dreamgym.transfer.evaluation import (
    AT_GOAL,
    EVALUATION_SEED,
    Comparison,
    Evaluation,
    evaluate,
)
from dreamgym.transfer.export import ExportedPolicy
from dreamgym.transfer.intervals import difference_interval
from dreamgym.transfer.latent import LatentObservation
from dreamgym.transfer.real import EnvSource, make_env, world_env_maker
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
        baselines: the same real episodes with "random" actions, and by "behaviour cloning" of the
            data.
        gap_interval: 95% bootstrap interval of the gap.
    """

    real: Evaluation
    dream: Evaluation
    env_id: str | None
    view: str
    step_limit: int
    step_limit_reason: str
    baselines: dict[str, Evaluation] = field(default_factory=dict)
    gap_interval: tuple[float, float] = field(init=False)

    def __post_init__(self) -> None:
        interval = difference_interval(self.dream.returns, self.real.returns)
        object.__setattr__(self, "gap_interval", interval)

    @property
    def gap(self) -> float:
        """Mean dream return minus mean real return of the same policy."""
        return self.dream.mean - self.real.mean

    @property
    def comparison(self) -> Comparison:
        """The policy, named "policy", and the baselines in the same real episodes."""
        return Comparison(evaluations={"policy": self.real, **self.baselines})

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as JSON-plain values."""
        comparison, baselines = self.comparison, {}
        for name, evaluation in self.baselines.items():
            gain, bounds = comparison.difference("policy", name)
            baselines[name] = {**evaluation.as_dict(), "gain": gain, "gain_interval": list(bounds)}
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
            "real": self.real.as_dict(),
            "baselines": baselines,
        }


def transfer_policy(  # noqa: PLR0913 - whom to run where is five of them
    policy: PolicyLike | Path,
    world: World | str | Path,
    *,
    episodes: int = 100,
    seed: int = EVALUATION_SEED,
    env: EnvSource | None = None,
    max_episode_steps: int | None = None,
    data: DatasetSource | None = None,
    baselines: bool = True,
    temperature: float = 1.0,
    on_dream_step: Callable[[DreamStep], None] | None = None,
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
        policy: a `TrainedPolicy`, the path of a policy's file or of an exported controller's
            folder, or anything that `evaluate` takes.
            A policy without an attribute `view` is taken to see the world's default view.
        world: the world that it was trained in: a world, its folder, or the name of one that ships.
        episodes: number of episodes in the real environment, and in the dream.
        seed: real episode k is reset with `seed + k`; the dream is reset with `seed`.
        env: the real environment, if it is not the one that the world names.
        max_episode_steps: steps of the world after which an episode is truncated, in the real
            environment and in the dream; None for the real environment's own time limit. A task
            without an end needs it.
        data: the dataset that the world was fitted to, or another one of its environment: its
            policy is imitated (`dreamgym.train.clone_policy`) and measured as well.
        baselines: whether random actions, and the cloned policy where there is data, are measured
            in the same real episodes; a return says little without them.
        temperature: temperature of the dream.
        on_dream_step: called after every step of the dreams.
        progress: called with (episodes done, episodes) in the real environment, over all policies.

    Returns:
        Both returns, their intervals, the gap, and the baselines. In a world with a goal and a
        threshold, real episodes that begin at the goal are marked (`Evaluation.at_goal`).

    Raises:
        PolicyError: this is not a policy, or its spaces are not those of the environment.
        TransferError: no real environment is known, its spaces are not those of the world, or the
            world is played in latent actions.
        PolicyFileError: the policy's file cannot be used.
        WorldError: there is no such world.
    """
    world = as_world(world)
    policy = open_policy(policy, world)
    view = getattr(policy, "view", None) or world.default_view
    maker = _real_env_maker(world, env, view)
    probe = make_env(maker)
    env_id = probe.spec.id if probe.spec is not None else None
    limit = _known_limit(probe, world, max_episode_steps)
    probe.close()
    others = _baselines(world, data) if baselines else {}

    def measure(index: int, each: PolicyLike, view: str) -> Evaluation:
        def report(done: int, total: int) -> None:
            if progress is not None:
                progress(index * episodes + done, (1 + len(others)) * total)

        return evaluate(
            each,
            _real_env_maker(world, env, view),
            episodes=episodes,
            seed=seed,
            max_episode_steps=None if limit is None else limit.steps,
            progress=report,
        )

    real = measure(0, policy, view)
    beside = {
        name: measure(index, each, getattr(each, "view", "observation"))
        for index, (name, each) in enumerate(others.items(), 1)
    }
    limits, reason = _dream_limits(real, limit)
    dream = run_dream_episodes(
        policy, world, limits=limits, seed=seed, temperature=temperature, on_step=on_dream_step
    )
    return Transfer(
        real=real,
        dream=dream,
        env_id=env_id,
        view=view,
        step_limit=int(limits.max()),
        step_limit_reason=reason,
        baselines=beside,
    )


def _baselines(world: World, data: DatasetSource | None) -> dict[str, Any]:
    """Return the policies to stand beside another one, by name."""
    policies: dict[str, Any] = {"random": "random"}
    if data is not None:
        try:
            policies["behaviour cloning"] = clone_policy(world, data)
        except TrainingError as error:
            warnings.warn(f"no policy was cloned from the data: {error}", stacklevel=3)
    return policies


def open_policy(policy: PolicyLike | Path, world: World) -> PolicyLike:
    """Return the policy of a path, and anything else as it is.

    Args:
        policy: the path of a policy's file or of an exported controller's folder; or a policy.
        world: the world that it was trained in.

    Raises:
        PolicyFileError: the file or folder cannot be used.
    """
    if isinstance(policy, str) and policy.partition(":")[0] in POLICY_NAMES:
        return policy
    if not isinstance(policy, str | Path):
        return policy
    path = local_path(str(policy), PolicyFileError)
    near = closest(str(policy).partition(":")[0], POLICY_NAMES)
    if near is not None and not path.exists():
        raise PolicyFileError(
            f"there is no file and no policy of the name {str(policy)!r}; did you mean {near!r}?"
        )
    return ExportedPolicy(path) if path.is_dir() else load_policy(path, world=world)


def _real_env_maker(world: World, env: EnvSource | None, view: str) -> Callable[[], gym.Env]:
    """Return a function that makes the real environment as a policy of `view` sees it.

    Raises:
        TransferError: no real environment is known, or the world is played in latent actions.
    """
    world.check_takes_data_actions(TransferError)
    maker = world_env_maker(world, env)
    goal = _goal_of(world.model)

    def make() -> gym.Env:
        made = make_env(maker)
        if goal is not None:
            made = _MarkGoalStarts(made, goal)
        return LatentObservation(made, world) if view == "latent" else made

    return make


def _goal_of(model: WorldModel) -> GoalReward | None:
    """Return the goal, with a threshold, of a model or of one inside its wrappers."""
    inner: Any = model
    while inner is not None and not isinstance(inner, GoalReward):
        inner = getattr(inner, "inner", None)
    return inner if inner is not None and inner.config.threshold is not None else None


class _MarkGoalStarts(gym.Wrapper[Any, Any, Any, Any]):
    """Adds to the info of a reset whether the episode begins within the threshold of a goal."""

    def __init__(self, env: gym.Env, goal: GoalReward) -> None:
        super().__init__(env)
        self._goal = goal

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        observation, info = self.env.reset(seed=seed, options=options)
        batch = as_tensors(as_batch([observation]), self._goal.goal.device)
        distance = (self._goal.encode_goals(batch) - self._goal.goal).norm()
        threshold = self._goal.config.threshold
        return observation, {**info, AT_GOAL: bool(distance <= threshold)}


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
