"""Counter-based random numbers: a function of seed, environment, episode and step.

SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) as a hash: a key is made for each row by mixing the
counters in, one after the other, and a row's numbers are its key's SplitMix64 stream. So what a
row draws does not depend on how many rows there are, on masks, or on the device; and no
generator has a state that could leak.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """The same 64 bits as a signed integer, which is what torch has."""
    return value - (1 << 64) if value >= 1 << 63 else value


GOLDEN = _signed(0x9E3779B97F4A7C15)
MIX_1 = _signed(0xBF58476D1CE4E5B9)
MIX_2 = _signed(0x94D049BB133111EB)
BITS = 24
"""Of one number: what a float32 holds exactly."""


def _shift(value: Tensor, bits: int) -> Tensor:
    """Logical shift to the right: torch's own keeps the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def mix(value: Tensor) -> Tensor:
    """SplitMix64's finaliser, a bijection of 64 bits; int64 in, int64 out."""
    value = (value ^ _shift(value, 30)) * MIX_1
    value = (value ^ _shift(value, 27)) * MIX_2
    return value ^ _shift(value, 31)


def row_keys(seed: Tensor, env: Tensor, episode: Tensor, step: Tensor) -> Tensor:
    """A key for each row.

    Args:
        seed: () int64.
        env: (N,) int64 index of each row's environment.
        episode: (N,) int64 episodes begun before this one.
        step: (N,) int64 steps since the episode began.

    Returns:
        (N,) int64.
    """
    key = mix(seed + GOLDEN)
    for counter in (env, episode, step):
        key = mix((key ^ counter) + GOLDEN)
    return key


def uniforms(keys: Tensor, lanes: int) -> Tensor:
    """Uniform numbers in [0, 1) with 24 bits each.

    Args:
        keys: (N,) int64.
        lanes: numbers for each row.

    Returns:
        (N, lanes) float32; the first lanes do not depend on how many there are.
    """
    pairs = (lanes + 1) // 2
    counter = torch.arange(1, pairs + 1, device=keys.device, dtype=torch.int64) * GOLDEN
    bits = mix(keys.unsqueeze(1) + counter)
    # Each word of 64 bits gives two numbers, from its upper 24 bits and the 24 below them.
    upper, lower = _shift(bits, 64 - BITS), (bits >> (64 - 2 * BITS)) & ((1 << BITS) - 1)
    both = torch.stack([upper.to(torch.int32), lower.to(torch.int32)], 2).flatten(1)
    return both[:, :lanes] * 2.0**-BITS
