"""Start states: the bank of model states from which dreams begin, filtered from real data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dreamgym._device import float32_by_default
from dreamgym.data import AnyDataset
from dreamgym.models import State, WorldModel, filter_states
from dreamgym.models.base import as_segment, model_device
from dreamgym.models.observations import map_observation, observation_bytes

CHUNK_WINDOWS = 128
"""Maximum number of windows filtered at once."""

CHUNK_BYTES = 64 << 20
"""Approximate size of the observations filtered at once, so that images need not fit in memory."""

MIN_STARTS, START_BYTES = 64, 2 << 30
"""Where the observations that are filtered into start states are larger than this in all, as of
large images in long segments, there are fewer states, but at least so many."""

LENGTH = 16
"""Steps that a state is filtered over, where it is not known what its model was fitted to."""


@dataclass(frozen=True, kw_only=True)
class StartStates:
    """A bank of S states to start dreams from.

    Attributes:
        states: model states, contiguous leaves (S, ...); the first `num_episode_starts` rows
            belong to the first observation of an episode.
        num_episode_starts: number of rows filtered from an episode's first observation only.
    """

    states: State
    num_episode_starts: int

    def __post_init__(self) -> None:
        # As after loading: a convolution's rounding depends on its input's memory layout.
        contiguous = {key: leaf.contiguous() for key, leaf in self.states.items()}
        object.__setattr__(self, "states", contiguous)
        sizes = {key: len(leaf) for key, leaf in self.states.items()}
        if len(set(sizes.values())) != 1 or not 0 < self.num_episode_starts <= self.size:
            raise ValueError(
                "expected leaves of one length and at least one episode start among them, got "
                f"leaves of {sizes} rows and {self.num_episode_starts} episode starts"
            )

    @property
    def size(self) -> int:
        """Number of states."""
        return len(next(iter(self.states.values())))

    def to(self, device: torch.device | str) -> StartStates:
        """Return a copy on another device."""
        moved = {key: leaf.to(device) for key, leaf in self.states.items()}
        return StartStates(states=moved, num_episode_starts=self.num_episode_starts)


@float32_by_default()
def burn_in(
    model: WorldModel,
    dataset: AnyDataset,
    episodes: NDArray[np.integer],
    *,
    count: int = 1024,
    length: int = LENGTH,
    seed: int = 0,
) -> StartStates:
    """Filter real episodes into start states: half episode starts, half from anywhere.

    The last observation of an episode is never a start state, because no action can be taken
    there. Only the observations that are filtered are read from the dataset, chunk by chunk.

    Args:
        model: fitted model in eval mode; it stays on its device.
        dataset: source of the episodes.
        episodes: (E,) indices of training episodes.
        count: number of states in the bank; fewer if observations are large (`START_BYTES`).
        length: maximum number of observations filtered before a state from anywhere.
        seed: seed of the choice of windows and of the filter's noise.

    Returns:
        The start states, on the CPU.
    """
    rng = np.random.default_rng([seed, 0x57A2])
    # Half of the states take one observation, the other half a window of them.
    state_bytes = observation_bytes(dataset.observation_space) * (length + 2) // 2
    count = min(count, max(MIN_STARTS, START_BYTES // state_bytes))
    half = count // 2
    lengths = np.asarray(dataset.lengths)[episodes]
    episode_starts = (rng.choice(episodes, half), np.zeros(half, np.int64))
    chosen = rng.choice(len(episodes), count - half, p=lengths / lengths.sum())
    anywhere = (np.asarray(episodes)[chosen], rng.integers(lengths[chosen]))
    chunks = [
        _filter_windows(model, dataset, (indices[i : i + size], steps[i : i + size]), context, rng)
        for (indices, steps), context in ((episode_starts, 0), (anywhere, length))
        for size in [_chunk_size(dataset, context)]
        for i in range(0, len(indices), size)
    ]
    states = {key: torch.cat([chunk[key] for chunk in chunks]) for key in chunks[0]}
    return StartStates(states=states, num_episode_starts=half)


def _chunk_size(dataset: AnyDataset, length: int) -> int:
    """Return the number of windows of `length` transitions to filter at once."""
    row_bytes = observation_bytes(dataset.observation_space)
    return max(1, min(CHUNK_WINDOWS, CHUNK_BYTES // (row_bytes * (length + 1))))


@torch.no_grad()
def _filter_windows(
    model: WorldModel,
    dataset: AnyDataset,
    positions: tuple[NDArray, NDArray],
    length: int,
    rng: np.random.Generator,
) -> State:
    """Return the state at each (episode, step), filtered from up to `length` steps before it."""
    device = model_device(model)
    (episodes, steps), batch = positions, len(positions[0])
    context = np.minimum(steps, length)
    # A window's rows after its step are only filler: the states filtered there are never read.
    window = as_segment(dataset.windows(episodes, steps - context, max(1, length)), device)
    window = window._replace(
        observation=map_observation(lambda leaf: leaf[:, : length + 1], window.observation),
        action=window.action[:, :length],
    )
    noise = rng.random((batch, length + 1, model.noise_dim), dtype=np.float32)
    states = filter_states(model, window, torch.from_numpy(noise).to(device))
    rows, last = torch.arange(batch, device=device), torch.from_numpy(context).to(device)
    return {key: leaf[rows, last].cpu() for key, leaf in states.items()}
