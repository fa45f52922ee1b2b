"""Rollouts: a torch policy in the loop, with everything on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dreamgym.dream.compile import Stepper
from dreamgym.dream.state import Dreams, Outcome
from dreamgym.models.observations import Observation


class Rollout(NamedTuple):
    """T steps of N dreams; every leaf is (T, N, ...).

    Attributes:
        observation: observations before the steps.
        action: the policy's actions.
        reward: float32 rewards.
        terminated: bool.
        truncated: bool.
        next_observation: observations after the steps; the last one of the episode where it ended.
        uncertainty: float32, the model's epistemic uncertainty, >= 0.
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
        stepper: stepper of an engine in SameStep mode.
        dreams: state before the first step.
        policy: function from observations (N, ...) to actions (N, ...).
        steps: number of steps, at least 1.

    Returns:
        The dreams after the last step, detached from the autograd graph, and the rollout.

    Raises:
        ValueError: `steps` is below 1.
    """
    if steps < 1:
        raise ValueError(f"steps={steps!r}: give an integer of at least 1")
    observation = stepper.engine.view(dreams.model)
    observations: list[Observation] = []
    actions: list[Tensor] = []
    outcomes: list[Outcome] = []
    for _ in range(steps):
        action = policy(observation)
        dreams, outcome = stepper.step(dreams, action)
        observations.append(observation)
        actions.append(action)
        outcomes.append(outcome)
        observation = outcome.observation
    rollout = Rollout(
        observation=_stack(observations),
        action=torch.stack(actions),
        reward=torch.stack([outcome.reward for outcome in outcomes]),
        terminated=torch.stack([outcome.terminated for outcome in outcomes]),
        truncated=torch.stack([outcome.truncated for outcome in outcomes]),
        next_observation=_stack([outcome.final_observation for outcome in outcomes]),
        uncertainty=torch.stack([outcome.uncertainty for outcome in outcomes]),
    )
    return dreams.detach() if torch.is_grad_enabled() else dreams, rollout


def _stack(observations: list[Observation]) -> Observation:
    first = observations[0]
    if isinstance(first, dict):
        return {key: torch.stack([o[key] for o in observations]) for key in first}  # type: ignore[index]
    return torch.stack(observations)  # type: ignore[arg-type]
