"""Whether dreams listen to each number of the actions, where the data shows that it matters."""

from __future__ import annotations

from dreamgym.metrics.action_effect import action_effect, numbers_of_actions
from dreamgym.metrics.context import Figures, MetricContext
from dreamgym.metrics.forecasts import vector_keys
from dreamgym.metrics.linear import encoded_numbers, fit_linear

MAX_NUMBERS = 32
"""Numbers of the actions that are examined one by one."""


def action_detail(context: MetricContext) -> Figures:
    """Return the effect of each number of the actions on dreams, and on the data.

    `sensitivity` and `evidence` are those of `action_effect` with only that number taken from
    another window. `in_data` is how much it improves a linear forecast of the next observation,
    chi-square distributed where it has no linear effect; None where no observation is a vector. A
    number that matters in the data and not in dreams is one that the model ignores.
    """
    model, numbers = context.model, numbers_of_actions(context.model)
    effects = [
        action_effect(model, context.windows, context.rng, None if numbers == 1 else number)
        for number in range(min(numbers, MAX_NUMBERS))
    ]
    whole = action_effect(model, context.windows, context.rng)
    if whole is None:
        return {}
    return {
        "actions": {
            "sensitivity": whole.sensitivity,
            "evidence": whole.evidence,
            "windows": whole.windows,
            "each": [
                None
                if effect is None
                else {"sensitivity": effect.sensitivity, "evidence": effect.evidence}
                for effect in effects
            ],
            "in_data": _in_data(context, numbers),
        }
    }


def _in_data(context: MetricContext, numbers: int) -> list[float] | None:
    """Return the effect of each number on the next observation in the data."""
    keys = vector_keys(context.model)
    if not keys:
        return None
    episodes = context.episodes if context.training is None else context.training
    linear = fit_linear(context.dataset, episodes, keys)
    evidence = linear.action_evidence(encoded_numbers(context.dataset.action_space))
    return [float(value) for value in evidence[:MAX_NUMBERS]]
