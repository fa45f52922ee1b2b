"""What a JEPA is fitted to, term by term."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamgym.models.base import Segment
from dreamgym.models.jepa_regularisers import collapse, temporal_alignment, variance_covariance
from dreamgym.models.masked import masked_mean
from dreamgym.models.observations import Observation, each
from dreamgym.models.sampling import normal
from dreamgym.models.sigreg import PROJECTIONS, projections, sigreg

if TYPE_CHECKING:
    from dreamgym.models.jepa import JEPA
    from dreamgym.models.jepa_senses import Probe

DIRECTIONS_PER_DIMENSION = 16
"""Narrow embeddings need fewer directions; from 64 dimensions on SIGReg has all 1,024."""


class Transitions(NamedTuple):
    """Transitions in the embedding space, and when they begin.

    Attributes:
        old: (B, T, D) embeddings before.
        new: (B, T, D) after; encoded or predicted.
        at: the first's place in the segment; they follow each other from there.
    """

    old: Tensor
    new: Tensor
    at: int


class Losses:
    """The terms of one segment's loss.

    Every window of `context` frames predicts what comes after each of its frames, from that frame
    and those before it in the window: with a segment of just one window this is LeWM's loss, and
    short contexts, as at an episode's start, are fitted along. No gradient is stopped between
    prediction and target, unless there is a target encoder. Heads and probe see embeddings,
    encoded and predicted both, without their gradient.
    """

    def __init__(self, model: JEPA, segment: Segment, noise: Tensor) -> None:
        self.model, self.segment, self.noise = model, segment, noise
        self.objective = model.config.objective
        # A segment begins with a real observation; then each is as real as what led to it.
        self.observed = F.pad(segment.mask, (1, 0), value=True)
        self.length = segment.mask.shape[1]
        self.embeddings = model.projector(model.senses(segment.observation), self.observed)
        self.targets = self._targets()
        self.actions = model.encode_action(segment.action)
        self.conditions = model.embed_action(self.actions)
        self.transitions = [Transitions(self.embeddings[:, :-1], self.embeddings[:, 1:], 0)]

    def total(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and its terms (detached) with the figures of collapse."""
        terms = self._predictions()
        weights = dict.fromkeys(terms, 1.0)
        terms |= self._regularisers()
        weights |= {name: getattr(self.objective, name) for name in terms if name not in weights}
        judged = self._judgements()
        terms |= judged
        weights |= dict.fromkeys(judged, 1.0)
        total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        figures = {**terms, **collapse(self.embeddings, self.observed)}
        return total, {name: term.detach() for name, term in figures.items()}

    def _targets(self) -> Tensor:
        target = self.model.target
        if target is None:
            return self.embeddings
        with torch.no_grad():
            encoded: Tensor = target[1](target[0](self.segment.observation), self.observed)
        return encoded

    def _predictions(self) -> dict[str, Tensor]:
        """Squared errors one step ahead, and further open-loop."""
        size = min(self.model.config.context, self.length)
        before = _windows(self.embeddings[:, :-1], size)
        real = _windows(self.observed[:, 1:], size)
        after = self._predict(before, _windows(self.conditions, size), real)
        wanted = _windows(self.targets[:, 1:], size)
        terms = {"prediction": masked_mean((after - wanted).square().mean(-1), real)}
        # Each frame once, with the longest context that it has.
        longest = torch.cat([after[:, 0, :-1], after[:, :, -1]], 1)
        self.foretold = Transitions(self.embeddings[:, :-1], longest, 0)
        self.transitions.append(self.foretold)
        if self.model.training:
            error = longest.detach() - self.targets[:, 1:].detach()
            self.model.remember_residual(error, self.segment.mask)
        further = self._follow(before, after[:, :, -1], size)
        if further:
            terms["rollout"] = torch.stack(further).mean()
        return terms

    def _follow(self, window: Tensor, newest: Tensor, size: int) -> list[Tensor]:
        """Errors of further steps, each from what the last one predicted, with a step's noise."""
        errors = []
        for k in range(1, self.objective.rollout):
            count = self.length - size + 1 - k
            if count < 1:
                break
            at = size - 1 + k  # of the first window's newest frame, which is predicted
            shaken = self.model.residual * normal(self.noise[:, at : at + count])
            newest = newest[:, :count] + shaken
            window = torch.cat([window[:, :count, 1:], newest.unsqueeze(2)], 2)
            conditions = _windows(self.conditions[:, k:], size)
            real = self.segment.mask[:, at:]
            old = newest
            newest = self._predict(window, conditions, real.unsqueeze(2), only_last=slice(-1, None))
            newest = newest.squeeze(2)
            error = (newest - self.targets[:, at + 1 :]).square().mean(-1)
            errors.append(masked_mean(error, real))
            self.transitions.append(Transitions(old, newest, at))
        return errors

    def _predict(
        self, before: Tensor, conditions: Tensor, real: Tensor, only_last: slice = slice(None)
    ) -> Tensor:
        """What comes after the frames (B, W, size, D) of windows, or after some of them."""
        lead = before.shape[:2]
        output = self.model.predictor(before.flatten(0, 1), conditions.flatten(0, 1))
        output = output.unflatten(0, lead)[:, :, only_last]
        return self.model.advance(before[:, :, only_last], output, real)

    def _regularisers(self) -> dict[str, Tensor]:
        objective, terms = self.objective, {}
        if objective.sigreg:
            width = self.embeddings.shape[-1]
            count = min(PROJECTIONS, DIRECTIONS_PER_DIMENSION * width)
            directions = projections(self.noise, width, count)
            terms["sigreg"] = sigreg(self.embeddings, self.observed, directions)
        if objective.std or objective.cov:
            lack, correlation = variance_covariance(self.embeddings, self.observed)
            terms |= {"std": lack, "cov": correlation}
        if objective.temporal:
            terms["temporal"] = temporal_alignment(self.embeddings, self.observed)
        if self.model.inverse is not None:
            pairs = torch.cat([self.embeddings[:, :-1], self.embeddings[:, 1:]], -1)
            error = (self.model.inverse(pairs) - self.actions).square().mean(-1)
            terms["inverse"] = masked_mean(error, self.segment.mask)
        return terms

    def _judgements(self) -> dict[str, Tensor]:
        """Reward, termination and probe, on all transitions, without the embeddings' gradient."""
        model, segment = self.model, self.segment
        standard = (segment.reward - model.reward_mean) / model.reward_std
        rewards, ends, probes = [], [], []
        for old, new, at in self.transitions:
            place = slice(at, at + old.shape[1])
            mask = segment.mask[:, place]
            reward, end = model.judge(old.detach(), new.detach(), self.actions[:, place])
            rewards.append(masked_mean((reward - standard[:, place]).square(), mask))
            terminated = segment.terminated[:, place].to(end.dtype)
            loss = F.binary_cross_entropy_with_logits(end, terminated, reduction="none")
            ends.append(masked_mean(loss, mask))
            if model.probe is not None:
                error = model.probe.error(new, self._seen(at + 1, old.shape[1]))
                probes.append(masked_mean(error, mask))
        if model.carrier is not None and model.training:
            self._remember_unread(model.carrier)
        terms = {"reward": torch.stack(rewards).mean(), "termination": torch.stack(ends).mean()}
        return terms | ({"probe": torch.stack(probes).mean()} if probes else {})

    @torch.no_grad()
    def _remember_unread(self, probe: Probe) -> None:
        """Let the probe know its errors on real embeddings, and on those predicted from them."""
        old, predicted, _ = self.foretold
        count = old.shape[1]
        before = probe.unread(old, self._seen(0, count))
        after = probe.unread(predicted, self._seen(1, count))
        probe.remember_unread(before, after, self.segment.mask, self.model.share_of_batch)

    def _seen(self, at: int, count: int) -> Observation:
        return each(lambda leaf: leaf[:, at : at + count], self.segment.observation)


def _windows(frames: Tensor, size: int) -> Tensor:
    """All windows of `size` frames: (B, T, ...) becomes (B, T - size + 1, size, ...)."""
    return frames.unfold(1, size, 1).movedim(-1, 2)
