"""Block-causal transformers: attention among the tokens of an observation, and over time.

They are those of Dreamer 4 (arXiv 2509.24527). Attention over time sees the last observations by
their distance, so keys and values that were computed once stay valid while a window slides.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.models.base import Prediction, State, Temperature, WorldModel
from dreamgym.models.nn.layers import RMSNorm, at_least_float32
from dreamgym.models.nn.transformer import band

EPSILON = 1e-6
"""Added to mean squares in norms."""

SOFT_CAP = 50.0
"""Bound of attention scores, which a tanh approaches (arXiv 2408.00118, section 2)."""

LONGEST_WAVE = 10_000.0
"""Longest wavelength of the rotations, over two pi."""

TOKEN_STD = 0.02
"""Standard deviation of learnt tokens at the start."""

Keys = tuple[Tensor, Tensor]
"""Keys and values of M observations, (B, S, heads, M, width / heads) each, the newest last."""


def token(*shape: int) -> nn.Parameter:
    """Return learnt tokens."""
    return nn.Parameter(TOKEN_STD * torch.randn(*shape))


def newest(keys: Keys, count: int) -> Keys:
    """Return the keys and values of the last observations."""
    return keys[0][..., -count:, :], keys[1][..., -count:, :]


def attend(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
    """Return mixed values (..., N, n), with bounded scores.

    Args:
        query: (..., N, n).
        key: (..., M, n).
        value: the same.
        allowed: bool, broadcast against (..., N, M).
    """
    scores = at_least_float32(query @ key.mT) * query.shape[-1] ** -0.5
    scores = SOFT_CAP * torch.tanh(scores / SOFT_CAP)
    weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    return weights.to(value.dtype) @ value


def rotated(x: Tensor, places: Tensor) -> Tensor:
    """Rotate (..., N, n) by places (N,): products then depend on distances (arXiv 2104.09864)."""
    half = x.shape[-1] // 2
    rates = LONGEST_WAVE ** -(torch.arange(half, device=x.device) / half)
    angles = (places.unsqueeze(-1) * rates).to(x.dtype)
    cos, sin = angles.cos(), angles.sin()
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


class Attention(nn.Module):
    """Attention with normalised queries and keys, pre-norm and residual.

    Args:
        width: width of the tokens.
        heads: attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = RMSNorm(width, eps=EPSILON)
        self.project = nn.Linear(width, 3 * width, bias=False)
        self.norm_query = RMSNorm(width // heads, eps=EPSILON)
        self.norm_key = RMSNorm(width // heads, eps=EPSILON)
        self.out = nn.Linear(width, width, bias=False)

    def projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values (..., heads, N, width / heads) of x (..., N, width)."""
        joint = self.project(self.norm(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = joint.movedim(-3, 0).transpose(-3, -2)
        return self.norm_query(query), self.norm_key(key), value


class SpaceAttention(Attention):
    """Attention among the tokens of one observation."""

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        """Attend within x (..., S, width) where `allowed` (S, S) says so."""
        mixed = attend(*self.projected(x), allowed)
        return x + self.out(mixed.transpose(-3, -2).flatten(-2))


class TimeAttention(Attention):
    """Causal attention of each token to its like in the last observations."""

    def forward(
        self, x: Tensor, context: int, before: Keys | None, known: Tensor
    ) -> tuple[Tensor, Keys]:
        """Attend within x (B, T, S, width), and to what was before.

        Args:
            x: (B, T, S, width).
            context: observations before its own that a token attends to.
            before: keys and values of M - T observations before; None for none.
            known: (B, M) bool, false for observations that are not there.

        Returns:
            The output, and keys and values of all M observations.
        """
        query, key, value = self.projected(x.transpose(1, 2))
        if before is not None:
            key, value = torch.cat([before[0], key], -2), torch.cat([before[1], value], -2)
        count, total = query.shape[-2], key.shape[-2]
        _, within, alone = band(count, total, context, x.device)
        allowed = (within & (known.unsqueeze(1) | alone))[:, None, None]
        # Distances to the newest one, so that kept keys need no places of their own.
        places = torch.arange(total, device=x.device) - (total - 1)
        mixed = attend(
            rotated(query, places[total - count :]), rotated(key, places), value, allowed
        )
        mixed = mixed.transpose(-3, -2).flatten(-2).transpose(1, 2)
        return x + self.out(mixed), (key, value)


class Block(nn.Module):
    """Attention over space, in some blocks over time, and a gated MLP (arXiv 2002.05202).

    Args:
        width: width of the tokens.
        heads: attention heads.
        mlp: width of the hidden layer.
        time: whether it attends over time.
    """

    def __init__(self, width: int, heads: int, mlp: int, *, time: bool = False) -> None:
        super().__init__()
        self.space = SpaceAttention(width, heads)
        self.time = TimeAttention(width, heads) if time else None
        self.norm = RMSNorm(width, eps=EPSILON)
        self.widen = nn.Linear(width, 2 * mlp, bias=False)
        self.narrow = nn.Linear(mlp, width, bias=False)

    def finish(self, x: Tensor) -> Tensor:
        """Apply the MLP to x (..., width)."""
        content, gate = self.widen(self.norm(x)).chunk(2, -1)
        return x + self.narrow(content * F.silu(gate))

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        """Apply the block to the tokens x (..., S, width) of single observations."""
        return self.finish(self.space(x, allowed))


class BlockCausalModel(WorldModel):
    """A model whose step needs the keys and values of the observations in its state's window.

    Attributes:
        given: leaves of a state that these depend on.
    """

    given: tuple[str, ...]

    @abstractmethod
    def before(self, state: State) -> list[Keys]:
        """Return keys and values of the last observations of a state, for each block over time."""

    @abstractmethod
    def imagine(
        self,
        state: State,
        action: Tensor,
        noise: Tensor,
        temperature: Temperature,
        before: list[Keys],
    ) -> tuple[State, Prediction, list[Keys]]:
        """Return what `step` returns, and the keys and values of the state that it returns.

        Args:
            state: leaves (B, ...).
            action: (B, ...) raw.
            noise: (B, noise_dim) uniforms.
            temperature: a number or (B,).
            before: outputs of `before` for this state.
        """

    def step(
        self, state: State, action: Tensor, noise: Tensor, temperature: Temperature = 1.0
    ) -> tuple[State, Prediction]:
        """See `WorldModel.step`."""
        following, prediction, _ = self.imagine(
            state, action, noise, temperature, self.before(state)
        )
        return following, prediction
