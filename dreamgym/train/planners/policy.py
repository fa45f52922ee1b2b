"""A planner as a policy: it filters real observations and plans in the world's model."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from dreamgym._device import float32_by_default
from dreamgym.data import FrameSkip
from dreamgym.data.policies import as_batch, as_rows
from dreamgym.errors import TrainingError
from dreamgym.models import Acts, GoalReward, State, Values
from dreamgym.models.base import zero_action
from dreamgym.models.observations import as_tensors
from dreamgym.models.splitmix import uniforms
from dreamgym.train.planners.base import PlannerConfig
from dreamgym.train.planners.noise import keyed
from dreamgym.train.planners.registry import make_planner
from dreamgym.world.world import World, as_world

FILTER = -3
"""Purpose of the noise with which observations are filtered."""


class PlannedPolicy:
    """A `Policy` of real observations that plans each action in the model of a world.

    `dreamgym.record`, `evaluate` and `transfer_policy` take it as it is; nothing is trained. It
    filters the observations of each row through the model and plans from the filtered state, so it
    acts in the real environment and in a dream that decodes observations alike. The seed of a row
    fixes all its noise; the actions of a row do not depend on the rows beside it.

    Attributes:
        name: name of the policy in datasets.
        view: the view of real observations, "observation".
        planner: the planner.
    """

    view = "observation"

    @float32_by_default()
    def __init__(
        self,
        world: World | str | Path,
        planner: str | PlannerConfig = "icem",
        *,
        value: Values | None = None,
        proposal: Acts | None = None,
        name: str | None = None,
    ) -> None:
        """Make a policy.

        Args:
            world: world to plan in: a world, its folder, or the name of one that ships.
            planner: name of a planner or of a preset, or a config; see `make_planner`.
            value: values the last states of a plan, such as a `PolicyPrior`; by default the model
                itself if it has values and a policy of its own, as TD-MPC2 does.
            proposal: proposes candidates, such as a `PolicyPrior`; by default as for `value`.
            name: name for datasets; by default the planner's config and the world's name.

        Raises:
            TrainingError: there is no such planner.
            TypeError: the planner cannot search the world's action space.
            WorldError: there is no such world.
        """
        self._world = as_world(world)
        self._model = self._world.model
        if isinstance(self._model, Acts) and isinstance(self._model, Values):
            value, proposal = value or self._model, proposal or self._model
        self.planner = make_planner(self._model, planner, value=value, proposal=proposal)
        kind = planner if isinstance(planner, str) else repr(planner)
        self.name = name or f"plan:{kind} in {self._world.name}"
        self._device = self.planner.device
        self._rows: dict[int, _PlannedRow] = {}

    @property
    def observation_space(self) -> gym.Space[Any]:
        """Observation space of the real environment."""
        return self._world.observation_space

    @property
    def action_space(self) -> gym.Space[Any]:
        """Action space of the real environment, with the frame skip."""
        return self._world.action_space

    @property
    def frame_skip(self) -> FrameSkip:
        """Frame skip of the real environment that one action is for."""
        return self._world.frame_skip

    @float32_by_default()
    def reset(self, rows: Sequence[int], seeds: Sequence[int]) -> None:
        """See `Policy.reset`; goals that rows have stay."""
        for row, seed in zip(rows, seeds, strict=True):
            goal = self._rows[row].goal if row in self._rows else {}
            self._rows[row] = _PlannedRow(
                state=self._model.initial(1),
                action=zero_action(self._model.action_space, 1, self._device),
                memory=self.planner.initial(1),
                key=torch.tensor([seed], device=self._device),
                goal=goal,
            )

    @float32_by_default()
    def set_goals(self, rows: Sequence[int], goals: Any) -> None:
        """Give rows their own goals, until they are given others.

        Args:
            rows: N row numbers, each of which was reset before.
            goals: the goals as observations: a list of N, or a batch (N, ...).

        Raises:
            TrainingError: the world's model is not a `GoalReward`.
        """
        model = self._model
        if not isinstance(model, GoalReward):
            raise TrainingError(
                f"the world's model is a {type(model).__name__}, which has no goals; plan in "
                "world.with_model(GoalReward(world.model, goal))"
            )
        encoded = model.with_goals({}, as_tensors(as_batch(goals), self._device))
        for index, row in enumerate(rows):
            self._rows[row].goal = {key: leaf[index : index + 1] for key, leaf in encoded.items()}

    @float32_by_default()
    @torch.no_grad()
    def act(self, observations: Any, rows: Sequence[int]) -> list[Any]:
        """See `Policy.act`."""
        self._filter([self._rows[row] for row in rows], as_rows(observations))
        due = [self._rows[row] for row in rows if not self._rows[row].queue]
        if due:
            self._plan(due)
        space = self._model.action_space
        return [self._rows[row].next_action(space) for row in rows]

    def _filter(self, rows: list[_PlannedRow], observations: list[Any]) -> None:
        """Take an observation into the state of each row."""
        keys = torch.cat([keyed(keyed(row.key, row.steps), FILTER) for row in rows])
        state = self._model.observe(
            _joined([row.state for row in rows]),
            torch.cat([row.action for row in rows]),
            as_tensors(as_batch(observations), self._device),
            uniforms(keys, self._model.noise_dim),
        )
        for index, row in enumerate(rows):
            row.state = {key: leaf[index : index + 1].clone() for key, leaf in state.items()}

    def _plan(self, rows: list[_PlannedRow]) -> None:
        """Plan for rows, and queue the actions that are taken before the next plan."""
        plan = self.planner.plan(
            _joined([{**row.state, **row.goal} for row in rows]),
            torch.cat([keyed(row.key, row.steps) for row in rows]),
            _joined([row.memory for row in rows]),
        )
        for index, row in enumerate(rows):
            row.memory = {key: leaf[index : index + 1] for key, leaf in plan.memory.items()}
            row.queue.extend(plan.actions[index, : self.planner.config.execute])

    def __getstate__(self) -> dict[str, Any]:
        # For processes that record: their episodes start with a reset.
        return {**self.__dict__, "_rows": {}}


@dataclass
class _PlannedRow:
    """The episode of one row.

    Attributes:
        state: filtered state of the model, leaves (1, ...).
        action: (1, ...) previous action, zero at the start.
        memory: memory of the planner, leaves (1, ...).
        key: (1,) int64, the seed.
        goal: leaves (1, ...) that a goal adds to the state.
        steps: observations that were taken in.
        queue: raw actions that are planned and not taken yet.
    """

    state: State
    action: Tensor
    memory: dict[str, Tensor]
    key: Tensor
    goal: State
    steps: int = 0
    queue: deque[Tensor] = field(default_factory=deque)

    def next_action(self, space: gym.Space[Any]) -> Any:
        """Take the next action from the queue, in the dtype and within the bounds of the space."""
        action = self.queue.popleft().cpu().numpy().astype(space.dtype)
        if isinstance(space, gym.spaces.Box):  # rounding to float32 may leave the bounds
            action = np.clip(action, space.low, space.high)
        self.action[0] = torch.as_tensor(np.asarray(action), dtype=self.action.dtype)
        self.steps += 1
        return action[()]


def _joined(states: list[State]) -> State:
    return {key: torch.cat([state[key] for state in states]) for key in states[0]}
