"""SIGReg: how far a batch of embeddings is from isotropic Gaussian, along random directions.

Balestriero and LeCun, "LeJEPA" (2025), arXiv 2511.08544; used by LeWM, arXiv 2603.19312. In one
dimension it is the statistic of Epps and Pulley (1983): the squared distance between the empirical
characteristic function and that of the standard normal, under a Gaussian window. By Cramer and
Wold, a distribution is normal if all its projections are.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from dreamgym.models.exact import exactly
from dreamgym.models.masked import processes, whole
from dreamgym.models.sampling import normal

KNOTS = 17
REACH = 3.0
PROJECTIONS = 1024
CACHED_COLUMNS = 1024

GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
MIX_2 = 0x94D049BB133111EB - (1 << 64)
MANTISSA_BITS = 24


def projections(noise: Tensor, dim: int, count: int = PROJECTIONS) -> Tensor:
    """Random unit vectors, determined by the noise.

    A hash (SplitMix64, Steele, Lea and Flood 2014) of the noise's first numbers makes as many
    normal numbers as are needed, on any device. With several processes all take the first's key,
    for they must look along the same directions.

    Args:
        noise: (...) float32 uniforms, at least two.
        dim: of the space.
        count: how many vectors.

    Returns:
        (dim, count), each column of length one.
    """
    first = (noise.reshape(-1)[:2] * 2.0**MANTISSA_BITS).to(torch.int64)
    key = _mix(_mix(first[0] + GOLDEN) + first[1])
    if processes() > 1:
        dist.broadcast(key, 0)
    counter = torch.arange(1, dim * count + 1, device=noise.device, dtype=torch.int64)
    bits = _shift(_mix(key + counter * GOLDEN), 64 - MANTISSA_BITS)
    vectors = normal(bits.to(torch.float32) * 2.0**-MANTISSA_BITS).view(dim, count)
    return vectors / vectors.norm(dim=0)


def sigreg(embeddings: Tensor, mask: Tensor, directions: Tensor) -> Tensor:
    """The statistic, times the number of rows, averaged over directions and time steps.

    It is about 1 on standard normal embeddings, whatever their number, and grows with the number
    of rows otherwise: about 51 on 128 equal rows.

    Args:
        embeddings: (B, T, D).
        mask: (B, T) bool, false on padding, which does not count.
        directions: (D, P) unit columns, see `projections`.

    Returns:
        A scalar, differentiable.
    """
    step = REACH / (KNOTS - 1)
    weight = mask.float().unsqueeze(-1)  # (B, T, 1)
    count = whole(weight.sum(0))  # (T, 1)
    rows = count.clamp(min=1.0)
    with exactly(embeddings):
        angle = (embeddings.float() @ directions) * step  # (B, T, P)
    knots = torch.arange(KNOTS, device=angle.device, dtype=torch.float32)
    window = torch.exp(-0.5 * (knots * step).square())
    sums = whole(_Characteristic.apply(angle, weight))  # (2, knots, T, P)
    real, imaginary = (sums / rows).unbind(0)
    error = (real - window.view(-1, 1, 1)).square() + imaginary.square()
    # The function is even: the integral over [-3, 3] is twice the trapezoid over [0, 3].
    trapezoid = torch.full_like(window, 2 * step)
    trapezoid[0] = trapezoid[-1] = step
    statistic = torch.einsum("k,ktp->tp", trapezoid * window, error) * rows
    there = (count > 0).to(statistic.dtype)
    return (statistic * there).sum() / (there.sum().clamp(min=1.0) * directions.shape[1])


class _Characteristic(torch.autograd.Function):
    """Sums over rows of cos(k x) and sin(k x) for k = 0 ... KNOTS - 1.

    One sine and one cosine of each angle: those of its multiples follow by the addition theorem,
    and nothing of size KNOTS x B x T x P is ever kept. On a CPU the columns are gone through in
    pieces that stay in its cache.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, angle: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(angle, weight)
        weights = weight.expand_as(angle).flatten(1)
        pieces = []
        for x, w in zip(_pieces(angle.flatten(1)), _pieces(weights), strict=True):
            sums = [torch.stack([(c * w).sum(0), (s * w).sum(0)]) for c, s in _multiples(x)]
            pieces.append(torch.stack(sums, 1))
        return torch.cat(pieces, -1).unflatten(-1, angle.shape[1:])

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor
    ) -> tuple[Tensor, None]:
        angle, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        wanted = gradients[0].flatten(2).unbind(0)
        pieces = []
        columns = (_pieces(leaf) for leaf in (angle.flatten(1), *wanted))
        for x, by_cosine, by_sine in zip(*columns, strict=True):
            total = torch.zeros_like(x)
            for k, (c, s) in enumerate(_multiples(x)):
                total.addcmul_(c, k * by_sine[k]).addcmul_(s, -k * by_cosine[k])
            pieces.append(total)
        return torch.cat(pieces, -1).view_as(angle) * weight, None


def _pieces(columns: Tensor) -> tuple[Tensor, ...]:
    """Split the last dimension, in the same way for all that have as many columns."""
    return columns.split(CACHED_COLUMNS if columns.device.type == "cpu" else columns.shape[-1], -1)


def _multiples(angle: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Cosine and sine of k times the angle, for each k; to be used before the next is asked for."""
    cosine, sine = angle.cos(), angle.sin()
    c, s = torch.ones_like(angle), torch.zeros_like(angle)
    yield c, s
    for _ in range(KNOTS - 1):
        turned = (c * cosine).addcmul_(s, sine, value=-1.0)
        s = (s * cosine).addcmul_(c, sine)
        c = turned
        yield c, s


def _shift(value: Tensor, bits: int) -> Tensor:
    """Logical shift to the right: torch's own keeps the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mix(value: Tensor) -> Tensor:
    value = (value ^ _shift(value, 30)) * MIX_1
    value = (value ^ _shift(value, 27)) * MIX_2
    return value ^ _shift(value, 31)
