"""A policy from a world: one function over every algorithm of Stable-Baselines3."""

from __future__ import annotations

import platform
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList

from dreamgym._device import threads
from dreamgym.data.spaces import space_to_json
from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.errors import PolicyFileError, TrainingError, TrainingInterrupted
from dreamgym.train.config import TrainConfig
from dreamgym.train.policy import PolicyCard, TrainedPolicy, world_checksum
from dreamgym.train.sb3.algorithms import (
    Algorithm,
    check_action_space,
    find_algorithm,
    settings_for,
)
from dreamgym.train.sb3.callbacks import BatchedTruncationValues, LearningCurve, Progress
from dreamgym.train.sb3.policy_file import check_writable, policy_arguments, save_policy
from dreamgym.train.sb3.scaling import DreamScales, measure_scales
from dreamgym.train.sb3.vec_env import SB3VecEnv
from dreamgym.world.world import World, load

_POINTS = 50  # of the learning curve of an off-policy learner


@dataclass(frozen=True, kw_only=True)
class _Run:
    """Everything that is settled before the first step."""

    world: World
    algo: str
    algorithm: Algorithm
    seed: int
    steps: int
    config: TrainConfig
    settings: dict[str, Any]

    @property
    def num_envs(self) -> int:
        return self.config.num_envs or self.algorithm.num_envs

    @property
    def view(self) -> str:
        return self.config.view or self.world.default_view

    @property
    def dream_options(self) -> dict[str, Any]:
        return {
            "view": self.view,
            "device": self.config.device,
            "temperature": self.config.temperature,
            "max_episode_steps": self.config.horizon,
        }


def train_policy(  # noqa: PLR0913 - what to train is four of them
    world: World | str | Path,
    *,
    algo: str = "PPO",
    seed: int = 0,
    steps: int | None = None,
    out: str | Path | None = None,
    config: TrainConfig | None = None,
    progress: Progress | None = None,
) -> TrainedPolicy:
    """Train a policy in the dream of a world; the real environment is not touched.

    The policy standardises its input by fixed numbers measured in the dream, so it takes raw real
    observations (of its view). Rewards are scaled for the learner by a fixed number; the curve and
    the figures stay in the real environment's units.

    Args:
        world: or its folder, or the name of one that ships.
        algo: "PPO", "A2C", "SAC", "TD3" or "DQN".
        seed: of everything random in the training; Python's, NumPy's and torch's global
            generators are left as they were.
        steps: in the dream, over all copies; None takes the algorithm's default.
        out: where the policy is saved (aside, then renamed); None saves nothing.
        config: further settings.
        progress: called with (steps done, steps, {"dream return": ..., "dream length": ...}).

    Returns:
        The trained policy with its learner and its card.

    Raises:
        TrainingError: no such algorithm, one that cannot act in the world's action space, a
            setting that it does not have, or a number out of range.
        PolicyFileError: nothing can be written to `out`; said before the training where possible.
        TrainingInterrupted: Ctrl-C; what was trained so far is in `<out>.interrupted.zip`.
    """
    run = _settle(world, algo, seed, steps, config or TrainConfig())
    path = check_writable(out) if out is not None else None
    with _private_generators(), threads(run.config.threads):
        scales = measure_scales(
            run.world, seed=seed, gamma=run.settings["gamma"], options=run.dream_options
        )
        scale = run.config.reward_scale or scales.reward_scale
        env = SB3VecEnv(_dream(run), reward_scale=scale)
        try:
            policy = _learn(run, env, scales, progress, path)
        finally:
            env.close()
    if path is not None:
        save_policy(policy, path)
    return policy


