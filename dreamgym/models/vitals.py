"""Vitals: what a model shows of its latents, so that an illness of them can be seen."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Divergence(NamedTuple):
    """How much an observation says through a stochastic latent, where nothing else was known.

    Attributes:
        nats: (N, D) divergence of the posterior from the prior at N observations, of each
            dimension (each categorical) of the latent.
        free: nats that the loss grants for nothing; 0 where it grants none.
        granted: whether they are free for each dimension ("each") or for all together ("all").
        remedy: what to do where the latent says nothing, or no more than what is free.
    """

    nats: Tensor
    free: float
    granted: str
    remedy: str


class Spread(NamedTuple):
    """How far embeddings differ from each other.

    Attributes:
        std: () mean over dimensions of the standard deviation.
        effective_rank: () of their covariance, between 1 and `width`.
        width: of an embedding.
        remedy: what to do where they do not differ.
    """

    std: Tensor
    effective_rank: Tensor
    width: int
    remedy: str


class Vitals(NamedTuple):
    """What a model shows of its latents on a batch, by the name of the latent.

    A lone latent is called "", as a lone part of an observation is.

    Attributes:
        divergences: of stochastic latents.
        spreads: of embeddings that nothing but the loss keeps from being all the same.
    """

    divergences: dict[str, Divergence]
    spreads: dict[str, Spread]
