"""What is drawn anew for each episode: its start, its horizon, its temperature."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dreamgym._files import nearest
from dreamgym.data import Dataset, skipping
from dreamgym.dream.noise import step_keys, uniforms
from dreamgym.models import State
from dreamgym.world.start_states import StartStates, burn_in
from dreamgym.world.world import World

START_STEP = -1

"""The step counter under which an episode is drawn: before its first action."""


LANES = 4


COMPONENT, PLACE, HORIZON, TEMPERATURE = range(LANES)


class Sources(NamedTuple):
    """Starts to draw from: ranges of rows of one bank, each with a weight.

    Attributes:
        states: the bank; leaves (S, ...).
        first: (K,) int64 first row of each range.
        size: (K,) int64 rows of each range.
        until: (K,) float32 cumulative weights, the last one 1.
    """

    states: State
    first: Tensor
    size: Tensor
    until: Tensor


def mixed(banks: list[tuple[float, StartStates]], device: torch.device) -> Sources:
    """Starts that are drawn from several banks, by weight.

    Args:
        banks: (weight, starts) pairs; weights above 0, in any unit.
        device: where to hold them.
    """
    sizes = torch.tensor([starts.size for _, starts in banks])
    weights = torch.tensor([weight for weight, _ in banks], dtype=torch.float64)
    until = (weights.cumsum(0) / weights.sum()).float()
    states = {
        key: torch.cat([starts.states[key] for _, starts in banks]).to(device)
        for key in banks[0][1].states
    }
    return Sources(
        states=states,
        first=(sizes.cumsum(0) - sizes).to(device),
        size=sizes.to(device),
        until=until.to(device),
    )


class Drawn(NamedTuple):
    """What is drawn for an episode.

    Attributes:
        row: of the bank of starts, int64.
        horizon: uniform number that its horizon is made of.
        temperature: likewise.
    """

    row: Tensor
    horizon: Tensor
    temperature: Tensor


class Episodes(NamedTuple):
    """How each new episode is drawn.

    Attributes:
        sources: its start.
        horizon: steps after which it is truncated; least and greatest whole number, all alike
            likely.
        temperature: of its dream; least and greatest, or (N,) one for each environment.
    """

    sources: Sources
    horizon: tuple[int, int]
    temperature: tuple[float, float] | Tensor

    def draw(self, keys: Tensor, episode: Tensor) -> Drawn:
        """What is drawn for episodes.

        Args:
            keys: (N,) int64 of `env_keys`.
            episode: (N,) or (K, N) int64.
        """
        lanes = uniforms(step_keys(keys, episode, torch.full_like(episode, START_STEP)), LANES)
        # Each in a piece, which a view of one row is not: a step is compiled for the layout that it
        # is first given.
        apart = lanes.movedim(-1, 0).clone(memory_format=torch.contiguous_format)
        component, place, horizon, temperature = apart
        return Drawn(self._row(component, place), horizon, temperature)

    def starts(self, row: Tensor) -> State:
        """States (R, ...) of rows (R,) of the bank."""
        return {key: leaf[row] for key, leaf in self.sources.states.items()}

    def horizons(self, uniform: Tensor) -> Tensor:
        """(R,) int64 from uniforms (R,)."""
        low, high = self.horizon
        if low == high:
            return torch.full_like(uniform, low, dtype=torch.int64)
        return (uniform * (high - low + 1)).long() + low

    def temperatures(self, uniform: Tensor, rows: Tensor | slice) -> Tensor:
        """(R,) float32 from uniforms (R,), for these rows of all."""
        if isinstance(self.temperature, Tensor):
            return self.temperature[rows].clone()
        low, high = self.temperature
        return torch.full_like(uniform, low) if low == high else low + uniform * (high - low)

    def _row(self, component: Tensor, place: Tensor) -> Tensor:
        """Rows of the bank, int64."""
        _, first, size, until = self.sources
        if len(first) == 1:
            return torch.minimum((place * size).long(), size - 1)
        chosen = (component.unsqueeze(-1) >= until[:-1]).sum(-1)
        size = size[chosen]
        # Rounding must not reach past the last row of a bank of millions.
        return first[chosen] + torch.minimum((place * size).long(), size - 1)


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


def _bank(world: World, source: Any) -> StartStates:
    if isinstance(source, StartStates):
        return _fitting(world, source)
    if isinstance(source, Mapping):
        rows = len(next(iter(source.values())))
        return _fitting(world, StartStates(states=dict(source), num_episode_starts=rows))
    if source == "bank":
        return world.starts
    if source == "beginnings":
        count = world.starts.num_episode_starts
        states = {key: leaf[:count] for key, leaf in world.starts.states.items()}
        return StartStates(states=states, num_episode_starts=count)
    if isinstance(source, str | Path) and Path(source).exists():
        return _from_dataset(world, Path(source))
    raise ValueError(
        f"starts={source!r} is neither a name nor the path of a dataset: "
        f"{nearest(str(source), NAMED)}"
    )


def _from_dataset(world: World, path: Path) -> StartStates:
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


def _fitting(world: World, starts: StartStates) -> StartStates:
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
    return StartStates(states=cast, num_episode_starts=starts.num_episode_starts)


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
