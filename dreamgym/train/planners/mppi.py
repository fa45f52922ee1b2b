"""Model predictive path integral control over sequences of continuous actions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from dreamgym.models import State
from dreamgym.train.planners.base import Plan, PlannerConfig, shifted, take
from dreamgym.train.planners.boxes import BoxPlanner
from dreamgym.train.planners.noise import candidate_uniforms, keyed, normals

CHOICE, EXPLORATION = -4, -5
"""Purposes of noise, beside those of `base` and of `PlannedPolicy`."""


@dataclass(frozen=True, kw_only=True)
class MPPIConfig(PlannerConfig):
    """Settings of `MPPI`.

    Attributes:
        candidates: sequences of actions in an iteration.
        iterations: number of iterations.
        elites: best candidates, which are weighted.
        temperature: difference of returns, in the environment's units, by which a candidate weighs
            e times less.
        std: standard deviation at the start; a bounded action has the range [-1, 1].
        min_std: smallest standard deviation; with `std` equal to it, the deviation is constant.
        explore: whether the plan is one of the best candidates, drawn by its weight, with noise of
            the last standard deviation, as TD-MPC2 acts while it learns; otherwise it is the mean.
    """

    candidates: int = 512
    iterations: int = 6
    elites: int = 64
    temperature: float = 1.0
    std: float = 1.0
    min_std: float = 0.05
    explore: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; expected a number above 0")

    def exploring(self) -> Self:
        """See `PlannerConfig.exploring`."""
        return replace(self, explore=True)


class MPPI(BoxPlanner):
    """MPPI (Williams et al. 2017, arXiv 1707.02342) in the form of TD-MPC2 (arXiv 2310.16828).

    Mean and standard deviation are those of the best candidates, weighted by the exponential of
    their return; the mean is the plan, unless `explore` is set.
    """

    config_type = MPPIConfig
    config: MPPIConfig

    def _plan(self, state: State, keys: Tensor, memory: dict[str, Tensor]) -> Plan:
        config, mean = self.config, memory["mean"]
        std = torch.full_like(mean, config.std)
        shape = (config.horizon, self.box.size)
        proposed = self.proposed(state, keys)
        value = torch.zeros(len(mean), device=self.device)
        for iteration in range(config.iterations):
            iteration_keys = keyed(keys, iteration)
            noise = normals(iteration_keys, config.candidates, shape)
            noise[:, 0] = 0.0
            candidates = torch.addcmul(mean.unsqueeze(1), std.unsqueeze(1), noise)
            candidates = self.box.clip(candidates)
            if proposed is not None:
                candidates = torch.cat([candidates, self.box.units(proposed)], 1)
            returns = self.returns(state, self.box.raw(candidates), iteration_keys)
            best = returns.topk(config.elites, 1)
            elites, value = take(candidates, best.indices), best.values[:, 0]
            scores = (best.values - value.unsqueeze(1)) / config.temperature
            weight = scores.softmax(1)[:, :, None, None]
            mean = (weight * elites).sum(1)
            variance = (weight * (elites - mean.unsqueeze(1)).square()).sum(1)
            std = variance.sqrt().clamp(config.min_std, max(config.std, config.min_std))
        plan = mean
        if config.explore:
            uniform = candidate_uniforms(keyed(keys, CHOICE), config.elites, 1).squeeze(-1)
            chosen = (scores - (-uniform.log()).log()).argmax(1, keepdim=True)  # by Gumbel noise
            noise = normals(keyed(keys, EXPLORATION), 1, shape)
            noisy = torch.addcmul(take(elites, chosen), std.unsqueeze(1), noise)
            plan = self.box.clip(noisy).squeeze(1)
        return Plan(self.box.raw(plan), value, {"mean": shifted(mean, config.execute)})
