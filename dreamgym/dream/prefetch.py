"""Step noise, drawn for many steps at once where that is cheaper than step by step.

With few rows the time of a step is dominated by per-call overhead, and drawing noise takes some
twenty calls whatever its size. Noise is a function of counters only (see `noise`), so the noise of
the next steps can be drawn in one call, as long as each row only counts up. Where a row is reset,
its part of the block is drawn again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dreamgym.dream.noise import TERMINATION_LANES, Noise, env_keys, step_keys
from dreamgym.dream.state import Dreams
from dreamgym.models.splitmix import uniforms

BLOCK_NUMBERS = 2**16
"""Uniforms in a block, about: below this size a draw is dominated by per-call overhead."""

MIN_STEPS, MAX_STEPS = 8, 256
"""Steps of the first block and of the largest. Blocks double while the same dreams continue, so
that a caller who often restores an earlier state wastes few draws."""

MAX_ROWS = 128
"""Rows up to which noise is prefetched: with more of them, some are reset in most steps."""


class NoisePrefetcher:
    """Returns the noise of each step, usually from a block that was drawn before.

    It is a cache: the noise that it returns is always that of the dreams' counters. If `take` is
    given the dreams last given to `advance`, it returns the next step of the block; any other
    dreams, or the same tensors with other contents, start a new block.

    Args:
        noise_dim: uniforms of a row and step that the model uses.
        rows: rows of every step.
    """

    def __init__(self, noise_dim: int, rows: int) -> None:
        self._lanes = TERMINATION_LANES + noise_dim
        fitting = BLOCK_NUMBERS // (rows * self._lanes) if rows <= MAX_ROWS else 1
        self._max_steps = max(1, min(MAX_STEPS, fitting))
        self._offsets = torch.arange(self._max_steps).unsqueeze(1)
        self._keys = torch.empty(0)
        self._block = torch.empty(0)  # (T, N, lanes)
        self._steps: list[Noise] = []  # views of the block, one a step
        self._position = 0
        self._next_dreams: Dreams | None = None
        self._next_versions: tuple[int, ...] | None = None

    def take(self, dreams: Dreams) -> Noise:
        """Return the noise of the step that these dreams take now."""
        continued = dreams is self._next_dreams and _versions(dreams) == self._next_versions
        if not continued:
            self._keys = env_keys(dreams.seed, dreams.env)
            self._draw_block(dreams, MIN_STEPS)
        elif self._position == len(self._steps):
            self._draw_block(dreams, 2 * len(self._steps))
        noise = self._steps[self._position]
        self._position += 1
        return noise

    def on_reset(self, rows: Tensor, episode: Tensor) -> None:
        """Redraw the coming steps of rows that are reset after the step whose noise was taken last.

        Args:
            rows: (R,) int64 row numbers.
            episode: (R,) int64 numbers of their new episodes.
        """
        remaining = len(self._steps) - self._position
        if remaining:
            age = self._offsets[:remaining].expand(-1, len(rows))
            drawn = uniforms(step_keys(self._keys[rows], episode, age), self._lanes)
            self._block[self._position :].index_copy_(1, rows, drawn)

    def advance(self, dreams: Dreams) -> None:
        """Note that these dreams are the result of the step whose noise was taken last."""
        self._next_versions = _versions(dreams)
        self._next_dreams = None if self._next_versions is None else dreams

    def keys(self, rows: Tensor) -> Tensor:
        """Return the keys (R,) of some rows of the dreams that were last given to `take`."""
        return self._keys[rows]

    def _draw_block(self, dreams: Dreams, steps: int) -> None:
        age = dreams.age + self._offsets[: min(steps, self._max_steps)]
        self._block = uniforms(step_keys(self._keys, dreams.episode, age), self._lanes)
        self._steps = [Noise.from_lanes(lanes) for lanes in self._block.unbind()]
        self._position = 0


def _versions(dreams: Dreams) -> tuple[int, ...] | None:
    """Return how often the counters were written in place; None for inference tensors."""
    try:
        return (
            dreams.seed._version,
            dreams.env._version,
            dreams.episode._version,
            dreams.age._version,
        )
    except RuntimeError:  # inference tensors do not count writes
        return None
