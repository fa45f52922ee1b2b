"""Counter-based random numbers: a function of seed, environment, episode and step.

SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) as a hash: a key is made for each row by mixing in
one counter after the other, and the row's numbers are the SplitMix64 stream of its key. So what a
row draws does not depend on the number of rows, on masks or on the device, and there is no
generator whose state could leak.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """Return the same 64 bits as a signed integer, which is what torch has."""
    return value - (1 << 64) if value >= 1 << 63 else value


GOLDEN = _signed(0x9E3779B97F4A7C15)
MIX_1 = _signed(0xBF58476D1CE4E5B9)
MIX_2 = _signed(0x94D049BB133111EB)

BITS = 24
"""Bits of a uniform number: what a float32 holds exactly."""


def mix(value: Tensor) -> Tensor:
    """Apply SplitMix64's finaliser, a bijection of 64 bits; int64 in, int64 out."""
    value = (value ^ _shift(value, 30)).mul_(MIX_1)
    value = value.bitwise_xor_(_shift(value, 27)).mul_(MIX_2)
    return value.bitwise_xor_(_shift(value, 31))


def env_keys(seed: Tensor, env: Tensor) -> Tensor:
    """Return a key for each environment, (N,) int64, from which `step_keys` makes those of steps.

    Args:
        seed: () int64.
        env: (N,) int64 indices of the environments.
    """
    return _mix_in(mix(seed + GOLDEN), env)


def step_keys(keys: Tensor, episode: Tensor, step: Tensor) -> Tensor:
    """Return a key for each step.

    Args:
        keys: (N,) int64 keys from `env_keys`.
        episode: (N,) int64 episode numbers.
        step: (N,) or (T, N) int64 steps since the episode began.

    Returns:
        int64 of the shape of `step`.
    """
    return _mix_in(_mix_in(keys, episode), step)


def row_keys(seed: Tensor, env: Tensor, episode: Tensor, step: Tensor) -> Tensor:
    """Return a key for each row: `step_keys` of `env_keys`."""
    return step_keys(env_keys(seed, env), episode, step)


def uniforms(keys: Tensor, lanes: int) -> Tensor:
    """Draw uniform numbers in [0, 1) with 24 bits each.

    Args:
        keys: (...) int64.
        lanes: numbers for each key.

    Returns:
        (..., lanes) float32; the first lanes do not depend on how many there are.
    """
    pairs = (lanes + 1) // 2
    counter = _counters(pairs, keys.device)
    # Each 64-bit word gives two numbers, from the lower 24 bits of its halves.
    halves = _halves(mix(keys.unsqueeze(-1) + counter))[..., :lanes]
    return (halves & ((1 << BITS) - 1)).to(torch.float32).mul_(2.0**-BITS)


def _mix_in(key: Tensor, counter: Tensor) -> Tensor:
    return mix((key ^ counter).add_(GOLDEN))


def _shift(value: Tensor, bits: int) -> Tensor:
    """Shift right logically; torch's own shift is arithmetic."""
    return (value >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _counters(pairs: int, device: torch.device) -> Tensor:
    """Return GOLDEN times 1, 2, 3 and so on, (pairs,) int64."""
    if torch.compiler.is_compiling() and device.type == "cpu":
        # Constants, since Inductor would write the product as C++ arithmetic on a loop index. That
        # overflows, from which g++ concludes that such indices do not occur; it drops the check for
        # the end of the loop, and memory is written beyond its end.
        wrapped = [_signed(place * GOLDEN % 2**64) for place in range(1, pairs + 1)]
        return torch.tensor(wrapped, dtype=torch.int64)
    return torch.arange(1, pairs + 1, device=device, dtype=torch.int64) * GOLDEN


def _halves(words: Tensor) -> Tensor:
    """Return the 32-bit halves of (..., W) words, lower ones first: (..., 2 W)."""
    if torch.compiler.is_compiling():
        # A view with another item size would break the fused loop.
        return torch.stack([words, words >> 32], -1).flatten(-2)
    return words.view(torch.int32)
