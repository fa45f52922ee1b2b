"""Regularisers against collapsed embeddings, and metrics that detect a collapse.

SIGReg (Balestriero and LeCun, "LeJEPA", 2025, arXiv 2511.08544; used by LeWM, arXiv 2603.19312)
measures how far a batch of embeddings is from an isotropic Gaussian. By the theorem of Cramer and
Wold, a distribution is normal if all of its one-dimensional projections are; along each random
direction it computes the statistic of Epps and Pulley (1983), the squared distance between the
empirical characteristic function and that of the standard normal under a Gaussian window.
The variance and covariance terms are those of VICReg (Bardes et al. 2022, arXiv 2105.04906).

All statistics ignore padding, and cover the global batch under data parallelism.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from dreamgym.models import splitmix
from dreamgym.models.nn.distributions import normal
from dreamgym.models.nn.layers import autocast_disabled
from dreamgym.models.reduction import all_reduce_sum, masked_mean, processes

# The characteristic function is evaluated at KNOTS points of [0, MAX_FREQUENCY].
KNOTS = 17
MAX_FREQUENCY = 3.0

MAX_DIRECTIONS = 1024
DIRECTIONS_PER_DIMENSION = 16
"""Narrow embeddings need fewer directions; from 64 dimensions onwards SIGReg uses all 1,024."""

CACHED_COLUMNS = 1024
"""Columns that a CPU processes at a time, so that intermediate results stay in its cache."""

VARIANCE_EPSILON = 1e-4


def num_directions(dim: int) -> int:
    """Return the number of directions that SIGReg uses in a space of `dim` dimensions."""
    return min(MAX_DIRECTIONS, DIRECTIONS_PER_DIMENSION * dim)


def random_directions(noise: Tensor, dim: int, count: int = MAX_DIRECTIONS) -> Tensor:
    """Return random unit vectors that are determined by the noise.

    The first two uniforms seed a SplitMix64 stream that generates as many normal numbers as
    needed, on any device. With several processes, all use the seed of rank zero, because they have
    to project onto the same directions.

    Args:
        noise: (...) float32 uniforms, at least two.
        dim: dimension of the space.
        count: number of vectors.

    Returns:
        (dim, count) unit columns.
    """
    first = (noise.reshape(-1)[:2] * 2.0**splitmix.BITS).to(torch.int64)
    key = splitmix.mix(splitmix.mix(first[0] + splitmix.GOLDEN) + first[1])
    if processes() > 1:
        dist.broadcast(key, 0)
    uniforms = splitmix.uniforms_of_words(splitmix.words(key, dim * count))
    vectors = normal(uniforms).view(dim, count)
    return vectors / vectors.norm(dim=0)


def sigreg(embeddings: Tensor, mask: Tensor, directions: Tensor) -> Tensor:
    """Return the SIGReg statistic: the Epps-Pulley statistic times the number of rows.

    It is averaged over directions and time steps. It is about 1 for standard normal embeddings
    independent of the batch size, and otherwise grows with it: about 51 for 128 equal rows.

    Args:
        embeddings: (B, T, D).
        mask: (B, T) bool, false on padding.
        directions: (D, P) unit columns from `random_directions`.

    Returns:
        A differentiable scalar.
    """
    step = MAX_FREQUENCY / (KNOTS - 1)
    weight = mask.float().unsqueeze(-1)  # (B, T, 1)
    count = all_reduce_sum(weight.sum(0))  # (T, 1)
    rows = count.clamp(min=1.0)
    with autocast_disabled(embeddings):
        angle = (embeddings.float() @ directions) * step  # (B, T, P)
    knots = torch.arange(KNOTS, device=angle.device, dtype=torch.float32)
    window = torch.exp(-0.5 * (knots * step).square())
    sums = all_reduce_sum(_CharacteristicSums.apply(angle, weight))  # (2, knots, T, P)
    real, imaginary = (sums / rows).unbind(0)
    error = (real - window.view(-1, 1, 1)).square() + imaginary.square()
    # The integrand is even: the integral over [-3, 3] is twice the trapezoid rule over [0, 3].
    trapezoid = torch.full_like(window, 2 * step)
    trapezoid[0] = trapezoid[-1] = step
    statistic = torch.einsum("k,ktp->tp", trapezoid * window, error) * rows
    nonempty = (count > 0).to(statistic.dtype)
    return (statistic * nonempty).sum() / (nonempty.sum().clamp(min=1.0) * directions.shape[1])


class _CharacteristicSums(torch.autograd.Function):
    """Weighted sums over rows of cos(k x) and sin(k x) for k = 0 ... KNOTS - 1.

    Only one sine and one cosine of each angle are evaluated; those of its multiples follow from the
    addition theorem. Neither pass stores a tensor of size KNOTS x B x T x P.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, angle: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(angle, weight)
        weights = weight.expand_as(angle).flatten(1)
        chunks = []
        for x, w in zip(_chunks(angle.flatten(1)), _chunks(weights), strict=True):
            sums = [torch.stack([(c * w).sum(0), (s * w).sum(0)]) for c, s in _multiples(x)]
            chunks.append(torch.stack(sums, 1))
        return torch.cat(chunks, -1).unflatten(-1, angle.shape[1:])

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor
    ) -> tuple[Tensor, None]:
        angle, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        by_cosine, by_sine = gradients[0].flatten(2).unbind(0)
        columns = (_chunks(leaf) for leaf in (angle.flatten(1), by_cosine, by_sine))
        chunks = []
        for x, cosine_gradient, sine_gradient in zip(*columns, strict=True):
            total = torch.zeros_like(x)
            for k, (c, s) in enumerate(_multiples(x)):
                total.addcmul_(c, k * sine_gradient[k]).addcmul_(s, -k * cosine_gradient[k])
            chunks.append(total)
        return torch.cat(chunks, -1).view_as(angle) * weight, None


