"""Training with an algorithm of Stable-Baselines3."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from torch import Tensor, nn

from dreamgym.errors import TrainingError
from dreamgym.train.policy import TrainedPolicy
from dreamgym.train.sb3.algorithms import find_algorithm, settings_for
from dreamgym.train.sb3.callbacks import BatchedTruncationValues, LearningCurve
from dreamgym.train.sb3.policy_file import policy_arguments
from dreamgym.train.sb3.vec_env import SB3VecEnv
from dreamgym.train.scales import measure_scales
from dreamgym.train.training import TrainingRun

_CURVE_POINTS = 50  # of an off-policy algorithm; an on-policy one has a point each rollout


def check(run: TrainingRun) -> None:
    """See `LearnerLibrary.check`."""
    settings_for(run.algo, run.config)


def train(run: TrainingRun) -> tuple[TrainedPolicy, bool]:
    """See `LearnerLibrary.train`."""
    algorithm, settings = find_algorithm(run.algo), settings_for(run.algo, run.config)
    scales = measure_scales(
        run.world, seed=run.seed, gamma=settings["gamma"], options=run.dream_options
    )
    num_envs, steps = run.config.num_envs or algorithm.num_envs, run.steps or algorithm.steps
    dream = run.make_dream(num_envs)
    env = SB3VecEnv(dream, reward_scale=run.config.reward_scale or scales.reward_scale)
    network = {"net_arch": list(run.config.net_arch), "mean": scales.mean, "std": scales.std}
    try:
        learner = _make_learner(run, env, network, settings)
        every = settings["n_steps"] * num_envs if algorithm.on_policy else steps // _CURVE_POINTS
        curve = LearningCurve(steps, max(1, every), run.progress)
        callbacks: list[BaseCallback] = [curve]
        if algorithm.on_policy:
            callbacks.append(BatchedTruncationValues())
        finished = True
        try:
            learner.learn(steps, callback=CallbackList(callbacks))
        except KeyboardInterrupt:
            finished = False
        card = run.card(
            dream,
            settings=settings,
            steps=int(learner.num_timesteps),
            policy=network,
            reward_scale=env.reward_scale,
            curve=[[float(done), value] for done, value in curve.points],
        )
        _forget_last_batch(learner.policy)
        return TrainedPolicy(network=learner.policy, card=card, algorithm=learner), finished
    finally:
        env.close()


def _forget_last_batch(network: nn.Module) -> None:
    """Drop the distribution of the last gradient step: its graph cannot go to another process."""
    for module in network.modules():
        distribution: Any = getattr(module, "action_dist", None)
        for name, value in vars(distribution).items() if distribution is not None else ():
            if name == "distribution" or (isinstance(value, Tensor) and value.grad_fn is not None):
                setattr(distribution, name, None)


def _make_learner(
    run: TrainingRun, env: SB3VecEnv, network: dict[str, Any], settings: dict[str, Any]
) -> BaseAlgorithm:
    try:
        return find_algorithm(run.algo).learner(
            "MlpPolicy",
            env,
            seed=run.seed,
            device=run.config.device,
            policy_kwargs=policy_arguments(network),
            **settings,
        )
    except TypeError as error:
        raise TrainingError(
            f"{run.algo} does not take these settings: {error}; check TrainConfig(learner=...)"
        ) from error
