"""Where dreams begin: what the option `starts` stands for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dreamgym.data import Dataset, skipping
from dreamgym.dream.drawing import Sources, mixed
from dreamgym.files import nearest
from dreamgym.starts import Starts, burn_in
from dreamgym.world import World

NAMED = ("bank", "beginnings")


def find_sources(world: World, starts: Any, device: Any) -> Sources:
    """Starts to draw from.

    Args:
        world: whose model states are for.
        starts: as `DreamOptions.starts`.
        device: where to hold them.

    Raises:
        ValueError: nothing goes by that name, a weight is not above 0, or states do not fit.
        DatasetError: the dataset cannot be read.
    """
    if isinstance(starts, Mapping) and not _is_state(starts):
        weights = {name: _weight(name, weight) for name, weight in starts.items()}
        banks = [(weight, _bank(world, name)) for name, weight in weights.items()]
    else:
        banks = [(1.0, _bank(world, starts))]
    if not banks:
        raise ValueError("starts is empty: give at least one source and its weight")
    return mixed(banks, device)


def _bank(world: World, source: Any) -> Starts:
    if isinstance(source, Starts):
        return _fitting(world, source)
    if isinstance(source, Mapping):
        rows = len(next(iter(source.values())))
        return _fitting(world, Starts(states=dict(source), beginnings=rows))
    if source == "bank":
        return world.starts
    if source == "beginnings":
        count = world.starts.beginnings
        states = {key: leaf[:count] for key, leaf in world.starts.states.items()}
        return Starts(states=states, beginnings=count)
    if isinstance(source, str | Path) and Path(source).exists():
        return _from_dataset(world, Path(source))
    raise ValueError(
        f"starts={source!r} is neither a name nor the path of a dataset: "
        f"{nearest(str(source), NAMED)}"
    )


def _from_dataset(world: World, path: Path) -> Starts:
    """Starts burnt in on every episode of a dataset."""
    with Dataset(path) as opened:
        dataset = skipping(opened, world.frame_skip)
        for role in ("observation_space", "action_space"):
            theirs, ours = getattr(dataset, role), getattr(world, role)
            if theirs != ours:
                raise ValueError(
                    f"starts={str(path)!r}: the dataset's {role} is {theirs}, the world's {ours}; "
                    "give a dataset of the same environment"
                )
        dataset.verify()  # fitting did so of its own dataset
        return burn_in(world.model, dataset, np.arange(dataset.num_episodes))


def _fitting(world: World, starts: Starts) -> Starts:
    """The starts in the precision of the world's own."""
    ours = world.starts.states
    wanted = {key: tuple(leaf.shape[1:]) for key, leaf in ours.items()}
    given = {key: tuple(leaf.shape[1:]) for key, leaf in starts.states.items()}
    if wanted != given:
        raise ValueError(f"starts have leaves of shapes {given}; this world's states have {wanted}")
    for key, leaf in starts.states.items():
        if _kind(leaf) != _kind(ours[key]):
            raise ValueError(
                f"starts: the leaf {key!r} holds {leaf.dtype}, this world's states "
                f"{ours[key].dtype}; give {_kind(ours[key])}"
            )
    cast = {key: leaf.to(ours[key].dtype) for key, leaf in starts.states.items()}
    return Starts(states=cast, beginnings=starts.beginnings)


def _kind(leaf: Tensor) -> str:
    """What sort of numbers a leaf holds, whatever their precision."""
    if leaf.is_complex():
        return "complex numbers"
    if leaf.is_floating_point():
        return "floating-point numbers"
    return "bools" if leaf.dtype == torch.bool else "whole numbers"


def _is_state(mapping: Mapping[str, Any]) -> bool:
    return bool(mapping) and all(isinstance(value, Tensor) for value in mapping.values())


def _weight(name: str, weight: Any) -> float:
    if isinstance(weight, int | float) and weight > 0:
        return float(weight)
    raise ValueError(f"starts: the weight of {name!r} is {weight!r}; give a number above 0")
