"""Tianshou in the dream: the adapter, and the training of a policy.

The functions of `dreamgym.train.registry.LearnerLibrary` are here under their names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dreamgym.train.dreams import dream_for
from dreamgym.train.network import ActionCodec, ActorCritic, load, save
from dreamgym.train.on_device import OnPolicySettings, Training, settings_of, unsupported_space
from dreamgym.train.policy import TrainedPolicy
from dreamgym.train.registry import LEARNERS
from dreamgym.train.training import TrainingRun

LEARNERS["tianshou"].require_installed()

from tianshou.algorithm import PPO  # noqa: E402 - the error that names the extra comes first
from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy  # noqa: E402
from tianshou.algorithm.optim import AdamOptimizerFactory  # noqa: E402
from tianshou.data import Collector, VectorReplayBuffer  # noqa: E402
from tianshou.env import BaseVectorEnv  # noqa: E402
from tianshou.utils.torch_utils import policy_within_training_step  # noqa: E402

__all__ = [
    "TianshouSettings",
    "TianshouVecEnv",
    "adapter",
    "check",
    "load",
    "save",
    "train",
    "unsupported",
]


class TianshouVecEnv(BaseVectorEnv):
    """A `DreamVectorEnv` as Tianshou's vector environment, on NumPy arrays.

    Tianshou resets rows itself, so a dream runs in Disabled mode: `obs_next` is the true last
    observation. An agent acts in [-1, 1] where the action space is a Box: these are its bounds,
    and what lies outside is clipped. Infos are empty.

    Args:
        env: a dream, or a wrapper around one; one in another mode is recreated in the right one.
        reward_scale: factor on the rewards.

    Raises:
        TrainingError: `env` wraps a dream in another mode, or its actions have no finite bounds.
    """

    def __init__(self, env: Any, *, reward_scale: float = 1.0) -> None:
        # Not super().__init__(), which makes a worker for every row.
        self._env = dream_for(env, library="Tianshou", autoreset_mode="Disabled")
        self._reward_scale = reward_scale
        self._device = self._env.unwrapped.device
        self._codec = ActionCodec(self._env.single_action_space).to(self._device)
        self._row = {
            "action_space": self._codec.learner_space(),
            "observation_space": self._env.single_observation_space,
            "metadata": self._env.metadata,
            "spec": self._env.spec,
        }
        self.env_num, self.is_async, self.is_closed = self._env.num_envs, False, False
        self._done = np.zeros(self.env_num, bool)
        self._observation: NDArray[Any] | None = None

    def get_env_attr(self, key: str, id: Any = None) -> list[Any]:
        """Return an attribute of the dream, once for each of the rows."""
        value = self._row[key] if key in self._row else getattr(self._env, key)
        return [value] * len(self._wrap_id(id))

    def set_env_attr(self, key: str, value: Any, id: Any = None) -> None:
        """Set an attribute of the dream, which is one for all rows."""
        setattr(self._env, key, value)

    def reset(
        self, env_id: Any = None, *, seed: int | None = None, **_: Any
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Start new episodes in some rows; None for all, which the first reset restarts anyway.

        Returns:
            Their observations (n, ...) and infos (n,).
        """
        rows = np.asarray(self._wrap_id(env_id))
        if self._observation is None or seed is not None or len(rows) == self.env_num:
            self._restart(seed)
        else:
            mask = np.zeros(self.env_num, bool)
            mask[rows] = True
            self._restart_rows(mask)
        return self._current()[rows], _infos(len(rows))

    def step(
        self, action: Any, id: Any = None
    ) -> tuple[
        NDArray[Any], NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_], NDArray[Any]
    ]:
        """Step the rows `id`, all by default, with actions (n, ...).

        All rows of the dream are stepped; those that are not in `id` act at the centre of the
        action space, and start new episodes where they have ended.

        Returns:
            Observations, rewards, terminations, truncations and infos of these rows.
        """
        rows = np.asarray(self._wrap_id(id))
        actions = torch.as_tensor(np.asarray(action), device=self._device)
        if len(rows) < self.env_num:
            others = np.ones(self.env_num, bool)
            others[rows] = False
            if (self._done & others).any():
                self._restart_rows(self._done & others)
            everyone = actions.new_zeros(self.env_num, *actions.shape[1:])
            everyone[torch.as_tensor(rows, device=self._device)] = actions
            actions = everyone
        stepped = self._env.step(self._codec(actions))
        observation, reward, terminated, truncated = (_numpy(part) for part in stepped[:4])
        self._observation, self._done = observation, terminated | truncated
        reward = np.asarray(reward, np.float32) * np.float32(self._reward_scale)
        parts = (observation, reward, terminated, truncated)
        return (*(part[rows] for part in parts), _infos(len(rows)))

    def seed(self, seed: Any = None) -> list[Any]:
        """Restart all rows with a seed; of a list, its first."""
        self._restart(seed[0] if isinstance(seed, list) else seed)
        return [seed] * self.env_num

    def render(self, **_: Any) -> list[Any]:
        """Return the dream's frames."""
        return [self._env.render()]

    def close(self) -> None:
        """Close the dream."""
        self._env.close()
        self.is_closed = True

    def _restart(self, seed: int | None) -> None:
        self._observation = _numpy(self._env.reset(seed=seed)[0])
        self._done = np.zeros(self.env_num, bool)

    def _restart_rows(self, mask: NDArray[np.bool_]) -> None:
        options = {"reset_mask": torch.as_tensor(mask, device=self._device)}
        self._observation = _numpy(self._env.reset(options=options)[0])
        self._done = self._done & ~mask

    def _current(self) -> NDArray[Any]:
        if self._observation is None:
            self._restart(None)
        observation: NDArray[Any] = np.asarray(self._observation)
        return observation


