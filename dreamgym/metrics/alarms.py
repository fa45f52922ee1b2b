"""Alarms: failures of a model that its loss does not show, checked while it is fitted.

To add an alarm, write a function with the signature of `Check` and enter it at the end of `CHECKS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dreamgym.data import AnyDataset
from dreamgym.metrics.action_effect import STEPS, ActionEffect, action_effect, evidence_of
from dreamgym.metrics.calibration import Calibration, calibration
from dreamgym.metrics.codes import code_figures
from dreamgym.metrics.windows import (
    BURN_IN,
    Windows,
    draw_windows,
    max_steps,
    uniform_noise,
    window_shape,
)
from dreamgym.models import Prediction, WorldModel
from dreamgym.models.base import CodeDiagnostic, EmbeddingDiagnostic, KLDiagnostic
from dreamgym.models.reduction import float64_on_host, root_mean_square

MAX_WINDOWS = (512, 64)
"""Maximum number of windows, for vectors and for images: about the work of one training batch."""

INACTIVE_NATS = 0.01
"""A latent dimension with a smaller KL is inactive (Burda et al. 2016, arXiv 1509.00519)."""

FREE_NATS_MARGIN = 1.1
"""A latent whose KL is within this multiple of the free nats is pinned there: the loss pulls the
KL down to the free nats, and what remains above them is rounding and noise."""

MIN_STD = 0.1
"""Embeddings with a smaller standard deviation have collapsed; SIGReg and VICReg aim at 1."""

MIN_RANK = 1.5
"""Embeddings with a smaller effective rank have collapsed: it is 1 on a line, 2 in a plane."""

EVIDENCE = 3.0
"""Standard errors above which a difference is significant. By chance one fit in 700 exceeds it;
every inspection of a fit uses the same windows."""

MAX_MISCALIBRATION = 0.25
"""Tolerated error of the predicted number of terminations, relative to the true number, where the
difference is significant."""

MAX_FALSE_TERMINATION = 0.05
"""Tolerated predicted probability of termination per step where no episode terminates."""

MIN_HELD_OUT = 32
"""Fewer held-out transitions than this judge nothing: hardly any other alarm can be significant."""

ROUNDING = 16 * torch.finfo(torch.float32).eps
"""Rewards with a smaller spread, relative to their size, are all the same."""

MAX_REWARD_ERROR = 2.0
"""Tolerated error of the predicted rewards, in units of the spread of the real ones. A guess that
is always the mean reward has an error of 1, and one of a right but noisy distribution sqrt(2)."""


class Alarm(NamedTuple):
    """A failure of a model.

    Attributes:
        name: one word, for the progress line.
        sentence: finding, with figures, and what to do about it.
    """

    name: str
    sentence: str


class Inspection(NamedTuple):
    """The result of inspecting a model.

    Attributes:
        figures: numbers by name.
        alarms: alarms raised; empty for a healthy model.
    """

    figures: dict[str, float]
    alarms: list[Alarm]

    @property
    def alarm_names(self) -> list[str]:
        """Names of the alarms raised."""
        return [alarm.name for alarm in self.alarms]

    def scalars(self) -> dict[str, float]:
        """Return the figures, and a 1 for each alarm raised, for plotting."""
        return {**self.figures, **{f"alarm_{name}": 1.0 for name in self.alarm_names}}


@dataclass(frozen=True, kw_only=True)
class InspectionContext:
    """Everything that a check may use.

    Attributes:
        model: model in eval mode.
        windows: windows of held-out episodes, with the burn-in filtered.
        episodes: number of held-out episodes.
        transitions: number of different transitions in these episodes.
        terminates: whether any episode of the dataset terminates.
        rng: generator of noise; the checks share it in the order of `CHECKS`.
    """

    model: WorldModel
    windows: Windows
    episodes: int
    transitions: int
    terminates: bool
    rng: np.random.Generator

    @cached_property
    def one_step(self) -> tuple[Prediction, Tensor, Tensor]:
        """Predictions from every state of the burn-in, with real rewards and terminations; (N,)."""
        segment = self.windows.segment
        mask = segment.mask[:, : BURN_IN + 1]
        states = {key: leaf[mask] for key, leaf in self.windows.states.items()}
        actions = segment.action[:, : BURN_IN + 1][mask]
        noise = uniform_noise(self.rng, (len(actions), self.model.noise_dim), actions.device)
        _, predicted = self.model.step(states, actions, noise)
        reward, terminated = (
            leaf[:, : BURN_IN + 1][mask] for leaf in (segment.reward, segment.terminated)
        )
        return predicted, reward, terminated


Check = Callable[[InspectionContext, set[str]], Inspection]
"""Takes the context and the names of the alarms raised so far; returns its figures and alarms."""


def check_amount(context: InspectionContext, raised: set[str]) -> Inspection:
    """Check that enough is held out to judge the model by."""
    if context.transitions >= MIN_HELD_OUT:
        return Inspection({}, [])
    sentence = (
        f"too little is held out to judge this world, {_counted(context.transitions, 'step')} in "
        f"{_counted(context.episodes, 'episode')}, so other alarms may be missing; record more, or "
        "hold more out (--held-out)"
    )
    return Inspection({}, [Alarm("data", sentence)])


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def check_latents(context: InspectionContext, raised: set[str]) -> Inspection:
    """Check the model's latent diagnostics: inactive latents, collapsed embeddings or codes."""
    figures: dict[str, float] = {}
    alarms: list[Alarm] = []
    segment = context.windows.segment
    count, length = segment.mask.shape
    noise = uniform_noise(
        context.rng, (count, length + 1, context.model.noise_dim), segment.mask.device
    )
    diagnostics = context.model.diagnostics(segment, noise)
    for name, kl in diagnostics.divergences.items():
        suffix = f"_{name}" if name else ""
        nats = kl.nats.mean(0)
        figures["kl" + suffix] = float(nats.sum())
        figures["kl_active" + suffix] = float((nats > INACTIVE_NATS).sum())
        alarms += latent_alarms(name, kl)
    for name, spread in diagnostics.spreads.items():
        suffix = f"_{name}" if name else ""
        figures["embedding_std" + suffix] = float(spread.std)
        figures["effective_rank" + suffix] = float(spread.effective_rank)
        alarms += collapse_alarms(name, spread)
    figures |= code_figures(diagnostics.codes)
    for name, code in diagnostics.codes.items():
        alarms += code_alarms(name, code)
    return Inspection(figures, alarms)


