"""Starts: the bank of states from which dreams begin, burnt in on real data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dreamgym.data import AnyDataset
from dreamgym.models import State, WorldModel, filter_states
from dreamgym.models.base import as_segment
from dreamgym.models.observations import map_observation, observation_boxes

CHUNK = 128

"""Windows that are filtered at once, at most."""


CHUNK_BYTES = 64 << 20

"""Of observations that are filtered at once, about: a bank of images need not fit in memory."""


@dataclass(frozen=True, kw_only=True)
class StartStates:
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

    def to(self, device: torch.device | str) -> StartStates:
        """The same starts on another device."""
        moved = {key: leaf.to(device) for key, leaf in self.states.items()}
        return StartStates(states=moved, beginnings=self.beginnings)


def burn_in(
    model: WorldModel,
    dataset: AnyDataset,
    episodes: NDArray[np.integer],
    *,
    count: int = 1024,
    length: int = 16,
    seed: int = 0,
) -> StartStates:
    """Filter real episodes into a bank of starts: half beginnings, half from anywhere.

    A start is never an episode's last observation: nothing can be done there. Of the dataset, only
    the observations that are filtered are read, chunk by chunk.

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
    beginnings = (rng.choice(episodes, half), np.zeros(half, np.int64))
    chosen = rng.choice(len(episodes), count - half, p=lengths / lengths.sum())
    anywhere = (np.asarray(episodes)[chosen], rng.integers(lengths[chosen]))
    banks = [
        _burnt_in(model, dataset, (numbers[at : at + size], steps[at : at + size]), before, rng)
        for (numbers, steps), before in ((beginnings, 0), (anywhere, length))
        for size in [_chunk(dataset, before)]
        for at in range(0, len(numbers), size)
    ]
    states = {key: torch.cat([bank[key] for bank in banks]) for key in banks[0]}
    return StartStates(states=states, beginnings=half)


def _chunk(dataset: AnyDataset, length: int) -> int:
    """How many windows are filtered at once."""
    boxes = observation_boxes(dataset.observation_space).values()
    row = sum(int(np.prod(box.shape)) * np.dtype(box.dtype).itemsize for box in boxes)
    return max(1, min(CHUNK, CHUNK_BYTES // (row * (length + 1))))


@torch.no_grad()
def _burnt_in(
    model: WorldModel,
    dataset: AnyDataset,
    places: tuple[NDArray, NDArray],
    length: int,
    rng: np.random.Generator,
) -> State:
    """The state at each (episode, step), filtered from at most `length` observations before on."""
    device = next(model.parameters()).device
    (episodes, steps), batch = places, len(places[0])
    seen = np.minimum(steps, length)
    # What a window has after its step only fills it up: those states are never read.
    window = as_segment(dataset.windows(episodes, steps - seen, max(1, length)), device)
    window = window._replace(
        observation=map_observation(lambda leaf: leaf[:, : length + 1], window.observation),
        action=window.action[:, :length],
    )
    noise = rng.random((batch, length + 1, model.noise_dim), dtype=np.float32)
    states = filter_states(model, window, torch.from_numpy(noise).to(device))
    rows, last = torch.arange(batch, device=device), torch.from_numpy(seen).to(device)
    return {key: leaf[rows, last].cpu() for key, leaf in states.items()}
