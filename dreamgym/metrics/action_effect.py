"""Whether a model minds its actions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dreamgym.metrics.windows import BURN_IN, Windows, uniform
from dreamgym.models import Decodes, Segment, State, WorldModel, filter_states, imagine
from dreamgym.models.observations import Observation, get_part, map_observation, observation_boxes

STEPS = 5

"""A force moves a position a step after it moves the speed: one step ahead is too few."""


class ActionEffect(NamedTuple):
    """How much worse a model dreams under the wrong actions.

    Attributes:
        sensitivity: root mean square error under other windows' actions, over that under the true
            ones; 1 where actions make no difference.
        evidence: mean of the difference of the windows' squared errors, in standard errors of that
            mean; 0 where there is no difference at all.
        windows: how many were looked at.
    """

    sensitivity: float
    evidence: float
    windows: int


@torch.no_grad()
def action_effect(
    model: WorldModel, windows: Windows, rng: np.random.Generator
) -> ActionEffect | None:
    """Dream every window under its own actions, and under another window's, with equal noise.

    Errors are those of decoded observations, in units of the observations' spread, squared and
    averaged over numbers and over up to `STEPS` steps; so a state's sampled noise, which an
    observation does not show, counts for nothing. Where a model does not decode they are those of
    its features, against the features of the observations that followed.

    Args:
        model: in eval mode.
        windows: on the model's device.
        rng: of the other actions and of the noise.

    Returns:
        The effect; None where fewer than two windows reach so far or all actions are the same.
    """
    steps = min(STEPS, windows.steps)
    reach = windows.alive()[:, steps - 1] if steps else torch.zeros(0, dtype=torch.bool)
    windows = windows.take(reach.nonzero().squeeze(-1))
    count = int(reach.sum())
    if count < 2:
        return None
    actions = windows.segment.action[:, BURN_IN : BURN_IN + steps]
    others = actions[torch.from_numpy(_derangement(rng, count)).to(actions.device)]
    if bool((actions == others).all()):
        return None
    noise = uniform(rng, (count, steps, model.noise_dim), actions.device)
    truth = _Truth(model, windows, steps)
    right, wrong = (
        truth.errors(imagine(model, windows.start(), chosen, noise)[0])
        for chosen in (actions, others)
    )
    more = wrong - right
    doubt = float(more.std() / count**0.5)
    return ActionEffect(
        sensitivity=float((wrong.mean() / right.mean().clamp(min=1e-12)) ** 0.5),
        evidence=float(more.mean()) / doubt if doubt > 0 else 0.0,
        windows=count,
    )


class _Truth:
    """What followed the burn-in, in a form that dreams can be held against."""

    def __init__(self, model: WorldModel, windows: Windows, steps: int) -> None:
        self.model = model
        seen, first = windows.segment.observation, BURN_IN + 1
        if isinstance(model, Decodes):
            keys = observation_boxes(model.observation_space)
            self.wanted = {k: get_part(seen, k)[:, first : first + steps].float() for k in keys}
            self.spread = {k: windows.spread(k) for k in keys}
            return
        shown = Segment(
            map_observation(lambda leaf: leaf[:, : first + steps], seen),
            *(leaf[:, : BURN_IN + steps] for leaf in windows.segment[1:]),
        )
        shape = (len(shown.mask), first + steps, model.noise_dim)
        states = filter_states(model, shown, torch.full(shape, 0.5, device=shown.mask.device))
        self.wanted = self._read({key: leaf[:, first:] for key, leaf in states.items()})
        self.spread = {
            key: values.flatten(0, 1).std(0).clamp(min=1e-6) for key, values in self.wanted.items()
        }

    def errors(self, states: State) -> Tensor:
        """Mean squared errors (N,) of states with leaves (N, steps, ...)."""
        said = self._read(states)
        errors = [
            ((said[key] - wanted) / self.spread[key]).square().flatten(1).mean(1)
            for key, wanted in self.wanted.items()
        ]
        return torch.stack(errors).mean(0)

    def _read(self, states: State) -> dict[str, Tensor]:
        """What states (N, steps, ...) stand for, by part; (N, steps, ...) each."""
        length = next(iter(states.values())).shape[1]
        rows = [
            self._read_row({k: leaf[:, t] for k, leaf in states.items()}) for t in range(length)
        ]
        return {key: torch.stack([row[key] for row in rows], 1) for key in rows[0]}

    def _read_row(self, state: State) -> dict[str, Tensor]:
        if not isinstance(self.model, Decodes):
            return {"": self.model.features(state)}
        said: Observation = self.model.decode(state)
        return {
            key: get_part(said, key).float()
            for key in observation_boxes(self.model.observation_space)
        }


def _derangement(rng: np.random.Generator, count: int) -> np.ndarray:
    """A permutation in which nothing stays where it is: everyone gets another's."""
    order = rng.permutation(count)
    found = np.empty(count, dtype=np.int64)
    found[order] = np.roll(order, 1)
    return found
