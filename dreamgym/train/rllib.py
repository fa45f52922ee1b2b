"""RLlib in the dream: the environment, and the training of a policy.

The functions of `dreamgym.train.registry.LearnerLibrary` are here under their names.
"""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from dreamgym.data.spaces import space_from_json, space_to_json
from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.train.dreams import dream_for
from dreamgym.train.network import ActionCodec, ActorCritic, load, save
from dreamgym.train.on_device import OnPolicySettings, Training, settings_of, unsupported_space
from dreamgym.train.policy import TrainedPolicy
from dreamgym.train.registry import LEARNERS
from dreamgym.train.training import TrainingRun

LEARNERS["rllib"].require_installed()

import ray  # noqa: E402 - the error that names the extra comes first
from ray.rllib.algorithms.ppo import PPOConfig  # noqa: E402
from ray.rllib.core.columns import Columns  # noqa: E402
from ray.rllib.core.distribution.torch.torch_distribution import (  # noqa: E402
    TorchCategorical,
    TorchDiagGaussian,
)
from ray.rllib.core.rl_module.apis import ValueFunctionAPI  # noqa: E402
from ray.rllib.core.rl_module.rl_module import RLModuleSpec  # noqa: E402
from ray.rllib.core.rl_module.torch import TorchRLModule  # noqa: E402
from ray.tune.registry import register_env  # noqa: E402

__all__ = [
    "RLlibEnv",
    "RLlibSettings",
    "adapter",
    "check",
    "load",
    "make_dream",
    "save",
    "train",
    "unsupported",
]

_MODULE = "default_policy"


class RLlibEnv(VectorWrapper):
    """A `DreamVectorEnv` as the vector environment that RLlib's runners step.

    RLlib reads the observation that a step returns as the one after the action, so a dream runs in
    NextStep mode, on NumPy arrays. An agent acts in [-1, 1] where the action space is a Box: these
    are its bounds, and what lies outside is clipped. Infos are left out, as RLlib keeps its own
    statistics.

    Args:
        env: a dream, or a wrapper around one; a dream that is not on NumPy arrays in NextStep mode
            is recreated in that mode.
        reward_scale: factor on the rewards.

    Raises:
        TrainingError: `env` wraps a dream in another mode, or its actions have no finite bounds.
    """

    def __init__(self, env: VectorEnv, *, reward_scale: float = 1.0) -> None:
        super().__init__(dream_for(env, library="RLlib", autoreset_mode="NextStep", output="numpy"))
        self._reward_scale = np.float32(reward_scale)
        self._codec = ActionCodec(self.env.single_action_space)
        self.single_action_space = self._codec.learner_space()
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
        """Reset the dream."""
        return self.env.reset(**arguments)[0], {}

    def step(self, actions: Any) -> tuple[Any, NDArray[Any], NDArray[Any], NDArray[Any], dict]:
        """Step every dream with actions (N, ...)."""
        chosen = self._codec(torch.as_tensor(np.asarray(actions))).numpy()
        observation, reward, terminated, truncated, _ = self.env.step(chosen)
        return observation, reward * self._reward_scale, terminated, truncated, {}


adapter = RLlibEnv


def make_dream(config: Mapping[str, Any]) -> RLlibEnv:
    """Make a dream in a runner of RLlib; an environment creator for `ray.tune.register_env`.

    `gym_env_vectorize_mode="vector_entry_point"` makes it one environment of all the runner's rows.

    Args:
        config: RLlib's `env_config`: `world`, and other options of `DreamVectorEnv`. RLlib adds
            `num_envs`.
    """
    options = {"num_envs": 1, **config, "output": "numpy", "autoreset_mode": "NextStep"}
    return RLlibEnv(DreamVectorEnv(**options))


