"""How a dream goes through the members of an ensemble: trajectory sampling.

Chua et al. 2018, arXiv 1805.12114, section 5.2: TS1 draws a member for every step, TS-infinity
keeps one for the whole dream.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from dreamgym.files import nearest

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