def check_terminations(context: InspectionContext, raised: set[str]) -> Inspection:
    """Check the calibration of terminations one step ahead, from every state of the burn-in."""
    predicted, _, terminated = context.one_step
    if not len(terminated):
        return Inspection({}, [])
    result = calibration(predicted.termination, terminated)
    figures = {
        "termination_rate": result.rate,
        "termination_ece": result.ece,
        "termination_brier": result.brier,
    }
    if result.skill is not None:
        figures["termination_skill"] = result.skill
    transitions = min(context.transitions, int(context.windows.segment.mask.sum()))
    return Inspection(
        figures, termination_alarms(result, transitions, terminates=context.terminates)
    )


def check_rewards(context: InspectionContext, raised: set[str]) -> Inspection:
    """Check the error of the rewards one step ahead, from every state of the burn-in."""
    predicted, reward, _ = context.one_step
    # A dream that leaves the data ends with another reward (`end_outside_data`).
    continues = predicted.termination < 1
    return Inspection({}, reward_alarms(predicted.reward[continues], reward[continues]))


def check_actions(context: InspectionContext, raised: set[str]) -> Inspection:
    """Check that dreams depend on the actions.

    A collapsed or inactive latent cannot represent the effect of actions. Where one was found, it
    is the cause, and no alarm about actions is added.
    """
    effect = action_effect(context.model, context.windows, context.rng)
    if effect is None:
        return Inspection({}, [])
    alarms = [] if raised & {"latent", "collapse"} else action_alarms(effect)
    return Inspection({"action_sensitivity": effect.sensitivity}, alarms)


