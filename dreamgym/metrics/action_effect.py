"""Action effect: how much a model's dreams depend on the actions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dreamgym._device import float32_by_default
from dreamgym.metrics.windows import (
    BURN_IN,
    Windows,
    as_float,
    decode_chunk,
    mean_square,
    spread_of,
    uniform_noise,
)
from dreamgym.models import Decodes, Segment, State, WorldModel, filter_states, imagine
from dreamgym.models.observations import Observation, get_part, map_observation, observation_boxes
from dreamgym.models.reduction import float64_on_host

STEPS = 5
"""Steps dreamt. One would be too few: a force moves a position one step after the velocity."""


class ActionEffect(NamedTuple):
    """How much worse a model dreams under wrong actions.

    Attributes:
        sensitivity: root mean square error under another window's actions, divided by that under
            the true actions; 1 if actions make no difference.
        evidence: the larger of two statistics of the windows' differences of squared errors, both
            about N(0, 1) by chance: their mean in standard errors, which a few impacts can drown,
            and Wilcoxon's signed ranks, which find no effect that few windows have; 0 if there is
            no difference at all.
        windows: number of windows compared.
    """

    sensitivity: float
    evidence: float
    windows: int


@float32_by_default()
@torch.no_grad()
def action_effect(
    model: WorldModel,
    windows: Windows,
    rng: np.random.Generator,
    number: int | None = None,
) -> ActionEffect | None:
    """Dream every window under its own and under another window's actions, with the same noise.

    Errors are those of decoded observations in units of their spread, squared and averaged over
    numbers and over up to `STEPS` steps. Noise in parts of the state that observations do not show
    therefore has no influence. For a model that does not decode, its features are compared with
    the features of the observations that followed.

    Args:
        model: model in eval mode.
        windows: windows on the model's device.
        rng: generator of the permutation of actions and of the noise.
        number: index of the only number of the actions, flattened, that is taken from the other
            window; None for all of them.

    Returns:
        The effect; None if fewer than two windows are long enough or all actions are the same.
    """
    steps = min(STEPS, windows.steps)
    complete = windows.mask[:, steps - 1] if steps else torch.zeros(0, dtype=torch.bool)
    windows = windows.take(complete.nonzero().squeeze(-1))
    count = int(complete.sum())
    if count < 2:
        return None
    true_actions = windows.segment.action[:, BURN_IN : BURN_IN + steps]
    order = torch.from_numpy(_derangement(rng, count)).to(true_actions.device)
    other_actions = true_actions[order]
    if number is not None:
        replaced = true_actions.flatten(2).clone()
        replaced[..., number] = other_actions.flatten(2)[..., number]
        other_actions = replaced.view_as(true_actions)
    if bool((true_actions == other_actions).all()):
        return None
    noise = uniform_noise(rng, (count, steps, model.noise_dim), true_actions.device)
    targets = _Targets(model, windows, steps)
    true_errors, other_errors = (
        targets.errors(imagine(model, windows.start(), actions, noise)[0])
        for actions in (true_actions, other_actions)
    )
    increase = other_errors - true_errors
    return ActionEffect(
        sensitivity=float((other_errors.mean() / true_errors.mean().clamp(min=1e-12)) ** 0.5),
        evidence=evidence_of(float64_on_host(increase).numpy()),
        windows=count,
    )


def evidence_of(differences: NDArray[np.floating]) -> float:
    """Return how significantly differences of pairs are positive; see `ActionEffect.evidence`.

    Args:
        differences: (N,) differences; N is at least 2.
    """
    from scipy.stats import rankdata  # it takes half a second to import

    changed = differences[differences != 0]
    if not len(changed):
        return 0.0
    standard_error = differences.std(ddof=1) / len(differences) ** 0.5
    # The normal approximation of Wilcoxon 1945: zeros left out, ties given their mean rank.
    ranks = rankdata(np.abs(changed))
    signed_ranks = (np.sign(changed) * ranks).sum() / np.sqrt(np.square(ranks).sum())
    return float(max(differences.mean() / max(standard_error, 1e-300), signed_ranks))


class _Targets:
    """Real observations after the burn-in, or the model's features of them where it has no decoder.

    Args:
        model: model in eval mode.
        windows: N windows.
        steps: number of steps after the burn-in.
    """

    def __init__(self, model: WorldModel, windows: Windows, steps: int) -> None:
        self.model = model
        observed, first = windows.segment.observation, BURN_IN + 1
        if isinstance(model, Decodes):
            keys = observation_boxes(model.observation_space)
            self.expected = {
                k: as_float(get_part(observed, k)[:, first : first + steps]) for k in keys
            }
            self.spread = {k: windows.spread(k) for k in keys}
            return
        segment = Segment(
            map_observation(lambda leaf: leaf[:, : first + steps], observed),
            *(leaf[:, : BURN_IN + steps] for leaf in windows.segment[1:]),
        )
        shape = (len(segment.mask), first + steps, model.noise_dim)
        states = filter_states(model, segment, torch.full(shape, 0.5, device=segment.mask.device))
        self.expected = self._outputs({key: leaf[:, first:] for key, leaf in states.items()})
        self.spread = {
            key: spread_of(values.flatten(0, 1)) for key, values in self.expected.items()
        }

    def errors(self, states: State) -> Tensor:
        """Return the mean squared error (N,) of states with leaves (N, steps, ...)."""
        count, length = next(iter(states.values())).shape[:2]
        chunk = decode_chunk(self.model.observation_space, length)
        rows = [slice(first, first + chunk) for first in range(0, count, chunk)]
        return torch.cat([self._chunk_errors(states, part) for part in rows])

    def _chunk_errors(self, states: State, rows: slice) -> Tensor:
        """Return the mean squared error of some of the windows."""
        outputs = self._outputs({key: leaf[rows] for key, leaf in states.items()})
        errors = [
            mean_square(outputs[key] - expected[rows], self.spread[key])
            for key, expected in self.expected.items()
        ]
        return torch.stack(errors).mean(0)

    def _outputs(self, states: State) -> dict[str, Tensor]:
        """Return the observations or features of states (N, steps, ...), by part."""
        length = next(iter(states.values())).shape[1]
        rows = [
            self._row_outputs({k: leaf[:, t] for k, leaf in states.items()}) for t in range(length)
        ]
        return {key: torch.stack([row[key] for row in rows], 1) for key in rows[0]}

    def _row_outputs(self, state: State) -> dict[str, Tensor]:
        if not isinstance(self.model, Decodes):
            return {"": self.model.features(state)}
        decoded: Observation = self.model.decode(state)
        return {
            key: get_part(decoded, key).float()
            for key in observation_boxes(self.model.observation_space)
        }


def _derangement(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return a random permutation without fixed points."""
    order = rng.permutation(count)
    permutation = np.empty(count, dtype=np.int64)
    permutation[order] = np.roll(order, 1)
    return permutation


def numbers_of_actions(model: WorldModel) -> int:
    """Return how many numbers an action has; 1 for a Discrete space."""
    return int(np.prod(model.action_space.shape or ()))
