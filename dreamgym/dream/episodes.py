"""Random draws for each new episode: start state, horizon and temperature."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dreamgym._files import local_path
from dreamgym._settings import nearest
from dreamgym.data import Dataset, with_frame_skip
from dreamgym.dream.noise import step_keys
from dreamgym.models import State
from dreamgym.models.splitmix import uniforms
from dreamgym.world.start_states import LENGTH, StartStates, burn_in
from dreamgym.world.world import World

START_AGE = -1
"""Step counter that keys the draws of an episode: the one before its first step."""

DRAWS = 4
"""Uniforms per episode: bank of the start state, row in the bank, horizon, temperature."""

BANK_NAMES = ("anywhere", "bank", "episode_starts")
"""Start states that every world has: all of its bank, and those at the beginning of episodes."""


class StartSources(NamedTuple):
    """A weighted mixture of K banks of start states, which lie one after the other in one bank.

    Attributes:
        states: start states; leaves (S, ...).
        first: (K,) int64, first row of each bank.
        size: (K,) int64, rows of each bank.
        cumulative: (K,) float32, cumulative weights; the last one is 1.
    """

    states: State
    first: Tensor
    size: Tensor
    cumulative: Tensor


class EpisodeDraw(NamedTuple):
    """Random draws for R episodes; every leaf is (R,).

    Attributes:
        start: int64 rows of the start states.
        horizon: uniforms that determine the horizons.
        temperature: uniforms that determine the temperatures.
    """

    start: Tensor
    horizon: Tensor
    temperature: Tensor


class Episodes(NamedTuple):
    """The distribution of new episodes.

    Attributes:
        starts: start states.
        horizon: least and greatest horizon, drawn uniformly from the integers between.
        temperature: least and greatest temperature, drawn uniformly; or (N,), one for each row.
    """

    starts: StartSources
    horizon: tuple[int, int]
    temperature: tuple[float, float] | Tensor

    def draw(self, keys: Tensor, episode: Tensor) -> EpisodeDraw:
        """Draw episodes.

        Args:
            keys: (R,) int64 keys from `env_keys`.
            episode: (R,) int64 episode numbers.
        """
        lanes = uniforms(step_keys(keys, episode, torch.full_like(episode, START_AGE)), DRAWS)
        # Contiguous, which the columns are not for one row only: a compiled step is specialised
        # on strides.
        columns = lanes.movedim(-1, 0).clone(memory_format=torch.contiguous_format)
        bank, place, horizon, temperature = columns
        return EpisodeDraw(self._start_row(bank, place), horizon, temperature)

    def start_states(self, row: Tensor) -> State:
        """Return the start states, leaves (R, ...), of rows (R,)."""
        return {key: leaf[row] for key, leaf in self.starts.states.items()}

    def horizons(self, uniform: Tensor) -> Tensor:
        """Return horizons, (R,) int64, made from uniforms (R,)."""
        low, high = self.horizon
        if low == high:
            return torch.full_like(uniform, low, dtype=torch.int64)
        return (uniform * (high - low + 1)).long() + low

    def temperatures(self, uniform: Tensor, rows: Tensor | slice) -> Tensor:
        """Return the temperatures, (R,) float32, of some rows, made from uniforms (R,)."""
        if isinstance(self.temperature, Tensor):
            return self.temperature[rows].clone()
        low, high = self.temperature
        return torch.full_like(uniform, low) if low == high else low + uniform * (high - low)

    def _start_row(self, bank: Tensor, place: Tensor) -> Tensor:
        """Return rows of the start states, int64, made from two uniforms each."""
        _, first, size, cumulative = self.starts
        if len(first) > 1:
            chosen = (bank.unsqueeze(-1) >= cumulative[:-1]).sum(-1)
            first, size = first[chosen], size[chosen]
        # In float32 a uniform below 1 times a size of millions can round up to the size.
        return first + torch.minimum((place * size).long(), size - 1)


def resolve_starts(world: World, starts: Any, device: Any) -> StartSources:
    """Return the start states that the option `starts` names.

    Args:
        world: world whose model the states belong to.
        starts: value of `DreamOptions.starts`.
        device: device of the result.

    Raises:
        ValueError: unknown name, weight not above 0, or states that do not fit the model.
        DatasetError: the dataset cannot be read.
    """
    if isinstance(starts, Mapping) and not _is_state(starts):
        weights = {name: _check_weight(name, weight) for name, weight in starts.items()}
        banks = [(weight, _find_bank(world, name)) for name, weight in weights.items()]
    else:
        banks = [(1.0, _find_bank(world, starts))]
    if not banks:
        raise ValueError("starts is empty: give at least one source and its weight")
    return _mix(banks, device)


def _mix(banks: list[tuple[float, StartStates]], device: torch.device) -> StartSources:
    """Join banks of start states, given with positive weights in any unit."""
    sizes = torch.tensor([starts.size for _, starts in banks])
    weights = torch.tensor([weight for weight, _ in banks], dtype=torch.float64)
    states = {
        key: torch.cat([starts.states[key].to(device) for _, starts in banks])
        for key in banks[0][1].states
    }
    return StartSources(
        states=states,
        first=(sizes.cumsum(0) - sizes).to(device),
        size=sizes.to(device),
        cumulative=(weights.cumsum(0) / weights.sum()).float().to(device),
    )


def _find_bank(world: World, source: Any) -> StartStates:
    """Return the start states that one source names or holds."""
    if isinstance(source, StartStates):
        return _check_states(world, source)
    if isinstance(source, Mapping):
        rows = len(next(iter(source.values())))
        return _check_states(world, StartStates(states=dict(source), num_episode_starts=rows))
    if source == "bank":
        return world.starts
    if source in ("episode_starts", "beginnings"):  # the latter is the former name
        count = world.starts.num_episode_starts
        states = {key: leaf[:count] for key, leaf in world.starts.states.items()}
        return StartStates(states=states, num_episode_starts=count)
    if source == "anywhere":
        later = {k: v[world.starts.num_episode_starts :] for k, v in world.starts.states.items()}
        rows = len(next(iter(later.values())))
        # A bank of episode starts only has no others.
        return StartStates(states=later, num_episode_starts=rows) if rows else world.starts
    if isinstance(source, str | Path) and local_path(source).exists():
        return _filter_dataset(world, local_path(source))
    raise ValueError(
        f"starts={source!r} is neither a known name nor the path of a dataset: "
        f"{nearest(str(source), BANK_NAMES)}"
    )


def _filter_dataset(world: World, path: Path) -> StartStates:
    """Filter start states from every episode of a dataset."""
    with Dataset(path) as opened:
        dataset = with_frame_skip(opened, world.frame_skip)
        for role in ("observation_space", "action_space"):
            actual, expected = getattr(dataset, role), getattr(world, role)
            if actual != expected:
                raise ValueError(
                    f"starts={str(path)!r}: the dataset's {role} is {actual}, the world's "
                    f"{expected}; give a dataset of the same environment"
                )
        dataset.verify()  # as fitting verified the world's own dataset
        length = world.provenance.get("fit", {}).get("segment_length", LENGTH)
        return burn_in(world.model, dataset, np.arange(dataset.num_episodes), length=length)


def _check_states(world: World, starts: StartStates) -> StartStates:
    """Check that start states fit the world's model, and cast them to its precision."""
    bank = world.starts.states
    expected = {key: tuple(leaf.shape[1:]) for key, leaf in bank.items()}
    actual = {key: tuple(leaf.shape[1:]) for key, leaf in starts.states.items()}
    if expected != actual:
        raise ValueError(
            f"starts have leaves of shapes {actual}; this world's states have {expected}"
        )
    for key, leaf in starts.states.items():
        if _number_kind(leaf) != _number_kind(bank[key]):
            raise ValueError(
                f"starts: the leaf {key!r} holds {leaf.dtype}, this world's states "
                f"{bank[key].dtype}; give {_number_kind(bank[key])}"
            )
    cast = {key: leaf.to(bank[key].dtype) for key, leaf in starts.states.items()}
    return StartStates(states=cast, num_episode_starts=starts.num_episode_starts)


def _number_kind(leaf: Tensor) -> str:
    """Name the kind of numbers in a leaf, whatever their precision."""
    if leaf.is_complex():
        return "complex numbers"
    if leaf.is_floating_point():
        return "floating-point numbers"
    return "bools" if leaf.dtype == torch.bool else "integers"


def _is_state(mapping: Mapping[str, Any]) -> bool:
    return bool(mapping) and all(isinstance(value, Tensor) for value in mapping.values())


def _check_weight(name: str, weight: Any) -> float:
    if isinstance(weight, int | float) and weight > 0:
        return float(weight)
    raise ValueError(f"starts: the weight of {name!r} is {weight!r}; give a number above 0")
