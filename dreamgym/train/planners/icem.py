"""iCEM: the cross-entropy method with coloured noise and memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dreamgym.models import State
from dreamgym.train.planners.base import Plan, PlannerConfig, shifted, take
from dreamgym.train.planners.boxes import BoxPlanner
from dreamgym.train.planners.noise import coloured_normals, keyed


@dataclass(frozen=True, kw_only=True)
class ICEMConfig(PlannerConfig):
    """Settings of `ICEM`; the defaults are the paper's.

    Attributes:
        candidates: sequences of actions in the first iteration.
        decay: factor by which their number shrinks in each iteration; at least twice the elites.
        iterations: number of iterations.
        elites: best candidates, to which the next distribution is fitted.
        keep: share of the elites that the next iteration and, shifted, the next plan see again.
        std: standard deviation at the start; a bounded action has the range [-1, 1].
        smoothing: share of the old mean and standard deviation in the new ones, in [0, 1).
        beta: exponent of the noise's spectrum: 0 is white, larger is smoother. The paper has 0.25
            for a fast system (HalfCheetah) to 3.5 for a slow one.
    """

    horizon: int = 30
    candidates: int = 40
    decay: float = 1.25
    iterations: int = 3
    elites: int = 10
    keep: float = 0.3
    std: float = 0.5
    smoothing: float = 0.1
    beta: float = 2.0


class ICEM(BoxPlanner):
    """Improved cross-entropy method (iCEM; Pinneri et al. 2020, arXiv 2008.06389, algorithm 1).

    Candidates have coloured noise, their number falls over the iterations, some elites are kept,
    the mean joins the last iteration, and the best candidate is the plan.
    """

    config_type = ICEMConfig
    config: ICEMConfig

    @property
    def _kept(self) -> int:
        return int(self.config.keep * self.config.elites)

    @property
    def _copies(self) -> int:
        return super()._copies + self._kept + 1

    def initial(self, batch_size: int) -> dict[str, Tensor]:
        """See `BoxPlanner.initial`."""
        memory = super().initial(batch_size)
        return {**memory, "elites": memory["mean"].unsqueeze(1).repeat(1, self._kept, 1, 1)}

    def _plan(self, state: State, keys: Tensor, memory: dict[str, Tensor]) -> Plan:
        config, mean, kept = self.config, memory["mean"], memory["elites"]
        std = torch.full_like(mean, config.std)
        proposed = self.proposed(state, keys)
        elites, value = kept, torch.zeros(len(mean), device=self.device)
        for iteration in range(config.iterations):
            iteration_keys = keyed(keys, iteration)
            parts = [self._sample(mean, std, iteration_keys, iteration), kept]
            if iteration == config.iterations - 1:
                parts.append(mean.unsqueeze(1))
            if proposed is not None:
                parts.append(self.box.units(proposed))
            candidates = torch.cat(parts, 1)
            returns = self.returns(state, self.box.raw(candidates), iteration_keys)
            best = returns.topk(config.elites, 1)
            elites, value = take(candidates, best.indices), best.values[:, 0]
            kept = elites[:, : self._kept]
            mean = torch.lerp(elites.mean(1), mean, config.smoothing)
            std = torch.lerp(elites.std(1, correction=0), std, config.smoothing)
        following = {"mean": mean, "elites": kept}
        following = {name: shifted(leaf, config.execute) for name, leaf in following.items()}
        return Plan(self.box.raw(elites[:, 0]), value, following)

    def _sample(self, mean: Tensor, std: Tensor, keys: Tensor, iteration: int) -> Tensor:
        """Return candidates (B, N, H, A) around the mean (B, H, A)."""
        config = self.config
        count = max(int(config.candidates / config.decay**iteration), 2 * config.elites)
        shape = (config.horizon, self.box.size)
        noise = coloured_normals(keys, min(count, config.candidates), shape, config.beta)
        return self.box.clip(torch.addcmul(mean.unsqueeze(1), std.unsqueeze(1), noise))
