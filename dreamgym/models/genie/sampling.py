"""Sampling of a frame's tokens in a few parallel steps (MaskGIT, arXiv 2202.04200)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dreamgym.models.base import Temperature
from dreamgym.models.nn.distributions import categorical, per_row

ROUNDING = 1e-9
"""What a product in float64 may exceed the whole number that it should be."""


def masked_after(tokens: int, steps: int) -> list[int]:
    """Return how many tokens are still masked after each step, the cosine schedule.

    ceil(cos(pi / 2 k / steps) tokens) after step k (section 3.3), and one less than before at most,
    so that every step draws a token.

    Args:
        tokens: tokens of a frame.
        steps: number of steps, at most `tokens`.
    """
    counts, before = [], tokens
    for k in range(1, steps):
        scheduled = math.ceil(math.cos(math.pi / 2 * k / steps) * tokens - ROUNDING)
        before = min(scheduled, before - 1)
        counts.append(before)
    return [*counts, 0]


def draw_frame(
    logits: Callable[[Tensor], Tensor],
    mask_token: int,
    noise: Tensor,
    temperature: Temperature,
) -> Tensor:
    """Draw the tokens of a frame, the most confident ones first.

    In each step all masked tokens are drawn at once, and those with the highest probability are
    kept, as many as the schedule says.

    Args:
        logits: returns logits (B, N, codes) for tokens (B, N) of which some are masked.
        mask_token: number of a masked token.
        noise: (B, steps, N) uniforms.
        temperature: divides the logits, a number or (B,).

    Returns:
        (B, N) int64.
    """
    _, steps, count = noise.shape
    tokens = torch.full_like(noise[:, 0], mask_token, dtype=torch.int64)
    for step, left in enumerate(masked_after(count, steps)):
        outputs = logits(tokens)
        tempered = outputs / per_row(temperature, outputs)
        drawn = categorical(tempered, noise[:, step])
        confidence = tempered.log_softmax(-1).gather(-1, drawn.unsqueeze(-1)).squeeze(-1)
        masked = tokens == mask_token
        drawn = torch.where(masked, drawn, tokens)
        # Tokens that are kept already come last in the order, after all others.
        order = torch.where(masked, confidence, torch.inf).argsort(dim=-1, stable=True)
        tokens = torch.where(order.argsort(-1) < left, mask_token, drawn)
    return tokens
