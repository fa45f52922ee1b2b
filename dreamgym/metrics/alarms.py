"""Alarms: illnesses of a model that its loss does not show, looked for while it is fitted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from dreamgym.data import AnyDataset
from dreamgym.metrics.action_effect import STEPS, ActionEffect, action_effect
from dreamgym.metrics.calibration import Calibration, calibration
from dreamgym.metrics.windows import BURN_IN, Windows, affordable, draw_windows, longest, uniform
from dreamgym.models import WorldModel
from dreamgym.models.base import EmbeddingDiagnostic, KLDiagnostic

WINDOWS = (512, 64)

"""At each look, of vectors and of images: about the work of one batch of the fit."""


ZERO_NATS = 0.01

"""Below this a dimension says nothing: an active unit says more (Burda et al. 2016, 1509.00519)."""


FREE_MARGIN = 1.1

"""Up to so many times the free nats a latent is pinned there: the loss still pulls, and no more
than rounding and noise remain of it."""


LEAST_STD = 0.1

"""SIGReg and VICReg pull the standard deviation of embeddings to one; a tenth of it is collapse."""


LEAST_RANK = 1.5

"""Embeddings on one line have an effective rank of 1, in a plane with equal spread of 2."""


EVIDENCE = 3.0

"""Standard errors from which on a difference is no accident: one in 700 looks is wrong by chance,
and every look of a fit has the same windows."""


MISCALIBRATED = 0.25

"""Share of the true number of terminations that the predicted one may be off, beyond chance."""


class Alarm(NamedTuple):
    """An illness.

    Attributes:
        name: one word, for the line of progress.
        sentence: what was found, with figures, and what to do.
    """

    name: str
    sentence: str


class Checkup(NamedTuple):
    """What one look at a model found.

    Attributes:
        figures: by name.
        alarms: none where nothing is wrong.
    """

    figures: dict[str, float]
    alarms: list[Alarm]

    def raised(self) -> dict[str, list[str]]:
        """The names of the alarms, under "alarms"; empty where there is none."""
        return {"alarms": [alarm.name for alarm in self.alarms]} if self.alarms else {}

    def scalars(self) -> dict[str, float]:
        """The figures, and one for each alarm that was raised: what a plot takes."""
        return {**self.figures, **{f"alarm_{alarm.name}": 1.0 for alarm in self.alarms}}


@dataclass(frozen=True, kw_only=True)
class TrainingMonitor:
    """Looks at a model on held-out episodes, always on the same windows and with the same noise.

    Attributes:
        dataset: where the episodes are.
        episodes: indices of episodes that the model is not fitted to.
        seed: of windows and noise; no global generator is touched.
    """

    dataset: AnyDataset
    episodes: NDArray[np.integer]
    seed: int = 0

    @torch.no_grad()
    def look(self, model: WorldModel) -> Checkup:
        """Examine a model, which is in eval mode; about the work of one batch of the fit."""
        rng = np.random.default_rng([self.seed, 0xA1A2])
        steps = max(1, min(STEPS, longest(self.dataset, self.episodes)))
        shape = (affordable(self.dataset, BURN_IN + steps, WINDOWS), steps)
        windows = draw_windows(model, self.dataset, self.episodes, shape, rng)
        figures: dict[str, float] = {}
        alarms: list[Alarm] = []
        _latents(model, windows, rng, (figures, alarms))
        ill = bool(alarms)
        found = _terminations(model, windows, rng)
        if found is not None:
            figures |= {"termination_ece": found.ece, "termination_brier": found.brier}
            figures |= {} if found.skill is None else {"termination_skill": found.skill}
            distinct = int(np.asarray(self.dataset.lengths)[self.episodes].sum())
            alarms += termination_alarms(found, min(distinct, int(windows.segment.mask.sum())))
        effect = action_effect(model, windows, rng)
        if effect is not None:
            figures["action_sensitivity"] = effect.sensitivity
            # A latent that says nothing knows nothing of what actions do: that is the cause.
            alarms += action_alarms(effect) if not ill else []
        finite = {name: value for name, value in figures.items() if np.isfinite(value)}
        return Checkup(finite, alarms)


def _latents(
    model: WorldModel,
    windows: Windows,
    rng: np.random.Generator,
    found: tuple[dict[str, float], list[Alarm]],
) -> None:
    """Add what the model itself shows of its latents."""
    figures, alarms = found
    shape = (*windows.segment.mask.shape, model.noise_dim)
    noise = uniform(rng, (shape[0], shape[1] + 1, shape[2]), windows.segment.mask.device)
    diagnostics = model.diagnostics(windows.segment, noise)
    for name, divergence in diagnostics.divergences.items():
        suffix = f"_{name}" if name else ""
        each = divergence.nats.mean(0)
        figures["kl" + suffix] = float(each.sum())
        figures["kl_active" + suffix] = float((each > ZERO_NATS).sum())
        alarms += latent_alarms(name, divergence)
    for name, spread in diagnostics.spreads.items():
        suffix = f"_{name}" if name else ""
        figures["embedding_std" + suffix] = float(spread.std)
        figures["effective_rank" + suffix] = float(spread.effective_rank)
        alarms += collapse_alarms(name, spread)


def _terminations(
    model: WorldModel, windows: Windows, rng: np.random.Generator
) -> Calibration | None:
    """Calibration one step ahead, from every state of the burn-in; None without transitions."""
    real = windows.segment.mask[:, : BURN_IN + 1]
    if not bool(real.any()):
        return None
    states = {key: leaf[real] for key, leaf in windows.states.items()}
    actions = windows.segment.action[:, : BURN_IN + 1][real]
    noise = uniform(rng, (len(actions), model.noise_dim), actions.device)
    _, said = model.step(states, actions, noise)
    return calibration(said.termination, windows.segment.terminated[:, : BURN_IN + 1][real])


def latent_alarms(name: str, found: KLDiagnostic) -> list[Alarm]:
    """Alarms of a stochastic latent that says nothing, or no more than costs nothing."""
    which = f"the latent of {name!r}" if name else "the latent"
    each = found.nats.mean(0)
    most, total = float(each.max()), float(each.sum())
    if most < ZERO_NATS:
        return [
            Alarm(
                "latent",
                f"{which} says nothing of what is seen: the KL of each of its {len(each)} "
                f"dimensions from the prior is below {ZERO_NATS} nats (the greatest is "
                f"{most:.2g}); {found.remedy}",
            )
        ]
    reach, what = (
        (total, f"the KL of {which} is {total:.3g} nats in all")
        if found.granted == "all"
        else (most, f"the greatest KL of a dimension of {which} is {most:.3g} nats")
    )
    if reach > FREE_MARGIN * found.free:
        return []
    return [
        Alarm(
            "latent",
            f"{what}, pinned at the {found.free:g} that are free, so it says as little as the loss "
            f"allows; {found.remedy}",
        )
    ]


def collapse_alarms(name: str, found: EmbeddingDiagnostic) -> list[Alarm]:
    """Alarms of embeddings that are all the same, or lie on a line."""
    std, rank = float(found.std), float(found.effective_rank)
    flat = found.width > 1 and rank < LEAST_RANK
    if std >= LEAST_STD and not flat:
        return []
    which = f"the embeddings of {name!r}" if name else "the embeddings"
    return [
        Alarm(
            "collapse",
            f"{which} have collapsed: their standard deviation is {std:.2g} (at least {LEAST_STD} "
            f"is wanted) and their effective rank {rank:.2f} of {found.width} (at least "
            f"{LEAST_RANK}); {found.remedy}",
        )
    ]


def termination_alarms(found: Calibration, transitions: int) -> list[Alarm]:
    """Alarms of a termination head that ends far more, or far fewer, episodes than end.

    Args:
        found: of the head, one step ahead.
        transitions: how many different ones were looked at; chance is judged by their number.
    """
    said, happened = found.predicted * transitions, found.rate * transitions
    off = abs(said - happened)
    # The spread of a count is at most the root of its mean.
    chance = EVIDENCE * max(said, happened) ** 0.5
    if off <= chance or off <= MISCALIBRATED * happened:
        return []
    skill = "" if found.skill is None else f", Brier skill {found.skill:.2f}"
    return [
        Alarm(
            "termination",
            f"the termination head is not calibrated: it says {found.predicted:.2%} a step where "
            f"{found.rate:.2%} end (ECE {found.ece:.3f}{skill}), so dreams are too "
            f"{'short' if said > happened else 'long'}; fit it for longer, or on more episodes "
            "that end",
        )
    ]


def action_alarms(found: ActionEffect) -> list[Alarm]:
    """Alarms of a model that dreams the same whatever is done."""
    if found.evidence >= EVIDENCE:
        return []
    return [
        Alarm(
            "actions",
            f"the model ignores its actions: over {found.windows} windows the error {STEPS} steps "
            f"ahead under other windows' actions is {found.sensitivity:.3f} times that under the "
            "true ones; record data in which actions are more varied, or fit for longer",
        )
    ]
