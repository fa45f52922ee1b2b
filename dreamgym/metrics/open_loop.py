"""Open-loop errors: dreams under the actions of held-out episodes, against what then happened."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dreamgym.data import AnyDataset
from dreamgym.metrics.windows import (
    BURN_IN,
    FEWEST,
    Windows,
    affordable,
    draw_windows,
    longest,
    uniform,
)
from dreamgym.models import Decodes, State, WorldModel
from dreamgym.models.observations import get_part, join_parts, observation_boxes

WINDOWS = (2048, 64)

"""At most: of vectors, and of images."""


ROW_STEPS = 250_000

"""Steps of single rows that one measurement may take, about: long dreams get fewer windows."""


class OpenLoopErrors(NamedTuple):
    """Errors at K horizons, in units of the observations' spread; leaves (K,).

    Attributes:
        horizons: steps ahead.
        windows: how many windows of held-out episodes reach so far.
        sampled: root mean square error of one sampled dream. A dream that is uncertain rightly is
            far from the truth by chance: where nothing can be known any more, a perfect model's is
            sqrt(2), that of a constant guess 1.
        mean: root mean square error of the mean over several sampled dreams of the same window,
            which is the model's point forecast, and what to hold against `repeat_last`.
        repeat_last: of repeating the last observation before the dream.
    """

    horizons: NDArray[Any]
    windows: NDArray[Any]
    sampled: NDArray[Any]
    mean: NDArray[Any]
    repeat_last: NDArray[Any]


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
    """Errors of dreams that begin in held-out episodes and follow their actions.

    A window counts at a horizon while its episode goes on; whether the dream itself would have
    ended does not matter.

    Args:
        model: in eval mode, and one that decodes.
        dataset: where the episodes are.
        episodes: indices of episodes that the model was not fitted to.
        horizons: steps ahead; those that no episode reaches are left out.
        samples: dreams of each window.
        seed: of the windows and of the model's noise.

    Returns:
        `OpenLoopErrors`; by key, where observations are a Dict.

    Raises:
        TypeError: the model does not decode.
    """
    if not isinstance(model, Decodes):
        raise TypeError(f"{type(model).__name__} does not decode: it says nothing of observations")
    reach = longest(dataset, episodes)
    wanted = sorted({int(k) for k in horizons if 1 <= k <= reach})
    found: dict[str, list[tuple[float, ...]]] = {
        key: [] for key in observation_boxes(model.observation_space)
    }
    if wanted:
        rng = np.random.default_rng([seed, 0x9A11])
        count = affordable(dataset, BURN_IN + wanted[-1], WINDOWS)
        shape = (count, wanted[-1])
        windows = _within_budget(draw_windows(model, dataset, episodes, shape, rng), samples)
        spreads = {key: windows.spread(key) for key in found}
        for k, rows, state in _dreams(model, windows, samples, rng):
            if k not in wanted:
                continue
            said, seen = model.decode(state), windows.segment.observation
            for key, rows_found in found.items():
                truth = get_part(seen, key)[rows]
                errors = _errors(get_part(said, key), truth, k, spreads[key])
                rows_found.append((k, len(rows), *errors))
    return join_parts({key: _table(rows) for key, rows in found.items()})


def _within_budget(windows: Windows, samples: int) -> Windows:
    """As many of the windows as `ROW_STEPS` allow, and no fewer than `FEWEST`."""
    cost = samples * windows.alive().sum(1).cumsum(0)
    count = max(FEWEST, int((cost <= ROW_STEPS).sum()))
    rows = torch.arange(min(count, len(cost)), device=cost.device)
    return windows.take(rows)


def _dreams(
    model: WorldModel, windows: Windows, samples: int, rng: np.random.Generator
) -> Iterator[tuple[int, Tensor, State]]:
    """Step by step: how many steps, the windows (A,) still real, and states (A * samples, ...)."""
    state, alive, actions = windows.start(), windows.alive(), windows.segment.action
    rows = torch.arange(len(alive), device=alive.device)
    state = {key: leaf.repeat_interleave(samples, 0) for key, leaf in state.items()}
    for t in range(windows.steps):
        real = alive[rows, t]
        rows = rows[real]
        if not len(rows):
            return
        state = {key: leaf[real.repeat_interleave(samples)] for key, leaf in state.items()}
        action = actions[rows, BURN_IN + t].repeat_interleave(samples, 0)
        noise = uniform(rng, (len(action), model.noise_dim), action.device)
        state, _ = model.step(state, action, noise)
        yield t + 1, rows, state


def _errors(said: Tensor, truth: Tensor, k: int, spread: Tensor) -> tuple[float, float, float]:
    """Sampled, mean and repeat-last errors; said (A * samples, ...), truth (A, L, ...)."""
    wanted, last = truth[:, BURN_IN + k].float(), truth[:, BURN_IN].float()
    dreams = said.float().unflatten(0, (len(wanted), -1))
    guesses = (dreams - wanted.unsqueeze(1), dreams.mean(1) - wanted, last - wanted)
    sampled, mean, repeated = (float((g / spread).square().mean() ** 0.5) for g in guesses)
    return sampled, mean, repeated


def _table(rows: list[tuple[float, ...]]) -> OpenLoopErrors:
    columns = np.asarray(rows, dtype=np.float64).reshape(-1, 5).T
    return OpenLoopErrors(columns[0].astype(int), columns[1].astype(int), *columns[2:])
