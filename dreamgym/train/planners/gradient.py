"""Gradient ascent on the predicted return, from several starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dreamgym.models import State
from dreamgym.train.planners.base import Plan, PlannerConfig, shifted, take
from dreamgym.train.planners.boxes import BoxPlanner
from dreamgym.train.planners.noise import keyed, normals


@dataclass(frozen=True, kw_only=True)
class GradientConfig(PlannerConfig):
    """Settings of `Gradient`.

    Attributes:
        candidates: sequences of actions that are improved side by side.
        iterations: steps of Adam.
        learning_rate: learning rate of Adam; a bounded action has the range [-1, 1].
        std: standard deviation of the starts around the previous plan.
    """

    candidates: int = 16
    iterations: int = 20
    learning_rate: float = 0.1
    std: float = 0.5


class Gradient(BoxPlanner):
    """Projected gradient ascent with Adam through the model's steps; the best candidate wins.

    It needs a model whose rewards depend smoothly on actions. Fast forms have no gradients, so the
    steps are those of the plain model.
    """

    config_type = GradientConfig
    config: GradientConfig

    def __init__(self, model: Any, config: GradientConfig | None = None, **prior: Any) -> None:
        super().__init__(model, config, **prior)
        if self.box.integer:
            raise TypeError(
                f"gradients do not reach the whole numbers of {model.action_space}; use 'cem'"
            )

    def _plan(self, state: State, keys: Tensor, memory: dict[str, Tensor]) -> Plan:
        config, mean = self.config, memory["mean"]
        noise = normals(keyed(keys, 0), config.candidates, (config.horizon, self.box.size))
        noise[:, 0] = 0.0
        candidates = self.box.clip(mean.unsqueeze(1) + config.std * noise)
        proposed = self.proposed(state, keys)
        if proposed is not None:
            candidates = torch.cat([candidates, self.box.units(proposed)], 1)
        candidates = self._improve(state, keys, candidates)
        returns = self.returns(state, self.box.raw(candidates), keyed(keys, config.iterations))
        value, index = returns.max(1)
        best = take(candidates, index.unsqueeze(1))[:, 0]
        return Plan(self.box.raw(best), value, {"mean": shifted(best, config.execute)})

    def _improve(self, state: State, keys: Tensor, candidates: Tensor) -> Tensor:
        """Return candidates (B, N, H, A) after some steps of Adam, which acts on each by itself."""
        config = self.config
        variable = candidates.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([variable], lr=config.learning_rate, maximize=True)
        for iteration in range(config.iterations):
            with torch.enable_grad():
                returns = self.returns(state, self.box.raw(variable), keyed(keys, iteration))
                (gradient,) = torch.autograd.grad(returns.sum(), variable)
            variable.grad = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
            optimizer.step()
            variable.data.copy_(self.box.clip(variable.data))
        return variable.detach()
