"""Training with an algorithm of Stable-Baselines3."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.utils import LinearSchedule
from torch import Tensor, nn

from dreamgym.errors import TrainingError
from dreamgym.train.policy import TrainedPolicy
from dreamgym.train.sb3.algorithms import find_algorithm, settings_for, settings_to_go_on
from dreamgym.train.sb3.callbacks import BatchedTruncationValues, LearningCurve
from dreamgym.train.sb3.policy_file import policy_arguments
from dreamgym.train.sb3.replay import MixedReplayBuffer, real_transitions
from dreamgym.train.sb3.vec_env import SB3VecEnv
from dreamgym.train.scales import measure_scales
from dreamgym.train.training import TrainingRun

_CURVE_POINTS = 50  # of an off-policy algorithm; an on-policy one has a point each rollout


def check(run: TrainingRun) -> None:
    """See `LearnerLibrary.check`."""
    algorithm = find_algorithm(run.algo)
    settings_for(run.algo, run.config)
    if run.config.real_share and algorithm.on_policy:
        raise TrainingError(
            f"real_share={run.config.real_share} does not apply to {run.algo}, which learns from "
            "its own steps only; use SAC, TD3 or DQN, or leave it out"
        )
    if run.config.real_share and run.view != "observation":
        raise TrainingError(
            f"real_share={run.config.real_share}: real transitions are observations, and the "
            f"policy sees the {run.view} view; pass view='observation', or leave it out"
        )


def train(run: TrainingRun) -> tuple[TrainedPolicy, bool]:
    """See `LearnerLibrary.train`."""
    algorithm, settings = find_algorithm(run.algo), settings_for(run.algo, run.config)
    num_envs = run.config.num_envs or algorithm.num_envs
    rollout = num_envs * (settings["n_steps"] if algorithm.on_policy else 1)
    steps = run.steps_left(algorithm.steps, rollout)
    if run.initial is not None:
        network, reward_scale = run.initial.card.policy, run.initial.card.reward_scale
        settings = settings_to_go_on(run.algo, settings, run.initial.card.learned)
    else:
        scales = measure_scales(
            run.world, seed=run.seed, gamma=settings["gamma"], options=run.dream_options
        )
        network = {
            "net_arch": list(run.config.net_arch),
            **algorithm.network,
            "mean": scales.mean,
            "std": scales.std,
        }
        reward_scale = scales.reward_scale
    dream = run.make_dream(num_envs)
    env = SB3VecEnv(dream, reward_scale=run.config.reward_scale or reward_scale)
    try:
        learner = _make_learner(run, env, network, settings, steps)
        every = rollout if algorithm.on_policy else steps // _CURVE_POINTS

        def policy_so_far() -> TrainedPolicy:
            card = run.card(
                dream,
                settings=settings,
                steps=int(learner.num_timesteps),
                policy=network,
                reward_scale=env.reward_scale,
                learned=_learned(learner),
                curve=[[float(done), value] for done, value in curve.points],
            )
            _forget_last_batch(learner.policy)
            return TrainedPolicy(network=learner.policy, card=card, algorithm=learner)

        def report(done: int, total: int, figures: dict[str, float]) -> None:
            run.report(done, total, figures, policy_so_far)

        curve = LearningCurve(steps, max(1, every), report)
        callbacks: list[BaseCallback] = [curve]
        if algorithm.on_policy:
            callbacks.append(BatchedTruncationValues())
        finished = True
        try:
            learner.learn(steps, callback=CallbackList(callbacks))
        except KeyboardInterrupt:
            finished = False
        policy = policy_so_far()
        if run.real_data is not None:
            learner.replay_buffer = None  # type: ignore[attr-defined]
        return policy, finished
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
    run: TrainingRun, env: SB3VecEnv, network: dict[str, Any], settings: dict[str, Any], steps: int
) -> BaseAlgorithm:
    algorithm = find_algorithm(run.algo)
    if run.real_data is not None:
        settings = {
            **settings,
            "replay_buffer_class": MixedReplayBuffer,
            "replay_buffer_kwargs": {
                "real": real_transitions(run.real_data, env),
                "share": run.config.real_share,
            },
        }
    try:
        if algorithm.anneal:  # a run that was stopped goes on from where its rate had fallen to
            share = min(1.0, steps / (run.steps or algorithm.steps))
            rate = LinearSchedule(share * settings["learning_rate"], 0.0, 1.0)
            settings = {**settings, "learning_rate": rate}
        learner = algorithm.learner(
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
    if run.initial is not None:
        try:
            learner.policy.load_state_dict(run.initial.network.state_dict())
        except RuntimeError as error:
            raise TrainingError(
                f"the policy to go on from does not fit the world {run.world.name!r}: {error}; "
                "give a policy that was trained for the same spaces"
            ) from None
    return learner


def _learned(learner: BaseAlgorithm) -> dict[str, float]:
    """Return what the learner has learned outside its network, see `PolicyCard.learned`."""
    logarithm = getattr(learner, "log_ent_coef", None)
    return {} if logarithm is None else {"ent_coef": float(logarithm.detach().exp())}
