"""Make worlds of models that were fitted elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym

from dreamgym._device import float32_by_default
from dreamgym._files import local_path, require_new
from dreamgym.data import AnyDataset, open_dataset
from dreamgym.data.bounds import covers
from dreamgym.errors import WorldError
from dreamgym.fitting.build import FitResult, build_world, divisible
from dreamgym.fitting.config import FitConfig
from dreamgym.models import WorldModel
from dreamgym.models.jepa import LeWMStatistics, load_lewm
from dreamgym.world.world import World


@float32_by_default()
def from_model(
    model: WorldModel,
    dataset: str | Path | AnyDataset,
    out: str | Path | None = None,
    *,
    seed: int = 0,
    config: FitConfig | None = None,
) -> World:
    """Make a world of a fitted world model and a dataset of its environment.

    The dataset provides everything but the weights. Start states are filtered
    from most of its episodes; the horizon, the termination rule and the metrics come from the
    others. Whether the model was fitted to these held-out episodes is not known here.

    Args:
        model: fitted model; it is moved to the CPU, put into eval mode, and frozen.
        dataset: data of the model's environment, read with the frame skip that the model was
            fitted with (`SkippedDataset`).
        out: folder of the world to make; None keeps it in memory.
        seed: seed of the split, the start states and the metrics.
        config: settings, of which `held_out`, `starts`, `horizon` and `overwrite` are used; None
            for the defaults.

    Raises:
        WorldError: the model's spaces are not the dataset's, or the world cannot be saved.
        DatasetError: the dataset cannot be used.
        FileExistsError: `out` exists and `config.overwrite` is false.
    """
    config = config or FitConfig()
    out = None if out is None else local_path(out, WorldError)
    if out is not None:
        require_new(out, overwrite=config.overwrite)
    with open_dataset(dataset) as data:
        for role in ("observation_space", "action_space"):
            actual, expected = getattr(data, role), getattr(model, role)
            if not covers(expected, actual):
                raise WorldError(
                    f"the model's {role} is {expected}, that of {data.path} is {actual}; give data "
                    "of the model's environment, read with the frame skip it was fitted with"
                )
        data = divisible(data)
        data.verify()
        training, held_out = data.split(config.held_out, seed)
        world = build_world(
            FitResult(
                model=model.cpu().eval().requires_grad_(False),
                data=data,
                training=training,
                held_out=held_out,
                config=config,
                seed=seed,
                info={"fit": _fit_info(data, config, seed)},
            )
        )
    if out is not None:
        world.save(out, overwrite=config.overwrite)
    return world


@float32_by_default()
def from_lewm(
    checkpoint: str | Path,
    dataset: str | Path | AnyDataset,
    out: str | Path | None = None,
    *,
    statistics: LeWMStatistics | None = None,
    seed: int = 0,
    config: FitConfig | None = None,
) -> World:
    """Make a world of a LeWM checkpoint: `load_lewm`, then `from_model`.

    LeWM has no reward; `world.with_model(GoalReward(world.model, goal))` gives it one.

    Args:
        checkpoint: folder of the checkpoint, or a weights file in it.
        dataset: data of the checkpoint's environment, observed by images alone and read with the
            checkpoint's frame skip: `SkippedDataset(Dataset(path), FrameSkip(steps=5))`.
        out: as for `from_model`.
        statistics: statistics of the dataset that the checkpoint was fitted to, all four of them;
            if that is this dataset, `LeWMStatistics.of(dataset)`.
        seed: as for `from_model`.
        config: as for `from_model`.

    Raises:
        LeWMError: the checkpoint cannot be used, a statistic is missing, or the data do not fit it.
        WorldError: the world cannot be saved.
        DatasetError: the dataset cannot be used.
        FileExistsError: `out` exists and `config.overwrite` is false.
    """
    with open_dataset(dataset) as data:
        spaces: tuple[gym.Space[Any], gym.Space[Any]] = data.observation_space, data.action_space
        model = load_lewm(checkpoint, *spaces, statistics)
        return from_model(model, data, out, seed=seed, config=config)


def _fit_info(data: AnyDataset, config: FitConfig, seed: int) -> dict[str, Any]:
    """Return the provenance of the world; that of the model's weights is not known."""
    return {
        "fitted": "elsewhere",
        "dataset": data.checksum,
        "held_out": config.held_out,
        "segment_length": config.segment_length,
        "seed": seed,
        **data.selection,
    }
