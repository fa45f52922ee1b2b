"""What a fitted model is worth on held-out episodes: the figures that a world carries."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dreamgym.data import AnyDataset, SegmentBatch
from dreamgym.models import (
    Decodes,
    Segment,
    State,
    WorldModel,
    as_tensors,
    assemble,
    filter,
    imagine,
    part,
    parts,
)

HORIZONS = (1, 5, 15, 50)
BURN_IN = 4
WINDOWS = 2048
WINDOW_BYTES = 64 << 20
"""Of observations in all windows: of images there are fewer of them, though never under 64."""


def as_segment(batch: SegmentBatch, device: torch.device) -> Segment:
    """A batch of the reader as tensors on a device."""
    rest = (torch.from_numpy(np.ascontiguousarray(leaf)).to(device) for leaf in batch[1:])
    return Segment(as_tensors(batch.observation, device), *rest)


@torch.no_grad()
def measure_quality(
    model: WorldModel, dataset: AnyDataset, episodes: NDArray[np.integer], seed: int = 0
) -> dict[str, Any]:
    """Measure a model on episodes that it was not fitted to.

    Args:
        model: in eval mode.
        dataset: where the episodes are.
        episodes: indices of held-out episodes.
        seed: of the windows and of the model's noise.

    Returns:
        JSON-plain figures: `reward_rmse` (the real environment's units), `termination_brier`
        and `termination_rate`, both one step ahead; `action_sensitivity` (one-step error under
        shuffled actions over that under the true ones); `open_loop`: for each horizon the root
        mean square error in units of the observations' spread, and that of repeating the last
        observation. A horizon that no held-out episode reaches is left out.
    """
    device = next(model.parameters()).device
    rng = np.random.default_rng([seed, 0x9A11])
    longest = int(np.asarray(dataset.lengths)[episodes].max())
    horizons = [k for k in HORIZONS if k + BURN_IN <= longest]
    length = BURN_IN + max(horizons, default=1)
    count = _windows(dataset, length)
    batch = dataset.segments(episodes, length).draw(count, rng)
    segment = as_segment(batch, device)
    noise = _uniform(rng, (count, length + 1, model.noise_dim), device)
    states = filter(model, segment, noise)
    figures = _one_step(model, segment, states, rng)
    if isinstance(model, Decodes):
        figures["open_loop"] = _open_loop(model, segment, states, horizons, noise)
    return figures


def _windows(dataset: AnyDataset, length: int) -> int:
    """How many windows of `length` transitions are looked at."""
    boxes = parts(dataset.observation_space).values()
    row = sum(int(np.prod(box.shape)) * np.dtype(box.dtype).itemsize for box in boxes)
    return min(WINDOWS, max(64, WINDOW_BYTES // (row * (length + 1))))


def _uniform(rng: np.random.Generator, shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.from_numpy(rng.random(shape, dtype=np.float32)).to(device)


def _one_step(
    model: WorldModel, segment: Segment, states: State, rng: np.random.Generator
) -> dict[str, Any]:
    """Predictions of the transition after the burn-in, in every window that reaches so far."""
    real = segment.mask[:, BURN_IN]
    if not bool(real.any()):  # no held-out episode is so long
        return {}
    before = {key: leaf[real, BURN_IN] for key, leaf in states.items()}
    actions = segment.action[real, BURN_IN]
    noise = _uniform(rng, (len(actions), model.noise_dim), actions.device)
    after, prediction = model.step(before, actions, noise)
    ended = segment.terminated[real, BURN_IN].float()
    reward_error = prediction.reward - segment.reward[real, BURN_IN]
    figures: dict[str, Any] = {
        "reward_rmse": float(reward_error.square().mean() ** 0.5),
        "termination_brier": float((prediction.termination - ended).square().mean()),
        "termination_rate": float(ended.mean()),
    }
    shuffled = actions[torch.from_numpy(rng.permutation(len(actions))).to(actions.device)]
    wrong, _ = model.step(before, shuffled, noise)
    truth = {key: leaf[real, BURN_IN + 1] for key, leaf in states.items()}
    error = (model.features(after) - model.features(truth)).square().mean()
    error_shuffled = (model.features(wrong) - model.features(truth)).square().mean()
    figures["action_sensitivity"] = float((error_shuffled / error.clamp(min=1e-12)) ** 0.5)
    return figures


def _open_loop(
    model: Any, segment: Segment, states: State, horizons: list[int], noise: Tensor
) -> dict[str, Any]:
    """Errors of dreams under the true actions; by part where the observation is a Dict."""
    start = {key: leaf[:, BURN_IN] for key, leaf in states.items()}
    dreamt, _ = imagine(model, start, segment.action[:, BURN_IN:], noise[:, BURN_IN + 1 :])
    figures: dict[str, Any] = {}
    for k in horizons:
        alive = segment.mask[:, BURN_IN + k - 1]
        if not bool(alive.any()):
            continue
        predicted = model.decode({key: leaf[alive, k - 1] for key, leaf in dreamt.items()})
        errors = {
            key: _errors(part(segment.observation, key), part(predicted, key), alive, k)
            for key in parts(model.observation_space)
        }
        figures[str(k)] = {"windows": int(alive.sum()), **_named(errors)}
    return figures


def _named(errors: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The figures of a lone part as they are, of several under their keys."""
    figures: Any = assemble(errors)
    return figures


def _errors(observed: Tensor, predicted: Tensor, alive: Tensor, k: int) -> dict[str, float]:
    """Root mean square errors of a part k steps ahead, in units of its spread."""
    truth = observed[alive].float()
    before = observed[:, : BURN_IN + 1].float().flatten(0, 1)
    # Numbers of a vector have a spread each; pixels share one, for many of them never change.
    spread = (before.std(0) if before.ndim == 2 else before.std()).clamp(min=1e-6)
    wanted, last = truth[:, BURN_IN + k], truth[:, BURN_IN]
    return {
        "rmse": float(((predicted.float() - wanted) / spread).square().mean() ** 0.5),
        "repeat_last": float(((last - wanted) / spread).square().mean() ** 0.5),
    }
