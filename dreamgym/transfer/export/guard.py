"""The guard of a controller: how surprising is an observation, and do the models agree?

Surprise is the normalised innovation squared of a filter's consistency test (Bar-Shalom, Li and
Kirubarajan 2001, "Estimation with applications to tracking and navigation", section 5.4): the
squared difference between an observation and its prediction, in units of the variance that was
expected of it, mean over the numbers. It is scaled to a mean of one on held-out data, because a
model may expect more or less variance than there is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from dreamgym._device import float32_by_default
from dreamgym.errors import TransferError
from dreamgym.models import Decodes, WorldModel
from dreamgym.models.base import State, as_segment, zero_action
from dreamgym.models.observations import (
    Observation,
    get_part,
    is_image,
    map_observation,
    observation_boxes,
    observation_bytes,
)
from dreamgym.world.held_out import WorldData

SAMPLES = 16
"""Imagined next states from which mean and variance of the prediction are estimated."""

QUANTILE = 0.99
"""Share of held-out observations below the threshold."""

MAX_TRANSITIONS = 4096
MAX_STEPS = 512
MIN_EPISODES = 8
MAX_OBSERVATION_BYTES = 64 << 20

_SMALLEST_SHARE = 1e-3  # of a number's spread: the smallest error that surprises


class Judgement(NamedTuple):
    """Outputs of a guard, each (B,).

    Attributes:
        surprise: mean squared error of the prediction in units of its expected variance, one in
            the mean over held-out data.
        disagreement: the model's epistemic uncertainty about this step; zeros where it has none.
    """

    surprise: Tensor
    disagreement: Tensor


class Guard(nn.Module):
    """Compares each observation with what the model imagined for it.

    Vectors are compared as they are, if the model decodes. Otherwise, and where there are images,
    the features of the state are compared, before and after the observation is known.

    Args:
        model: the world model, in eval mode.

    Attributes:
        variance: (D,) variance of each compared number that the imagined samples do not show: that
            of decoding, and of errors of the model. `calibrate` sets it.
        scale: () mean of the unscaled surprise on held-out data, likewise.
    """

    uniforms: Tensor
    variance: Tensor
    scale: Tensor

    def __init__(self, model: WorldModel) -> None:
        super().__init__()
        self.model = model
        boxes = observation_boxes(model.observation_space)
        images = any(map(is_image, boxes.values()))
        self.keys = list(boxes) if isinstance(model, Decodes) and not images else []
        # Always the same noise, so that equal observations are judged alike.
        generator = torch.Generator().manual_seed(0)
        self.register_buffer(
            "uniforms", torch.rand((SAMPLES, model.noise_dim), generator=generator)
        )
        size = sum(int(np.prod(boxes[key].shape)) for key in self.keys) or model.feature_dim
        self.register_buffer("variance", torch.ones(size))
        self.register_buffer("scale", torch.ones(()))

    @property
    def compares(self) -> str:
        """What is compared: "observations" or "features"."""
        return "observations" if self.keys else "features"

    def forward(
        self, state: State, action: Tensor, observation: Observation, after: State
    ) -> Judgement:
        """Judge an observation.

        Args:
            state: state before the action, leaves (B, ...).
            action: (B, ...) raw action.
            observation: (B, ...) the observation that followed.
            after: the state that has taken it in.
        """
        mean, variance, disagreement = self.expect(state, action)
        error = self.compared(observation, after) - mean
        surprise = (error.square() / (variance + self.variance)).mean(-1) / self.scale
        return Judgement(surprise.float(), disagreement)

    def expect(self, state: State, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean and variance (B, D) of what is compared, and the disagreement (B,)."""
        rows = len(action)
        repeated = {name: _repeat(leaf) for name, leaf in state.items()}
        following, prediction = self.model.step(
            repeated, _repeat(action), self.uniforms.repeat(rows, 1)
        )
        if self.keys:
            imagined = _flat(cast(Decodes, self.model).decode(following), self.keys)
        else:
            imagined = self.model.features(following).float()
        imagined = imagined.unflatten(0, (rows, SAMPLES))
        mean = imagined.mean(1)
        variance = (imagined - mean.unsqueeze(1)).square().mean(1)
        return mean, variance, prediction.uncertainty.view(rows, SAMPLES).mean(1)

    def compared(self, observation: Observation, after: State) -> Tensor:
        """Return what is compared with the expectation, (B, D)."""
        if self.keys:
            return _flat(observation, self.keys)
        return self.model.features(after).float()


