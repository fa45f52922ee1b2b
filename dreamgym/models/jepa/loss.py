"""Tensors and terms of a JEPA's loss on a segment; `JEPA.loss` puts them together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamgym.models.base import Segment
from dreamgym.models.jepa.config import JEPAObjective
from dreamgym.models.jepa.regularisers import (
    num_directions,
    random_directions,
    sigreg,
    temporal_alignment,
    variance_covariance,
)
from dreamgym.models.reduction import masked_mean


class SegmentEncoding(NamedTuple):
    """Encoded observations and actions of B segments with L transitions.

    Attributes:
        embeddings: (B, L + 1, D) embeddings of the observations.
        targets: (B, L + 1, D) embeddings to predict: of the target encoder, without gradient, or
            `embeddings` themselves.
        actions: (B, L, A) encoded actions.
        conditions: (B, L, D) embedded actions, the predictor's condition.
        observed: (B, L + 1) bool, false on padding.
    """

    embeddings: Tensor
    targets: Tensor
    actions: Tensor
    conditions: Tensor
    observed: Tensor


class Transitions(NamedTuple):
    """T consecutive transitions between embeddings in each of B segments.

    Attributes:
        before: (B, T, D) embeddings before the transitions.
        after: (B, T, D) embeddings after them, encoded or predicted.
        start: index of the first transition in the segment.
    """

    before: Tensor
    after: Tensor
    start: int

    @property
    def steps(self) -> slice:
        """Indices of the transitions' actions, rewards and masks in the segment."""
        return slice(self.start, self.start + self.after.shape[1])

    @property
    def arrivals(self) -> slice:
        """Indices of the observations after the transitions in the segment."""
        return slice(self.start + 1, self.start + 1 + self.after.shape[1])


def windows(frames: Tensor, size: int) -> Tensor:
    """Return all windows of `size` frames: (B, T, ...) as (B, T - size + 1, size, ...)."""
    return frames.unfold(1, size, 1).movedim(-1, 2)


def longest_context(windowed: Tensor) -> Tensor:
    """Return each frame's prediction from the longest context: (B, W, size, D) as (B, L, D)."""
    return torch.cat([windowed[:, 0, :-1], windowed[:, :, -1]], 1)


def window_error(windowed: Tensor, encoding: SegmentEncoding) -> Tensor:
    """Return the mean squared error of one-step predictions (B, W, size, D) in all windows."""
    size = windowed.shape[2]
    targets = windows(encoding.targets[:, 1:], size)
    mask = windows(encoding.observed[:, 1:], size)
    return masked_mean((windowed - targets).square().mean(-1), mask)


def rollout_error(rollout: Sequence[Transitions], encoding: SegmentEncoding) -> Tensor:
    """Return the mean squared error of open-loop predictions, averaged over their depths."""
    errors = []
    for transitions in rollout:
        arrivals = transitions.arrivals
        error = (transitions.after - encoding.targets[:, arrivals]).square().mean(-1)
        errors.append(masked_mean(error, encoding.observed[:, arrivals]))
    return torch.stack(errors).mean()


def regularisation_terms(
    objective: JEPAObjective, encoding: SegmentEncoding, noise: Tensor
) -> dict[str, Tensor]:
    """Return the unweighted regularisers of the embeddings that have a weight.

    Args:
        objective: weights of the terms.
        encoding: encoded segments.
        noise: (...) uniforms that determine the directions of SIGReg.
    """
    embeddings, observed, terms = encoding.embeddings, encoding.observed, {}
    if objective.sigreg:
        width = embeddings.shape[-1]
        directions = random_directions(noise, width, num_directions(width))
        terms["sigreg"] = sigreg(embeddings, observed, directions)
    if objective.std or objective.cov:
        terms["std"], terms["cov"] = variance_covariance(embeddings, observed)
    if objective.temporal:
        terms["temporal"] = temporal_alignment(embeddings, observed)
    return terms


def reward_termination_error(
    reward: Tensor, logit: Tensor, standard_reward: Tensor, segment: Segment, steps: slice
) -> tuple[Tensor, Tensor]:
    """Return the reward's mean squared error and the termination's mean cross-entropy.

    Args:
        reward: (B, T) predicted standardised rewards.
        logit: (B, T) predicted termination logits.
        standard_reward: (B, L) standardised rewards of the segment.
        segment: B segments of L transitions.
        steps: indices of the T transitions in the segment.
    """
    mask = segment.mask[:, steps]
    terminated = segment.terminated[:, steps].to(logit.dtype)
    cross_entropy = F.binary_cross_entropy_with_logits(logit, terminated, reduction="none")
    squared_error = (reward - standard_reward[:, steps]).square()
    return masked_mean(squared_error, mask), masked_mean(cross_entropy, mask)
