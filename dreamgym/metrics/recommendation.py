"""How a world should be dreamt: the horizon, and what ends a dream; chosen on held-out episodes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dreamgym.data import AnyDataset
from dreamgym.metrics.open_loop import OpenLoopErrors, open_loop_errors
from dreamgym.metrics.windows import BURN_IN, Windows, affordable, draw_windows, longest, uniform
from dreamgym.models import Decodes, WorldModel

LOOKS = (1, 2, 3, 5, 8, 12, 15, 20, 30, 40, 50, 75, 100, 125, 150, 175, 200)

"""Horizons at which open-loop dreams are held against the truth."""


ENOUGH = 32

"""Windows that must reach a horizon, or it says nothing."""


LOSES = 1.05

"""Times the error of repeating the last observation from which on a dream is worse than that."""


LEAST_HORIZON = 15

"""Shorter dreams teach a policy little, whatever they are worth; they can still be asked for."""


THRESHOLDS = (0.1, 0.25, 0.5, 0.75)


WINDOWS, SAMPLES = (256, 128), 4

"""Windows at most, of vectors and of images, and dreams of each."""


BETTER, TIE, EVIDENCE = 0.2, 1e-3, 2.0

"""A threshold is recommended over sampling if its score is better by this share, by this much, and
by so many standard errors. It must be much better: a policy learns to live just below a threshold,
where sampling would end its dream sooner or later."""


SAMPLE = "sample"


class Recommendation(NamedTuple):
    """How to dream a world.

    Attributes:
        horizon: steps after which a dream is truncated.
        termination: "sample", or the probability from which on a dream ends.
        reasons: JSON-plain: what the horizon was chosen by (in words); the scores of what may end a
            dream, and the mean steps that windows and their dreams go on, where anything ends.
    """

    horizon: int
    termination: str | float
    reasons: dict[str, Any]


def recommend(
    model: WorldModel,
    dataset: AnyDataset,
    episodes: NDArray[np.integer],
    *,
    cap: int = 200,
    seed: int = 0,
) -> Recommendation:
    """Choose the horizon and what ends a dream, on episodes that the model was not fitted to.

    The horizon is the cap, unless the mean of open-loop dreams does worse than repeating the last
    observation at some step before it: then the last look before that step, though no less than
    `LEAST_HORIZON`. Where a truth can no longer be known, the mean of faithful dreams is a constant
    guess, which repeating does not beat either: so a good model keeps the cap however chaotic its
    world is, and one whose dreams drift or die away does not. Models that do not decode keep it.

    What ends a dream is chosen by the continuous ranked probability score of the step at which
    dreams of held-out episodes' actions end (a proper score; Gneiting and Raftery 2007, section
    4.2): the mean over steps of the squared difference between the share of dreams that go on and
    whether the episode did, up to where that is known. Actions after a real end are those of other
    windows. Sampling is kept unless a threshold is clearly better: see `BETTER`.

    Args:
        model: in eval mode.
        dataset: where the episodes are.
        episodes: indices.
        cap: the longest horizon that is recommended: the real limit, at most 200 in a fit.
        seed: of windows and noise.
    """
    horizon, why = _horizon(model, dataset, episodes, cap, seed)
    termination, scores = _termination(model, dataset, episodes, cap, seed)
    return Recommendation(horizon, termination, {"horizon": why, "ends": scores})


def _horizon(
    model: WorldModel, dataset: AnyDataset, episodes: NDArray[Any], cap: int, seed: int
) -> tuple[int, str]:
    if not isinstance(model, Decodes):
        return cap, "the longest allowed; nothing is decoded that could be held against episodes"
    looks = [k for k in LOOKS if k <= cap]
    found = open_loop_errors(model, dataset, episodes, horizons=looks, seed=seed + 1)
    tables = list(found.values()) if isinstance(found, dict) else [found]
    lost = [_first_loss(table) for table in tables]
    at = min((k for k in lost if k is not None), default=None)
    reach = max((int(k) for t in tables for k in t.horizons[t.windows >= ENOUGH]), default=0)
    if not reach:
        return cap, "the longest allowed; too few windows of held-out episodes to say otherwise"
    if at is None:
        return cap, (
            "the longest allowed: as far as held-out episodes show, up to "
            f"{reach} steps, dreams are better than repeating the last observation"
        )
    before = max((k for k in looks if k < at), default=1)
    return min(cap, max(before, LEAST_HORIZON)), (
        f"from step {at} on dreams are worse than repeating the last observation"
    )


def _first_loss(errors: OpenLoopErrors) -> int | None:
    """The first horizon at which repeating the last observation is better."""
    loses = (errors.mean > LOSES * errors.repeat_last) & (errors.windows >= ENOUGH)
    return int(errors.horizons[loses][0]) if loses.any() else None


@torch.no_grad()
def _termination(
    model: WorldModel, dataset: AnyDataset, episodes: NDArray[Any], cap: int, seed: int
) -> tuple[str | float, dict[str, Any]]:
    """The rule, and every rule's score."""
    steps = min(cap, longest(dataset, episodes))
    if not steps:
        return SAMPLE, {}
    rng = np.random.default_rng([seed, 0x7E14])
    shape = (affordable(dataset, BURN_IN + steps, WINDOWS), steps)
    windows = draw_windows(model, dataset, episodes, shape, rng)
    windows = windows.take(windows.alive()[:, 0].nonzero().squeeze(-1))
    ended = (windows.segment.terminated[:, BURN_IN:] & windows.alive()).any(1)
    if not bool(ended.any()):  # nothing to choose by
        return SAMPLE, {}
    dreamt = _survival(model, windows, rng)
    went_on, known = _real_survival(windows)
    scores = {rule: _scores(share, went_on, known) for rule, share in dreamt.items()}
    best = min(scores, key=lambda rule: float(scores[rule].mean()))
    gain = scores[SAMPLE] - scores[best]
    doubt = float(gain.std() / max(1, len(gain)) ** 0.5)
    mean = float(gain.mean())
    clear = mean > max(BETTER * float(scores[SAMPLE].mean()), TIE, EVIDENCE * doubt)
    chosen = best if clear else SAMPLE
    figures = {
        "scores": {rule: float(score.mean()) for rule, score in scores.items()},
        "steps_alive": _mean_steps(went_on, known),
        "steps_alive_in_dreams": _mean_steps(dreamt[chosen], known),
    }
    return chosen if chosen == SAMPLE else float(chosen), figures