class Calibration(NamedTuple):
    """What held-out observations show.

    Attributes:
        thresholds: the `QUANTILE` of each output.
        medians: the median of each output.
        transitions: number of observations that were judged.
    """

    thresholds: Judgement
    medians: Judgement
    transitions: int


@float32_by_default()
@torch.no_grad()
def calibrate(guard: Guard, opened: WorldData, *, seed: int = 0) -> Calibration:
    """Set a guard's variance and scale on held-out episodes, and measure its outputs there.

    Episodes are filtered from their beginning, as a controller does.

    Args:
        guard: the guard, whose model is on the CPU.
        opened: the data; only its held-out episodes are read.
        seed: seed of the choice of episodes and of the filter's noise.

    Raises:
        TransferError: the held-out episodes have fewer than two transitions.
    """
    errors, variances, disagreements, seen = [], [], [], []
    for state, action, observation, after, mask in _transitions(guard.model, opened, seed):
        mean, variance, disagreement = guard.expect(state, action)
        compared = guard.compared(observation, after)
        errors.append((compared - mean)[mask])
        variances.append(variance[mask])
        disagreements.append(disagreement[mask])
        seen.append(compared[mask])
    squares, variance = torch.cat(errors).square(), torch.cat(variances)
    values = torch.cat(seen)
    if len(values) < 2:
        raise TransferError(
            f"the held-out episodes of {opened.dataset.path} have {len(values)} transitions, too "
            "few for thresholds; give more data, or none for a controller without a guard"
        )
    # What the samples do not explain. A number that is constant here must not move at all.
    rounding = 16 * torch.finfo(torch.float32).eps * values.abs().amax(0).clamp(min=1e-6)
    smallest = (_SMALLEST_SHARE * values.std(0) + rounding).square()
    guard.variance.copy_(torch.maximum((squares - variance).mean(0), smallest))
    surprise = (squares / (variance + guard.variance)).mean(-1).float()
    guard.scale.copy_(surprise.mean().clamp(min=1e-12))
    judged = Judgement(surprise / guard.scale, torch.cat(disagreements))
    return Calibration(
        thresholds=Judgement(*(leaf.quantile(QUANTILE) for leaf in judged)),
        medians=Judgement(*(leaf.median() for leaf in judged)),
        transitions=len(values),
    )


def _transitions(
    model: WorldModel, opened: WorldData, seed: int
) -> Iterator[tuple[State, Tensor, Observation, State, Tensor]]:
    """Yield state, action, observation, following state and mask of held-out transitions."""
    data, rng = opened.dataset, np.random.default_rng([seed, 0x6A4D])
    lengths = np.asarray(data.lengths)[opened.held_out]
    row_bytes = observation_bytes(data.observation_space)
    steps = int(min(lengths.max(), MAX_STEPS, max(32, MAX_OBSERVATION_BYTES // (8 * row_bytes))))
    count = max(MIN_EPISODES, MAX_TRANSITIONS // steps)
    chosen = rng.permutation(opened.held_out)[:count]
    segment = as_segment(
        data.windows(chosen, np.zeros(len(chosen), np.int64), steps), torch.device("cpu")
    )
    rows = len(chosen)

    def observe(state: State, action: Tensor, t: int) -> tuple[Observation, State]:
        observation = map_observation(lambda leaf: leaf[:, t], segment.observation)
        noise = torch.from_numpy(rng.random((rows, model.noise_dim), dtype=np.float32))
        return observation, model.observe(state, action, observation, noise)

    _, state = observe(model.initial(rows), zero_action(model.action_space, rows, "cpu"), 0)
    for t in range(steps):
        action = segment.action[:, t]
        observation, after = observe(state, action, t + 1)
        yield state, action, observation, after, segment.mask[:, t]
        state = after


def _repeat(leaf: Tensor) -> Tensor:
    """Repeat each row of (B, ...) for all samples: (B * SAMPLES, ...)."""
    return leaf.unsqueeze(1).expand(-1, SAMPLES, *leaf.shape[1:]).flatten(0, 1)


def _flat(observation: Observation, keys: list[str]) -> Tensor:
    """Return the numbers of an observation side by side, (B, D)."""
    parts = [get_part(observation, key).flatten(1) for key in keys]
    # Doubles stay: beside a large offset, float32 would lose the variation.
    return torch.cat([x if x.is_floating_point() else x.float() for x in parts], -1)
