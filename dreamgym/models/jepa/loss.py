"""SIGReg: how far a batch of embeddings is from isotropic Gaussian, along random directions.

Balestriero and LeCun, "LeJEPA" (2025), arXiv 2511.08544; used by LeWM, arXiv 2603.19312. In one
dimension it is the statistic of Epps and Pulley (1983): the squared distance between the empirical
characteristic function and that of the standard normal, under a Gaussian window. By Cramer and
Wold, a distribution is normal if all its projections are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from dreamgym.models.base import Segment
from dreamgym.models.nn.distributions import normal
from dreamgym.models.nn.layers import autocast_disabled
from dreamgym.models.observations import Observation, map_observation
from dreamgym.models.reduction import all_reduce_sum, masked_mean, processes

if TYPE_CHECKING:
    from dreamgym.models.jepa.model import JEPA
    from dreamgym.models.jepa.modules import Probe


KNOTS = 17


REACH = 3.0


PROJECTIONS = 1024


CACHED_COLUMNS = 1024


GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)


MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)


MIX_2 = 0x94D049BB133111EB - (1 << 64)


MANTISSA_BITS = 24


def projections(noise: Tensor, dim: int, count: int = PROJECTIONS) -> Tensor:
    """Random unit vectors, determined by the noise.

    A hash (SplitMix64, Steele, Lea and Flood 2014) of the noise's first numbers makes as many
    normal numbers as are needed, on any device. With several processes all take the first's key,
    for they must look along the same directions.

    Args:
        noise: (...) float32 uniforms, at least two.
        dim: of the space.
        count: how many vectors.

    Returns:
        (dim, count), each column of length one.
    """
    first = (noise.reshape(-1)[:2] * 2.0**MANTISSA_BITS).to(torch.int64)
    key = _mix(_mix(first[0] + GOLDEN) + first[1])
    if processes() > 1:
        dist.broadcast(key, 0)
    counter = torch.arange(1, dim * count + 1, device=noise.device, dtype=torch.int64)
    bits = _shift(_mix(key + counter * GOLDEN), 64 - MANTISSA_BITS)
    vectors = normal(bits.to(torch.float32) * 2.0**-MANTISSA_BITS).view(dim, count)
    return vectors / vectors.norm(dim=0)


def sigreg(embeddings: Tensor, mask: Tensor, directions: Tensor) -> Tensor:
    """The statistic, times the number of rows, averaged over directions and time steps.

    It is about 1 on standard normal embeddings, whatever their number, and grows with the number
    of rows otherwise: about 51 on 128 equal rows.

    Args:
        embeddings: (B, T, D).
        mask: (B, T) bool, false on padding, which does not count.
        directions: (D, P) unit columns, see `projections`.

    Returns:
        A scalar, differentiable.
    """
    step = REACH / (KNOTS - 1)
    weight = mask.float().unsqueeze(-1)  # (B, T, 1)
    count = all_reduce_sum(weight.sum(0))  # (T, 1)
    rows = count.clamp(min=1.0)
    with autocast_disabled(embeddings):
        angle = (embeddings.float() @ directions) * step  # (B, T, P)
    knots = torch.arange(KNOTS, device=angle.device, dtype=torch.float32)
    window = torch.exp(-0.5 * (knots * step).square())
    sums = all_reduce_sum(_Characteristic.apply(angle, weight))  # (2, knots, T, P)
    real, imaginary = (sums / rows).unbind(0)
    error = (real - window.view(-1, 1, 1)).square() + imaginary.square()
    # The function is even: the integral over [-3, 3] is twice the trapezoid over [0, 3].
    trapezoid = torch.full_like(window, 2 * step)
    trapezoid[0] = trapezoid[-1] = step
    statistic = torch.einsum("k,ktp->tp", trapezoid * window, error) * rows
    there = (count > 0).to(statistic.dtype)
    return (statistic * there).sum() / (there.sum().clamp(min=1.0) * directions.shape[1])


class _Characteristic(torch.autograd.Function):
    """Sums over rows of cos(k x) and sin(k x) for k = 0 ... KNOTS - 1.

    One sine and one cosine of each angle: those of its multiples follow by the addition theorem,
    and nothing of size KNOTS x B x T x P is ever kept. On a CPU the columns are gone through in
    pieces that stay in its cache.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, angle: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(angle, weight)
        weights = weight.expand_as(angle).flatten(1)
        pieces = []
        for x, w in zip(_pieces(angle.flatten(1)), _pieces(weights), strict=True):
            sums = [torch.stack([(c * w).sum(0), (s * w).sum(0)]) for c, s in _multiples(x)]
            pieces.append(torch.stack(sums, 1))
        return torch.cat(pieces, -1).unflatten(-1, angle.shape[1:])

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor
    ) -> tuple[Tensor, None]:
        angle, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        wanted = gradients[0].flatten(2).unbind(0)
        pieces = []
        columns = (_pieces(leaf) for leaf in (angle.flatten(1), *wanted))
        for x, by_cosine, by_sine in zip(*columns, strict=True):
            total = torch.zeros_like(x)
            for k, (c, s) in enumerate(_multiples(x)):
                total.addcmul_(c, k * by_sine[k]).addcmul_(s, -k * by_cosine[k])
            pieces.append(total)
        return torch.cat(pieces, -1).view_as(angle) * weight, None


