"""Windows of held-out episodes, filtered by a model: what every metric is computed on."""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dreamgym.data import AnyDataset
from dreamgym.models import Segment, State, WorldModel, filter_states
from dreamgym.models.base import as_segment, model_device
from dreamgym.models.observations import (
    get_part,
    is_image,
    map_observation,
    observation_boxes,
    observation_bytes,
)

BURN_IN = 4
"""Transitions that the model filters before it dreams."""

MAX_OBSERVATION_BYTES = 64 << 20
"""Approximate size of the observations in all windows, which limits the number of image windows."""

MIN_WINDOWS = 64
"""Minimum number of windows, as long as they take no more than `MAX_WINDOW_BYTES`."""

MAX_WINDOW_BYTES = 512 << 20
"""Maximum size of the observations in all windows. Larger ones get fewer and shorter windows."""

MIN_LARGE_WINDOWS = 32
"""Minimum number of windows of large observations."""

MAX_DECODE_BYTES = 256 << 20
"""Approximate maximum size of the observations that are decoded at once, as float32."""


class Windows(NamedTuple):
    """N windows of `BURN_IN` transitions followed by L more.

    Attributes:
        segment: transitions, leaves (N, BURN_IN + L, ...); observations have one more row.
        states: filtered states after each observation of the burn-in, leaves (N, BURN_IN + 1, ...).
    """

    segment: Segment
    states: State

    @property
    def steps(self) -> int:
        """Number of transitions after the burn-in, L."""
        return self.segment.mask.shape[1] - BURN_IN

    @property
    def mask(self) -> Tensor:
        """Whether a transition after the burn-in is real and not padding, (N, L) bool."""
        return self.segment.mask[:, BURN_IN:]

    def start(self) -> State:
        """Return the states after the burn-in, where dreams begin; leaves (N, ...)."""
        return {key: leaf[:, BURN_IN] for key, leaf in self.states.items()}

    def take(self, rows: Tensor) -> Windows:
        """Return the windows with the given indices."""
        observation = map_observation(lambda leaf: leaf[rows], self.segment.observation)
        rest = (leaf[rows] for leaf in self.segment[1:])
        states = {key: leaf[rows] for key, leaf in self.states.items()}
        return Windows(Segment(observation, *rest), states)

    def spread(self, key: str) -> Tensor:
        """Return the standard deviation of one part of the observations in the burn-in.

        Each number of a vector has its own; that of a number that does not change is infinite, as
        it gives no unit in which an error could be measured. The pixels of an image share one,
        because many of them never change.
        """
        mask = F.pad(self.segment.mask[:, :BURN_IN], (1, 0), value=True)
        observed = get_part(self.segment.observation, key)[:, : BURN_IN + 1][mask]
        return spread_of(observed if observed.ndim == 2 else observed.reshape(-1, 1)).reshape(
            (-1,) if observed.ndim == 2 else ()
        )


def as_float(values: Tensor) -> Tensor:
    """Return values as floats: integers and bytes in float32, floats in their own dtype."""
    return values if values.is_floating_point() else values.float()


def spread_of(rows: Tensor) -> Tensor:
    """Return the standard deviations (n,) of rows (N, n); infinity where they do not change.

    A spread within the rounding error of the numbers is no change. There is no absolute limit.
    """
    exact = as_float(rows)
    # Centred in its own dtype: float32 would lose the variation beside a large offset.
    spread = (exact - exact[:1]).float().std(0).nan_to_num(nan=1.0)
    rounding = 16 * torch.finfo(exact.dtype).eps * exact.abs().amax(0).float()
    return torch.where(spread > rounding, spread, torch.inf)


def mean_square(difference: Tensor, spread: Tensor) -> Tensor:
    """Return the mean squared difference of each row in units of the spread, (N,).

    Args:
        difference: (N, ..., *spread.shape).
        spread: output of `Windows.spread`; numbers that do not change are left out of the mean.
    """
    squares = (difference / spread).square().reshape(len(difference), -1).mean(1)
    return squares / spread.isfinite().float().mean().clamp(min=1 / spread.numel())


def uniform_noise(rng: np.random.Generator, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Draw uniform numbers from a NumPy generator onto a device."""
    return torch.from_numpy(rng.random(shape, dtype=np.float32)).to(device)


def window_shape(dataset: AnyDataset, steps: int, limits: tuple[int, int]) -> tuple[int, int]:
    """Return the maximum number of windows to evaluate, and their steps after the burn-in.

    Args:
        dataset: source of the windows.
        steps: transitions after the burn-in; large observations get fewer, but at least one.
        limits: maximum number of windows for vectors, and for images, which are slow to decode.
    """
    boxes = observation_boxes(dataset.observation_space).values()
    row_bytes = observation_bytes(dataset.observation_space)
    limit = limits[1] if any(map(is_image, boxes)) else limits[0]
    rows = BURN_IN + steps + 1
    count = min(limit, max(MIN_WINDOWS, MAX_OBSERVATION_BYTES // (row_bytes * rows)))
    if count * rows * row_bytes <= MAX_WINDOW_BYTES:
        return count, steps
    count = min(count, max(MIN_LARGE_WINDOWS, MAX_WINDOW_BYTES // (row_bytes * rows)))
    rows = min(rows, max(BURN_IN + 2, MAX_WINDOW_BYTES // (row_bytes * count)))
    return count, rows - BURN_IN - 1


def decode_chunk(space: gym.Space, observations: int) -> int:
    """Return how many windows to decode at once.

    Args:
        space: space of the observations.
        observations: observations that are decoded for each window.
    """
    size = sum(int(np.prod(box.shape)) for box in observation_boxes(space).values())
    return max(1, MAX_DECODE_BYTES // (4 * size * observations))


def max_steps(dataset: AnyDataset, episodes: NDArray[Any]) -> int:
    """Return the number of transitions after the burn-in in the longest episode; 0 without one."""
    return max(0, int(np.asarray(dataset.lengths)[episodes].max(initial=0)) - BURN_IN)


@torch.no_grad()
def draw_windows(
    model: WorldModel,
    dataset: AnyDataset,
    episodes: NDArray[Any],
    shape: tuple[int, int],
    rng: np.random.Generator,
) -> Windows:
    """Draw windows that begin anywhere in the episodes, and filter their burn-in.

    No two windows are the same, so small data give fewer windows than asked for.

    Args:
        model: model in eval mode.
        dataset: source of the episodes.
        episodes: (E,) indices of the episodes.
        shape: maximum number of windows, and transitions after the burn-in.
        rng: generator of the choice of windows and of the filter's noise.
    """
    device = model_device(model)
    limit, steps = shape
    sampler = dataset.segments(episodes, BURN_IN + steps)
    segment = as_segment(sampler.draw_distinct(limit, rng), device)
    count = len(segment.mask)
    noise = uniform_noise(rng, (count, BURN_IN + 1, model.noise_dim), device)
    burn_in = Segment(
        map_observation(lambda leaf: leaf[:, : BURN_IN + 1], segment.observation),
        *(leaf[:, :BURN_IN] for leaf in segment[1:]),
    )
    return Windows(segment, filter_states(model, burn_in, noise))
