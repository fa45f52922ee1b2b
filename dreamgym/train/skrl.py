"""skrl in the dream: the adapter, and the training of a policy.

The functions of `dreamgym.train.registry.LearnerLibrary` are here under their names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium as gym
from torch import Tensor

from dreamgym.dream.wrappers import (
    ScaleReward,
    TruncationBootstrap,
)
from dreamgym.train.dreams import dream_for
from dreamgym.train.network import ActionCodec, ActorCritic, load, save
from dreamgym.train.on_device import OnPolicySettings, Training, settings_of, unsupported_space
from dreamgym.train.policy import TrainedPolicy
from dreamgym.train.registry import LEARNERS
from dreamgym.train.training import TrainingRun

LEARNERS["skrl"].require_installed()

from skrl.agents.torch.ppo import PPO  # noqa: E402 - the error that names the extra comes first
from skrl.envs.wrappers.torch import Wrapper  # noqa: E402
from skrl.memories.torch import RandomMemory  # noqa: E402
from skrl.models.torch import (  # noqa: E402
    CategoricalMixin,
    DeterministicMixin,
    GaussianMixin,
    Model,
    MultiCategoricalMixin,
)
from skrl.trainers.torch import SequentialTrainer  # noqa: E402

__all__ = ["SkrlEnv", "SkrlSettings", "adapter", "check", "load", "save", "train", "unsupported"]


class SkrlEnv(Wrapper):
    """A `DreamVectorEnv` as skrl's `Wrapper`, on tensors.

    An agent acts in [-1, 1] where the action space is a Box: these are its bounds, and what lies
    outside is clipped.

    skrl reads the observation that a step returns as the one after the action, so a dream runs in
    NextStep mode. Its agents then also store the step in which a row is reset, whose reward is 0.
    Where `env` is a `TruncationBootstrap`, rows are reset in the same step, and nothing is stored
    besides: for on-policy agents that is exact.

    Args:
        env: a dream, or a wrapper on tensors around one; a dream that is not on tensors in NextStep
            mode is recreated in that mode.

    Raises:
        TrainingError: `env` wraps a dream in another mode, or its actions have no finite bounds.
    """

    def __init__(self, env: Any) -> None:
        if not isinstance(env, TruncationBootstrap):
            env = dream_for(env, library="skrl", autoreset_mode="NextStep", output="torch")
        super().__init__(env)
        self._first: Tensor | None = None
        self._codec = ActionCodec(env.single_action_space).to(env.unwrapped.device)

    @property
    def observation_space(self) -> gym.Space[Any]:
        """Observation space of one environment."""
        return self._env.single_observation_space

    @property
    def action_space(self) -> gym.Space[Any]:
        """Action space of the agent."""
        return self._codec.learner_space()

    @property
    def state_space(self) -> None:
        """None: a dream has no state beside its observation."""
        return None

    def reset(self) -> tuple[Tensor, dict[str, Any]]:
        """Return the first observations; later calls return the current ones, as skrl's do."""
        if self._first is None:
            self._first = self._flat(self._env.reset()[0])
        return self._first, {}

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]:
        """Step every dream with actions (N, n)."""
        chosen = self._codec(actions if self._codec.continuous else actions.long())
        observation, reward, terminated, truncated, info = self._env.step(chosen)
        self._first = self._flat(observation)
        columns = (part.view(-1, 1) for part in (reward, terminated, truncated))
        reward, terminated, truncated = columns
        return self._first, reward, terminated, truncated, info

    def state(self) -> None:
        """Return None: a dream has no state beside its observation."""

    def render(self, *args: Any, **kwargs: Any) -> Any:
        """Return the environment's frames."""
        return self._env.render()

    def close(self) -> None:
        """Close the dream."""
        self._env.close()

    def _flat(self, observation: Tensor) -> Tensor:
        return observation.reshape(self.num_envs, -1)


adapter = SkrlEnv


@dataclass(frozen=True, kw_only=True)
class SkrlSettings(OnPolicySettings):
    """Settings of skrl's PPO; see its documentation.

    Attributes:
        ratio_clip: how far the ratio of probabilities may leave 1.
        value_clip: how far a value may move in an update; 0 for any.
        entropy_loss_scale: weight of the entropy.
        value_loss_scale: weight of the value loss.
        grad_norm_clip: norm to which gradients are clipped.
        kl_threshold: divergence at which an epoch ends; 0 for none.
    """

    ratio_clip: float = 0.2
    value_clip: float = 0.0
    entropy_loss_scale: float = 0.0
    value_loss_scale: float = 0.5
    grad_norm_clip: float = 0.5
    kl_threshold: float = 0.0