adapter = TianshouVecEnv


def _numpy(value: Any) -> Any:
    return value.cpu().numpy() if isinstance(value, Tensor) else value


def _infos(rows: int) -> NDArray[Any]:
    infos = np.empty(rows, object)
    infos[:] = [{}] * rows
    return infos


@dataclass(frozen=True, kw_only=True)
class TianshouSettings(OnPolicySettings):
    """Settings of Tianshou's PPO; see its documentation.

    Attributes:
        eps_clip: how far the ratio of probabilities may leave 1.
        ent_coef: weight of the entropy.
        vf_coef: weight of the value loss.
        max_grad_norm: norm to which gradients are clipped.
    """

    eps_clip: float = 0.2
    ent_coef: float = 0.0
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5


def unsupported(algo: str, space: gym.Space[Any]) -> str | None:
    """See `LearnerLibrary.unsupported`."""
    return unsupported_space("tianshou", space, gym.spaces.Box, gym.spaces.Discrete)


def check(run: TrainingRun) -> None:
    """See `LearnerLibrary.check`."""
    settings_of(run, TianshouSettings())


def train(run: TrainingRun) -> tuple[TrainedPolicy, bool]:
    """See `LearnerLibrary.train`."""
    settings = settings_of(run, TianshouSettings())
    with Training(run, settings, autoreset_mode="Disabled") as training:
        env = TianshouVecEnv(training.env, reward_scale=training.reward_scale)
        env.seed(run.seed)
        algorithm = _make_algorithm(env, training.network, settings)
        buffer = VectorReplayBuffer(training.frames, env.env_num)
        collector = Collector(algorithm, env, buffer)
        collector.reset()
        done, finished = 0, True
        try:
            while done < training.steps:
                with policy_within_training_step(algorithm.policy):
                    collector.collect(n_step=training.frames)
                    algorithm.update(buffer, settings.batch_size, settings.n_epochs)
                collector.reset_buffer(keep_statistics=True)
                done += training.frames
                training.after_update(done, algorithm)
        except KeyboardInterrupt:
            finished = False
        return training.policy(algorithm, done), finished


class _Part(nn.Module):
    """A network of an `ActorCritic`, on NumPy observations."""

    def __init__(self, network: ActorCritic, part: nn.Module) -> None:
        super().__init__()
        self.standardise, self.part = network.standardise, part

    def outputs(self, observation: Any) -> Tensor:
        batch = torch.as_tensor(observation, device=self.standardise.mean.device)
        outputs: Tensor = self.part(self.standardise(batch))
        return outputs


class _Critic(_Part):
    def forward(self, observation: Any) -> Tensor:
        return self.outputs(observation)


class _Actor(_Part):
    def __init__(self, network: ActorCritic) -> None:
        super().__init__(network, network.actor)
        self.log_std = network.log_std

    def forward(self, observation: Any, state: Any = None, info: Any = None) -> tuple[Any, Any]:
        return self.outputs(observation), state


def _make_algorithm(env: TianshouVecEnv, network: ActorCritic, settings: TianshouSettings) -> PPO:
    actor = _Actor(network)

    def distribution(outputs: Tensor) -> torch.distributions.Distribution:
        if not network.codec.continuous:
            return torch.distributions.Categorical(logits=outputs, validate_args=False)
        normal = torch.distributions.Normal(outputs, actor.log_std.exp(), validate_args=False)
        return torch.distributions.Independent(normal, 1, validate_args=False)

    policy = ProbabilisticActorPolicy(
        actor=actor,
        dist_fn=distribution,
        action_space=env.get_env_attr("action_space")[0],
        action_scaling=False,  # the environment clips and scales
        action_bound_method=None,
    )
    return PPO(
        policy=policy,
        critic=_Critic(network, network.critic),
        optim=AdamOptimizerFactory(lr=settings.learning_rate, eps=1e-5),
        eps_clip=settings.eps_clip,
        vf_coef=settings.vf_coef,
        ent_coef=settings.ent_coef,
        max_grad_norm=settings.max_grad_norm,
        gae_lambda=settings.gae_lambda,
        gamma=settings.gamma,
        max_batchsize=max(256, env.env_num * settings.n_steps),
    )
