"""What the learners that train an `ActorCritic` on tensors share."""

from __future__ import annotations

from collections.abc import Mapping
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
STEPS = 1_000_000


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
    """A dream, and a network that is trained in it; close it, or use it in a `with`.

    Args:
        run: the run. The network is new, or that of `run.initial`, which keeps its standardisation
            and its reward scale.
        settings: the algorithm's settings.
        **options: options of `TrainingRun.make_dream`; tensors are its output by default.

    Attributes:
        steps: dream steps of the whole training, whole rollouts.
        frames: dream steps of one rollout.
        network: the network, on the dream's device.
        network_arguments: arguments of `ActorCritic` beside the spaces, JSON-plain.
        reward_scale: factor on the rewards.
        dream: the dream.
        env: the dream, inside its episode statistics, where it is on tensors.
        curve: pairs [steps, mean return of the dreams that ended since the last point].

    Raises:
        TrainingError: the policy to go on from does not fit the world.
    """

    def __init__(self, run: TrainingRun, settings: OnPolicySettings, **options: Any) -> None:
        self._run, self._settings = run, settings
        num_envs = run.config.num_envs or NUM_ENVS
        self.frames = num_envs * settings.n_steps
        self.steps = run.steps_left(STEPS, self.frames)
        self.curve: list[list[float]] = []
        self.dream = run.make_dream(num_envs, **{"output": "torch", **options})
        try:
            torch.manual_seed(run.seed)  # initial weights
            if run.initial is None:
                scales = measure_scales(
                    run.world, seed=run.seed, gamma=settings.gamma, options=run.dream_options
                )
                self.network_arguments: dict[str, Any] = {"net_arch": list(run.config.net_arch)}
                self.network_arguments |= {"mean": scales.mean, "std": scales.std}
                reward_scale = scales.reward_scale
            else:
                self.network_arguments = run.initial.card.policy
                reward_scale = run.initial.card.reward_scale
            self.reward_scale = run.config.reward_scale or reward_scale
            self.network = self._make_network().to(self.dream.device)
            if self.dream.options.output == "torch":
                self.env = EpisodeStatistics(self.dream)
        except BaseException:
            self.close()
            raise

    def _make_network(self) -> ActorCritic:
        spaces = self.dream.single_observation_space, self.dream.single_action_space
        network = ActorCritic(*spaces, **self.network_arguments)
        if self._run.initial is not None:
            try:
                network.load_state_dict(self._run.initial.network.state_dict())
            except RuntimeError as error:
                raise TrainingError(
                    f"the policy to go on from does not fit the world {self._run.world.name!r}: "
                    f"{error}; give a policy that was trained for the same spaces"
                ) from None
        return network

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the dream."""
        self.dream.close()

    def after_update(self, steps: int, algorithm: Any) -> None:
        """Add a point to the learning curve and report the progress; this is a host sync.

        Args:
            steps: dream steps so far.
            algorithm: the library's own object. `network` has its weights.
        """
        means = {name: float(value) for name, value in self.env.pop().items()}
        self.add_point(steps, algorithm, means if means["episodes"] else None)

    def add_point(self, steps: int, algorithm: Any, means: Mapping[str, float] | None) -> None:
        """As `after_update`, with means that the library took itself.

        Args:
            steps: dream steps so far.
            algorithm: the library's own object.
            means: mean "return" of the dreams that ended, and "length" where it is known; None
                where none ended.
        """
        figures = {}
        if means is not None:
            named = {"return": "dream return", "length": "dream length"}
            figures = {name: means[key] for key, name in named.items() if key in means}
            self.curve.append([float(steps), means["return"]])
        self._run.report(steps, self.steps, figures, lambda: self.policy(algorithm, steps))

    def policy(self, algorithm: Any, steps: int) -> TrainedPolicy:
        """Return the policy of the network.

        Args:
            algorithm: the library's own object.
            steps: dream steps that were taken.
        """
        card = self._run.card(
            self.dream,
            settings=asdict(self._settings),
            policy=self.network_arguments,
            reward_scale=self.reward_scale,
            steps=steps,
            curve=list(self.curve),
        )
        return TrainedPolicy(network=self.network.eval(), card=card, algorithm=algorithm)
