"""What the learners that train an `ActorCritic` on tensors share."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, TypeVar

import gymnasium as gym

from dreamgym.data.bounds import action_bounds_findings
from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.dream.wrappers import EpisodeStatistics
from dreamgym.errors import TrainingError
from dreamgym.train.network import ActionCodec, ActorCritic
from dreamgym.train.scales import measure_scales
from dreamgym.train.training import TrainingRun

Settings = TypeVar("Settings")

SHARED = ("n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda", "learning_rate")
"""Settings that `TrainConfig` has a field for."""


def settings_of(run: TrainingRun, defaults: Settings) -> Settings:
    """Return an algorithm's settings: its defaults, overridden by the run's config.

    Args:
        run: the run.
        defaults: settings, a dataclass.

    Raises:
        TrainingError: the config has a setting that the algorithm does not have.
    """
    known = [each.name for each in fields(defaults)]  # type: ignore[arg-type]
    given = {name: getattr(run.config, name) for name in SHARED}
    chosen = {name: value for name, value in given.items() if value is not None}
    chosen.update(run.config.learner)
    for name, value in chosen.items():
        if name not in known:
            raise TrainingError(
                f"{name}={value} does not apply to {run.algo} of {run.learner}; its settings are "
                f"{', '.join(sorted(known))}"
            )
    return replace(defaults, **chosen)  # type: ignore[type-var]


def unsupported_space(
    learner: str, space: gym.Space[Any], *kinds: type[gym.Space[Any]]
) -> str | None:
    """Return why a network cannot act in an action space, and what to do; None if it can.

    Args:
        learner: name of the learner.
        space: action space of one environment.
        kinds: kinds of action spaces that the library supports; none for all.
    """
    if kinds and not isinstance(space, kinds):
        return (
            f"{learner} acts in {' or '.join(kind.__name__ for kind in kinds)} action spaces "
            f"only, and the world's is {space}; use learner='ppo' or 'sb3'"
        )
    unbounded = action_bounds_findings(space)
    if unbounded:
        return unbounded[0]
    try:
        ActionCodec(space)
    except TrainingError as error:
        return str(error)
    return None


def make_network(
    run: TrainingRun, dream: DreamVectorEnv, gamma: float
) -> tuple[ActorCritic, dict[str, Any]]:
    """Return a new network on the dream's device, and the card's `policy` and `reward_scale`.

    Initial weights are drawn from the global generator, which the caller seeds.
    """
    scales = measure_scales(run.world, seed=run.seed, gamma=gamma, options=run.dream_options)
    policy: dict[str, Any] = {"net_arch": list(run.config.net_arch)}
    policy |= {"mean": scales.mean, "std": scales.std}
    network = ActorCritic(dream.single_observation_space, dream.single_action_space, **policy)
    reward_scale = run.config.reward_scale or scales.reward_scale
    return network.to(dream.device), {"policy": policy, "reward_scale": reward_scale}


class Curve:
    """The learning curve of a run, and its progress.

    Args:
        run: the run.
        total: dream steps of the whole training.

    Attributes:
        points: pairs [steps, mean return of the dreams that ended since the last point].
    """

    def __init__(self, run: TrainingRun, total: int) -> None:
        self.points: list[list[float]] = []
        self._progress, self._total = run.progress, total

    def add(self, steps: int, statistics: EpisodeStatistics) -> None:
        """Add a point, where an episode ended; this is a host sync."""
        means = {name: float(value) for name, value in statistics.pop().items()}
        figures = {}
        if means["episodes"]:
            figures = {"dream return": means["return"], "dream length": means["length"]}
            self.points.append([float(steps), means["return"]])
        if self._progress is not None:
            self._progress(min(steps, self._total), self._total, figures)
