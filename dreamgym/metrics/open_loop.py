"""Open-loop errors: dreams under the actions of held-out episodes, compared with what happened."""

from __future__ import annotations

import time
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
    decode_chunk,
    draw_windows,
    max_steps,
    mean_square,
    uniform_noise,
    window_shape,
)
from dreamgym.models import Decodes, Prediction, State, WorldModel
from dreamgym.models.observations import get_part, join_parts, observation_boxes

MAX_WINDOWS = (2048, 64)
"""Maximum number of windows, for vectors and for images."""

MAX_ROW_STEPS = 250_000
"""Approximate number of steps of single rows in one measurement; long dreams get fewer windows."""

MAX_SECONDS = 60.0
"""Approximate time of all steps in one measurement; models with a slow step get fewer windows."""

TIMED_ROWS = 512
"""Rows of the step whose time is measured."""


class OpenLoopErrors(NamedTuple):
    """Errors at K horizons, in units of the observations' spread; leaves (K,).

    Attributes:
        horizons: numbers of steps ahead.
        windows: numbers of distinct windows of held-out episodes that are long enough.
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
    have ended plays no part. There are fewer windows where a step of the model is so slow that all
    of them would take more than `MAX_SECONDS`; `OpenLoopErrors.windows` has their number.

    Args:
        model: model in eval mode, with a decoder.
        dataset: source of the episodes.
        episodes: (E,) indices of episodes that the model was not fitted to.
        horizons: numbers of steps ahead; those that no episode reaches are left out, and far ones
            for observations so large that their windows must be short (`window_shape`).
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
        shape = window_shape(dataset, reachable[-1], MAX_WINDOWS)
        windows = draw_windows(model, dataset, episodes, shape, rng)
        windows = limit_windows(model, windows, samples)
        spreads = {key: windows.spread(key) for key in rows_of}
        for k, window_rows, state, _ in dream_windows(model, windows, samples, rng):
            if k not in reachable:
                continue
            squares = _squared_errors(model, windows, (k, window_rows, state), spreads, samples)
            for key, rows in rows_of.items():
                rows.append((k, len(window_rows), *(square**0.5 for square in squares[key])))
    return join_parts({key: _to_errors(rows) for key, rows in rows_of.items()})


def limit_windows(
    model: WorldModel, windows: Windows, samples: int, row_steps: int = MAX_ROW_STEPS
) -> Windows:
    """Keep as many windows as the budgets of steps and of time allow, but at least `MIN_WINDOWS`.

    Args:
        model: model whose step is timed.
        windows: N windows.
        samples: dreams per window.
        row_steps: approximate number of steps of single rows.
    """
    row_seconds = _row_seconds(model, windows)
    cost = samples * windows.mask.sum(1).cumsum(0)
    count = min(len(cost), max(MIN_WINDOWS, int((cost <= row_steps).sum())))
    # By halves, so that the number does not depend on how exactly the time was measured.
    while count >= 2 * MIN_WINDOWS and float(cost[count - 1]) * row_seconds > MAX_SECONDS:
        count //= 2
    return windows.take(torch.arange(count, device=cost.device))


def _row_seconds(model: WorldModel, windows: Windows) -> float:
    """Return the shortest of three times that a step takes, for one row."""
    rows = torch.arange(TIMED_ROWS, device=windows.mask.device) % len(windows.mask)
    state = {key: leaf[rows] for key, leaf in windows.start().items()}
    action = windows.segment.action[rows, BURN_IN]
    noise = torch.full((TIMED_ROWS, model.noise_dim), 0.5, device=action.device)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        _, prediction = model.step(state, action, noise)
        prediction.reward.sum().item()  # a GPU has finished the step only now
        seconds.append(time.perf_counter() - started)
    return min(seconds) / TIMED_ROWS


def dream_windows(
    model: WorldModel, windows: Windows, samples: int, rng: np.random.Generator
) -> Iterator[tuple[int, Tensor, State, Prediction]]:
    """Dream windows under their own actions, as long as their episodes continue.

    Args:
        model: model in eval mode.
        windows: N windows.
        samples: dreams per window.
        rng: generator of the model's noise.

    Yields:
        Steps done, rows (A,) of the windows that still continue, and their states and predictions,
        leaves (A * samples, ...).
    """
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
        state, prediction = model.step(state, action, noise)
        yield t + 1, rows, state, prediction


def _squared_errors(
    model: Any,
    windows: Windows,
    dreams: tuple[int, Tensor, State],
    spreads: dict[str, Tensor],
    samples: int,
) -> dict[str, tuple[float, ...]]:
    """Return the mean squared errors of each part: sampled, of the mean and of repeating the last.

    Args:
        model: model that decodes.
        windows: windows of real observations.
        dreams: steps done (k), rows (A,) of windows, and states (A * samples, ...).
        spreads: standard deviation of the observations of each part.
        samples: dreams per window.
    """
    k, window_rows, state = dreams
    chunk = decode_chunk(model.observation_space, samples)
    totals = {key: np.zeros(3) for key in spreads}
    for first in range(0, len(window_rows), chunk):
        rows = window_rows[first : first + chunk]
        part = slice(first * samples, (first + len(rows)) * samples)
        decoded = model.decode({key: leaf[part] for key, leaf in state.items()})
        for key, spread in spreads.items():
            truth = get_part(windows.segment.observation, key)[rows][:, [BURN_IN, BURN_IN + k]]
            # Differences keep the dtype of the real observations: with a large offset, float32
            # would not.
            last, expected = as_float(truth).unbind(1)
            dreamt = get_part(decoded, key).to(expected.dtype).unflatten(0, (len(rows), -1))
            differences = (
                dreamt - expected.unsqueeze(1),
                dreamt.mean(1) - expected,
                last - expected,
            )
            squares = [float(mean_square(d, spread).mean()) for d in differences]
            totals[key] += np.array(squares) * (len(rows) / len(window_rows))
    return {key: tuple(total.tolist()) for key, total in totals.items()}


def _to_errors(rows: list[tuple[float, ...]]) -> OpenLoopErrors:
    columns = np.asarray(rows, dtype=np.float64).reshape(-1, 5).T
    return OpenLoopErrors(columns[0].astype(int), columns[1].astype(int), *columns[2:])
