"""Optimisers, and how much gradient they are given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dreamgym.fitting.config import OptimizerConfig

AGC_LEAST_NORM = 1e-3


def optimizer_for(
    parameters: Sequence[nn.Parameter], config: OptimizerConfig
) -> torch.optim.Optimizer:
    """The optimiser that a config asks for."""
    settings: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": config.betas,
        "eps": config.eps,
        "weight_decay": config.weight_decay,
    }
    if config.name == "adamw":
        return torch.optim.AdamW(parameters, **settings)
    if config.name == "adam":
        return torch.optim.Adam(parameters, **settings)
    from pytorch_optimizer.optimizer.laprop import LaProp  # a second's import, for the few

    made: torch.optim.Optimizer = LaProp(parameters, **settings)
    return made


@torch.no_grad()
def clip_gradients(parameters: Sequence[nn.Parameter], config: OptimizerConfig) -> None:
    """Bring the gradients within what the config allows, in place.

    Args:
        parameters: those without a gradient are left out.
        config: see `OptimizerConfig.clip_by`.
    """
    if config.clip_by == "norm":
        torch.nn.utils.clip_grad_norm_(parameters, config.gradient_clip)
    elif config.clip_by == "value":
        torch.nn.utils.clip_grad_value_(parameters, config.gradient_clip)
    else:
        clip_adaptively(parameters, config.gradient_clip)


@torch.no_grad()
def clip_adaptively(parameters: Sequence[nn.Parameter], share: float) -> None:
    """Adaptive gradient clipping, tensor by tensor, in place.

    Brock et al. (2021), arXiv 2102.06171, equation 3, but with the norm of a whole tensor, as
    DreamerV3 (arXiv 2301.04104) has it.

    Args:
        parameters: those without a gradient are left out.
        share: greatest norm of a gradient, in units of its tensor's.
    """
    weights: list[Tensor] = [each for each in parameters if each.grad is not None]
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    if not gradients:
        return
    limits = torch.stack(torch._foreach_norm(weights)).clamp(min=AGC_LEAST_NORM) * share
    norms = torch.stack(torch._foreach_norm(gradients))
    torch._foreach_mul_(gradients, (limits / norms.clamp(min=1e-30)).clamp(max=1.0).unbind())


class RunningMean:
    """A running mean of weights that an optimiser moves.

    Args:
        parameters: whose mean is taken.
        keep: the share of the mean that an update keeps, once there were many.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], keep: float) -> None:
        self._parameters, self._keep = list(parameters), keep
        self.means = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def follow(self, updates: int) -> None:
        """Take in the weights after the update of this number, which begins at one."""
        keep = min(self._keep, (1 + updates) / (10 + updates))
        torch._foreach_lerp_(self.means, [p.detach() for p in self._parameters], 1.0 - keep)

    @torch.no_grad()
    def swap(self) -> None:
        """Put the means where the weights are, and keep the weights; and back again."""
        for mean, parameter in zip(self.means, self._parameters, strict=True):
            weight = parameter.detach().clone()
            parameter.copy_(mean)
            mean.copy_(weight)


def learning_rate(
    config: OptimizerConfig, update: int, updates: int, phase_starts: tuple[int, ...] = ()
) -> float:
    """Linear warm-up to the peak, then a half cosine down to nothing, or the peak for good.

    A function of the update alone, so a resumed fit needs no scheduler's state.

    Args:
        config: the peak, the kind of schedule and the warm-up.
        update: updates done before.
        updates: in all.
        phase_starts: where another part's turn comes, rising: the schedule restarts there, so that
            every part's last updates are small ones.
    """
    edges = [0, *(turn for turn in phase_starts if 0 < turn < updates), updates]
    begin = max(edge for edge in edges[:-1] if edge <= update)
    end = min(edge for edge in edges[1:] if edge > begin)
    return _one_turn(config, update - begin, end - begin)


def _one_turn(config: OptimizerConfig, update: int, updates: int) -> float:
    share = config.warm_up < 1
    warm = round(config.warm_up * updates if share else config.warm_up)
    warm = max(1 if config.warm_up else 0, warm)
    if update < warm:
        return config.learning_rate * (update + 1) / warm
    if config.schedule == "constant":
        return config.learning_rate
    done = (update - warm) / max(1, updates - warm)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))
