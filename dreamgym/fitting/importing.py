"""A world of a model that was fitted elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym

from dreamgym.data import AnyDataset, open_dataset
from dreamgym.errors import WorldError
from dreamgym.fitting.build import FitResult, build_world
from dreamgym.fitting.config import FitConfig
from dreamgym.models import WorldModel
from dreamgym.models.jepa import LeWMStatistics, load_lewm
from dreamgym.world.world import World


def from_model(
    model: WorldModel,
    dataset: str | Path | AnyDataset,
    out: str | Path | None = None,
    *,
    seed: int = 0,
    config: FitConfig | None = None,
) -> World:
    """Make a world of any world model that is fitted already, and a dataset of its environment.

    The dataset gives what a fit takes from it besides the weights: the starts, burnt in on most of
    its episodes, and the horizon, the termination rule and the quality, found on the others. What
    the model was fitted to is not known here: held-out episodes may have been among it.

    Args:
        model: put into eval mode, its parameters frozen, on the CPU.
        dataset: of the environment that the model is of; read with the frame skip that the model
            was fitted with (`SkippedDataset`).
        out: folder of the world to make; None keeps it in memory.
        seed: of the split, the starts and the measurements.
        config: of it `held_out`, `starts`, `horizon` and `overwrite` are used; None for defaults.

    Raises:
        WorldError: the model's spaces are not the dataset's, or the world cannot be saved.
        DatasetError: the dataset cannot be used.
        FileExistsError: `out` exists and may not be overwritten.
    """
    config = config or FitConfig()
    if out is not None and Path(out).exists() and not config.overwrite:
        raise FileExistsError(f"{out} exists already; give another path or overwrite=True")
    with open_dataset(dataset) as data:
        for role in ("observation_space", "action_space"):
            own, wanted = getattr(model, role), getattr(data, role)
            if own != wanted:
                raise WorldError(
                    f"the model's {role} is {own}, that of {data.path} is {wanted}; give data of "
                    "the model's environment, read with the frame skip that it was fitted with"
                )
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
                said={"fit": _said(data, config, seed)},
            )
        )
    if out is not None:
        world.save(out, overwrite=config.overwrite)
    return world


def from_lewm(
    checkpoint: str | Path,
    dataset: str | Path | AnyDataset,
    out: str | Path | None = None,
    *,
    statistics: LeWMStatistics | None = None,
    seed: int = 0,
    config: FitConfig | None = None,
) -> World:
    """Make a world of a checkpoint of LeWM: `load_lewm`, then `from_model`.

    It has no reward: `world.with_model(GoalReward(world.model, goal))` gives it one.

    Args:
        checkpoint: its folder, or one of the weights in it.
        dataset: of the checkpoint's environment, with images and nothing else to see, read with the
            checkpoint's frame skip: `SkippedDataset(Dataset(path), FrameSkip(steps=5))`.
        out: as for `from_model`.
        statistics: of the dataset that the checkpoint was fitted to; where that is this one,
            `LeWMStatistics.of(dataset)`. All four are needed.
        seed: as for `from_model`.
        config: as for `from_model`.

    Raises:
        LeWMError: the checkpoint cannot be used, a statistic is missing, or the data do not fit it.
        WorldError: the world cannot be saved.
        DatasetError: the dataset cannot be used.
        FileExistsError: `out` exists and may not be overwritten.
    """
    with open_dataset(dataset) as data:
        spaces: tuple[gym.Space[Any], gym.Space[Any]] = data.observation_space, data.action_space
        model = load_lewm(checkpoint, *spaces, statistics)
        return from_model(model, data, out, seed=seed, config=config)


def _said(data: AnyDataset, config: FitConfig, seed: int) -> dict[str, Any]:
    """What is known of how the world was made: not how its model was fitted."""
    return {
        "fitted": "elsewhere",
        "dataset": data.checksum,
        "held_out": config.held_out,
        "seed": seed,
        **data.selection,
    }
