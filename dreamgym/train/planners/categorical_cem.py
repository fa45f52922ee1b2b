"""The cross-entropy method over sequences of discrete actions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from dreamgym.models import State
from dreamgym.train.planners.base import Plan, Planner, PlannerConfig, take
from dreamgym.train.planners.noise import candidate_uniforms, keyed


@dataclass(frozen=True, kw_only=True)
class CategoricalCEMConfig(PlannerConfig):
    """Settings of `CategoricalCEM`.

    Attributes:
        candidates: sequences of actions in an iteration.
        iterations: number of iterations.
        elites: best candidates, to which the next distribution is fitted.
        smoothing: share of the old probabilities in the new ones, in [0, 1).
        uniform: share of the uniform distribution in each new one, so that no choice dies out.
    """

    candidates: int = 300
    iterations: int = 5
    elites: int = 30
    smoothing: float = 0.1
    uniform: float = 0.05


class CategoricalCEM(Planner):
    """Cross-entropy method (Rubinstein 1999) for Discrete and MultiDiscrete actions.

    Independent categorical distributions over the actions of each step are fitted to the best
    candidates; the best candidate of the last iteration is the plan.

    Raises:
        TypeError: the action space is a Box.
    """

    config_type = CategoricalCEMConfig
    config: CategoricalCEMConfig

    def __init__(
        self, model: Any, config: CategoricalCEMConfig | None = None, **prior: Any
    ) -> None:
        super().__init__(model, config, **prior)
        space = model.action_space
        if not isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete):
            raise TypeError(
                f"this planner chooses among discrete actions, and the action space is {space}; "
                "use 'cem', 'icem', 'mppi' or 'gradient'"
            )
        counts = np.ravel(space.n if isinstance(space, gym.spaces.Discrete) else space.nvec)
        self.shape = space.shape or ()
        start = np.broadcast_to(np.asarray(space.start, np.int64), self.shape)
        self.start = torch.tensor(start, device=self.device)
        choices = torch.arange(int(counts.max()), device=self.device)
        allowed = choices < torch.tensor(counts, device=self.device).unsqueeze(1)
        # (D, K) probabilities of the D numbers of an action; 0 where there is no choice
        self.uniform = allowed / allowed.sum(1, keepdim=True)

    def initial(self, batch_size: int) -> dict[str, Tensor]:
        """See `Planner.initial`."""
        return {"probabilities": self.uniform.repeat(batch_size, self.config.horizon, 1, 1)}

    def _plan(self, state: State, keys: Tensor, memory: dict[str, Tensor]) -> Plan:
        config, probabilities = self.config, memory["probabilities"]
        proposed = self.proposed(state, keys)
        value = torch.zeros(len(keys), device=self.device)
        elites = torch.zeros((len(keys), 1, config.horizon, len(self.uniform)), dtype=torch.int64)
        for iteration in range(config.iterations):
            iteration_keys = keyed(keys, iteration)
            candidates = self._sample(probabilities, iteration_keys)
            if proposed is not None:
                own = (proposed - self.start).flatten(3) if self.shape else proposed - self.start
                candidates = torch.cat([candidates, own.reshape(*own.shape[:3], -1)], 1)
            returns = self.returns(state, self._raw(candidates), iteration_keys)
            best = returns.topk(config.elites, 1)
            elites, value = take(candidates, best.indices), best.values[:, 0]
            counted = torch.nn.functional.one_hot(elites, self.uniform.shape[1]).float().mean(1)
            fitted = torch.lerp(counted, probabilities, config.smoothing)
            probabilities = torch.lerp(fitted, self.uniform.expand_as(fitted), config.uniform)
        steps = config.execute
        end = self.uniform.expand(len(keys), steps, -1, -1)
        following = torch.cat([probabilities[:, steps:], end], 1)
        return Plan(self._raw(elites[:, 0]), value, {"probabilities": following})

    def _sample(self, probabilities: Tensor, keys: Tensor) -> Tensor:
        """Return candidates (B, N, H, D), int64, by the inverse CDF; the first is the mode."""
        count, shape = self.config.candidates, probabilities.shape[1:3]
        uniform = candidate_uniforms(keys, count, shape[0] * shape[1]).unflatten(-1, shape)
        cumulative = probabilities.cumsum(-1)
        cumulative = cumulative / cumulative[..., -1:]
        drawn = (uniform.unsqueeze(-1) >= cumulative.unsqueeze(1)[..., :-1]).sum(-1)
        drawn[:, 0] = probabilities.argmax(-1)
        return drawn

    def _raw(self, choices: Tensor) -> Tensor:
        """Return raw actions (..., *shape) of choices (..., D) from 0."""
        if not self.shape:
            return choices.squeeze(-1) + self.start
        return choices.unflatten(-1, self.shape) + self.start
