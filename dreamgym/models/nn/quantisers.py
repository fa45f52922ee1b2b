"""From vectors to tokens and back: finite scalars, and codebooks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym._settings import check_at_least
from dreamgym.models.nn.layers import at_least_float32, autocast_disabled
from dreamgym.models.reduction import all_reduce_sum, processes

MAX_CODES = 2**15
"""Codes that fit into the 16 bits of a token in a state."""


@dataclass(frozen=True, kw_only=True)
class QuantiserConfig:
    """How vectors become tokens.

    Attributes:
        levels: levels of each number of a finite scalar code (arXiv 2309.15505), whose codes are
            all combinations of them and need no learning; empty for a learnt codebook.
        codes: vectors of a learnt codebook.
        width: width of these vectors.
        decay: rate at which a codebook's vectors follow the mean of what they stand for, by
            directions alone (cosines); 0 learns them by gradients, by distances.
        revive: share of its fair part of the vectors below which a vector of such a codebook is
            replaced by one of the batch.
    """

    levels: tuple[int, ...] = (8, 6, 5)
    codes: int = 512
    width: int = 512
    decay: float = 0.0
    revive: float = 0.01

    def __post_init__(self) -> None:
        check_at_least(self, 1, "width")
        check_at_least(self, 2, "codes")
        if min(self.levels, default=2) < 2:
            raise ValueError(f"levels={self.levels}: expected at least 2 of each")
        if self.count > MAX_CODES:
            raise ValueError(f"{self.count} codes: expected at most {MAX_CODES}")
        for name in ("decay", "revive"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected a number in [0, 1)")

    @property
    def count(self) -> int:
        """Number of codes."""
        return math.prod(self.levels) if self.levels else self.codes


class Quantised(NamedTuple):
    """Vectors that became codes.

    Attributes:
        tokens: (...) int64, the codes' numbers.
        vectors: (..., width) the codes, with the gradient of the vectors (straight-through).
        codebook: (...) squared distance of the codes from the vectors, which trains the codes.
        commitment: (...) squared distance of the vectors from the codes, which trains the vectors.
    """

    tokens: Tensor
    vectors: Tensor
    codebook: Tensor
    commitment: Tensor


class FiniteScalars(nn.Module):
    """Numbers that are bounded and rounded (Mentzer et al. 2023, arXiv 2309.15505).

    Args:
        levels: levels of each number; the codes are all combinations.

    Attributes:
        width: numbers of a code.
        count: number of codes.
    """

    halves: Tensor
    shift: Tensor
    places: Tensor

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        counts = torch.tensor(levels)
        self.width, self.count = len(levels), math.prod(levels)
        # An even number of levels has none at zero: rounded numbers are half a level off.
        self.register_buffer("shift", (counts % 2 == 0) * 0.5, persistent=False)
        self.register_buffer("halves", (counts - 1) / 2.0, persistent=False)
        places = torch.cat([torch.ones(1, dtype=torch.int64), counts[:-1].cumprod(0)])
        self.register_buffer("places", places, persistent=False)

    def forward(self, z: Tensor) -> Quantised:
        """Quantise vectors (..., width)."""
        z = at_least_float32(z)
        # Slightly more than the outermost levels, so that these can be reached.
        bounded = z.tanh() * self.halves * 1.001
        level = ((bounded + self.shift).round() - self.shift).clamp(-self.halves, self.halves)
        tokens = ((level + self.halves).round().long() * self.places).sum(-1)
        vectors = (bounded + (level - bounded).detach()) / self.halves
        nothing = torch.zeros_like(vectors[..., 0])
        return Quantised(tokens, vectors, nothing, nothing)

    def lookup(self, tokens: Tensor) -> Tensor:
        """Return the codes (..., width), in [-1, 1], of tokens (...)."""
        counts = (2 * self.halves + 1).round().long()
        level = tokens.long().unsqueeze(-1) // self.places % counts
        return (level - self.halves) / self.halves


class Codebook(nn.Module):
    """Vectors of which the nearest one is taken (van den Oord et al. 2017, arXiv 1711.00937).

    Args:
        count: number of codes.
        width: width of a code.
    """

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.count, self.width = count, width
        self.codes = nn.Parameter(torch.empty(count, width).uniform_(-1 / count, 1 / count))

    def forward(self, z: Tensor) -> Quantised:
        """Quantise vectors (..., width)."""
        z = z.to(self.codes.dtype)
        with torch.no_grad(), autocast_disabled(z):
            # Without the vectors' own squares, which are the same for all codes.
            distance = self.codes.square().sum(-1) - 2 * (z @ self.codes.T)
            tokens = distance.argmin(-1)
        chosen = self.lookup(tokens)
        return Quantised(
            tokens,
            z + (chosen - z).detach(),
            (chosen - z.detach()).square().mean(-1),
            (chosen.detach() - z).square().mean(-1),
        )

    def lookup(self, tokens: Tensor) -> Tensor:
        """Return the codes (..., width) of tokens (...)."""
        return F.embedding(tokens.long(), self.codes)


class MovingCodebook(nn.Module):
    """Directions that follow the mean of what they stand for (arXiv 1711.00937, appendix A.1).

    Vectors are compared by their cosines. A direction that stands for few of them is replaced by
    one of the batch, so that none falls out of use.

    Args:
        config: number and width of the codes, rate, and when they are replaced.
    """

    codes: Tensor
    sizes: Tensor
    sums: Tensor

    def __init__(self, config: QuantiserConfig) -> None:
        super().__init__()
        self.count, self.width = config.codes, config.width
        self.decay, self.revive = config.decay, config.revive
        codes = F.normalize(torch.randn(config.codes, config.width), dim=-1)
        self.register_buffer("codes", codes)
        self.register_buffer("sizes", torch.ones(config.codes))
        self.register_buffer("sums", codes.clone())

    def forward(self, z: Tensor) -> Quantised:
        """Quantise vectors (..., width)."""
        with autocast_disabled(z):
            z = F.normalize(z.to(self.codes.dtype), dim=-1)
            tokens = (z @ self.codes.T).argmax(-1)
        chosen = self.lookup(tokens)
        distance = (chosen - z).square().mean(-1)
        return Quantised(tokens, z + (chosen - z).detach(), distance.detach(), distance)

    @torch.no_grad()
    def follow(self, z: Tensor, tokens: Tensor) -> None:
        """Move the codes towards vectors (N, width) that became tokens (N,)."""
        z = F.normalize(z.detach().to(self.codes.dtype), dim=-1)
        sizes = torch.zeros_like(self.sizes).index_add_(0, tokens, torch.ones_like(z[:, 0]))
        sums = torch.zeros_like(self.sums).index_add_(0, tokens, z)
        both = all_reduce_sum(torch.cat([sizes.unsqueeze(1), sums], 1))
        self.sizes.lerp_(both[:, 0], 1 - self.decay)
        self.sums.lerp_(both[:, 1:], 1 - self.decay)
        # Evenly spaced vectors of the batch for the codes that are hardly used.
        fair = self.sizes.mean()
        unused = (self.sizes < self.revive * fair).unsqueeze(1)
        place = torch.arange(self.count, device=z.device) * len(z) // self.count
        others = z[place]
        if processes() > 1:
            dist.broadcast(others, 0)
        self.sums.copy_(torch.where(unused, others * fair, self.sums))
        self.sizes.copy_(torch.where(unused.squeeze(1), fair, self.sizes))
        self.codes.copy_(F.normalize(self.sums, dim=-1))

    def lookup(self, tokens: Tensor) -> Tensor:
        """Return the codes (..., width) of tokens (...)."""
        return F.embedding(tokens.long(), self.codes)


Quantiser = FiniteScalars | Codebook | MovingCodebook


def quantiser(config: QuantiserConfig) -> Quantiser:
    """Return the quantiser of a config."""
    if config.levels:
        return FiniteScalars(config.levels)
    return MovingCodebook(config) if config.decay else Codebook(config.codes, config.width)


def quantise(quantiser: Quantiser, latents: Tensor, *, follow: bool) -> Quantised:
    """Return vectors (N, ..., width) as codes.

    Args:
        quantiser: makes codes of vectors.
        latents: the vectors.
        follow: whether the codes of a moving codebook follow them, as in a fit.
    """
    quantised: Quantised = quantiser(latents)
    if follow and isinstance(quantiser, MovingCodebook):
        quantiser.follow(latents.flatten(0, -2), quantised.tokens.flatten())
    return quantised


def quantisation_terms(quantiser: Quantiser, quantised: Quantised) -> dict[str, Tensor]:
    """Return the losses (...) that a quantiser of its kind needs, by name.

    Args:
        quantiser: what made the codes.
        quantised: the codes.
    """
    terms = {}
    if isinstance(quantiser, Codebook):
        terms["codebook"] = quantised.codebook
    if not isinstance(quantiser, FiniteScalars):
        terms["commitment"] = quantised.commitment
    return terms
