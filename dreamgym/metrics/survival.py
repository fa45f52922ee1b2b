"""Survival: how many episodes, and dreams of the same actions, have not terminated by each step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dreamgym.metrics.windows import BURN_IN, Windows, uniform_noise
from dreamgym.models import WorldModel

SAMPLES = 4
"""Dreams per window."""

SAMPLE = "sample"
"""The rule by which terminations are drawn from their probability."""


@torch.no_grad()
def dream_survival(
    model: WorldModel, windows: Windows, rules: Sequence[str], rng: np.random.Generator
) -> dict[str, Tensor]:
    """Return, for each termination rule, the share (N, L) of dreams that survive each step.

    Actions after a real end are taken from other windows.

    Args:
        model: model in eval mode.
        windows: N windows.
        rules: "sample", or the probability at and above which a dream ends.
        rng: generator of the choice of actions and of the model's noise.
    """
    count = len(windows.segment.mask)
    state = {key: leaf.repeat_interleave(SAMPLES, 0) for key, leaf in windows.start().items()}
    actions = _continued_actions(windows, rng)
    probabilities = []
    for t in range(windows.steps):
        action = actions[:, t].repeat_interleave(SAMPLES, 0)
        noise = uniform_noise(rng, (len(action), model.noise_dim), action.device)
        state, prediction = model.step(state, action, noise)
        probabilities.append(prediction.termination)
    ends = torch.stack(probabilities, 1)  # (N * SAMPLES, L)
    # A step's termination is sampled independently of the state that follows, so the product of
    # survival probabilities is exact for each sampled path.
    shares = {
        rule: (1.0 - ends if rule == SAMPLE else (ends < float(rule)).float()).cumprod(1)
        for rule in rules
    }
    return {rule: share.unflatten(0, (count, SAMPLES)).mean(1) for rule, share in shares.items()}


def _continued_actions(windows: Windows, rng: np.random.Generator) -> Tensor:
    """Return the windows' actions (N, L, ...), continued with real actions of random windows."""
    actions, mask = windows.segment.action[:, BURN_IN:].clone(), windows.mask
    pool = actions[mask]
    missing = int((~mask).sum())
    actions[~mask] = pool[torch.from_numpy(rng.integers(len(pool), size=missing)).to(pool.device)]
    return actions


def real_survival(windows: Windows) -> tuple[Tensor, Tensor]:
    """Return whether episodes survived each step, and whether that is known; both (N, L)."""
    mask = windows.mask
    terminated = (windows.segment.terminated[:, BURN_IN:] & mask).cumsum(1) > 0
    # After a termination an episode is over; after a truncation it is not known.
    return (~terminated).float(), mask | terminated
