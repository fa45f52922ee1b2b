"""The stages of a round that both forms of the loop share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dreamgym.data import Dataset, Policy, PredictPolicy, recover
from dreamgym.errors import OnlineError
from dreamgym.fitting import default_config, fit
from dreamgym.models.wrappers import Optimistic
from dreamgym.online.config import ImproveConfig
from dreamgym.train import Learner, TrainedPolicy, find_learner, load_policy, train_policy
from dreamgym.transfer import LatentAgent
from dreamgym.world import World

Parts = Sequence[tuple[str | Path | Dataset, float]]
"""Datasets and their numbers of steps, by which they are mixed: all transitions equally likely."""


def checked_learner(config: ImproveConfig) -> Learner:
    """Return the learner that the settings name.

    Raises:
        TrainingError: there is none.
        OnlineError: its trainings cannot go on from a policy, and the settings ask for it.
    """
    learner = find_learner(config.algo, config.learner)
    if not (learner.goes_on or config.fresh_policy):
        raise OnlineError(
            f"a training with {learner.title} starts from fresh weights; give fresh_policy=True "
            "(--fresh-policy), or another learner"
        )
    return learner


def fit_world(
    config: ImproveConfig, data: Parts, path: Path, *, steps: int, last: World | None, seed: int
) -> World:
    """Fit the world of a round.

    Args:
        config: settings.
        data: all data so far.
        path: folder of the world to make.
        steps: real steps since the last fit.
        last: world of the round before; None in the first round.
        seed: the same in every round, so that episodes that are held out stay held out.
    """
    settings = config.fit or default_config(config.family)
    settings = replace(settings, updates=config.updates(steps, settings))
    if last is not None and not config.fresh_world:
        settings = replace(settings, model=last.model, refit_normalisers=True)
    source = list(data) if len(data) > 1 else data[0][0]
    return fit(source, path, family=config.family, seed=seed, config=settings)


def train_in_dreams(  # noqa: PLR0913 - a stage takes what the others made
    config: ImproveConfig,
    world: World,
    path: Path,
    *,
    data: Parts,
    steps: int,
    bonus: float,
    initial: TrainedPolicy | None,
    seed: int,
) -> TrainedPolicy:
    """Train the policy of a round.

    Args:
        config: settings.
        world: world of the round.
        path: file of the policy to make.
        data: all data so far.
        steps: real steps since the last training.
        bonus: reward for each unit of uncertainty.
        initial: policy of the round before; None in the first round.
        seed: seed of the training.
    """
    train = config.train
    if config.branches is not None:
        used = sum(int(count) for _, count in data)
        train = replace(train, horizon=config.branches.length(used))
    train_policy(
        world.with_model(Optimistic(world.model, weight=bonus)) if bonus else world,
        algo=config.algo,
        learner=config.learner,
        seed=seed,
        steps=config.training_steps(steps),
        out=path,
        config=train,
        initial=None if config.fresh_policy else initial,
        real_data=list(data) if train.real_share else None,
    )
    return load_policy(path)  # as after an interruption


def acting(policy: TrainedPolicy, world: World | Path) -> Policy:
    """Return a policy of real observations whose actions are sampled."""
    if policy.view == "latent":
        return LatentAgent(policy, world)
    return PredictPolicy(policy)


def save_killed(path: Path) -> None:
    """Make a dataset of the episodes that a killed recording had committed.

    Args:
        path: the dataset that was being recorded, or its `.partial` file.
    """
    saved = recover(path)
    if not saved.damaged:  # all committed episodes are in the dataset
        saved.original.unlink()
        if saved.tail is not None:
            saved.tail.unlink()