def _survival(model: WorldModel, windows: Windows, rng: np.random.Generator) -> dict[str, Tensor]:
    """For each rule the share of dreams (N, L) that go on after each step."""
    count = len(windows.segment.mask)
    state = {key: leaf.repeat_interleave(SAMPLES, 0) for key, leaf in windows.start().items()}
    actions = _continued(windows, rng)
    said = []
    for t in range(windows.steps):
        action = actions[:, t].repeat_interleave(SAMPLES, 0)
        noise = uniform(rng, (len(action), model.noise_dim), action.device)
        state, prediction = model.step(state, action, noise)
        said.append(prediction.termination)
    ends = torch.stack(said, 1)  # (N * SAMPLES, L)
    # The step's own chance goes on whatever the dream's: exact for every sampled path.
    shares = {SAMPLE: (1.0 - ends).cumprod(1)}
    shares |= {str(level): (ends < level).float().cumprod(1) for level in THRESHOLDS}
    return {rule: share.unflatten(0, (count, SAMPLES)).mean(1) for rule, share in shares.items()}


def _continued(windows: Windows, rng: np.random.Generator) -> Tensor:
    """The windows' actions (N, L, ...); after an episode's end, real actions of any window."""
    actions, real = windows.segment.action[:, BURN_IN:].clone(), windows.alive()
    pool = actions[real]
    missing = int((~real).sum())
    actions[~real] = pool[torch.from_numpy(rng.integers(len(pool), size=missing)).to(pool.device)]
    return actions


def _real_survival(windows: Windows) -> tuple[Tensor, Tensor]:
    """Whether episodes went on after each step, and whether that is known; both (N, L)."""
    alive = windows.alive()
    ended = (windows.segment.terminated[:, BURN_IN:] & alive).cumsum(1) > 0
    # After a termination an episode is over for good; after a truncation nobody knows.
    return (~ended).float(), alive | ended


def _scores(share: Tensor, went_on: Tensor, known: Tensor) -> Tensor:
    """The score of each window (N,)."""
    off = torch.where(known, (share - went_on).square(), 0.0)
    return off.sum(1) / known.sum(1).clamp(min=1)


def _mean_steps(went_on: Tensor, known: Tensor) -> float:
    """Steps alive (N, L), as far as is known of the episodes; the mean of windows."""
    return float(torch.where(known, went_on, 0.0).sum(1).mean())
