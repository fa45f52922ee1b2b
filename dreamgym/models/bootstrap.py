"""The bootstrap with no bookkeeping: how often a member has a transition is hashed from it.

Each member of a bootstrap has n draws from n transitions, with replacement, so the number of times
that it has a given one tends to a Poisson of mean one (Oza and Russell 2001, "Online bagging").
A hash of the transition and the member gives that number: the same all through a fit, after a
resume and in another process, whatever batches the transition comes in.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

MOST = 8
"""More than this many times has a chance of one in a million."""


def _signed(value: int) -> int:
    """The same 64 bits as a signed integer, which is what torch has."""
    return value - (1 << 64) if value >= 1 << 63 else value


GOLDEN = _signed(0x9E3779B97F4A7C15)
MIX_1 = _signed(0xBF58476D1CE4E5B9)
MIX_2 = _signed(0x94D049BB133111EB)
POISSON = list(itertools.accumulate(math.exp(-1) / math.factorial(k) for k in range(MOST)))


def times_drawn(content: Tensor, members: int) -> Tensor:
    """How often the bootstrap of each member has each transition.

    Args:
        content: (..., d) float32; what tells one transition from another.
        members: how many bootstraps.

    Returns:
        (members, ...) float32 of whole numbers, Poisson distributed with mean one.
    """
    uniform = hashed(content, members).double()
    cumulative = torch.tensor(POISSON, dtype=torch.float64, device=content.device)
    return (uniform.unsqueeze(-1) >= cumulative).sum(-1).float()


def hashed(content: Tensor, members: int) -> Tensor:
    """Uniform numbers in [0, 1) that content and member determine.

    Args:
        content: (..., d) float32.
        members: how many numbers for each.

    Returns:
        (members, ...) float32.
    """
    bits = content.contiguous().view(torch.int32).long()
    column = torch.arange(1, bits.shape[-1] + 1, device=bits.device) * GOLDEN
    # Every column is mixed before they are summed: equal numbers in two columns do not cancel.
    key = _mix((bits + column).mul(MIX_1)).sum(-1)
    member = torch.arange(1, members + 1, device=bits.device) * GOLDEN
    mixed = _mix(key + member.view(-1, *[1] * key.ndim))
    return _shift(mixed, 40).float() * 2.0**-24


def _shift(value: Tensor, bits: int) -> Tensor:
    """Logical shift to the right: torch's own keeps the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mix(value: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014), a bijection of 64 bits."""
    value = (value ^ _shift(value, 30)) * MIX_1
    value = (value ^ _shift(value, 27)) * MIX_2
    return value ^ _shift(value, 31)
