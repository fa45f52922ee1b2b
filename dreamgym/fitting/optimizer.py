"""Optimizers, learning-rate schedules, gradient clipping and weight averaging."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dreamgym.fitting.config import OptimizerConfig

AGC_MIN_NORM = 1e-3
"""Smallest norm that a tensor counts as in adaptive gradient clipping."""


def optimizer_for(
    parameters: Sequence[nn.Parameter], config: OptimizerConfig
) -> torch.optim.Optimizer:
    """Make the optimizer of a config.

    The learning rate of a parameter with an attribute `learning_rate_scale` is multiplied by it:
    each value has a parameter group of its own, with the factor as `rate_scale`.
    """
    by_scale: dict[float, list[nn.Parameter]] = {}
    for parameter in parameters:
        scale = getattr(parameter, "learning_rate_scale", 1.0)
        by_scale.setdefault(scale, []).append(parameter)
    groups = [{"params": each, "rate_scale": scale} for scale, each in by_scale.items()]
    settings: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": config.betas,
        "eps": config.eps,
        "weight_decay": config.weight_decay,
    }
    if config.name == "adamw":
        return torch.optim.AdamW(groups, **settings)
    if config.name == "adam":
        return torch.optim.Adam(groups, **settings)
    from pytorch_optimizer.optimizer.laprop import LaProp  # the import takes a second

    laprop: torch.optim.Optimizer = LaProp(groups, **settings)
    return laprop


def learning_rate(
    config: OptimizerConfig, update: int, updates: int, phase_starts: tuple[int, ...] = ()
) -> float:
    """Return the learning rate of an update: linear warm-up, then cosine decay or constant.

    It is a function of the update alone, so a resumed fit needs no scheduler state.

    Args:
        config: peak, schedule and warm-up.
        update: number of updates done before.
        updates: total number of updates.
        phase_starts: updates at which training switches to another part of the model, ascending.
            The schedule restarts there, so that every part ends with small updates.
    """
    edges = [0, *(start for start in phase_starts if 0 < start < updates), updates]
    begin = max(edge for edge in edges[:-1] if edge <= update)
    end = min(edge for edge in edges[1:] if edge > begin)
    return _phase_learning_rate(config, update - begin, end - begin)


def _phase_learning_rate(config: OptimizerConfig, update: int, updates: int) -> float:
    is_share = config.warm_up < 1
    warm_up = round(config.warm_up * updates if is_share else config.warm_up)
    warm_up = max(1 if config.warm_up else 0, warm_up)
    if update < warm_up:
        return config.learning_rate * (update + 1) / warm_up
    if config.schedule == "constant":
        return config.learning_rate
    done = (update - warm_up) / max(1, updates - warm_up)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))


@torch.no_grad()
def clip_gradients(parameters: Sequence[nn.Parameter], config: OptimizerConfig) -> None:
    """Clip gradients in place, as `OptimizerConfig.clip_by` says.

    Args:
        parameters: parameters; those without a gradient are skipped.
        config: kind and limit of the clipping.
    """
    if config.clip_by == "norm":
        torch.nn.utils.clip_grad_norm_(parameters, config.gradient_clip)
    elif config.clip_by == "value":
        torch.nn.utils.clip_grad_value_(parameters, config.gradient_clip)
    else:
        clip_adaptively(parameters, config.gradient_clip)


@torch.no_grad()
def clip_adaptively(parameters: Sequence[nn.Parameter], ratio: float) -> None:
    """Apply adaptive gradient clipping to each tensor, in place.

    Brock et al. (2021), arXiv 2102.06171, equation 3, but with the norm of a whole tensor, as in
    DreamerV3 (arXiv 2301.04104).

    Args:
        parameters: parameters; those without a gradient are skipped.
        ratio: maximum norm of a gradient, in units of the norm of its tensor.
    """
    weights: list[Tensor] = [each for each in parameters if each.grad is not None]
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    if not gradients:
        return
    limits = torch.stack(torch._foreach_norm(weights)).clamp(min=AGC_MIN_NORM) * ratio
    norms = torch.stack(torch._foreach_norm(gradients))
    torch._foreach_mul_(gradients, (limits / norms.clamp(min=1e-30)).clamp(max=1.0).unbind())


class WeightAverage:
    """An exponential moving average (EMA) of parameters.

    Args:
        parameters: parameters to average.
        decay: share of the average that an update keeps, after the first updates.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self._parameters, self._decay = list(parameters), decay
        self.means = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Add the current parameters to the average.

        Args:
            updates: number of optimizer updates done, at least 1.
        """
        decay = min(self._decay, (1 + updates) / (10 + updates))
        torch._foreach_lerp_(self.means, [p.detach() for p in self._parameters], 1.0 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the parameters with their averages."""
        for mean, parameter in zip(self.means, self._parameters, strict=True):
            weight = parameter.detach().clone()
            parameter.copy_(mean)
            mean.copy_(weight)
