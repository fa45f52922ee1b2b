"""TorchRL in the dream: the environment, and the training of a policy.

The functions of `dreamgym.train.registry.LearnerLibrary` are here under their names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from dreamgym.errors import TrainingError
from dreamgym.train.dreams import dream_for
from dreamgym.train.network import ActionCodec, ActorCritic, load, save
from dreamgym.train.on_device import OnPolicySettings, Training, settings_of, unsupported_space
from dreamgym.train.policy import TrainedPolicy
from dreamgym.train.registry import LEARNERS
from dreamgym.train.training import TrainingRun

LEARNERS["torchrl"].require_installed()

from tensordict import TensorDict, TensorDictBase  # noqa: E402 - the error that names the extra first
from tensordict.nn import TensorDictModule  # noqa: E402
from torchrl.collectors import Collector  # noqa: E402
from torchrl.data import Binary, Bounded, Categorical, Composite, Unbounded  # noqa: E402
from torchrl.envs import EnvBase  # noqa: E402
from torchrl.modules import IndependentNormal, ProbabilisticActor, ValueOperator  # noqa: E402
from torchrl.objectives import ClipPPOLoss  # noqa: E402
from torchrl.objectives.value import GAE  # noqa: E402

__all__ = [
    "TorchRLEnv",
    "TorchRLSettings",
    "adapter",
    "check",
    "load",
    "save",
    "train",
    "unsupported",
]


class TorchRLEnv(EnvBase):
    """A `DreamVectorEnv` as a native environment of TorchRL, whose batch size is (N,).

    TorchRL resets rows itself, through `_reset`, so a dream runs in Disabled mode: the observation
    under "next" is the true last one. An agent acts in [-1, 1] where the action space is a Box:
    these are its bounds, and what lies outside is clipped.

    Args:
        env: a dream, or a wrapper on tensors around one; a dream that is not on tensors in Disabled
            mode is recreated in that mode.
        reward_scale: factor on the rewards.

    Raises:
        TrainingError: `env` wraps a dream in another mode, its observations are not one tensor, or
            its actions are neither one choice nor a Box with finite bounds.
    """

    def __init__(self, env: Any, *, reward_scale: float = 1.0) -> None:
        env = dream_for(env, library="TorchRL", autoreset_mode="Disabled", output="torch")
        count, device = env.num_envs, env.unwrapped.device
        super().__init__(device=device, batch_size=[count])
        self._env, self._reward_scale, self._started = env, reward_scale, False
        self._codec = ActionCodec(env.single_action_space).to(device)
        space = env.single_observation_space
        if not isinstance(space, gym.spaces.Box):
            raise TrainingError(f"expected observations in a Box, got {space}; pass view='latent'")
        kind = torch.uint8 if space.dtype == "uint8" else torch.float32
        shape = (count, *space.shape)
        self.observation_spec = Composite(
            {"observation": Unbounded(shape, device=device, dtype=kind)}, shape=(count,)
        )
        if self._codec.continuous:
            self.action_spec = Bounded(-1.0, 1.0, (count, self._codec.outputs), device=device)
        elif len(self._codec.sizes) == 1:
            self.action_spec = Categorical(self._codec.sizes[0], shape=(count,), device=device)
        else:
            raise TrainingError(
                f"TorchRL's environment takes one choice or a Box, not {env.single_action_space}"
            )
        self.reward_spec = Unbounded((count, 1), device=device)
        flags = {name: Binary(1, (count, 1), device=device, dtype=torch.bool) for name in _FLAGS}
        self.full_done_spec = Composite(flags, shape=(count,))

    def _reset(self, tensordict: TensorDictBase | None = None, **_: Any) -> TensorDict:
        rows = None if tensordict is None else tensordict.get("_reset", None)
        if rows is None or not self._started:
            observation, _ = self._env.reset()
            self._started = True
        else:
            observation, _ = self._env.reset(options={"reset_mask": rows.reshape(-1)})
        done = torch.zeros(*self.batch_size, 1, dtype=torch.bool, device=self.device)
        flags = {name: done.clone() for name in _FLAGS}
        leaves = {"observation": observation, **flags}
        return TensorDict(leaves, batch_size=self.batch_size, device=self.device)

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        action = self._codec(tensordict["action"])
        observation, reward, terminated, truncated, _ = self._env.step(action)
        leaves = {
            "observation": observation,
            "reward": (reward * self._reward_scale).unsqueeze(-1),
            "terminated": terminated.unsqueeze(-1),
            "truncated": truncated.unsqueeze(-1),
            "done": (terminated | truncated).unsqueeze(-1),
        }
        return TensorDict(leaves, batch_size=self.batch_size, device=self.device)

    def _set_seed(self, seed: int | None) -> None:
        self._env.reset(seed=seed)
        self._started = True


_FLAGS = ("done", "terminated", "truncated")

adapter = TorchRLEnv


@dataclass(frozen=True, kw_only=True)
class TorchRLSettings(OnPolicySettings):
    """Settings of PPO with TorchRL's `ClipPPOLoss` and `GAE`; see its documentation.

    Attributes:
        clip_epsilon: how far the ratio of probabilities may leave 1.
        entropy_coeff: weight of the entropy.
        critic_coeff: weight of the value loss.
        max_grad_norm: norm to which gradients are clipped.
    """

    clip_epsilon: float = 0.2
    entropy_coeff: float = 0.0
    critic_coeff: float = 0.5
    max_grad_norm: float = 0.5


def unsupported(algo: str, space: gym.Space[Any]) -> str | None:
    """See `LearnerLibrary.unsupported`."""
    return unsupported_space("torchrl", space, gym.spaces.Box, gym.spaces.Discrete)


def check(run: TrainingRun) -> None:
    """See `LearnerLibrary.check`."""
    settings_of(run, TorchRLSettings())


def train(run: TrainingRun) -> tuple[TrainedPolicy, bool]:
    """See `LearnerLibrary.train`."""
    settings = settings_of(run, TorchRLSettings())
    with Training(run, settings, autoreset_mode="Disabled") as training:
        env = TorchRLEnv(training.env, reward_scale=training.reward_scale)
        env.set_seed(run.seed)
        learner = _Learner(training.network, settings)
        collector = Collector(
            env,
            learner.actor,
            frames_per_batch=training.frames,
            total_frames=training.steps,
            device=training.network.device,
            auto_register_policy_transforms=False,
        )
        done, finished = 0, True
        try:
            for data in collector:
                learner.update(data)
                done += training.frames
                training.after_update(done, learner)
        except KeyboardInterrupt:
            finished = False
        finally:
            collector.shutdown()
        return training.policy(learner, done), finished


class _Part(nn.Module):
    """A network of an `ActorCritic`, on observations with any leading dimensions."""

    def __init__(self, network: ActorCritic, part: nn.Module) -> None:
        super().__init__()
        self.standardise, self.part = network.standardise, part
        self._shape = network.observation_space.shape or ()

    def forward(self, observation: Tensor) -> Any:
        leading = observation.shape[: observation.ndim - len(self._shape)]
        outputs = self.part(self.standardise(observation.reshape(-1, *self._shape)))
        return outputs.reshape(*leading, -1)


class _Gaussian(_Part):
    def __init__(self, network: ActorCritic) -> None:
        super().__init__(network, network.actor)
        self.log_std = network.log_std

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        loc = super().forward(observation)
        return loc, self.log_std.exp().expand_as(loc)


class _Learner:
    """TorchRL's PPO on an `ActorCritic`."""

    def __init__(self, network: ActorCritic, settings: TorchRLSettings) -> None:
        self.settings = settings
        continuous = network.codec.continuous
        keys = ["loc", "scale"] if continuous else ["logits"]
        actor = _Gaussian(network) if continuous else _Part(network, network.actor)
        kind = IndependentNormal if continuous else torch.distributions.Categorical
        self.actor = ProbabilisticActor(
            TensorDictModule(actor, in_keys=["observation"], out_keys=keys),
            in_keys=keys,
            distribution_class=kind,
            return_log_prob=True,
        )
        critic = ValueOperator(_Part(network, network.critic), in_keys=["observation"])
        self.advantage = GAE(gamma=settings.gamma, lmbda=settings.gae_lambda, value_network=critic)
        self.loss = ClipPPOLoss(
            self.actor,
            critic,
            clip_epsilon=settings.clip_epsilon,
            entropy_coeff=settings.entropy_coeff,
            critic_coeff=settings.critic_coeff,
            loss_critic_type="l2",
            normalize_advantage=True,
        )
        self.optimizer = torch.optim.Adam(self.loss.parameters(), settings.learning_rate)

    def update(self, data: TensorDictBase) -> None:
        """Take the gradient steps of one rollout (N, T)."""
        with torch.no_grad():
            self.advantage(data)
        rows = data.reshape(-1)
        for _ in range(self.settings.n_epochs):
            order = torch.randperm(len(rows), device=rows.device)
            for index in order.split(self.settings.batch_size):
                losses = self.loss(rows[index])
                total = sum(value for key, value in losses.items() if key.startswith("loss_"))
                self.optimizer.zero_grad()
                total.backward()
                nn.utils.clip_grad_norm_(self.loss.parameters(), self.settings.max_grad_norm)
                self.optimizer.step()
