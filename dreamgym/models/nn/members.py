"""How a dream goes through the members of an ensemble: trajectory sampling.

Chua et al. 2018, arXiv 1805.12114, section 5.2: TS1 draws a member for every step, TS-infinity
keeps one for the whole dream.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import torch
from torch import Tensor

from dreamgym._files import nearest

PROPAGATIONS = ("ts1", "ts-inf")


def check_members(members: int, elites: int, propagation: str) -> None:
    """Refuse numbers of members and ways through them that cannot be.

    Raises:
        ValueError: fewer than one, more elites than members, or an unknown propagation.
    """
    if not 1 <= elites <= members:
        raise ValueError(
            f"elites={elites} of members={members}: give at least one, and no more than members, "
            f"such as elites={max(1, members)}"
        )
    check_one_of("propagation", propagation, PROPAGATIONS)


def check_one_of(name: str, value: object, allowed: Iterable[str]) -> None:
    """Refuse a word that is not one of those allowed.

    Raises:
        ValueError: it is none of them; the message has the nearest.
    """
    words = list(allowed)
    if value not in words:
        raise ValueError(f"{name}={value!r} is no choice: {nearest(str(value), words)}")


def member_of(uniform: Tensor, elites: Tensor) -> Tensor:
    """The member that a uniform number draws from the elites.

    Args:
        uniform: (B,) in [0, 1).
        elites: (K,) int64, the members to draw from.

    Returns:
        (B,) int64.
    """
    count = len(elites)
    return elites[(uniform * count).long().clamp(0, count - 1)]


def of_member(values: Tensor, member: Tensor) -> Tensor:
    """Each row's value of its own member.

    Args:
        values: (members, B, ...).
        member: (B,) int64.

    Returns:
        (B, ...).
    """
    return values[member, torch.arange(len(member), device=member.device)]


MOST = 8

"""More than this many times has a chance of one in a million."""


def _signed(value: int) -> int:
    """The same 64 bits as a signed integer, which is what torch has."""
    return value - (1 << 64) if value >= 1 << 63 else value


GOLDEN = _signed(0x9E3779B97F4A7C15)


MIX_1 = _signed(0xBF58476D1CE4E5B9)


MIX_2 = _signed(0x94D049BB133111EB)


POISSON = list(itertools.accumulate(math.exp(-1) / math.factorial(k) for k in range(MOST)))


def bootstrap_counts(content: Tensor, members: int) -> Tensor:
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
