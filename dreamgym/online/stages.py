"""The stages of a round that both forms of the loop share."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch

from dreamgym._files import partial_path
from dreamgym.data import (
    Dataset,
    Policy,
    PredictPolicy,
    SkippedDataset,
    recover,
    with_frame_skip,
)
from dreamgym.data.hdf5.guard import is_being_written
from dreamgym.data.hdf5.journal import journal_path
from dreamgym.data.policies import UnrolledPolicy, make_policy
from dreamgym.errors import DatasetError, OnlineError, TrainingInterrupted
from dreamgym.fitting import checkpoint, default_config, fit
from dreamgym.models import ModelSpec, Values, WorldModel
from dreamgym.models.spec import family_class, unsupported
from dreamgym.models.wrappers import Optimistic
from dreamgym.online.config import ImproveConfig
from dreamgym.train import Learner, TrainedPolicy, find_learner, load_policy, train_policy
from dreamgym.train.planners import PlannedPolicy, make_planner, planner_config
from dreamgym.transfer import LatentAgent
from dreamgym.world import World, load

Parts = Sequence[tuple[Path, float]]
"""Datasets and their numbers of steps, by which they are mixed: all transitions equally likely."""

Report = Callable[..., None]
"""Takes what is done and what there is to do of a stage, and perhaps figures, a mapping."""


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


def check_environment(config: ImproveConfig, env: gym.Env[Any, Any]) -> None:
    """Check, before any real step, that family and algorithm take the spaces of an environment.

    Raises:
        OnlineError: one of them does not, or there is a bonus but no uncertainty.
        ValueError: there is no such family.
        TypeError: a frame skip does not support the action space.
        PolicyError: there is no such first policy.
    """
    if config.bonus and not family_class(config.family).has_uncertainty:
        raise OnlineError(
            f"bonus is {config.bonus}: it rewards the world's uncertainty, and {config.family} has "
            "none; use the family 'pets', or an 'ensemble' of any family, or no bonus"
        )
    first_policy(config, env)
    action_space = config.skip.space(env.action_space)
    model = None if config.fit is None else config.fit.model
    reasons = []
    if not isinstance(model, WorldModel):
        config_type = family_class(config.family).config_type
        if model is not None and not isinstance(model, config_type):
            raise OnlineError(
                f"fit.model is a {type(model).__name__}; the {config.family} family takes a "
                f"{config_type.__name__}, or a fitted model"
            )
        reasons.append(unsupported(config.family, env.observation_space, action_space, model))
    if config.planner is None:
        learner = find_learner(config.algo, config.learner)
        reasons.append(learner.library().unsupported(config.algo, action_space))
    for reason in reasons:
        if reason is not None:
            raise OnlineError(reason)
    if config.planner is not None:
        _check_planner(config, env.observation_space, action_space)


def _check_planner(config: ImproveConfig, observation_space: Any, action_space: Any) -> None:
    """Check that the planner of the settings can search a model of the family.

    Raises:
        OnlineError: it cannot, or there is no such planner.
    """
    model = None if config.fit is None else config.fit.model
    if not isinstance(model, WorldModel):
        with torch.random.fork_rng(devices=[]):
            spec = ModelSpec(family=config.family, config=model)
            model = spec.build(observation_space, action_space)
    own = model if isinstance(model, Values) else None
    try:
        make_planner(model, config.planner, value=own)
    except (TypeError, ValueError) as error:
        raise OnlineError(f"the planner {config.planner!r}: {error}") from error


def first_policy(config: ImproveConfig, env: gym.Env[Any, Any]) -> Policy:
    """Return the policy of the first round; its actions are held if the frame skip repeats them."""
    policy = make_policy(config.first_policy, env)
    if config.actions == "repeated":
        return UnrolledPolicy(policy, config.skip, env.action_space)
    return policy


@contextmanager
def _opened(config: ImproveConfig, data: Parts) -> Iterator[Any]:
    """Open datasets with the frame skip; a single one without a weight."""
    with ExitStack() as stack:
        parts: list[tuple[Dataset | SkippedDataset, float]] = [
            (with_frame_skip(stack.enter_context(Dataset(path)), config.skip), weight)
            for path, weight in data
        ]
        yield parts if len(parts) > 1 else parts[0][0]


def fit_world(  # noqa: PLR0913 - a stage takes what the others made
    config: ImproveConfig,
    data: Parts,
    path: Path,
    *,
    steps: int,
    last: Path | None,
    seed: int,
    progress: Report | None = None,
) -> World:
    """Fit the world of a round.

    Args:
        config: settings.
        data: all data so far.
        path: folder of the world to make.
        steps: real steps since the last fit.
        last: folder of the world of the round before; None in the first round.
        seed: the same in every round, so that episodes that are held out stay held out.
        progress: see `fit`.
    """
    settings = config.fit or default_config(config.family)
    settings = replace(settings, updates=config.updates(steps, settings))
    earlier = None
    if last is not None and config.one_fit:
        done = load(last).provenance["updates"]
        settings = replace(settings, updates=done + settings.updates, refit_normalisers=True)
        earlier = checkpoint.path_for(last)
    elif last is not None and not config.fresh_world:
        settings = replace(settings, model=load(last).model, refit_normalisers=True)
    with _opened(config, data) as source:
        return fit(
            source,
            path,
            family=config.family,
            seed=seed,
            config=settings,
            progress=progress,
            keep_checkpoint=config.one_fit,
            continue_from=earlier,
        )


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
    progress: Report | None = None,
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
        progress: see `train_policy`.
    """
    train = config.train
    if config.branches is not None:
        used = sum(int(count) for _, count in data)
        train = replace(train, horizon=config.branches.length(used))
    with ExitStack() as stack:
        real = stack.enter_context(_opened(config, data)) if train.real_share else None
        stack.enter_context(_leaving_nothing())
        train_policy(
            world.with_model(Optimistic(world.model, weight=bonus)) if bonus else world,
            algo=config.algo,
            learner=config.learner,
            seed=seed,
            steps=config.training_steps(steps),
            out=path,
            config=train,
            initial=None if config.fresh_policy else initial,
            real_data=real,
            progress=progress,
        )
    return load_policy(path)  # as after an interruption


