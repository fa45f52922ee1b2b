"""Starts: the bank of states from which dreams begin, burnt in on real data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dreamgym.data import AnyDataset
from dreamgym.models import Observation, Segment, State, WorldModel, as_tensors, filter, segment_to

CHUNK = 128
"""Windows that are filtered at once: a bank of images need not fit in memory."""


@dataclass(frozen=True, kw_only=True)
class Starts:
    """States to begin from.

    Attributes:
        states: leaves (S, ...); the first `beginnings` rows are beginnings of episodes.
        beginnings: how many rows were filtered from an episode's first observation only.
    """

    states: State
    beginnings: int

    def __post_init__(self) -> None:
        sizes = {key: len(leaf) for key, leaf in self.states.items()}
        if len(set(sizes.values())) != 1 or not 0 < self.beginnings <= self.size:
            raise ValueError(
                f"starts need leaves of one length and at least one beginning; got leaves of "
                f"{sizes} rows and {self.beginnings} beginnings"
            )

    @property
    def size(self) -> int:
        """How many states there are."""
        return len(next(iter(self.states.values())))

    def to(self, device: torch.device | str) -> Starts:
        """The same starts on another device."""
        moved = {key: leaf.to(device) for key, leaf in self.states.items()}
        return Starts(states=moved, beginnings=self.beginnings)


def burn_in(
    model: WorldModel,
    dataset: AnyDataset,
    episodes: NDArray[np.integer],
    *,
    count: int = 1024,
    length: int = 16,
    seed: int = 0,
) -> Starts:
    """Filter real episodes into a bank of starts: half beginnings, half from anywhere.

    A start is never an episode's last observation: nothing can be done there.

    Args:
        model: fitted, in eval mode; left on its device.
        dataset: where the episodes are.
        episodes: indices of training episodes.
        count: states in the bank.
        length: observations that are filtered, at most, before a start from anywhere.
        seed: of the choice and of the filter's noise.
    """
    rng = np.random.default_rng([seed, 0x57A2])
    half = count // 2
    lengths = np.asarray(dataset.lengths)[episodes]
    first = [(int(e), 0) for e in rng.choice(episodes, half)]
    chosen = rng.choice(len(episodes), count - half, p=lengths / lengths.sum())
    anywhere = [(int(episodes[k]), int(rng.integers(lengths[k]))) for k in chosen]
    places = first + anywhere
    banks = [
        _burnt_in(model, dataset, places[at : at + CHUNK], length, rng)
        for at in range(0, count, CHUNK)
    ]
    states = {key: torch.cat([bank[key] for bank in banks]) for key in banks[0]}
    return Starts(states=states, beginnings=half)


@torch.no_grad()
def _burnt_in(
    model: WorldModel,
    dataset: AnyDataset,
    places: list[tuple[int, int]],
    length: int,
    rng: np.random.Generator,
) -> State:
    """The state at each (episode, row), filtered from `length` observations before on."""
    device = next(model.parameters()).device
    batch = len(places)
    last = torch.tensor([min(row, length) for _, row in places], device=device)
    windows = segment_to(_windows(dataset, places, length), device)
    noise = rng.random((batch, length + 1, model.noise_dim), dtype=np.float32)
    states = filter(model, windows, torch.from_numpy(noise).to(device))
    rows = torch.arange(batch, device=device)
    return {key: leaf[rows, last].cpu() for key, leaf in states.items()}


def _windows(dataset: AnyDataset, places: list[tuple[int, int]], length: int) -> Segment:
    """Left-aligned windows with each (episode, row) in them, `min(row, length)` rows in."""
    observations, actions = [], []
    for episode, row in places:
        data = dataset.episode(episode)
        begin = max(0, row - length)
        # Rows after `row` only fill the window up: their states are never read.
        rows = np.minimum(np.arange(begin, begin + length + 1), data.length)
        observations.append(_take(data.observations, rows))
        actions.append(data.actions[np.minimum(rows[:-1], data.length - 1)])
    batch = len(places)
    return Segment(
        observation=_stacked(observations),
        action=torch.from_numpy(np.stack(actions)),
        reward=torch.zeros(batch, length),
        terminated=torch.zeros(batch, length, dtype=torch.bool),
        mask=torch.ones(batch, length, dtype=torch.bool),
    )


def _take(observations: Any, rows: NDArray[np.integer]) -> Any:
    if isinstance(observations, dict):
        return {key: values[rows] for key, values in observations.items()}
    return observations[rows]


def _stacked(windows: list[Any]) -> Observation:
    if isinstance(windows[0], dict):
        return as_tensors({key: np.stack([w[key] for w in windows]) for key in windows[0]})
    return as_tensors(np.stack(windows))
