"""Limits of the data: what a dream should not exceed, for the alarms while a policy trains."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from dreamgym.metrics.context import Figures, MetricContext
from dreamgym.metrics.windows import as_float, draw_windows, uniform_noise, window_shape
from dreamgym.models import Segment, State, WorldModel, filter_states
from dreamgym.models.base import model_device
from dreamgym.models.reduction import float64_on_host

QUANTILE = 0.99
"""Share of held-out steps that are within the limits of uncertainty and distance."""

STEPS = 24
"""Transitions filtered before a state counts among those whose distances are measured."""

MAX_WINDOWS = (256, 64)
"""Maximum number of windows for vectors and for images."""

REWARD_MARGIN = 0.1
"""Share of the range of rewards by which a dream's reward may exceed it."""

CHUNK_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the data has shown; None where it, or the model, says nothing.

    Attributes:
        reward_low: smallest reward of one step.
        reward_high: largest reward of one step.
        longest_episode: steps of the longest episode.
        truncates: whether episodes of that length were truncated, so that none shows its end.
        uncertainty: 99th percentile of the model's uncertainty on held-out steps.
        distance: 99th percentile of the distance of held-out states from the nearest start state,
            both as standardised features (`feature_distance`).
    """

    reward_low: float | None = None
    reward_high: float | None = None
    longest_episode: int | None = None
    truncates: bool = False
    uncertainty: float | None = None
    distance: float | None = None

    @property
    def reward_margin(self) -> float:
        """How far a dream's reward may leave the range."""
        if self.reward_low is None or self.reward_high is None:
            return float("inf")
        span = self.reward_high - self.reward_low
        return REWARD_MARGIN * (span or abs(self.reward_high) or 1.0)

    def joined(self, other: Limits) -> Limits:
        """Return the wider one of each limit."""
        pick = {"reward_low": min}
        chosen: dict[str, Any] = {}
        for field in fields(self):
            values = [getattr(each, field.name) for each in (self, other)]
            known = [value for value in values if value is not None]
            chosen[field.name] = pick.get(field.name, max)(known) if known else None
        return Limits(**chosen)

    def to_json(self) -> Figures:
        """Return the limits as JSON-plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """Read limits; unknown keys are ignored, and what is missing is None."""
        values = values if isinstance(values, dict) else {}
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})


def limits(context: MetricContext) -> Figures:
    """Return the limits of rewards, lengths, uncertainties and features, see `Limits`.

    Rewards and lengths are those of all episodes, uncertainties and distances those of held-out
    ones.
    """
    dataset, model = context.dataset, context.model
    lessons = dataset.lessons()
    rewards = np.concatenate([each.rewards for each in lessons])
    if dataset.frame_skip.steps > 1:  # the rewards of a step are sums
        segment = context.windows.segment
        rewards = segment.reward[segment.mask].cpu().numpy()
    longest = max(int(each.lengths.max(initial=0)) for each in lessons)
    found = Limits(
        reward_low=float(rewards.min()) if len(rewards) else None,
        reward_high=float(rewards.max()) if len(rewards) else None,
        longest_episode=int(np.asarray(dataset.lengths).max()),
        truncates=bool(
            any((~each.terminated & (each.lengths == longest)).any() for each in lessons)
        ),
        uncertainty=_quantile(context.all_steps.predicted.uncertainty)
        if model.has_uncertainty
        else None,
        distance=_held_out_distance(context),
    )
    return {"limits": found.to_json()}


def _quantile(values: Tensor) -> float | None:
    return float(np.quantile(float64_on_host(values).numpy(), QUANTILE)) if len(values) else None


@torch.no_grad()
def _held_out_distance(context: MetricContext) -> float | None:
    """Return the 99th percentile of the distances of held-out states from the start states."""
    if context.starts is None:
        return None
    rng = np.random.default_rng([context.seed, 0x1137])
    shape = window_shape(context.dataset, STEPS, MAX_WINDOWS)
    windows = draw_windows(context.model, context.dataset, context.episodes, shape, rng)
    states = _filtered(context.model, windows.segment, rng)
    bank = Bank.of(context.model, context.starts)
    return _quantile(bank.distance(context.model.features(states)))


def _filtered(model: WorldModel, segment: Segment, rng: np.random.Generator) -> State:
    """Return the states after each real transition of windows, leaves (rows, ...)."""
    count, length = segment.mask.shape
    noise = uniform_noise(rng, (count, length + 1, model.noise_dim), segment.mask.device)
    states = filter_states(model, segment, noise)
    return {key: leaf[:, 1:][segment.mask] for key, leaf in states.items()}


@dataclass(frozen=True)
class Bank:
    """Standardised features of the start states: a sample of where the data has been.

    Attributes:
        points: (S, F) features, centred and in units of their spread.
        mean: (F,) mean of the features.
        scale: (F,) their standard deviation; 1 where they do not vary.
    """

    points: Tensor
    mean: Tensor
    scale: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, model: WorldModel, starts: State) -> Self:
        """Make the bank of a model's start states.

        Args:
            model: the model, on the device that the bank is to be on.
            starts: leaves (S, ...).
        """
        device = model_device(model)
        features = as_float(model.features({k: leaf.to(device) for k, leaf in starts.items()}))
        mean, scale = features.mean(0), features.std(0)
        scale = torch.where(scale > 1e-6, scale, 1.0)
        return cls((features - mean) / scale, mean, scale)

    @torch.no_grad()
    def distance(self, features: Tensor) -> Tensor:
        """Return the root mean square distance of features (N, F) from the nearest point, (N,).

        (Nearest-neighbour distance in a model's own features as a measure of what it has not seen:
        Sun et al. 2022, arXiv 2204.06507.)
        """
        rows = (as_float(features) - self.mean) / self.scale
        parts = [torch.cdist(part, self.points).amin(1) for part in rows.split(CHUNK_ROWS)]
        return torch.cat(parts) / rows.shape[1] ** 0.5
