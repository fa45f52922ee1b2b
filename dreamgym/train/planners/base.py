"""What every planner shares: its settings, the plan it returns, and the value of candidates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from dreamgym.models import Acts, State, Values, WorldModel
from dreamgym.models.base import model_device
from dreamgym.train.planners.noise import candidate_uniforms, keyed

MAX_ROWS = 2**14
"""Rows of one step of the model, at most, so that memory does not grow with the batch."""

WORST = -1e30
"""Return of a candidate for which the model predicts NaN."""

MODEL, PROPOSAL = -1, -2
"""Purposes of noise; iterations are numbered from 0."""


@dataclass(frozen=True, kw_only=True)
class PlannerConfig:
    """Settings that all planners share.

    Attributes:
        horizon: steps of the model that a plan has.
        discount: factor on rewards for each step; with a `value`, use the one of that value.
        particles: samples of the model's noise over which a candidate's return is averaged. All
            candidates of a row have the same noise (common random numbers).
        terminal_only: whether only the value of the last state counts, and no reward, as in
            planning towards a goal.
        proposals: candidates that follow the proposal policy, where there is one.
        warm_start: whether a plan starts from the previous one, shifted by the actions taken.
        execute: actions of a plan that are taken before the next one is made.
    """

    horizon: int = 15
    discount: float = 1.0
    particles: int = 1
    terminal_only: bool = False
    proposals: int = 24
    warm_start: bool = True
    execute: int = 1

    def __post_init__(self) -> None:
        counts = ("horizon", "particles", "execute", "candidates", "iterations", "elites")
        for name in counts:
            value = getattr(self, name, 1)
            if value < 1:
                raise ValueError(f"{name} is {value}; expected a whole number of at least 1")
        if self.execute > self.horizon:
            raise ValueError(
                f"execute is {self.execute}; a plan has {self.horizon} actions (horizon)"
            )
        if not 0 < self.discount <= 1:
            raise ValueError(f"discount is {self.discount}; expected a number in (0, 1]")
        if self.proposals < 0:
            raise ValueError(f"proposals is {self.proposals}; expected 0 or more")
        candidates, elites = getattr(self, "candidates", None), getattr(self, "elites", None)
        if candidates is not None and elites is not None and elites > candidates:
            raise ValueError(f"elites is {elites}; there are {candidates} candidates")

    def exploring(self) -> Self:
        """Return the settings with which the planner acts while data is recorded."""
        return self


class Plan(NamedTuple):
    """Plans of B rows.

    Attributes:
        actions: (B, H, ...) raw actions within the space; the first one is to be taken now.
        value: (B,) return that the model predicts for the best candidate.
        memory: what the next plan starts from, leaves (B, ...); already shifted.
    """

    actions: Tensor
    value: Tensor
    memory: dict[str, Tensor]


class Planner(ABC):
    """Searches for the actions with the highest predicted return, for a batch of rows.

    A plan is a pure function of its arguments; a row does not depend on its neighbours. The return
    of a candidate is the sum of discounted rewards, each times the probability that the episode
    has not terminated before, plus `value` of the last state.

    Args:
        model: world model, on its device; put into eval mode. Later changes of its weights need a
            new planner.
        config: settings, a `config_type`; None for the defaults.
        value: values the last states; None for no value.
        proposal: proposes candidates; None for none.

    Raises:
        TypeError: the planner cannot search the model's action space.
        ValueError: only the value of the last state should count, and there is none.
    """

    config_type: ClassVar[type[PlannerConfig]]

    def __init__(
        self,
        model: WorldModel,
        config: Any = None,
        *,
        value: Values | None = None,
        proposal: Acts | None = None,
    ) -> None:
        self.model = model.eval()
        self.config: Any = config if config is not None else self.config_type()
        self.value, self.proposal = value, proposal
        self.device = model_device(model)
        if self.config.terminal_only and value is None:
            raise ValueError(
                "terminal_only=True needs a value of the last state, such as value=model of a "
                "GoalReward"
            )
        self._prepared, self._prepared_rows = model, 0

    @torch.no_grad()
    def plan(self, state: State, keys: Tensor, memory: dict[str, Tensor] | None = None) -> Plan:
        """Plan from states.

        Args:
            state: states of the model, leaves (B, ...).
            keys: (B,) int64, from which the noise of each row is made. Other keys at each step.
            memory: memory of the previous plan of these rows; None for none.
        """
        if memory is None or not self.config.warm_start:
            memory = self.initial(len(keys))
        rows = max(1, MAX_ROWS // (self._copies * self.config.particles))
        parts = [
            self._plan(
                {name: leaf[start : start + rows] for name, leaf in state.items()},
                keys[start : start + rows],
                {name: leaf[start : start + rows] for name, leaf in memory.items()},
            )
            for start in range(0, len(keys), rows)
        ]
        if len(parts) == 1:
            return parts[0]
        return Plan(
            torch.cat([part.actions for part in parts]),
            torch.cat([part.value for part in parts]),
            {name: torch.cat([part.memory[name] for part in parts]) for name in memory},
        )

    @abstractmethod
    def initial(self, batch_size: int) -> dict[str, Tensor]:
        """Return the memory before the first plan, leaves (batch_size, ...)."""

    @abstractmethod
    def _plan(self, state: State, keys: Tensor, memory: dict[str, Tensor]) -> Plan:
        """Plan for rows that fit into memory; see `plan`."""

    @property
    def _copies(self) -> int:
        """Candidates of a row, at most."""
        proposals = self.config.proposals if self.proposal is not None else 0
        return int(getattr(self.config, "candidates", 1)) + proposals

    def returns(self, state: State, actions: Tensor, keys: Tensor) -> Tensor:
        """Return the predicted return of every candidate, (B, N).

        Args:
            state: leaves (B, ...).
            actions: (B, N, H, ...) raw.
            keys: (B,) int64; the model's noise is made from them, the same for all candidates.
        """
        config = self.config
        batch, count, particles = len(keys), actions.shape[1], config.particles
        model = self._form(batch * count * particles)
        noise = candidate_uniforms(
            keyed(keys, MODEL), particles, config.horizon * model.noise_dim
        ).unflatten(-1, (config.horizon, model.noise_dim))
        state = {name: leaf.repeat_interleave(count * particles, 0) for name, leaf in state.items()}
        actions = actions.repeat_interleave(particles, 1).flatten(0, 1)
        total = torch.zeros(len(actions), device=self.device)
        weight = torch.ones_like(total)
        noise = noise.unsqueeze(1).expand(-1, count, -1, -1, -1).flatten(0, 2)
        for following, prediction in model.unroll(state, actions, noise):
            state = following
            if not config.terminal_only:
                total = total + weight * prediction.reward
            weight = weight * (1.0 - prediction.termination) * config.discount
        if self.value is not None:
            total = total + weight * self.value.value(state)
        total = torch.nan_to_num(total, nan=WORST, neginf=WORST)
        return total.view(batch, count, particles).mean(-1)

    def proposed(self, state: State, keys: Tensor) -> Tensor | None:
        """Return raw actions (B, n, H, ...) of the proposal policy in the model; None for none."""
        count, horizon = self.config.proposals, self.config.horizon
        if self.proposal is None or not count:
            return None
        model, keys = self._form(len(keys) * count), keyed(keys, PROPOSAL)
        noise = candidate_uniforms(keys, count, horizon * (model.noise_dim + 1))
        noise = noise.flatten(0, 1).unflatten(-1, (horizon, model.noise_dim + 1))
        state = {name: leaf.repeat_interleave(count, 0) for name, leaf in state.items()}
        actions = []
        for t in range(horizon):
            actions.append(self.proposal.policy(state, noise[:, t, :1]))
            state, _ = model.step(state, actions[-1], noise[:, t, 1:])
        return torch.stack(actions, 1).unflatten(0, (len(keys), count))

    def _form(self, rows: int) -> WorldModel:
        """Return the model for steps of `rows` rows; under gradients, the plain one."""
        if torch.is_grad_enabled():
            return self.model
        if rows > self._prepared_rows:
            self._prepared = self.model.prepare(rows, self.device, torch.float32)
            self._prepared_rows = rows
        return self._prepared

    def __getstate__(self) -> dict[str, Any]:
        # A prepared form stays in its process.
        return {**self.__dict__, "_prepared": self.model, "_prepared_rows": 0}


def shifted(plan: Tensor, steps: int) -> Tensor:
    """Shift plans (B, ..., H, A) by some steps; the end is filled with zeros."""
    return torch.cat([plan[..., steps:, :], torch.zeros_like(plan[..., :steps, :])], -2)


def take(candidates: Tensor, index: Tensor) -> Tensor:
    """Return some candidates of each row: (B, N, ...) and (B, K) int64 give (B, K, ...)."""
    return candidates[torch.arange(len(index), device=index.device).unsqueeze(1), index]
