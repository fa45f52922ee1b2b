"""The cross-entropy method over sequences of continuous actions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dreamgym.models import State
from dreamgym.train.planners.base import Plan, PlannerConfig, shifted, take
from dreamgym.train.planners.boxes import BoxPlanner
from dreamgym.train.planners.noise import keyed, normals


@dataclass(frozen=True, kw_only=True)
class CEMConfig(PlannerConfig):
    """Settings of `CEM`.

    Attributes:
        candidates: sequences of actions in an iteration.
        iterations: number of iterations.
        elites: best candidates, to which the next distribution is fitted.
        std: standard deviation at the start; a bounded action has the range [-1, 1].
        min_std: smallest standard deviation.
        smoothing: share of the old mean and standard deviation in the new ones, in [0, 1).
        truncate: PETS's form of the bounds: normals are truncated at two standard deviations, which
            are at most half of the distance to the bounds. Otherwise candidates are clipped.
    """

    candidates: int = 300
    iterations: int = 5
    elites: int = 30
    std: float = 0.5
    min_std: float = 0.0
    smoothing: float = 0.0
    truncate: bool = False


class CEM(BoxPlanner):
    """Cross-entropy method (Rubinstein 1999; planning as in PlaNet, arXiv 1811.04551, algorithm 2).

    A normal distribution over sequences of actions is fitted to the best candidates, several times;
    its mean is the plan.
    """

    config_type = CEMConfig
    config: CEMConfig

    def _plan(self, state: State, keys: Tensor, memory: dict[str, Tensor]) -> Plan:
        config, mean = self.config, memory["mean"]
        std = torch.full_like(mean, config.std)
        proposed = self.proposed(state, keys)
        value = torch.zeros(len(mean), device=self.device)
        for iteration in range(config.iterations):
            iteration_keys = keyed(keys, iteration)
            candidates = self._sample(mean, std, iteration_keys)
            if proposed is not None:
                candidates = torch.cat([candidates, self.box.units(proposed)], 1)
            returns = self.returns(state, self.box.raw(candidates), iteration_keys)
            best = returns.topk(config.elites, 1)
            elites, value = take(candidates, best.indices), best.values[:, 0]
            mean = torch.lerp(elites.mean(1), mean, config.smoothing)
            std = torch.lerp(elites.std(1, correction=0), std, config.smoothing)
            std = std.clamp(min=config.min_std)
        return Plan(self.box.raw(mean), value, {"mean": shifted(mean, config.execute)})

    def _sample(self, mean: Tensor, std: Tensor, keys: Tensor) -> Tensor:
        """Return candidates (B, N, H, A); the first one is the mean (B, H, A)."""
        config, shape = self.config, (self.config.horizon, self.box.size)
        noise = normals(keys, config.candidates, shape, truncated=config.truncate)
        if config.truncate:
            room = torch.minimum(mean - self.box.low, self.box.high - mean) / 2
            std = torch.minimum(std, room)
        noise[:, 0] = 0.0
        return self.box.clip(torch.addcmul(mean.unsqueeze(1), std.unsqueeze(1), noise))
