"""Members of an ensemble: bootstraps for fitting, trajectory sampling for dreaming.

Chua et al. 2018, arXiv 1805.12114, section 5.2: with TS1 a dream draws a member at every step, with
TS-infinity it keeps one member throughout.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from dreamgym._settings import check_choice
from dreamgym.models import splitmix

PROPAGATIONS = ("ts1", "ts-inf")
"""Ways of propagating a dream through the members."""

MAX_COUNT = 8
"""Largest bootstrap count that is drawn; a larger one has a probability of one in a million."""

POISSON_CDF = list(itertools.accumulate(math.exp(-1) / math.factorial(k) for k in range(MAX_COUNT)))
"""Cumulative distribution of a Poisson variable with mean one."""


def check_members(members: int, elites: int, propagation: str) -> None:
    """Check the numbers of members and elites, and the name of the propagation.

    Raises:
        ValueError: no elites, more elites than members, or an unknown propagation.
    """
    if not 1 <= elites <= members:
        raise ValueError(
            f"elites={elites} of members={members}: give at least one, and no more than members, "
            f"such as elites={max(1, members)}"
        )
    check_choice("propagation", propagation, PROPAGATIONS)


def draw_member(uniform: Tensor, elites: Tensor) -> Tensor:
    """Draw one of the elites for each row.

    Args:
        uniform: (B,) in [0, 1).
        elites: (K,) int64, the members to draw from.

    Returns:
        (B,) int64.
    """
    count = len(elites)
    return elites[(uniform * count).long().clamp(0, count - 1)]


def select_member(values: Tensor, member: Tensor) -> Tensor:
    """Select each row's value from its member.

    Args:
        values: (members, B, ...).
        member: (B,) int64.

    Returns:
        (B, ...).
    """
    return values[member, torch.arange(len(member), device=member.device)]


def bootstrap_counts(content: Tensor, members: int) -> Tensor:
    """Return how often each member's bootstrap contains each transition.

    A count is a function of the transition's content, so it is the same in every batch.

    Args:
        content: (..., d) float32; tells one transition from another.
        members: number of bootstraps.

    Returns:
        (members, ...) float32 whole numbers, Poisson distributed with mean one.
    """
    uniform = hashed_uniforms(content, members)
    # As precise as the uniforms, and not every device has float64.
    cumulative = torch.tensor(POISSON_CDF, dtype=torch.float32, device=content.device)
    return (uniform.unsqueeze(-1) >= cumulative).sum(-1).float()


def hashed_uniforms(content: Tensor, members: int) -> Tensor:
    """Return uniform numbers in [0, 1) that are determined by content and member.

    Args:
        content: (..., d) float32.
        members: numbers for each row of content.

    Returns:
        (members, ...) float32.
    """
    bits = content.contiguous().view(torch.int32).long()
    column = torch.arange(1, bits.shape[-1] + 1, device=bits.device) * splitmix.GOLDEN
    # Columns are mixed before they are summed, so that equal numbers in two columns do not cancel.
    key = splitmix.mix((bits + column).mul(splitmix.MIX_1)).sum(-1)
    return splitmix.uniforms_of_words(splitmix.words(key, members)).movedim(-1, 0)