def _settle(
    world: World | str | Path, algo: str, seed: int, steps: int | None, config: TrainConfig
) -> _Run:
    algorithm = find_algorithm(algo)
    if seed < 0:
        raise TrainingError(f"seed is {seed}; wanted 0 or more")
    if steps is not None and steps < 1:
        raise TrainingError(f"steps is {steps}; wanted at least 1")
    world = world if isinstance(world, World) else load(world)
    check_action_space(algo, world.action_space)
    return _Run(
        world=world,
        algo=algo,
        algorithm=algorithm,
        seed=seed,
        steps=steps or algorithm.steps,
        config=config,
        settings=settings_for(algo, config),
    )


def _dream(run: _Run) -> DreamVectorEnv:
    return DreamVectorEnv(
        run.world, run.num_envs, output="numpy", autoreset_mode="SameStep", **run.dream_options
    )


def _learn(
    run: _Run,
    env: SB3VecEnv,
    scales: DreamScales,
    progress: Progress | None,
    path: Path | None,
) -> TrainedPolicy:
    plain = {"net_arch": list(run.config.net_arch), "mean": scales.mean, "std": scales.std}
    try:
        learner = run.algorithm.learner(
            "MlpPolicy",
            env,
            seed=run.seed,
            device=run.config.device,
            policy_kwargs=policy_arguments(plain),
            **run.settings,
        )
    except TypeError as error:
        raise TrainingError(
            f"{run.algo} does not take these settings: {error}; look at TrainConfig(learner=...)"
        ) from error
    every = (
        run.settings["n_steps"] * run.num_envs if run.algorithm.on_policy else run.steps // _POINTS
    )
    curve = LearningCurve(run.steps, max(1, every), progress)
    callbacks: list[BaseCallback] = [curve]
    if run.algorithm.on_policy:
        callbacks.append(BatchedTruncationValues())

    def result() -> TrainedPolicy:
        card = _card(run, env, learner, plain, curve)
        return TrainedPolicy(network=learner.policy, card=card, algorithm=learner)

    try:
        learner.learn(run.steps, callback=CallbackList(callbacks))
    except KeyboardInterrupt:
        raise _interrupted(result(), path) from None
    return result()


def _interrupted(policy: TrainedPolicy, path: Path | None) -> TrainingInterrupted:
    steps = policy.card.steps
    done = f"training was interrupted after {steps:,} dream steps"
    if path is None:
        message = f"{done}; no out was given, so nothing was saved"
        return TrainingInterrupted(message, path=None, steps=steps)
    aside = path.with_name(f"{path.name.removesuffix('.zip')}.interrupted.zip")
    try:
        save_policy(policy, aside)
    except PolicyFileError as error:
        return TrainingInterrupted(f"{done}, and {error}", path=None, steps=steps)
    message = f"{done}; the policy as it was then is in {aside}, and nothing was done to {path}"
    return TrainingInterrupted(message, path=aside, steps=steps)


def _card(
    run: _Run, env: SB3VecEnv, learner: BaseAlgorithm, plain: dict[str, Any], curve: LearningCurve
) -> PolicyCard:
    chosen = {key: value for key, value in asdict(run.config).items() if value is not None}
    chosen.pop("learner")
    chosen["net_arch"] = list(run.config.net_arch)
    return PolicyCard(
        algo=run.algo,
        view=run.view,
        env_id=run.world.env_id,
        world=run.world.name,
        world_checksum=world_checksum(run.world),
        seed=run.seed,
        steps=int(learner.num_timesteps),
        observation_space=space_to_json(learner.observation_space),
        action_space=space_to_json(learner.action_space),
        policy=plain,
        hyperparameters={**chosen, **run.settings, "num_envs": env.num_envs},
        reward_scale=env.reward_scale,
        curve=[[float(steps), value] for steps, value in curve.points],
        versions=_versions(),
        frame_skip=run.world.frame_skip.to_json(),
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("dreamgym", "stable_baselines3", "torch", "gymnasium", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


@contextmanager
def _private_generators() -> Iterator[None]:
    """Put the global generators back: Stable-Baselines3 seeds all of them and draws from them."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
