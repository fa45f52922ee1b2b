"""SBX (Stable-Baselines3 in JAX) in the dream: the training of a policy.

Its algorithms take a dream through `dreamgym.train.sb3.SB3VecEnv`, as those of Stable-Baselines3
do. A policy that is trained here becomes an `ActorCritic` of torch, so that it acts without JAX.

The functions of `dreamgym.train.registry.LearnerLibrary` are here under their names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dreamgym.train.network import ActorCritic, load, save
from dreamgym.train.on_device import Training, settings_of, unsupported_space
from dreamgym.train.policy import TrainedPolicy
from dreamgym.train.ppo import PPOSettings
from dreamgym.train.registry import LEARNERS
from dreamgym.train.training import TrainingRun

LEARNERS["sbx"].require_installed()

import jax  # noqa: E402 - the error that names the extra comes first
from sbx import PPO  # noqa: E402
from stable_baselines3.common.callbacks import BaseCallback, CallbackList  # noqa: E402
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper  # noqa: E402
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn  # noqa: E402

from dreamgym.train.sb3.callbacks import BatchedTruncationValues  # noqa: E402
from dreamgym.train.sb3.vec_env import SB3VecEnv  # noqa: E402

__all__ = ["adapter", "check", "load", "save", "train", "unsupported"]

adapter = SB3VecEnv


def unsupported(algo: str, space: gym.Space[Any]) -> str | None:
    """See `LearnerLibrary.unsupported`."""
    return unsupported_space("sbx", space)


def check(run: TrainingRun) -> None:
    """See `LearnerLibrary.check`."""
    settings_of(run, PPOSettings())


def train(run: TrainingRun) -> tuple[TrainedPolicy, bool]:
    """See `LearnerLibrary.train`."""
    settings = settings_of(run, PPOSettings())
    with Training(run, settings) as training:
        network = training.network
        training.env.reset(seed=run.seed)
        env = _NetworkVecEnv(SB3VecEnv(training.env, reward_scale=training.reward_scale), network)
        values = asdict(settings)
        values["batch_size"] = min(settings.batch_size, training.frames)
        hidden = [each.out_features for each in network.critic if isinstance(each, nn.Linear)][:-1]
        learner = PPO("MlpPolicy", env, seed=run.seed, policy_kwargs={"net_arch": hidden}, **values)
        _to_jax(network, learner)
        finished = True
        try:
            callbacks = [_AfterUpdate(training), _BatchedTruncationValues()]
            learner.learn(training.steps, callback=CallbackList(callbacks))
        except KeyboardInterrupt:
            finished = False
        _to_torch(learner, network)
        return training.policy(learner, int(learner.num_timesteps)), finished


class _NetworkVecEnv(VecEnvWrapper):
    """A dream as an `ActorCritic` sees it: standardised observations, actions from the codec."""

    def __init__(self, venv: VecEnv, network: ActorCritic) -> None:
        self._standardise, self._codec = network.standardise, network.codec
        bound = np.full(len(network.standardise.mean), np.inf, np.float32)
        space = self._codec.learner_space()
        super().__init__(venv, gym.spaces.Box(-bound, bound), space)

    def reset(self) -> NDArray[np.float32]:
        return self._standard(self.venv.reset())

    def step_async(self, actions: NDArray[Any]) -> None:
        if self._codec.continuous:
            chosen = self._codec(torch.as_tensor(actions, device=self._codec.center.device))
            actions = chosen.cpu().numpy()
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        observation, reward, done, infos = self.venv.step_wait()
        rows = np.flatnonzero(done)
        if len(rows):
            last = self._standard(np.stack([infos[row]["terminal_observation"] for row in rows]))
            for row, value in zip(rows, last, strict=True):
                infos[row]["terminal_observation"] = value
        return self._standard(observation), reward, done, infos

    def _standard(self, observation: Any) -> NDArray[np.float32]:
        batch = torch.as_tensor(observation, device=self._standardise.mean.device)
        result: NDArray[np.float32] = self._standardise(batch).cpu().numpy()
        return result


class _BatchedTruncationValues(BatchedTruncationValues):
    """The callback for SBX, whose value function is compiled: its batch always has N rows."""

    def values(self, observation: NDArray[Any], rows: Sequence[int]) -> NDArray[np.float32]:
        policy: Any = self.model.policy
        batch = np.zeros((self.model.n_envs, *observation.shape[1:]), np.float32)
        batch[: len(observation)] = observation
        values = policy.vf.apply(policy.vf_state.params, batch)
        return np.asarray(values).ravel()[: len(observation)]


class _AfterUpdate(BaseCallback):
    """Reports to a `Training` after each update, with the weights of then."""

    def __init__(self, training: Training) -> None:
        super().__init__()
        self._training = training

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps:
            self._report()

    def _on_training_end(self) -> None:
        self._report()

    def _report(self) -> None:
        _to_torch(self.model, self._training.network)
        self._training.after_update(self.num_timesteps, self.model)


def _to_jax(network: ActorCritic, learner: Any) -> None:
    """Give a learner of SBX the weights of a network."""
    policy = learner.policy
    actor, critic = _parameters(network.actor), _parameters(network.critic)
    if network.codec.continuous:
        actor["log_std"] = network.log_std.detach().cpu().numpy()
    policy.actor_state = policy.actor_state.replace(params={"params": jax.device_put(actor)})
    policy.vf_state = policy.vf_state.replace(params={"params": jax.device_put(critic)})


def _parameters(part: nn.Module) -> dict[str, Any]:
    """Return the parameters of an MLP as flax names them."""
    layers = [each for each in part.modules() if isinstance(each, nn.Linear)]
    return {
        f"Dense_{index}": {
            "kernel": layer.weight.detach().T.cpu().numpy(),
            "bias": layer.bias.detach().cpu().numpy(),
        }
        for index, layer in enumerate(layers)
    }


@torch.no_grad()
def _to_torch(learner: Any, network: ActorCritic) -> None:
    """Give a network the weights of a learner of SBX."""
    policy = learner.policy
    for part, state in ((network.actor, policy.actor_state), (network.critic, policy.vf_state)):
        parameters = jax.device_get(state.params)["params"]
        layers = [each for each in part.modules() if isinstance(each, nn.Linear)]
        for index, layer in enumerate(layers):
            values = parameters[f"Dense_{index}"]
            layer.weight.copy_(torch.from_numpy(values["kernel"].T.copy()))
            layer.bias.copy_(torch.from_numpy(values["bias"].copy()))
        if "log_std" in parameters:
            network.log_std.copy_(torch.from_numpy(parameters["log_std"].copy()))
