"""rsl_rl in the dream: the adapter, and the training of a policy.

The functions of `dreamgym.train.registry.LearnerLibrary` are here under their names.
"""

from __future__ import annotations

from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from io import StringIO
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from dreamgym.dream.wrappers import (
    ClipAction,
    RescaleAction,
    ScaleReward,
    TruncationBootstrap,
)
from dreamgym.errors import TrainingError
from dreamgym.train.dreams import dream_for
from dreamgym.train.network import ActorCritic, load, save
from dreamgym.train.on_device import OnPolicySettings, Training, settings_of, unsupported_space
from dreamgym.train.policy import TrainedPolicy
from dreamgym.train.registry import LEARNERS
from dreamgym.train.training import TrainingRun

LEARNERS["rsl_rl"].require_installed()

from rsl_rl.env import VecEnv  # noqa: E402 - the error that names the extra comes first
from rsl_rl.runners import OnPolicyRunner  # noqa: E402
from tensordict import TensorDict  # noqa: E402

__all__ = [
    "RslRlSettings",
    "RslRlVecEnv",
    "adapter",
    "check",
    "load",
    "save",
    "train",
    "unsupported",
]


class RslRlVecEnv(VecEnv):
    """A `DreamVectorEnv` as rsl_rl's `VecEnv`.

    Actions of rsl_rl are real numbers, which are clipped to the action space. Truncated rows are
    marked in `extras["time_outs"]`; rsl_rl then adds gamma * V(s_t), its approximation of
    gamma * V(s_t+1). Where `env` is a `TruncationBootstrap`, it gets the latter and no time-outs.

    Args:
        env: a dream, or a wrapper on tensors around one; a dream that is not on tensors in SameStep
            mode is recreated in that mode.

    Raises:
        TrainingError: the action space is not a Box of floats, or `env` wraps a dream in another
            mode.
    """

    def __init__(self, env: Any) -> None:
        env = dream_for(env, library="rsl_rl", autoreset_mode="SameStep", output="torch")
        try:
            self.env = ClipAction(env)
        except ValueError as error:
            raise TrainingError(f"rsl_rl acts in real numbers: {error}") from None
        self.num_envs = self.env.num_envs
        self.num_actions = int(gym.spaces.flatdim(self.env.single_action_space))
        self.max_episode_length = int(self.env.unwrapped.horizon)  # type: ignore[attr-defined]
        self.device = self.env.device
        self.cfg = dict(self.env.spec.kwargs) if self.env.spec is not None else {}
        self.episode_length_buf = torch.zeros(self.num_envs, device=self.device, dtype=torch.int64)
        self._shape = (self.num_envs, *(self.env.single_action_space.shape or ()))
        self._observation: Tensor | None = None

    def reset(self) -> tuple[TensorDict, dict[str, Any]]:
        """Start new episodes in all rows."""
        self._observation, _ = self.env.reset()
        self.episode_length_buf.zero_()
        return self.get_observations(), {}

    def get_observations(self) -> TensorDict:
        """Return the current observations, flattened, as the group "policy"."""
        if self._observation is None:
            return self.reset()[0]
        flat = self._observation.reshape(self.num_envs, -1)
        return TensorDict({"policy": flat}, batch_size=[self.num_envs], device=self.device)

    def step(self, actions: Tensor) -> tuple[TensorDict, Tensor, Tensor, dict[str, Any]]:
        """Step every dream with actions (N, num_actions); see rsl_rl's `VecEnv`."""
        result = self.env.step(actions.reshape(self._shape))
        self._observation, reward, terminated, truncated, _ = result
        done = terminated | truncated
        self.episode_length_buf = (self.episode_length_buf + 1) * ~done
        return self.get_observations(), reward, done.long(), {"time_outs": truncated}


adapter = RslRlVecEnv


@dataclass(frozen=True, kw_only=True)
class RslRlSettings(OnPolicySettings):
    """Settings of rsl_rl's PPO; see its documentation.

    Attributes:
        schedule: "fixed", or "adaptive", rsl_rl's own.
        desired_kl: divergence that the adaptive schedule aims at.
        clip_param: how far the ratio of probabilities may leave 1.
        entropy_coef: weight of the entropy.
        value_loss_coef: weight of the value loss.
        max_grad_norm: norm to which gradients are clipped.
    """

    schedule: str = "fixed"
    desired_kl: float = 0.01
    clip_param: float = 0.2
    entropy_coef: float = 0.0
    value_loss_coef: float = 0.5
    max_grad_norm: float = 0.5


def unsupported(algo: str, space: gym.Space[Any]) -> str | None:
    """See `LearnerLibrary.unsupported`."""
    return unsupported_space("rsl_rl", space, gym.spaces.Box)


def check(run: TrainingRun) -> None:
    """See `LearnerLibrary.check`."""
    settings_of(run, RslRlSettings())


def train(run: TrainingRun) -> tuple[TrainedPolicy, bool]:
    """See `LearnerLibrary.train`."""
    settings = settings_of(run, RslRlSettings())
    with Training(run, settings) as training:
        network = training.network
        training.env.reset(seed=run.seed)
        scaled = ScaleReward(RescaleAction(training.env), training.reward_scale)
        env = RslRlVecEnv(TruncationBootstrap(scaled, network.value, settings.gamma))
        runner = _make_runner(env, network, settings)
        done, finished = 0, True
        try:
            while done < training.steps:
                runner.learn(1)
                done += training.frames
                training.after_update(done, runner)
        except KeyboardInterrupt:
            finished = False
        return training.policy(runner, done), finished


def _make_runner(env: RslRlVecEnv, network: ActorCritic, settings: RslRlSettings) -> OnPolicyRunner:
    """Return a runner whose models are the network's actor and critic."""
    values = asdict(settings)
    n_steps, batch_size = values.pop("n_steps"), values.pop("batch_size")
    values["num_learning_epochs"], values["lam"] = values.pop("n_epochs"), values.pop("gae_lambda")
    values["num_mini_batches"] = max(1, env.num_envs * n_steps // batch_size)
    hidden = [layer.out_features for layer in network.critic if hasattr(layer, "out_features")][:-1]
    model = {"class_name": "MLPModel", "hidden_dims": hidden, "activation": "tanh"}
    gaussian = {"class_name": "GaussianDistribution", "init_std": 1.0, "std_type": "log"}
    config = {
        "num_steps_per_env": n_steps,
        "save_interval": 0,
        "obs_groups": {"actor": ["policy"], "critic": ["policy"]},
        "actor": {**model, "distribution_cfg": gaussian},
        "critic": model,
        "algorithm": {"class_name": "PPO", **values},
    }
    with redirect_stdout(StringIO()):  # it prints its networks
        runner = OnPolicyRunner(env, config, device=str(env.device))
    actor, critic = runner.alg.actor, runner.alg.critic
    for module, part in ((actor, network.actor), (critic, network.critic)):
        module.obs_normalizer = network.standardise
        module.mlp.load_state_dict(part.state_dict())
    # From here on the network has the learner's own parameters.
    network.actor, network.critic = actor.mlp, critic.mlp
    with torch.no_grad():
        actor.distribution.log_std_param.copy_(network.log_std)
    network.log_std = actor.distribution.log_std_param
    return runner