CHECKS: dict[str, Check] = {
    "latents": check_latents,
    "terminations": check_terminations,
    "actions": check_actions,
    "rewards": check_rewards,
    "amount": check_amount,
}
"""Every check by its name, in the order in which they run."""


@dataclass(frozen=True, kw_only=True)
class TrainingMonitor:
    """Inspects a model on held-out episodes, always on the same windows and with the same noise.

    Attributes:
        dataset: source of the episodes.
        episodes: (E,) indices of episodes that the model is not fitted to.
        seed: seed of windows and noise; global generators are not touched.
    """

    dataset: AnyDataset
    episodes: NDArray[np.integer]
    seed: int = 0

    @cached_property
    def _terminates(self) -> bool:
        """Whether any episode of the dataset terminates."""
        return any(bool(each.terminated.any()) for each in self.dataset.lessons())

    @torch.no_grad()
    def inspect(self, model: WorldModel) -> Inspection:
        """Run every check on a model in eval mode; takes about as long as one training batch."""
        rng = np.random.default_rng([self.seed, 0xA1A2])
        steps = max(1, min(STEPS, max_steps(self.dataset, self.episodes)))
        shape = window_shape(self.dataset, steps, MAX_WINDOWS)
        context = InspectionContext(
            model=model,
            windows=draw_windows(model, self.dataset, self.episodes, shape, rng),
            episodes=len(self.episodes),
            transitions=int(np.asarray(self.dataset.lengths)[self.episodes].sum()),
            terminates=self._terminates,
            rng=rng,
        )
        figures: dict[str, float] = {}
        alarms: list[Alarm] = []
        for check in CHECKS.values():
            result = check(context, {alarm.name for alarm in alarms})
            figures |= result.figures
            alarms += result.alarms
        finite = {name: value for name, value in figures.items() if np.isfinite(value)}
        return Inspection(finite, alarms)


def latent_alarms(name: str, diagnostic: KLDiagnostic) -> list[Alarm]:
    """Return an alarm if a stochastic latent is inactive, or has no more KL than its free nats."""
    latent = f"the latent of {name!r}" if name else "the latent"
    nats = diagnostic.nats.mean(0)
    largest, total = float(nats.max()), float(nats.sum())
    if largest < INACTIVE_NATS:
        return [
            Alarm(
                "latent",
                f"{latent} carries no information about the observations: the KL of each of its "
                f"{len(nats)} dimensions from the prior is below {INACTIVE_NATS} nats (the largest "
                f"is {largest:.2g}); {diagnostic.remedy}",
            )
        ]
    kl, finding = (
        (total, f"the total KL of {latent} is {total:.3g} nats")
        if diagnostic.granted == "all"
        else (largest, f"the largest KL of a dimension of {latent} is {largest:.3g} nats")
    )
    if kl > FREE_NATS_MARGIN * diagnostic.free:
        return []
    return [
        Alarm(
            "latent",
            f"{finding}, pinned at the {diagnostic.free:g} free nats, so it carries as little "
            f"information as the loss allows; {diagnostic.remedy}",
        )
    ]


def collapse_alarms(name: str, diagnostic: EmbeddingDiagnostic) -> list[Alarm]:
    """Return an alarm if embeddings are all the same, or lie on a line."""
    std, rank = float(diagnostic.std), float(diagnostic.effective_rank)
    on_a_line = diagnostic.width > 1 and rank < MIN_RANK
    if std >= MIN_STD and not on_a_line:
        return []
    embeddings = f"the embeddings of {name!r}" if name else "the embeddings"
    return [
        Alarm(
            "collapse",
            f"{embeddings} have collapsed: their standard deviation is {std:.2g} (expected at "
            f"least {MIN_STD}) and their effective rank {rank:.2f} of {diagnostic.width} (expected "
            f"at least {MIN_RANK}); {diagnostic.remedy}",
        )
    ]


