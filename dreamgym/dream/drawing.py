"""What is drawn anew for each episode: its start, its horizon, its temperature."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dreamgym.dream.noise import row_keys, uniforms
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

    def draw(self, seed: Tensor, env: Tensor, episode: Tensor) -> tuple[State, Tensor, Tensor]:
        """Start, horizon (N,) int64 and temperature (N,) float32 of episodes.

        Args:
            seed: () int64.
            env: (N,) int64.
            episode: (N,) int64.
        """
        step = torch.full_like(episode, START_STEP)
        lanes = uniforms(row_keys(seed, env, episode, step), LANES)
        sources = self.sources
        component = (lanes[:, COMPONENT, None] >= sources.until[:-1]).sum(1)
        size = sources.size[component]
        # Rounding must not reach past the last row of a bank of millions.
        row = sources.first[component] + torch.minimum((lanes[:, PLACE] * size).long(), size - 1)
        low, high = self.horizon
        horizon = (lanes[:, HORIZON] * (high - low + 1)).long() + low
        return (
            {key: leaf[row] for key, leaf in sources.states.items()},
            horizon,
            self._temperature(lanes[:, TEMPERATURE]),
        )

    def _temperature(self, uniform: Tensor) -> Tensor:
        if isinstance(self.temperature, Tensor):
            return self.temperature.clone()
        low, high = self.temperature
        return low + uniform * (high - low)