class ActorCriticModule(TorchRLModule, ValueFunctionAPI):
    """An `ActorCritic` as a module of RLlib.

    `model_config["actor_critic"]` has its arguments, JSON-plain, with the dream's action space.
    """

    def setup(self) -> None:
        """Make the network."""
        arguments = dict(self.model_config["actor_critic"])
        action_space = space_from_json(arguments.pop("action_space"))
        self.network = ActorCritic(self.observation_space, action_space, **arguments)
        continuous = self.network.codec.continuous
        self.action_dist_cls = TorchDiagGaussian if continuous else TorchCategorical

    def _forward(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        network = self.network
        outputs = network.actor(network.standardise(batch[Columns.OBS]))
        if network.codec.continuous:
            outputs = torch.cat([outputs, network.log_std.expand_as(outputs)], -1)
        return {Columns.ACTION_DIST_INPUTS: outputs}

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> Tensor:
        """Return the values (B,) of a batch's observations."""
        return self.network.value(batch[Columns.OBS])


@dataclass(frozen=True, kw_only=True)
class RLlibSettings(OnPolicySettings):
    """Settings of RLlib's PPO; see its documentation.

    Attributes:
        clip_param: how far the ratio of probabilities may leave 1.
        entropy_coeff: weight of the entropy.
        vf_loss_coeff: weight of the value loss.
        grad_clip: norm to which gradients are clipped.
        use_kl_loss: whether a divergence is part of the loss.
    """

    clip_param: float = 0.2
    entropy_coeff: float = 0.0
    vf_loss_coeff: float = 0.5
    grad_clip: float = 0.5
    use_kl_loss: bool = False


def unsupported(algo: str, space: gym.Space[Any]) -> str | None:
    """See `LearnerLibrary.unsupported`."""
    return unsupported_space("rllib", space, gym.spaces.Box, gym.spaces.Discrete)


def check(run: TrainingRun) -> None:
    """See `LearnerLibrary.check`."""
    settings_of(run, RLlibSettings())


def train(run: TrainingRun) -> tuple[TrainedPolicy, bool]:
    """See `LearnerLibrary.train`."""
    settings = settings_of(run, RLlibSettings())
    options = {"output": "numpy", "autoreset_mode": "NextStep"}
    with Training(run, settings, **options) as training, _local_ray():
        env = RLlibEnv(training.dream, reward_scale=training.reward_scale)
        env.reset(seed=run.seed)
        with _algorithm(run, settings, env, training) as algorithm:
            done, finished = 0, True
            try:
                while done < training.steps:
                    result = algorithm.train()
                    done += training.frames
                    _copy(algorithm.get_module(_MODULE).network, training.network)
                    training.add_point(done, algorithm, _means(result, training.reward_scale))
            except KeyboardInterrupt:
                finished = False
            return training.policy(algorithm, done), finished


def _copy(source: ActorCritic, target: ActorCritic) -> None:
    target.load_state_dict(source.state_dict())


def _means(result: dict[str, Any], reward_scale: float) -> dict[str, float] | None:
    """Return the means of RLlib's last episodes in the real environment's units."""
    figures = result["env_runners"]
    mean = float(figures.get("episode_return_mean", np.nan))
    if np.isnan(mean):
        return None
    # Its lengths are too long: the learner lengthens each fragment by a step in place.
    return {"return": mean / reward_scale}


@contextmanager
def _local_ray() -> Iterator[None]:
    """Start Ray on this machine, where it does not run yet, and stop it after the block."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _algorithm(
    run: TrainingRun, settings: RLlibSettings, env: RLlibEnv, training: Training
) -> Iterator[Any]:
    """Build RLlib's algorithm in this process, with the network's weights."""
    name = f"dreamgym-{id(env)}"
    _DREAMS[name] = env
    register_env(name, _dream_of)
    arguments = {
        **training.network_arguments,
        "action_space": space_to_json(training.dream.single_action_space),
    }
    config = (
        PPOConfig()
        .environment(name, env_config={"dream": name})
        .env_runners(
            num_env_runners=0,
            num_envs_per_env_runner=env.num_envs,
            rollout_fragment_length=settings.n_steps,
            gym_env_vectorize_mode="vector_entry_point",
        )
        .learners(num_learners=0)
        .training(
            lr=settings.learning_rate,
            gamma=settings.gamma,
            lambda_=settings.gae_lambda,
            clip_param=settings.clip_param,
            entropy_coeff=settings.entropy_coeff,
            vf_loss_coeff=settings.vf_loss_coeff,
            vf_clip_param=float("inf"),
            grad_clip=settings.grad_clip,
            use_kl_loss=settings.use_kl_loss,
            train_batch_size_per_learner=training.frames,
            minibatch_size=min(settings.batch_size, training.frames),
            num_epochs=settings.n_epochs,
        )
        .rl_module(
            rl_module_spec=RLModuleSpec(
                module_class=ActorCriticModule, model_config={"actor_critic": arguments}
            )
        )
        .debugging(seed=run.seed, log_level="ERROR")
    )
    with _quiet():
        algorithm = config.build_algo()
    weights = {key: value.cpu() for key, value in training.network.state_dict().items()}
    try:
        algorithm.learner_group.foreach_learner(
            lambda learner: learner.module[_MODULE].unwrapped().network.load_state_dict(weights)
        )
        algorithm.env_runner_group.sync_weights(
            from_worker_or_learner_group=algorithm.learner_group, inference_only=True
        )
        yield algorithm
    finally:
        algorithm.stop()
        shutil.rmtree(algorithm.logdir, ignore_errors=True)  # it writes nothing there
        del _DREAMS[name]


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what RLlib says about its versions, and Gymnasium about RLlib's registering twice."""
    logger = logging.getLogger("ray.rllib")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*Overriding environment rllib")
            yield
    finally:
        logger.setLevel(before)


_DREAMS: dict[str, RLlibEnv] = {}
"""Dreams of this process by the name that RLlib knows them by."""


def _dream_of(config: Mapping[str, Any]) -> RLlibEnv:
    return _DREAMS[config["dream"]]