def unsupported(algo: str, space: gym.Space[Any]) -> str | None:
    """See `LearnerLibrary.unsupported`."""
    return unsupported_space("skrl", space)


def check(run: TrainingRun) -> None:
    """See `LearnerLibrary.check`."""
    settings_of(run, SkrlSettings())


def train(run: TrainingRun) -> tuple[TrainedPolicy, bool]:
    """See `LearnerLibrary.train`."""
    settings = settings_of(run, SkrlSettings())
    with Training(run, settings) as training:
        network, frames = training.network, training.frames
        training.env.reset(seed=run.seed)
        scaled = ScaleReward(training.env, training.reward_scale)
        env = SkrlEnv(TruncationBootstrap(scaled, network.value, settings.gamma))

        agent = _make_agent(env, network, settings)
        agent.on_update = lambda updates: training.after_update(updates * frames, agent)
        rollouts = training.steps // frames
        trainer = {"timesteps": rollouts * settings.n_steps, "disable_progressbar": True}
        trainer["close_environment_at_exit"] = False
        finished = True
        try:
            SequentialTrainer(env=env, agents=agent, cfg=trainer).train()
        except KeyboardInterrupt:
            finished = False
        return training.policy(agent, agent.updates * frames), finished


class _ReportingPPO(PPO):
    """skrl's PPO, which calls `on_update` with the number of its updates after each."""

    on_update: Callable[[int], None]
    updates = 0

    def update(self, **arguments: Any) -> None:
        super().update(**arguments)
        self.updates += 1
        self.on_update(self.updates)


def _make_agent(env: SkrlEnv, network: ActorCritic, settings: SkrlSettings) -> _ReportingPPO:
    values = asdict(settings)
    n_steps, batch_size = values.pop("n_steps"), values.pop("batch_size")
    values["learning_epochs"] = values.pop("n_epochs")
    values["discount_factor"] = values.pop("gamma")
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
    return _ReportingPPO(
        models={"policy": _policy(env, network), "value": _Value(network, env)},
        memory=RandomMemory(memory_size=n_steps, num_envs=env.num_envs, device=env.device),
        **spaces,
        device=env.device,
        cfg={
            **values,
            "rollouts": n_steps,
            "mini_batches": max(1, env.num_envs * n_steps // batch_size),
            # Nothing is written: the policy's file is dreamgym's.
            "experiment": {"write_interval": 0, "checkpoint_interval": 0},
        },
    )


class _Network(Model):
    """A part of an `ActorCritic` as a model of skrl."""

    def __init__(self, network: ActorCritic, env: SkrlEnv) -> None:
        super().__init__(
            observation_space=env.observation_space,
            action_space=env.action_space,
            device=env.device,
        )
        self.standardise = network.standardise

    def compute(self, inputs: dict[str, Any], role: str = "") -> tuple[Tensor, dict[str, Any]]:
        """See skrl's `Model.compute`."""
        return self.part(self.standardise(inputs["observations"])), self.outputs()

    def outputs(self) -> dict[str, Any]:
        """Return further outputs of the model."""
        return {}


class _Value(DeterministicMixin, _Network):
    def __init__(self, network: ActorCritic, env: SkrlEnv) -> None:
        _Network.__init__(self, network, env)
        DeterministicMixin.__init__(self)
        self.part = network.critic


class _Gaussian(GaussianMixin, _Network):
    def __init__(self, network: ActorCritic, env: SkrlEnv) -> None:
        _Network.__init__(self, network, env)
        GaussianMixin.__init__(self, reduction="sum")
        self.part, self.log_std = network.actor, network.log_std

    def outputs(self) -> dict[str, Any]:
        return {"log_std": self.log_std}


def _policy(env: SkrlEnv, network: ActorCritic) -> Model:
    if network.codec.continuous:
        return _Gaussian(network, env)
    mixin = CategoricalMixin if len(network.codec.sizes) == 1 else MultiCategoricalMixin

    class Choices(mixin, _Network):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            _Network.__init__(self, network, env)
            mixin.__init__(self)
            self.part = network.actor

    return Choices()
