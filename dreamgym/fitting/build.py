"""The model that a fit starts with, and the world that is built of a fitted model."""

from __future__ import annotations

import json
import platform
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from dreamgym._device import seeded
from dreamgym.data import AnyDataset, MixedDataset
from dreamgym.data.bounds import action_bounds_findings, bounds_findings, covers, widened_space
from dreamgym.data.images import unread_images
from dreamgym.data.layout import observation_columns
from dreamgym.data.teaching import teaching_findings
from dreamgym.fitting.config import FitConfig
from dreamgym.metrics import TrainingMonitor, evaluate_metrics, recommend
from dreamgym.models import FAMILIES, ModelSpec, WorldModel
from dreamgym.models.observations import is_image, observation_boxes
from dreamgym.models.statistics import measure_statistics
from dreamgym.world.start_states import burn_in
from dreamgym.world.world import World

MAX_HORIZON = 200
"""Longest recommended horizon."""

MAX_LENGTHS = 3
"""Longest recommended horizon where the real environment has no limit, in lengths of the longest
episode: the data say nothing of what follows."""

RECORDED_VERSIONS = ("dreamgym", "torch", "numpy", "gymnasium", "h5py")
"""Packages whose versions are saved in a world's provenance."""


def build_model(
    config: FitConfig, family: str, seed: int, data: AnyDataset, training: NDArray
) -> WorldModel:
    """Build the model that a fit starts with, without touching the global generators.

    Args:
        config: settings; its `model` is a config of the family, None for the default, or a fitted
            model to continue from.
        family: name of a family in the registry.
        seed: seed of fresh weights.
        data: dataset to fit.
        training: (E,) episodes, by index, to fit the normalisers on; a fitted model keeps its own,
            because its weights depend on them, unless `config.refit_normalisers` is true.

    Raises:
        TypeError: `config.model` is neither a config of the family nor a model.
        ValueError: a fitted model is of another family, or has other spaces than the data.
    """
    for note in unread_images(observation_columns(data.observation_space)):
        warnings.warn(note, UserWarning, stacklevel=4)
    source = config.model
    with seeded(seed, torch.device("cpu")):
        if isinstance(source, WorldModel):
            model = _copy_fitted(source, family, data)
            if config.refit_normalisers:
                fit_normalisers(model, data, training)
            return model
        config_type = FAMILIES[family].config_type
        if source is not None and not isinstance(source, config_type):
            raise TypeError(
                f"model={type(source).__name__}: the {family} family takes a "
                f"{config_type.__name__}, or a fitted model (`world.model`)"
            )
        spec = ModelSpec(family=family, config=source)
        space = widened_space(data.observation_space, data.outside_observations())
        model = spec.build(space, data.action_space)
    fit_normalisers(model, data, training)
    return model


def fit_normalisers(model: WorldModel, data: AnyDataset, training: NDArray) -> None:
    """Fit a model's normalisers to some episodes."""
    episodes = (data.episode(int(index)) for index in training)
    actions = (data.actions(int(index)) for index in training)
    boxes = observation_boxes(data.observation_space)
    images = [key for key, box in boxes.items() if is_image(box)]
    pairs = ((each.observations, each.rewards) for each in episodes)
    flags = (column[training].tolist() for column in (data.random_actions, data.terminated))
    model.set_statistics(measure_statistics(pairs, actions, images, *flags))


def _copy_fitted(model: WorldModel, family: str, data: AnyDataset) -> WorldModel:
    """Return a trainable copy of a fitted model; the model itself is not changed."""
    spec = ModelSpec.of(model)
    if spec.family != family:
        raise ValueError(
            f"the model to continue from is of the family {spec.family!r}, the fit of {family!r}; "
            f"give family={spec.family!r}"
        )
    for role, fits in (
        ("observation_space", covers(model.observation_space, data.observation_space)),
        ("action_space", model.action_space == data.action_space),
    ):
        if not fits:
            raise ValueError(
                f"the {role} of the model to continue from is {getattr(model, role)}, that of the "
                f"data {getattr(data, role)}; give data of the same environment"
            )
    # A fresh build decides which parameters are trainable and which stay frozen.
    copy = spec.build(model.observation_space, data.action_space)
    copy.load_state_dict(model.state_dict())
    copy.before_fit()
    return copy


