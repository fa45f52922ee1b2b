"""Rollouts: a torch policy in the loop, everything on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from dreamgym.dream.state import Dreams, Outcome
from dreamgym.models.observations import Observation

if TYPE_CHECKING:
    from dreamgym.dream.compile import Stepper


class Rollout(NamedTuple):
    """T steps of N dreams; every leaf is (T, N, ...).

    Attributes:
        observation: what the policy saw.
        action: what it did.
        reward: what it got.
        terminated: bool.
        truncated: bool.
        next_observation: what came of it: the true last one where an episode ended.
        uncertainty: the model's own.
    """

    observation: Observation
    action: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    next_observation: Observation
    uncertainty: Tensor


def roll_out(
    stepper: Stepper, dreams: Dreams, policy: Callable[[Observation], Tensor], steps: int
) -> tuple[Dreams, Rollout]:
    """Step dreams under a policy.

    Args:
        stepper: of an engine in SameStep mode.
        dreams: where they stand.
        policy: from observations (N, ...) to actions (N, ...).
        steps: how many, at least 1.

    Returns:
        Where they stand afterwards, cut off from gradients, and what happened.

    Raises:
        ValueError: no step at all is asked for.
    """
    if steps < 1:
        raise ValueError(f"steps={steps!r}: give a whole number of at least 1")
    seen = stepper.engine.view(dreams.model)
    observations: list[Observation] = []
    actions: list[Tensor] = []
    outcomes: list[Outcome] = []
    for _ in range(steps):
        action = policy(seen)
        dreams, outcome = stepper.step(dreams, action)
        observations.append(seen)
        actions.append(action)
        outcomes.append(outcome)
        seen = outcome.observation
    rolled = Rollout(
        observation=_stacked(observations),
        action=torch.stack(actions),
        reward=torch.stack([outcome.reward for outcome in outcomes]),
        terminated=torch.stack([outcome.terminated for outcome in outcomes]),
        truncated=torch.stack([outcome.truncated for outcome in outcomes]),
        next_observation=_stacked([outcome.final_observation for outcome in outcomes]),
        uncertainty=torch.stack([outcome.uncertainty for outcome in outcomes]),
    )
    return dreams.detach() if torch.is_grad_enabled() else dreams, rolled


def _stacked(observations: list[Observation]) -> Observation:
    first = observations[0]
    if isinstance(first, dict):
        return {key: torch.stack([o[key] for o in observations]) for key in first}  # type: ignore[index]
    return torch.stack(observations)  # type: ignore[arg-type]