def _pieces(columns: Tensor) -> tuple[Tensor, ...]:
    """Split the last dimension, in the same way for all that have as many columns."""
    return columns.split(CACHED_COLUMNS if columns.device.type == "cpu" else columns.shape[-1], -1)


def _multiples(angle: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Cosine and sine of k times the angle, for each k; to be used before the next is asked for."""
    cosine, sine = angle.cos(), angle.sin()
    c, s = torch.ones_like(angle), torch.zeros_like(angle)
    yield c, s
    for _ in range(KNOTS - 1):
        turned = (c * cosine).addcmul_(s, sine, value=-1.0)
        s = (s * cosine).addcmul_(c, sine)
        c = turned
        yield c, s


def _shift(value: Tensor, bits: int) -> Tensor:
    """Logical shift to the right: torch's own keeps the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mix(value: Tensor) -> Tensor:
    value = (value ^ _shift(value, 30)) * MIX_1
    value = (value ^ _shift(value, 27)) * MIX_2
    return value ^ _shift(value, 31)


VARIANCE_EPSILON = 1e-4


def variance_covariance(embeddings: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """How far each dimension's spread is below one, and how far the dimensions are correlated.

    Args:
        embeddings: (B, T, D).
        mask: (B, T) bool, false on padding, which does not count.

    Returns:
        The mean over dimensions of max(0, 1 - std), and the mean square of the covariance's
        entries off its diagonal; both of the batch at each time step, and averaged over those
        with at least two rows.
    """
    weight = mask.to(embeddings.dtype).unsqueeze(-1)  # (B, T, 1)
    rows = all_reduce_sum(weight.sum(0))  # (T, 1)
    centred = embeddings - all_reduce_sum((embeddings * weight).sum(0)) / rows.clamp(min=1.0)
    free = (rows - 1.0).clamp(min=1.0)
    with autocast_disabled(embeddings):
        product = torch.einsum("bti,btj->tij", centred * weight, centred)
    covariance = all_reduce_sum(product) / free.unsqueeze(-1)
    variance = covariance.diagonal(dim1=-2, dim2=-1)  # (T, D)
    lack = (1.0 - (variance + VARIANCE_EPSILON).sqrt()).clamp(min=0.0).mean(-1)
    width = embeddings.shape[-1]
    off = (covariance.square().sum((-2, -1)) - variance.square().sum(-1)) / max(
        1, width * (width - 1)
    )
    enough = (rows.squeeze(-1) > 1.5).to(lack.dtype)
    steps = enough.sum().clamp(min=1.0)
    return (lack * enough).sum() / steps, (off * enough).sum() / steps


def temporal_alignment(embeddings: Tensor, mask: Tensor) -> Tensor:
    """Mean squared change of embeddings (B, T, D) in a step, where both ends (B, T) are real."""
    change = (embeddings[:, 1:] - embeddings[:, :-1]).square().mean(-1)
    return masked_mean(change, mask[:, 1:] & mask[:, :-1])


@torch.no_grad()
def collapse(embeddings: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Figures of a batch that fall when its embeddings collapse.

    Args:
        embeddings: (B, T, D).
        mask: (B, T) bool.

    Returns:
        `embedding_std`: the mean over dimensions of the standard deviation. `effective_rank`: of
        the covariance, the exponential of the entropy of its normalised eigenvalues (Roy and
        Vetterli, EUSIPCO 2007); between 1 and D.
    """
    weight = mask.to(embeddings.dtype).unsqueeze(-1)
    rows = all_reduce_sum(weight.sum((0, 1))).clamp(min=1.0)
    centred = (embeddings - all_reduce_sum((embeddings * weight).sum((0, 1))) / rows) * weight
    flat = centred.flatten(0, 1).float()
    with autocast_disabled(embeddings):
        covariance = all_reduce_sum(flat.mT @ flat) / rows
    spread = covariance.diagonal().clamp(min=0.0)
    # Of a collapsed batch the scale is nothing: the floor keeps its entropy defined.
    values = torch.linalg.eigvalsh(covariance).clamp(min=1e-12)
    share = values / values.sum()
    return {
        "embedding_std": spread.sqrt().mean(),
        "effective_rank": (-(share * share.log()).sum()).exp(),
    }


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
        return map_observation(lambda leaf: leaf[:, at : at + count], self.segment.observation)


def _windows(frames: Tensor, size: int) -> Tensor:
    """All windows of `size` frames: (B, T, ...) becomes (B, T - size + 1, size, ...)."""
    return frames.unfold(1, size, 1).movedim(-1, 2)
