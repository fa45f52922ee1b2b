"""The noise of a step: a function of seed, environment, episode and step.

A key is made for each row by mixing in one counter after the other; the row's numbers are the
SplitMix64 stream of its key. So what a row draws does not depend on the number of rows, on masks or
on the device, and there is no generator whose state could leak.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from dreamgym.models.splitmix import GOLDEN, mix, uniforms

TERMINATION_LANES = 1
"""Uniforms of a row and step that the engine itself uses; those of the model come after them."""


class Noise(NamedTuple):
    """The uniforms of one step of N rows.

    Attributes:
        termination: (N,) uniforms that decide whether an episode terminates.
        model: (N, noise_dim) uniforms of the model.
    """

    termination: Tensor
    model: Tensor

    @classmethod
    def from_lanes(cls, lanes: Tensor) -> Noise:
        """Split the uniforms (N, lanes) of a step."""
        return cls(lanes[:, 0], lanes[:, TERMINATION_LANES:])


def draw_noise(keys: Tensor, episode: Tensor, step: Tensor, noise_dim: int) -> Noise:
    """Draw the noise of one step.

    Args:
        keys: (N,) int64 keys from `env_keys`.
        episode: (N,) int64 episode numbers.
        step: (N,) int64 steps since the episode began.
        noise_dim: uniforms that the model uses.
    """
    lanes = uniforms(step_keys(keys, episode, step), TERMINATION_LANES + noise_dim)
    return Noise.from_lanes(lanes)


def env_keys(seed: Tensor, env: Tensor) -> Tensor:
    """Return a key for each environment, (N,) int64, from which `step_keys` makes those of steps.

    Args:
        seed: () int64.
        env: (N,) int64 indices of the environments.
    """
    return mix_in(mix(seed + GOLDEN), env)


def step_keys(keys: Tensor, episode: Tensor, step: Tensor) -> Tensor:
    """Return a key for each step.

    Args:
        keys: (N,) int64 keys from `env_keys`.
        episode: (N,) int64 episode numbers.
        step: (N,) or (T, N) int64 steps since the episode began.

    Returns:
        int64 of the shape of `step`.
    """
    return mix_in(mix_in(keys, episode), step)


def row_keys(seed: Tensor, env: Tensor, episode: Tensor, step: Tensor) -> Tensor:
    """Return a key for each row: `step_keys` of `env_keys`."""
    return step_keys(env_keys(seed, env), episode, step)


def mix_in(key: Tensor, counter: Tensor) -> Tensor:
    """Return a key for each pair of a key and a counter, int64, which broadcast together."""
    return mix((key ^ counter).add_(GOLDEN))