def code_alarms(name: str, diagnostic: CodeDiagnostic) -> list[Alarm]:
    """Return an alarm if codes have collapsed, or if they do not control dreams."""
    codes = f"the codes of {name!r}" if name else "the codes"
    perplexity, effect = float(diagnostic.perplexity), diagnostic.effect
    if perplexity < diagnostic.min_perplexity:
        return [
            Alarm(
                "codes",
                f"{codes} have collapsed: their perplexity is {perplexity:.2f} of "
                f"{len(diagnostic.shares)} (expected at least {diagnostic.min_perplexity}); "
                f"{diagnostic.remedy}",
            )
        ]
    if effect is None or len(effect) < 2:
        return []
    if evidence_of(float64_on_host(effect).numpy()) >= EVIDENCE:
        return []
    return [
        Alarm(
            "codes",
            f"{codes} do not control dreams: over {len(effect)} windows, the mean PSNR of frames "
            f"under the inferred codes minus that under random ones is {float(effect.mean()):.2f} "
            f"dB; {diagnostic.remedy}",
        )
    ]


def termination_alarms(
    result: Calibration, transitions: int, *, terminates: bool = True
) -> list[Alarm]:
    """Return an alarm if the termination head predicts far too many or too few terminations.

    Args:
        result: calibration of the head, one step ahead.
        transitions: number of different transitions, which sets what is significant.
        terminates: whether any episode of the whole dataset terminates; if none does, predictions
            above `MAX_FALSE_TERMINATION` are wrong however few transitions there are.
    """
    predicted, actual = result.predicted * transitions, result.rate * transitions
    difference = abs(predicted - actual)
    # The standard deviation of a count of n events of probability p is the root of n p (1 - p).
    variance = max(p * (1 - p) for p in (result.predicted, result.rate))
    significant = EVIDENCE * (transitions * variance) ** 0.5
    chance = difference <= significant or difference <= MAX_MISCALIBRATION * actual
    if chance and (terminates or result.predicted <= MAX_FALSE_TERMINATION):
        return []
    skill = "" if result.skill is None else f", Brier skill {result.skill:.2f}"
    return [
        Alarm(
            "termination",
            f"the termination head is not calibrated: it predicts {result.predicted:.2%} a step, "
            f"and {result.rate:.2%} terminate (ECE {result.ece:.3f}{skill}), so dreams are too "
            f"{'short' if predicted > actual else 'long'}; fit for longer, or on more episodes "
            "that terminate",
        )
    ]


def reward_alarms(predicted: Tensor, real: Tensor) -> list[Alarm]:
    """Return an alarm if the error of the rewards exceeds their spread by far.

    Args:
        predicted: (N,) predicted rewards.
        real: (N,) real rewards; where all are the same, their size takes the place of the spread.
    """
    if not len(real) or not bool(real.any()):
        return []
    error = root_mean_square(predicted - real)
    size, spread = float(real.abs().max()), float(float64_on_host(real).std(correction=0))
    varies = spread > ROUNDING * size
    if error <= MAX_REWARD_ERROR * (spread if varies else size):
        return []
    measure = f"standard deviation is {spread:.3g}" if varies else f"only value is {size:.3g}"
    return [
        Alarm(
            "reward",
            f"the reward is not learnt: its error one step ahead is {error:.3g}, while the "
            f"{measure} on held-out episodes; fit for longer, or change the unit of the rewards "
            "so that their standard deviation is near 1",
        )
    ]


def action_alarms(effect: ActionEffect) -> list[Alarm]:
    """Return an alarm if the model's dreams do not depend on the actions."""
    if effect.evidence >= EVIDENCE:
        return []
    return [
        Alarm(
            "actions",
            f"the model ignores its actions: over {effect.windows} windows, the error {STEPS} "
            f"steps ahead under another window's actions is {effect.sensitivity:.3f} times that "
            "under the true ones; record data with more varied actions, or fit for longer",
        )
    ]
