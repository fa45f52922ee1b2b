"""Windows of held-out episodes, and what a model believes after the first rows of each."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dreamgym.data import AnyDataset
from dreamgym.models import Segment, State, WorldModel, filter_states
from dreamgym.models.base import as_segment
from dreamgym.models.observations import get_part, is_image, map_observation, observation_boxes

BURN_IN = 4

"""Transitions that a model is shown before it dreams."""


BYTES = 64 << 20

"""Of observations in all windows: of images there are fewer windows."""


FEWEST = 64

"""Windows there are in any case."""


class Windows(NamedTuple):
    """N windows of `BURN_IN` and then L transitions.

    Attributes:
        segment: leaves (N, BURN_IN + L, ...), observations one row more.
        states: leaves (N, BURN_IN + 1, ...): after each of the first observations.
    """

    segment: Segment
    states: State

    @property
    def steps(self) -> int:
        """L."""
        return self.segment.mask.shape[1] - BURN_IN

    def start(self) -> State:
        """Where dreams begin: after the burn-in, leaves (N, ...)."""
        return {key: leaf[:, BURN_IN] for key, leaf in self.states.items()}

    def alive(self) -> Tensor:
        """(N, L) bool: whether the transitions after the burn-in are real."""
        return self.segment.mask[:, BURN_IN:]

    def take(self, rows: Tensor) -> Windows:
        """Some of the windows, by their indices."""
        rest = (leaf[rows] for leaf in self.segment[1:])
        seen = map_observation(lambda leaf: leaf[rows], self.segment.observation)
        return Windows(Segment(seen, *rest), {key: leaf[rows] for key, leaf in self.states.items()})

    def spread(self, key: str) -> Tensor:
        """Standard deviation of a part of the observations that were shown, padding left out.

        Numbers of a vector have one each; pixels share one, for many of them never change.
        """
        real = F.pad(self.segment.mask[:, :BURN_IN], (1, 0), value=True)
        seen = get_part(self.segment.observation, key)[:, : BURN_IN + 1][real].float()
        spread = seen.std(0) if seen.ndim == 2 else seen.std()
        return spread.nan_to_num(nan=1.0).clamp(min=1e-6)


def uniform(rng: np.random.Generator, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Uniform random numbers of NumPy's generator on a device."""
    return torch.from_numpy(rng.random(shape, dtype=np.float32)).to(device)


def affordable(dataset: AnyDataset, length: int, most: tuple[int, int]) -> int:
    """How many windows of `length` transitions to look at.

    Args:
        dataset: where they are drawn from.
        length: of a window.
        most: of vectors, and where there are images: to decode one takes as long as many steps.
    """
    boxes = observation_boxes(dataset.observation_space).values()
    row = sum(int(np.prod(box.shape)) * np.dtype(box.dtype).itemsize for box in boxes)
    limit = most[1] if any(map(is_image, boxes)) else most[0]
    return min(limit, max(FEWEST, BYTES // (row * (length + 1))))


def longest(dataset: AnyDataset, episodes: NDArray[Any]) -> int:
    """Transitions after the burn-in in the longest of some episodes; 0 where none is so long."""
    return max(0, int(np.asarray(dataset.lengths)[episodes].max()) - BURN_IN)


@torch.no_grad()
def draw_windows(
    model: WorldModel,
    dataset: AnyDataset,
    episodes: NDArray[Any],
    shape: tuple[int, int],
    rng: np.random.Generator,
) -> Windows:
    """Draw windows that begin anywhere in the episodes, and filter the burn-in.

    Args:
        model: in eval mode.
        dataset: where the episodes are.
        episodes: indices.
        shape: how many windows, and L.
        rng: of the choice and of the filter's noise.
    """
    device = next(model.parameters()).device
    count, steps = shape
    segment = as_segment(dataset.segments(episodes, BURN_IN + steps).draw(count, rng), device)
    noise = uniform(rng, (count, BURN_IN + 1, model.noise_dim), device)
    first = Segment(
        map_observation(lambda leaf: leaf[:, : BURN_IN + 1], segment.observation),
        *(leaf[:, :BURN_IN] for leaf in segment[1:]),
    )
    return Windows(segment, filter_states(model, first, noise))
