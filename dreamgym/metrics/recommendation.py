"""Recommend how to dream a world: its horizon and its termination rule, from held-out episodes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dreamgym._device import float32_by_default
from dreamgym.data import AnyDataset
from dreamgym.metrics.open_loop import OpenLoopErrors, open_loop_errors
from dreamgym.metrics.survival import SAMPLE, dream_survival, real_survival
from dreamgym.metrics.windows import (
    BURN_IN,
    Windows,
    draw_windows,
    max_steps,
    uniform_noise,
    window_shape,
)
from dreamgym.models import Decodes, WorldModel
from dreamgym.models.observations import map_observation

HORIZONS = (1, 2, 3, 5, 8, 12, 15, 20, 30, 40, 50, 75, 100, 125, 150, 175, 200)
"""Horizons at which open-loop dreams are compared with the truth."""

MIN_WINDOWS_AT_HORIZON = 32
"""A horizon that fewer distinct windows reach is ignored."""

BASELINE_MARGIN = 1.05
"""A dream is worse than the repeat-last baseline if its error exceeds this multiple of it."""

MIN_HORIZON = 15
"""Smallest recommended horizon: shorter dreams teach a policy little, however accurate they are."""

THRESHOLDS = (0.1, 0.25, 0.5, 0.75)
"""Probabilities that are tried as the threshold of a termination."""

MAX_WINDOWS = (256, 128)
"""Maximum number of windows for vectors and for images."""

MIN_GAIN, MIN_ABSOLUTE_GAIN, MIN_EVIDENCE = 0.2, 1e-3, 2.0
"""A threshold is recommended over sampling if its score is better by this share, by this amount
and by this many standard errors. It has to be much better: a policy learns to live just below a
threshold, where sampling would end its dream sooner or later."""

MAX_END_RATIO = 2.0
"""A threshold is only recommended if the number of terminations that it predicts one step ahead, on
held-out steps, is within this factor of the real number. The actions of held-out episodes react to
what really happened and not to what is dreamt, so dreams of them end too soon, and their survival
alone would favour dreams that never end."""

RULES = (SAMPLE, *map(str, THRESHOLDS))
"""Termination rules that are compared."""


class Recommendation(NamedTuple):
    """How to dream a world.

    Attributes:
        horizon: steps after which a dream is truncated.
        termination: "sample", or the probability at and above which a dream ends.
        reasons: JSON-plain reasons. "horizon" says in words how the horizon was chosen. "ends" has
            the score of each termination rule, the mean number of steps that windows and their
            dreams survive, the number of `terminations` in them and of those that each threshold
            predicts one step ahead (`predicted`); it is empty if no episode terminates.
    """

    horizon: int
    termination: str | float
    reasons: dict[str, Any]


@float32_by_default()
def recommend(
    model: WorldModel,
    dataset: AnyDataset,
    episodes: NDArray[np.integer],
    *,
    cap: int = 200,
    seed: int = 0,
) -> Recommendation:
    """Choose the horizon and the termination rule on episodes that the model was not fitted to.

    The horizon is the cap, unless the mean of open-loop dreams is worse than repeating the last
    observation at some step before it. Then it is the last of `HORIZONS` before that step, but at
    least `MIN_HORIZON`. Where the truth can no longer be predicted, the mean of faithful dreams is
    a constant guess, which repeating the last observation does not beat either. A good model
    therefore keeps the cap however chaotic its environment is, and one whose dreams drift or fade
    does not. A model that does not decode keeps the cap.

    The termination rule is chosen by the continuous ranked probability score of the step at which
    dreams under the actions of held-out episodes end (a proper score; Gneiting and Raftery 2007,
    section 4.2). It is the mean over steps of the squared difference between the share of dreams
    that survive and whether the episode did, as far as that is known. Actions after a real end are
    taken from other windows. Sampling is kept unless a threshold is clearly better (see
    `MIN_GAIN`) and predicts about as many terminations as there are (see `MAX_END_RATIO`).

    Args:
        model: model in eval mode.
        dataset: source of the episodes.
        episodes: (E,) indices of held-out episodes.
        cap: longest recommended horizon; a fit passes the real limit, at most 200 steps, and
            without a real limit at most three times the longest episode.
        seed: seed of windows and noise.
    """
    horizon, reason = _choose_horizon(model, dataset, episodes, cap, seed)
    termination, figures = _choose_termination(model, dataset, episodes, cap, seed)
    return Recommendation(horizon, termination, {"horizon": reason, "ends": figures})


def _choose_horizon(
    model: WorldModel, dataset: AnyDataset, episodes: NDArray[Any], cap: int, seed: int
) -> tuple[int, str]:
    """Return the horizon, and the reason for it in words."""
    if not isinstance(model, Decodes):
        return cap, "the longest allowed: the model does not decode, so dreams cannot be compared"
    horizons = [k for k in HORIZONS if k <= cap]
    errors = open_loop_errors(model, dataset, episodes, horizons=horizons, seed=seed + 1)
    parts = list(errors.values()) if isinstance(errors, dict) else [errors]
    compared = [int(k) for p in parts for k in p.horizons[p.windows >= MIN_WINDOWS_AT_HORIZON]]
    if not compared:
        return cap, "the longest allowed: too few distinct windows of held-out episodes to judge it"
    worse = [k for part in parts if (k := _first_worse_than_baseline(part)) is not None]
    if not worse:
        return cap, (
            f"the longest allowed: up to {max(compared)} steps, as far as held-out episodes show, "
            "dreams are better than repeating the last observation"
        )
    first = min(worse)
    before = max((k for k in horizons if k < first), default=1)
    return min(cap, max(before, MIN_HORIZON)), (
        f"from step {first} onwards, dreams are worse than repeating the last observation"
    )


def _first_worse_than_baseline(errors: OpenLoopErrors) -> int | None:
    """Return the first horizon at which repeating the last observation is better, or None."""
    worse = (errors.mean > BASELINE_MARGIN * errors.repeat_last) & (
        errors.windows >= MIN_WINDOWS_AT_HORIZON
    )
    return int(errors.horizons[worse][0]) if worse.any() else None


@torch.no_grad()
def _choose_termination(
    model: WorldModel, dataset: AnyDataset, episodes: NDArray[Any], cap: int, seed: int
) -> tuple[str | float, dict[str, Any]]:
    """Return the termination rule, and the figures by which it was chosen."""
    steps = min(cap, max_steps(dataset, episodes))
    if not steps:
        return SAMPLE, {}
    rng = np.random.default_rng([seed, 0x7E14])
    shape = window_shape(dataset, steps, MAX_WINDOWS)
    windows = draw_windows(model, dataset, episodes, shape, rng)
    windows = windows.take(windows.mask[:, 0].nonzero().squeeze(-1))
    terminated = (windows.segment.terminated[:, BURN_IN:] & windows.mask).any(1)
    if not bool(terminated.any()):
        return SAMPLE, {}
    dreamt = dream_survival(model, windows, RULES, rng)
    survived, known = real_survival(windows)
    scores = {rule: _scores(share, survived, known) for rule, share in dreamt.items()}
    real = int((windows.segment.terminated[:, BURN_IN:] & windows.mask).sum())
    predicted = _one_step_terminations(model, windows, rng)[windows.mask]
    ends = {rule: int((predicted >= float(rule)).sum()) for rule in RULES if rule != SAMPLE}
    plausible = [
        rule for rule, n in ends.items() if real / MAX_END_RATIO <= n <= real * MAX_END_RATIO
    ]
    best = min([SAMPLE, *plausible], key=lambda rule: float(scores[rule].mean()))
    gains = scores[SAMPLE] - scores[best]
    gain = float(gains.mean())
    standard_error = float(gains.std() / len(gains) ** 0.5) if len(gains) > 1 else np.inf
    required = max(
        MIN_GAIN * float(scores[SAMPLE].mean()), MIN_ABSOLUTE_GAIN, MIN_EVIDENCE * standard_error
    )
    chosen = best if gain > required else SAMPLE
    figures = {
        "scores": {rule: float(score.mean()) for rule, score in scores.items()},
        "steps_alive": _mean_steps(survived, known),
        "steps_alive_in_dreams": _mean_steps(dreamt[chosen], known),
        "terminations": real,
        "predicted": ends,
    }
    return chosen if chosen == SAMPLE else float(chosen), figures


def _one_step_terminations(model: WorldModel, windows: Windows, rng: np.random.Generator) -> Tensor:
    """Return the probability (N, L) of termination in each step, from filtered states."""
    state, segment, probabilities = windows.start(), windows.segment, []
    for t in range(BURN_IN, BURN_IN + windows.steps):
        action = segment.action[:, t]
        noise = uniform_noise(rng, (2, len(action), model.noise_dim), action.device)
        probabilities.append(model.step(state, action, noise[0])[1].termination)
        seen = map_observation(lambda leaf, t=t: leaf[:, t + 1], segment.observation)  # type: ignore[misc]
        state = model.observe(state, action, seen, noise[1])
    return torch.stack(probabilities, 1)


def _scores(share: Tensor, survived: Tensor, known: Tensor) -> Tensor:
    """Return the score of each window, (N,)."""
    squared = torch.where(known, (share - survived).square(), 0.0)
    return squared.sum(1) / known.sum(1).clamp(min=1)


def _mean_steps(survived: Tensor, known: Tensor) -> float:
    """Return the mean over windows of the steps survived (N, L), counting known steps only."""
    return float(torch.where(known, survived, 0.0).sum(1).mean())
