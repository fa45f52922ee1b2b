"""What keeps embeddings from collapsing, other than SIGReg; and the figures that show a collapse.

VICReg: Bardes, Ponce and LeCun (2022), arXiv 2105.04906, equations 1 to 4, with the covariances
averaged, as PLDM (Sobal et al. 2025, arXiv 2502.14819) and EB-JEPA have them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dreamgym.models.exact import exactly
from dreamgym.models.masked import masked_mean, whole

VARIANCE_EPSILON = 1e-4


def variance_covariance(embeddings: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """How far each dimension's spread is below one, and how far the dimensions are correlated.

    Args:
        embeddings: (B, T, D).
        mask: (B, T) bool, false on padding, which does not count.

    Returns:
        The mean over dimensions of max(0, 1 - std), and the mean square of the covariance's
        entries off its diagonal; both of the batch at each time step, and averaged over those
        with at least two rows.
    """
    weight = mask.to(embeddings.dtype).unsqueeze(-1)  # (B, T, 1)
    rows = whole(weight.sum(0))  # (T, 1)
    centred = embeddings - whole((embeddings * weight).sum(0)) / rows.clamp(min=1.0)
    free = (rows - 1.0).clamp(min=1.0)
    with exactly(embeddings):
        product = torch.einsum("bti,btj->tij", centred * weight, centred)
    covariance = whole(product) / free.unsqueeze(-1)
    variance = covariance.diagonal(dim1=-2, dim2=-1)  # (T, D)
    lack = (1.0 - (variance + VARIANCE_EPSILON).sqrt()).clamp(min=0.0).mean(-1)
    width = embeddings.shape[-1]
    off = (covariance.square().sum((-2, -1)) - variance.square().sum(-1)) / max(
        1, width * (width - 1)
    )
    enough = (rows.squeeze(-1) > 1.5).to(lack.dtype)
    steps = enough.sum().clamp(min=1.0)
    return (lack * enough).sum() / steps, (off * enough).sum() / steps


def temporal_alignment(embeddings: Tensor, mask: Tensor) -> Tensor:
    """Mean squared change of embeddings (B, T, D) in a step, where both ends (B, T) are real."""
    change = (embeddings[:, 1:] - embeddings[:, :-1]).square().mean(-1)
    return masked_mean(change, mask[:, 1:] & mask[:, :-1])


@torch.no_grad()
def collapse(embeddings: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Figures of a batch that fall when its embeddings collapse.

    Args:
        embeddings: (B, T, D).
        mask: (B, T) bool.

    Returns:
        `embedding_std`: the mean over dimensions of the standard deviation. `effective_rank`: of
        the covariance, the exponential of the entropy of its normalised eigenvalues (Roy and
        Vetterli, EUSIPCO 2007); between 1 and D.
    """
    weight = mask.to(embeddings.dtype).unsqueeze(-1)
    rows = whole(weight.sum((0, 1))).clamp(min=1.0)
    centred = (embeddings - whole((embeddings * weight).sum((0, 1))) / rows) * weight
    flat = centred.flatten(0, 1).float()
    with exactly(embeddings):
        covariance = whole(flat.mT @ flat) / rows
    spread = covariance.diagonal().clamp(min=0.0)
    # Of a collapsed batch the scale is nothing: the floor keeps its entropy defined.
    values = torch.linalg.eigvalsh(covariance).clamp(min=1e-12)
    share = values / values.sum()
    return {
        "embedding_std": spread.sqrt().mean(),
        "effective_rank": (-(share * share.log()).sum()).exp(),
    }