def _chunks(columns: Tensor) -> tuple[Tensor, ...]:
    """Split the last dimension into chunks that fit into a CPU's cache; do not split on a GPU."""
    return columns.split(CACHED_COLUMNS if columns.device.type == "cpu" else columns.shape[-1], -1)


def _multiples(angle: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield cos(k x) and sin(k x) for k = 0 ... KNOTS - 1; use each pair before the next one."""
    cosine, sine = angle.cos(), angle.sin()
    c, s = torch.ones_like(angle), torch.zeros_like(angle)
    yield c, s
    for _ in range(KNOTS - 1):
        next_c = (c * cosine).addcmul_(s, sine, value=-1.0)
        s = (s * cosine).addcmul_(c, sine)
        c = next_c
        yield c, s


def variance_covariance(embeddings: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return VICReg's variance and covariance terms.

    Args:
        embeddings: (B, T, D).
        mask: (B, T) bool, false on padding.

    Returns:
        The mean over dimensions of max(0, 1 - std), and the mean square of the off-diagonal entries
        of the covariance. Both are computed over the batch at each time step, and averaged over the
        time steps that have at least two rows.
    """
    weight = mask.to(embeddings.dtype).unsqueeze(-1)  # (B, T, 1)
    rows = all_reduce_sum(weight.sum(0))  # (T, 1)
    centred = embeddings - all_reduce_sum((embeddings * weight).sum(0)) / rows.clamp(min=1.0)
    degrees_of_freedom = (rows - 1.0).clamp(min=1.0)
    with autocast_disabled(embeddings):
        product = torch.einsum("bti,btj->tij", centred * weight, centred)
    covariance = all_reduce_sum(product) / degrees_of_freedom.unsqueeze(-1)
    variance = covariance.diagonal(dim1=-2, dim2=-1)  # (T, D)
    deficit = (1.0 - (variance + VARIANCE_EPSILON).sqrt()).clamp(min=0.0).mean(-1)
    width = embeddings.shape[-1]
    off_diagonal = (covariance.square().sum((-2, -1)) - variance.square().sum(-1)) / max(
        1, width * (width - 1)
    )
    enough = (rows.squeeze(-1) > 1.5).to(deficit.dtype)
    steps = enough.sum().clamp(min=1.0)
    return (deficit * enough).sum() / steps, (off_diagonal * enough).sum() / steps


def temporal_alignment(embeddings: Tensor, mask: Tensor) -> Tensor:
    """Return the mean squared change of embeddings in one step.

    Args:
        embeddings: (B, T, D).
        mask: (B, T) bool, false on padding; a step counts if both of its ends are real.
    """
    change = (embeddings[:, 1:] - embeddings[:, :-1]).square().mean(-1)
    return masked_mean(change, mask[:, 1:] & mask[:, :-1])


@torch.no_grad()
def collapse_metrics(embeddings: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Return metrics of a batch that decrease when its embeddings collapse.

    Args:
        embeddings: (B, T, D).
        mask: (B, T) bool, false on padding.

    Returns:
        `embedding_std`, the mean standard deviation over dimensions, and `effective_rank`, the
        exponential of the entropy of the covariance's normalised eigenvalues (Roy and Vetterli,
        EUSIPCO 2007), between 1 and D.
    """
    weight = mask.to(embeddings.dtype).unsqueeze(-1)
    rows = all_reduce_sum(weight.sum((0, 1))).clamp(min=1.0)
    centred = (embeddings - all_reduce_sum((embeddings * weight).sum((0, 1))) / rows) * weight
    flat = centred.flatten(0, 1).float()
    with autocast_disabled(embeddings):
        covariance = all_reduce_sum(flat.mT @ flat) / rows
    variance = covariance.diagonal().clamp(min=0.0)
    # In float32 LAPACK can fail to converge on the covariance of a collapsed batch, which is all
    # rounding errors; not every device has float64. The floor keeps the entropy defined.
    eigenvalues = torch.linalg.eigvalsh(covariance.to("cpu", torch.float64)).clamp(min=1e-12)
    share = (eigenvalues / eigenvalues.sum()).to(covariance)
    return {
        "embedding_std": variance.sqrt().mean(),
        "effective_rank": (-(share * share.log()).sum()).exp(),
    }
