"""A dataset as a world reads it, and which of its episodes the world was not fitted to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from dreamgym.data import AnyDataset, Dataset, SkippedDataset, with_frame_skip
from dreamgym.data.bounds import covers
from dreamgym.data.mixture import DatasetSource, MixedDataset, PathOrDataset
from dreamgym.errors import WorldError
from dreamgym.world.world import World


@dataclass(frozen=True, kw_only=True)
class WorldData:
    """A dataset with a world's frame skip and observation keys.

    Attributes:
        dataset: the open dataset.
        training: (E,) indices of episodes that the world was fitted to.
        held_out: (E,) indices of episodes that it was not fitted to.
        is_fitted_data: whether this is the dataset of the fit, so that the two are those of the
            fit. Of other data, all episodes are held out, and all may be used for training.
    """

    dataset: AnyDataset
    training: NDArray[np.integer]
    held_out: NDArray[np.integer]
    is_fitted_data: bool


@contextmanager
def open_for(world: World, source: DatasetSource) -> Iterator[WorldData]:
    """Open a dataset for the block as a world reads it.

    Args:
        world: a world.
        source: a dataset, its path, or pairs of one of those and a weight, as `fit` takes it.

    Raises:
        DatasetError: it cannot be opened.
        WorldError: its spaces are not the world's, or the world is played in latent actions.
    """
    world.check_takes_data_actions()
    with ExitStack() as stack:
        keys = None
        if isinstance(world.observation_space, gym.spaces.Dict):
            keys = list(world.observation_space.spaces)

        def read(part: PathOrDataset) -> Dataset | SkippedDataset:
            if isinstance(part, str | os.PathLike):
                part = stack.enter_context(Dataset(part, keys=keys))
            part = part.in_blocks()
            return with_frame_skip(part, world.frame_skip) if isinstance(part, Dataset) else part

        if isinstance(source, MixedDataset):
            source = list(zip(source.datasets, source.weights, strict=True))
        data: AnyDataset
        if isinstance(source, str | os.PathLike | Dataset | SkippedDataset):
            data = read(source)
        else:
            data = MixedDataset([(read(part), weight) for part, weight in source])
        # A world's bounds are wider where values of its data were outside those of the space.
        fits = covers(world.observation_space, data.observation_space)
        if not (fits and world.action_space == data.action_space):
            raise WorldError(
                f"the dataset {data.path} has the spaces "
                f"{(data.observation_space, data.action_space)}, world {world.name!r} has "
                f"{(world.observation_space, world.action_space)}; give data of the environment "
                "that the world was fitted to"
            )
        yield _divided(world, data)


def _divided(world: World, data: AnyDataset) -> WorldData:
    fit = world.provenance.get("fit", {})
    if fit.get("dataset") == data.checksum and {"held_out", "seed"} <= fit.keys():
        training, held_out = data.split(fit["held_out"], fit["seed"])
        return WorldData(dataset=data, training=training, held_out=held_out, is_fitted_data=True)
    everything = np.arange(data.num_episodes)
    return WorldData(dataset=data, training=everything, held_out=everything, is_fitted_data=False)
