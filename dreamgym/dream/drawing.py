"""What is drawn anew for each episode: its start, its horizon, its temperature."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dreamgym.dream.noise import step_keys, uniforms
from dreamgym.models import State
from dreamgym.starts import Starts

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


def mixed(banks: list[tuple[float, Starts]], device: torch.device) -> Sources:
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
