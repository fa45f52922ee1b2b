"""SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) on tensors: random numbers without a generator.

A number is a pure function of its key, so it is the same on every device, in every batch and in any
order, and no generator has a state that could leak. Keys and words are int64, torch's only 64-bit
integer with arithmetic on every device; overflow wraps, as the algorithm requires.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """Reinterpret 64 unsigned bits as a signed integer."""
    return value - (1 << 64) if value >= 1 << 63 else value


GOLDEN = _signed(0x9E3779B97F4A7C15)
"""Step from one state of a stream to the next: 2**64 over the golden ratio."""

MIX_1 = _signed(0xBF58476D1CE4E5B9)
"""First multiplier of the finaliser."""

MIX_2 = _signed(0x94D049BB133111EB)
"""Second multiplier of the finaliser."""

BITS = 24
"""Random bits of one uniform: a float32 holds as many exactly."""


def mix(value: Tensor) -> Tensor:
    """Apply SplitMix64's finaliser, a bijection of 64 bits, to int64 values of any shape."""
    # Not in place on the first operation: the argument belongs to the caller.
    value = (value ^ _shift_right(value, 30)).mul_(MIX_1)
    value = value.bitwise_xor_(_shift_right(value, 27)).mul_(MIX_2)
    return value.bitwise_xor_(_shift_right(value, 31))


def words(keys: Tensor, count: int) -> Tensor:
    """Return the first words of each key's SplitMix64 stream.

    Args:
        keys: (...) int64.
        count: number of words of each key.

    Returns:
        (..., count) int64; the first words do not depend on `count`.
    """
    return mix(keys.unsqueeze(-1) + _counters(count, keys.device))


def uniforms(keys: Tensor, lanes: int) -> Tensor:
    """Return uniform numbers in [0, 1) with 24 bits each, two from every word.

    Args:
        keys: (...) int64.
        lanes: number of uniforms of each key.

    Returns:
        (..., lanes) float32; the first lanes do not depend on `lanes`.
    """
    # The lower 24 bits of each 32-bit half of a word.
    halves = _halves(words(keys, (lanes + 1) // 2))[..., :lanes]
    return (halves & ((1 << BITS) - 1)).to(torch.float32).mul_(2.0**-BITS)


def uniforms_of_words(values: Tensor) -> Tensor:
    """Return one uniform in [0, 1) for each word, from its upper 24 bits; float32, same shape."""
    return _shift_right(values, 64 - BITS).to(torch.float32) * 2.0**-BITS


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros; torch's own shift copies the sign."""
    return (value >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _counters(count: int, device: torch.device) -> Tensor:
    """Return GOLDEN times 1, 2, ..., count, modulo 2**64: (count,) int64."""
    if torch.compiler.is_compiling() and device.type == "cpu":
        # Constants instead of a product: Inductor would write the product of the loop index in C++,
        # where signed overflow is undefined. g++ concludes that large indices do not occur, drops
        # the end of the loop, and memory is written beyond its end.
        wrapped = [_signed(place * GOLDEN % 2**64) for place in range(1, count + 1)]
        return torch.tensor(wrapped, dtype=torch.int64)
    return torch.arange(1, count + 1, device=device, dtype=torch.int64) * GOLDEN


def _halves(values: Tensor) -> Tensor:
    """Split (..., W) words into 32-bit halves, the lower one first: (..., 2 W)."""
    if torch.compiler.is_compiling():
        # Inductor runs a view with another element size as a kernel of its own; this stays fused.
        return torch.stack([values, values >> 32], -1).flatten(-2)
    return values.view(torch.int32)