@contextmanager
def _leaving_nothing() -> Iterator[None]:
    """Remove the unfinished policy at a Ctrl-C: the loop trains it again."""
    try:
        yield
    except TrainingInterrupted as stop:
        if stop.path is not None:
            stop.path.unlink()
        raise KeyboardInterrupt from None


def forget_fit(world: Path) -> None:
    """Remove what only the next fit needs of a world, once that is done."""
    checkpoint.path_for(world).unlink(missing_ok=True)


def acting(config: ImproveConfig, policy: TrainedPolicy | None, world: Path) -> Policy:
    """Return the policy of real observations that records: it samples, or plans and explores."""
    if policy is None:
        return PlannedPolicy(world, planner_config(config.planner).exploring())
    if policy.view == "latent":
        return LatentAgent(policy, world)
    return PredictPolicy(policy)


def save_killed(path: Path) -> None:
    """Make a dataset of the steps that a killed recording had taken, if there was one.

    The open episode is among them if `keep_open` was on. It may itself be killed at any moment and
    called again. A file that cannot be read at all, of a recording that was killed while it created
    the file, is set aside with a warning, and so is a damaged open episode.

    Args:
        path: the dataset that was being recorded.
    """
    partial, killed = partial_path(path), path.with_name(path.name + ".killed")
    tail = path.with_name(path.name + ".tail")
    if killed.exists() and not path.exists() and not partial.exists():
        killed.rename(partial)  # killed before the dataset got its name
    if not partial.exists():
        journal_path(path).unlink(missing_ok=True)  # killed before its removal
        return
    tail.unlink(missing_ok=True)  # it is written again
    if killed.exists():  # it holds damaged episodes, or was killed before its removal
        killed.rename(_free_name(killed))
    try:
        saved = recover(path)
    except DatasetError as error:
        journal = journal_path(path)
        if error.path == str(journal) and journal.exists():
            aside = journal.rename(_free_name(journal))
            warnings.warn(f"{error}; it is kept as {aside}, without its steps", stacklevel=2)
            save_killed(path)
            return
        if is_being_written(partial) or _has_episodes(partial):
            raise
        aside = partial.rename(_free_name(killed))
        # killed while the file was being created
        warnings.warn(f"{error}; it is kept as {aside}, without its steps", stacklevel=2)
        return
    if not saved.damaged:  # all committed episodes are in the dataset
        saved.original.unlink()
        if saved.tail is not None:
            saved.tail.unlink()


def _has_episodes(partial: Path) -> bool:
    """Return whether an unfinished dataset can be read and has committed episodes."""
    try:
        with Dataset.snapshot(partial) as data:
            return data.num_episodes > 0
    except DatasetError:
        return False


def _free_name(path: Path) -> Path:
    """Return the path with the first number at its end that is not taken."""
    candidates = (path.with_name(f"{path.name}-{number}") for number in itertools.count(1))
    return next(each for each in candidates if not each.exists())
