"""What the learners that train an `ActorCritic` on tensors share."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self, TypeVar

import gymnasium as gym
import torch

from dreamgym.data.bounds import action_bounds_findings
from dreamgym.dream.wrappers import EpisodeStatistics
from dreamgym.errors import TrainingError
from dreamgym.train.network import ActionCodec, ActorCritic
from dreamgym.train.policy import TrainedPolicy
from dreamgym.train.scales import measure_scales
from dreamgym.train.training import TrainingRun

NUM_ENVS = 256
STEPS = 400_000


@dataclass(frozen=True, kw_only=True)
class OnPolicySettings:
    """Settings that PPO has in every library; `TrainConfig` has a field for each.

    Attributes:
        n_steps: steps of every dream between two updates.
        batch_size: rows of one gradient step.
        n_epochs: passes over a rollout.
        gamma: discount factor.
        gae_lambda: lambda of generalised advantage estimation.
        learning_rate: learning rate of Adam, the first one where a schedule changes it.
    """

    n_steps: int = 64
    batch_size: int = 1024
    n_epochs: int = 5
    gamma: float = 0.99
    gae_lambda: float = 0.95
    learning_rate: float = 1e-3


Settings = TypeVar("Settings", bound=OnPolicySettings)


def settings_of(run: TrainingRun, defaults: Settings) -> Settings:
    """Return an algorithm's settings: its defaults, overridden by the run's config.

    Args:
        run: the run.
        defaults: settings, a dataclass.

    Raises:
        TrainingError: the config has a setting that the algorithm does not have.
    """
    known = [each.name for each in fields(defaults)]
    given = {each.name: getattr(run.config, each.name) for each in fields(OnPolicySettings)}
    chosen = {name: value for name, value in given.items() if value is not None}
    chosen.update(run.config.learner)
    for name, value in chosen.items():
        if name not in known:
            raise TrainingError(
                f"{name}={value} does not apply to {run.algo} of {run.learner}; its settings are "
                f"{', '.join(sorted(known))}"
            )
    return replace(defaults, **chosen)


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


class Training:
    """A dream, and a new network that is trained in it; close it, or use it in a `with`.

    Args:
        run: the run.
        settings: the algorithm's settings.
        **options: options of `TrainingRun.make_dream`; tensors are its output.

    Attributes:
        steps: dream steps of the whole training.
        frames: dream steps of one rollout.
        network: the network, on the dream's device.
        reward_scale: factor on the rewards.
        env: the dream, inside its episode statistics.
        curve: the learning curve.
    """

    def __init__(self, run: TrainingRun, settings: OnPolicySettings, **options: Any) -> None:
        self._run, self._settings = run, settings
        num_envs, self.steps = run.config.num_envs or NUM_ENVS, run.steps or STEPS
        self.frames = num_envs * settings.n_steps
        self._dream = run.make_dream(num_envs, output="torch", **options)
        try:
            torch.manual_seed(run.seed)  # initial weights
            scales = measure_scales(
                run.world, seed=run.seed, gamma=settings.gamma, options=run.dream_options
            )
            self._policy: dict[str, Any] = {"net_arch": list(run.config.net_arch)}
            self._policy |= {"mean": scales.mean, "std": scales.std}
            spaces = self._dream.single_observation_space, self._dream.single_action_space
            self.network = ActorCritic(*spaces, **self._policy).to(self._dream.device)
            self.reward_scale = run.config.reward_scale or scales.reward_scale
            self.env, self.curve = EpisodeStatistics(self._dream), Curve(run, self.steps)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the dream."""
        self._dream.close()

    def policy(self, algorithm: Any, steps: int) -> TrainedPolicy:
        """Return the policy of the trained network.

        Args:
            algorithm: the library's own object.
            steps: dream steps that were taken.
        """
        card = self._run.card(
            self._dream,
            settings=asdict(self._settings),
            policy=self._policy,
            reward_scale=self.reward_scale,
            steps=steps,
            curve=self.curve.points,
        )
        return TrainedPolicy(network=self.network.eval(), card=card, algorithm=algorithm)


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
