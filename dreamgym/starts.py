"""Starts: the bank of states from which dreams begin, burnt in on real data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dreamgym.data import Dataset
from dreamgym.models import Segment, State, WorldModel, filter


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
    dataset: Dataset,
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
    windows, last = _windows(dataset, first + anywhere, length)
    states = _filter(model, windows, torch.from_numpy(last), rng)
    return Starts(states=states, beginnings=half)


def _windows(
    dataset: Dataset, places: list[tuple[int, int]], length: int
) -> tuple[Segment, NDArray[np.int64]]:
    """Left-aligned windows that end at each (episode, row); and where in them that row lies."""
    observations, actions, last = [], [], []
    for episode, row in places:
        data = dataset.episode(episode)
        begin = max(0, row - length)
        # Rows after `row` only fill the window up: their states are never read.
        take = np.minimum(np.arange(begin, begin + length + 1), data.length)
        observations.append(np.asarray(data.observations)[take])
        actions.append(data.actions[np.minimum(take[:-1], data.length - 1)])
        last.append(row - begin)
    batch = len(places)
    return Segment(
        observation=torch.from_numpy(np.stack(observations)),
        action=torch.from_numpy(np.stack(actions)),
        reward=torch.zeros(batch, length),
        terminated=torch.zeros(batch, length, dtype=torch.bool),
        mask=torch.ones(batch, length, dtype=torch.bool),
    ), np.asarray(last)


@torch.no_grad()
def _filter(model: WorldModel, windows: Segment, last: Tensor, rng: np.random.Generator) -> State:
    device = next(model.parameters()).device
    batch, length = windows.action.shape[:2]
    noise = rng.random((batch, length + 1, model.noise_dim), dtype=np.float32)
    windows = Segment(*(leaf.to(device) for leaf in windows))
    states = filter(model, windows, torch.from_numpy(noise).to(device))
    rows = torch.arange(batch, device=device)
    return {key: leaf[rows, last.to(device)].cpu() for key, leaf in states.items()}
