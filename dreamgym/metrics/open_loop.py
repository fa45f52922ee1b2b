"""Open-loop errors: dreams under the actions of held-out episodes, compared with what happened."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dreamgym._device import float32_by_default
from dreamgym.data import AnyDataset
from dreamgym.metrics.windows import (
    BURN_IN,
    MIN_WINDOWS,
    Windows,
    as_float,
    draw_windows,
    max_steps,
    mean_square,
    uniform_noise,
    window_budget,
)
from dreamgym.models import Decodes, State, WorldModel
from dreamgym.models.observations import get_part, join_parts, observation_boxes

MAX_WINDOWS = (2048, 64)
"""Maximum number of windows, for vectors and for images."""

MAX_ROW_STEPS = 250_000
"""Approximate number of steps of single rows in one measurement; long dreams get fewer windows."""


class OpenLoopErrors(NamedTuple):
    """Errors at K horizons, in units of the observations' spread; leaves (K,).

    Attributes:
        horizons: numbers of steps ahead.
        windows: numbers of windows of held-out episodes that are long enough.
        sampled: root mean square error of one sampled dream. It contains the dream's own
            randomness: where nothing is predictable, a perfect model has sqrt(2), and a constant
            guess has 1.
        mean: root mean square error of the mean over several sampled dreams of the same window,
            which is the model's point forecast; compare this with `repeat_last`.
        repeat_last: root mean square error of repeating the last observation before the dream.
    """

    horizons: NDArray[Any]
    windows: NDArray[Any]
    sampled: NDArray[Any]
    mean: NDArray[Any]
    repeat_last: NDArray[Any]


@float32_by_default()
@torch.no_grad()
def open_loop_errors(
    model: WorldModel,
    dataset: AnyDataset,
    episodes: NDArray[np.integer],
    *,
    horizons: Iterable[int] = range(1, 51),
    samples: int = 8,
    seed: int = 0,
) -> Any:
    """Measure dreams that begin in held-out episodes and follow their actions.

    A window counts at a horizon as long as its episode continues. Whether the dream itself would
    have ended plays no part.

    Args:
        model: model in eval mode, with a decoder.
        dataset: source of the episodes.
        episodes: indices of episodes that the model was not fitted to.
        horizons: numbers of steps ahead; those that no episode reaches are left out.
        samples: dreams per window.
        seed: seed of the windows and of the model's noise.

    Returns:
        `OpenLoopErrors`, or a dict of them by key if observations are a Dict.

    Raises:
        TypeError: the model does not decode.
    """
    if not isinstance(model, Decodes):
        raise TypeError(
            f"{type(model).__name__} does not decode, so its dreams cannot be compared with "
            "observations; give a model with a decoder"
        )
    limit = max_steps(dataset, episodes)
    reachable = sorted({int(k) for k in horizons if 1 <= k <= limit})
    rows_of: dict[str, list[tuple[float, ...]]] = {
        key: [] for key in observation_boxes(model.observation_space)
    }
    if reachable:
        rng = np.random.default_rng([seed, 0x9A11])
        count = window_budget(dataset, BURN_IN + reachable[-1], MAX_WINDOWS)
        shape = (count, reachable[-1])
        windows = _limit_windows(draw_windows(model, dataset, episodes, shape, rng), samples)
        spreads = {key: windows.spread(key) for key in rows_of}
        for k, window_rows, state in _dream(model, windows, samples, rng):
            if k not in reachable:
                continue
            decoded, observed = model.decode(state), windows.segment.observation
            for key, rows in rows_of.items():
                truth = get_part(observed, key)[window_rows]
                errors = _errors(get_part(decoded, key), truth, k, spreads[key])
                rows.append((k, len(window_rows), *errors))
    return join_parts({key: _to_errors(rows) for key, rows in rows_of.items()})


def _limit_windows(windows: Windows, samples: int) -> Windows:
    """Keep as many windows as `MAX_ROW_STEPS` allows, but at least `MIN_WINDOWS`."""
    cost = samples * windows.mask.sum(1).cumsum(0)
    count = max(MIN_WINDOWS, int((cost <= MAX_ROW_STEPS).sum()))
    rows = torch.arange(min(count, len(cost)), device=cost.device)
    return windows.take(rows)


def _dream(
    model: WorldModel, windows: Windows, samples: int, rng: np.random.Generator
) -> Iterator[tuple[int, Tensor, State]]:
    """Yield (steps done, rows (A,) of windows that still continue, states (A * samples, ...))."""
    state, mask, actions = windows.start(), windows.mask, windows.segment.action
    rows = torch.arange(len(mask), device=mask.device)
    state = {key: leaf.repeat_interleave(samples, 0) for key, leaf in state.items()}
    for t in range(windows.steps):
        continues = mask[rows, t]
        rows = rows[continues]
        if not len(rows):
            return
        state = {key: leaf[continues.repeat_interleave(samples)] for key, leaf in state.items()}
        action = actions[rows, BURN_IN + t].repeat_interleave(samples, 0)
        noise = uniform_noise(rng, (len(action), model.noise_dim), action.device)
        state, _ = model.step(state, action, noise)
        yield t + 1, rows, state


def _errors(decoded: Tensor, truth: Tensor, k: int, spread: Tensor) -> tuple[float, float, float]:
    """Return the sampled, mean and repeat-last errors at horizon k.

    Args:
        decoded: (A * samples, ...) dreamt observations after k steps.
        truth: (A, L, ...) real observations of the windows.
        k: steps after the burn-in.
        spread: standard deviation of the observations.
    """
    # Differences keep the dtype of the real observations: with a large offset, float32 would not.
    expected, last = (as_float(truth[:, step]) for step in (BURN_IN + k, BURN_IN))
    dreams = decoded.to(expected.dtype).unflatten(0, (len(expected), -1))
    differences = (dreams - expected.unsqueeze(1), dreams.mean(1) - expected, last - expected)
    sampled, mean, repeat_last = (
        float(mean_square(difference, spread).mean() ** 0.5) for difference in differences
    )
    return sampled, mean, repeat_last


def _to_errors(rows: list[tuple[float, ...]]) -> OpenLoopErrors:
    columns = np.asarray(rows, dtype=np.float64).reshape(-1, 5).T
    return OpenLoopErrors(columns[0].astype(int), columns[1].astype(int), *columns[2:])