def divisible(data: AnyDataset) -> AnyDataset:
    """Return the dataset with a single episode cut into blocks, so that some can be held out.

    A warning says so where there is no other episode.
    """
    blocks = data.in_blocks()
    parts = data.datasets if isinstance(data, MixedDataset) else [data]
    # Whole episodes beside it, as in a loop with rounds of one episode, show how episodes start.
    if blocks is not data and all(part.num_episodes == 1 for part in parts):
        single = [str(part.path) for part in parts if part.num_episodes == 1]
        count = blocks.num_episodes - data.num_episodes + len(single)
        several = len(single) > 1
        held = (
            "hold a single episode each; they are" if several else "holds a single episode; it is"
        )
        warnings.warn(
            f"{' and '.join(single)} {held} cut into {count} blocks, and "
            "some of them are held out. Dreams start where blocks start, in the middle of the "
            "episode: to see how episodes start, record with max_episode_steps=200 "
            "(--max-episode-steps 200)",
            UserWarning,
            stacklevel=4,
        )
    return blocks


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """A fitted model and what it was fitted to.

    Attributes:
        model: model in eval mode, its parameters frozen; it is measured on its device and then
            moved to the CPU.
        data: dataset.
        training: (E,) indices of the episodes that the model was fitted to.
        held_out: (E,) indices of the other episodes.
        config: settings of the fit.
        seed: seed of the fit.
        info: how the fit went, JSON-plain; becomes part of the provenance.
    """

    model: WorldModel
    data: AnyDataset
    training: NDArray
    held_out: NDArray
    config: FitConfig
    seed: int
    info: dict[str, Any]


def build_world(result: FitResult) -> World:
    """Build a world: start states, recommended horizon and termination, metrics, provenance.

    A model with a foreign step is not measured: its horizon is that of the config, or the longest
    one, and terminations are sampled.
    """
    model, data, seed = result.model, result.data, result.seed
    held_out = (model, data, result.held_out)
    lessons = data.lessons()
    horizon = _horizon_cap(data, max(int(each.lengths.max()) for each in lessons))
    termination: str | float = "sample"
    # A start state is filtered over as many steps as the model was fitted to.
    length, count = result.config.segment_length, result.config.starts
    starts = burn_in(model, data, result.training, count=count, length=length, seed=seed)
    findings = (
        bounds_findings(data.outside_observations())
        + action_bounds_findings(data.action_space)
        + teaching_findings(lessons)
    )
    quality: dict[str, Any] = {"alarms": findings}
    if not model.foreign_step:
        recommendation = recommend(*held_out, cap=horizon, seed=seed)
        horizon, termination = recommendation.horizon, recommendation.termination
        monitor = TrainingMonitor(dataset=data, episodes=result.held_out, seed=seed)
        known: dict[str, Any] = {
            "training": result.training,
            "starts": starts.states,
            "episode_starts": starts.num_episode_starts,
        }
        inspection = monitor.inspect(model)
        measured = evaluate_metrics(*held_out, seed, **known)
        # What both measure has one figure, the one that an alarm names.
        measured |= {key: inspection.figures[key] for key in measured.keys() & inspection.figures}
        quality = {
            **measured,
            "recommendation": recommendation.reasons,
            "alarms": findings + [alarm.sentence for alarm in inspection.alarms],
        }
    provenance = {**_dataset_provenance(data), **result.info, "versions": _versions()}
    if model.pretrained_weights is not None:
        provenance["pretrained_weights"] = model.pretrained_weights
    return World(
        model=model.cpu(),
        starts=starts,
        env_spec=data.env_spec,
        horizon=result.config.horizon or horizon,
        termination=termination,
        provenance=provenance,
        quality=quality,
        frame_skip=data.frame_skip,
    )


def _horizon_cap(data: AnyDataset, longest: int) -> int:
    """Return the longest horizon to recommend, in steps of the dream.

    Args:
        data: the dataset.
        longest: environment steps of the longest episode; a single one is not in blocks here.
    """
    limit = _real_limit(data) or min(MAX_HORIZON, MAX_LENGTHS * longest)
    return min(data.frame_skip.count(limit), MAX_HORIZON)


def _real_limit(data: AnyDataset) -> int | None:
    """Return the real environment's time limit in its own steps, or None."""
    spec = json.loads(data.env_spec).get("max_episode_steps") if data.env_spec else None
    limits = [limit for limit in (spec, data.time_limit) if limit]
    return min(limits) if limits else None


def _dataset_provenance(data: AnyDataset) -> dict[str, Any]:
    return {
        "dataset": Path(data.path).name,
        "dataset_checksum": data.checksum,
        "dataset_steps": int(data.num_steps),
        "dataset_episodes": int(data.num_episodes),
        "dataset_policy": data.policy,
        "dataset_time_limit": data.time_limit,
    }


def _versions() -> dict[str, str]:
    versions = {name: version(name) for name in RECORDED_VERSIONS}
    return {"python": platform.python_version(), **versions}
