"""The figures that a world carries."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dreamgym.data import AnyDataset
from dreamgym.metrics.action_effect import STEPS, action_effect
from dreamgym.metrics.calibration import calibration
from dreamgym.metrics.open_loop import OpenLoopErrors, open_loop_errors
from dreamgym.metrics.windows import BURN_IN, Windows, affordable, draw_windows, uniform
from dreamgym.models import Decodes, WorldModel
from dreamgym.models.observations import join_parts, observation_boxes

HORIZONS = (1, 5, 15, 50)


WINDOWS = (2048, 256)

"""At most: of vectors, and of images."""


@torch.no_grad()
def evaluate_metrics(
    model: WorldModel, dataset: AnyDataset, episodes: NDArray[np.integer], seed: int = 0
) -> dict[str, Any]:
    """Measure a model on episodes that it was not fitted to.

    Args:
        model: in eval mode.
        dataset: where the episodes are.
        episodes: indices of held-out episodes.
        seed: of the windows and of the model's noise.

    Returns:
        JSON-plain figures. One step ahead: `reward_rmse` and `reward_spread` (the real
        environment's units), and of the termination `_rate`, `_brier`, `_skill` and `_ece` (see
        `Calibration`; no skill where nothing ended). `action_sensitivity`: see `action_effect`.
        `open_loop`: for each horizon how many windows reach it, and `OpenLoopErrors`. What no
        held-out episode is long enough for is left out.
    """
    rng = np.random.default_rng([seed, 0x9A11])
    count = affordable(dataset, BURN_IN + STEPS, WINDOWS)
    windows = draw_windows(model, dataset, episodes, (count, STEPS), rng)
    figures = _one_step(model, windows, rng)
    effect = action_effect(model, windows, rng)
    if effect is not None:
        figures["action_sensitivity"] = effect.sensitivity
    if isinstance(model, Decodes):
        errors = open_loop_errors(model, dataset, episodes, horizons=HORIZONS, seed=seed)
        figures["open_loop"] = _by_horizon(model, errors)
    return figures


def _one_step(model: WorldModel, windows: Windows, rng: np.random.Generator) -> dict[str, Any]:
    """Of the transition after the burn-in, in every window that reaches so far."""
    real = windows.alive()[:, 0]
    if not bool(real.any()):  # no held-out episode is so long
        return {}
    before = {key: leaf[real] for key, leaf in windows.start().items()}
    actions = windows.segment.action[real, BURN_IN]
    noise = uniform(rng, (len(actions), model.noise_dim), actions.device)
    _, said = model.step(before, actions, noise)
    reward = windows.segment.reward[real, BURN_IN]
    ends = calibration(said.termination, windows.segment.terminated[real, BURN_IN])
    figures: dict[str, Any] = {
        "reward_rmse": float((said.reward - reward).square().mean() ** 0.5),
        "reward_spread": float(reward.std(correction=0)),
        "termination_rate": ends.rate,
        "termination_brier": ends.brier,
        "termination_ece": ends.ece,
    }
    if ends.skill is not None:
        figures["termination_skill"] = ends.skill
    return figures


def _by_horizon(model: WorldModel, errors: Any) -> dict[str, Any]:
    """Figures by horizon; by part within each where the observation is a Dict."""
    keys = list(observation_boxes(model.observation_space))
    tables = {key: _rows(errors[key] if isinstance(errors, dict) else errors) for key in keys}
    figures: dict[str, Any] = {}
    for k, (windows, _) in tables[keys[0]].items():
        by_part: Any = join_parts({key: tables[key][k][1] for key in keys})
        figures[k] = {"windows": windows, **by_part}
    return figures


def _rows(errors: OpenLoopErrors) -> dict[str, tuple[int, dict[str, float]]]:
    names = ("rmse", "rmse_of_mean", "repeat_last")
    columns = (errors.sampled, errors.mean, errors.repeat_last)
    return {
        str(k): (
            int(errors.windows[row]),
            {name: float(column[row]) for name, column in zip(names, columns, strict=True)},
        )
        for row, k in enumerate(errors.horizons.tolist())
    }
