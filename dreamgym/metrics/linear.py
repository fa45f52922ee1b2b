"""The linear baseline: the next observation as a linear function of this one and the action."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from dreamgym.data import AnyDataset
from dreamgym.models.observations import WHOLE

Array = NDArray[np.floating]

MAX_ROWS = 50_000
"""Transitions that the linear model is fitted to."""

RIDGE = 1e-6
"""Weight of the ridge penalty, relative to a standardised input."""

MARGIN = 0.3
"""Forecasts are clipped to the data's range, widened by this share, as dreams are."""


class LinearModel(NamedTuple):
    """A linear model of the change of vector observations in one step.

    Attributes:
        space: space of the actions.
        mean: (n + a,) mean of observations and encoded actions.
        std: (n + a,) their standard deviations, 1 where they do not change.
        weights: (n + a + 1, n) of the standardised inputs and 1, giving the change.
        low: (n,) smallest forecast.
        high: (n,) largest forecast.
        rows: number of transitions that it was fitted to.
        moments: (n + a + 1, n + a + 1) and (n + a + 1, n) sums of products of the inputs, and of
            inputs and changes.
        square: (n,) sum of the squared changes.
    """

    space: gym.Space
    mean: Array
    std: Array
    weights: Array
    low: Array
    high: Array
    rows: int
    moments: tuple[Array, Array]
    square: Array

    def step(self, observation: Array, action: NDArray) -> Array:
        """Return the forecast (B, n) of the next observation."""
        inputs = _inputs(observation, encoded_actions(self.space, action), self.mean, self.std)
        return np.clip(observation + inputs @ self.weights, self.low, self.high)

    def action_evidence(self, choices: NDArray[np.integer]) -> Array:
        """Return how much each number of an action improves the forecast in its data, (c,).

        It is the largest reduction of a squared error by the number's inputs, in units of the
        error's variance: chi-square distributed where the number has no linear effect.

        Args:
            choices: (a,) index, below c, of the number of an action that each input encodes.
        """
        width, (gram, cross) = self.weights.shape[1], self.moments
        explained = (self.weights * cross).sum(0)
        left = np.maximum(self.square - explained, 1e-12 * self.square + 1e-300)
        evidence = []
        for choice in range(int(choices.max()) + 1):
            kept = np.ones(len(gram), bool)
            kept[width:-1] = choices != choice
            weights = np.linalg.lstsq(gram[np.ix_(kept, kept)], cross[kept], rcond=None)[0]
            without = (weights * cross[kept]).sum(0)
            evidence.append(((explained - without) / left).max() * self.rows)
        return np.array(evidence)


def fit_linear(
    dataset: AnyDataset, episodes: NDArray[np.integer], keys: Sequence[str]
) -> LinearModel:
    """Fit a linear model to some episodes by least squares.

    Args:
        dataset: source of the episodes.
        episodes: (E,) indices of the episodes; the first ones with `MAX_ROWS` transitions are used.
        keys: keys of the parts of observations that are vectors.
    """
    before, after, actions, rows = [], [], [], 0
    for index in np.asarray(episodes).tolist():
        if rows >= MAX_ROWS:
            break
        length = int(dataset.lengths[index])
        batch = dataset.windows([index], [0], length)
        observed = batch.observation
        parts = observed if isinstance(observed, dict) else {WHOLE: observed}
        vectors = np.concatenate(
            [parts[key][0].reshape(length + 1, -1).astype(np.float64) for key in keys], 1
        )
        before.append(vectors[:-1])
        after.append(vectors[1:])
        actions.append(batch.action[0])
        rows += length
    old, new = np.concatenate(before), np.concatenate(after)
    encoded = encoded_actions(dataset.action_space, np.concatenate(actions))
    joint = np.concatenate([old, encoded], 1)
    mean, std = joint.mean(0), joint.std(0)
    std = np.where(std > 1e-12 * np.abs(joint).max(0) + 1e-30, std, 1.0)
    inputs = _inputs(old, encoded, mean, std)
    gram = inputs.T @ inputs + RIDGE * len(inputs) * np.eye(inputs.shape[1])
    cross = inputs.T @ (new - old)
    weights = np.linalg.solve(gram, cross)
    low, high = old.min(0), old.max(0)
    room = MARGIN * (high - low)
    return LinearModel(
        space=dataset.action_space,
        mean=mean,
        std=std,
        weights=weights,
        low=low - room,
        high=high + room,
        rows=len(old),
        moments=(gram, cross),
        square=np.square(new - old).sum(0),
    )


def encoded_actions(space: gym.Space, action: NDArray) -> Array:
    """Return actions (B, ...) as numbers (B, a), categories one-hot."""
    flat = np.asarray(action).reshape(len(action), -1)
    if isinstance(space, gym.spaces.Box):
        return flat.astype(np.float64)
    choice, value = _categories(space)
    return (flat[:, choice] == value).astype(np.float64)


def encoded_numbers(space: gym.Space) -> NDArray[np.integer]:
    """Return, for each number of an encoded action, the index of the action's number, (a,)."""
    if isinstance(space, gym.spaces.Box):
        return np.arange(int(np.prod(space.shape)))
    return _categories(space)[0]


def _categories(space: Any) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Return the index of the number that each category belongs to, and its value."""
    sizes = np.ravel(space.n if isinstance(space, gym.spaces.Discrete) else space.nvec)
    values = [np.arange(n) + s for n, s in zip(sizes, np.ravel(space.start), strict=True)]
    return np.repeat(np.arange(len(sizes)), sizes), np.concatenate(values)


def _inputs(observation: Array, action: Array, mean: Array, std: Array) -> Array:
    standardised = (np.concatenate([observation, action], 1) - mean) / std
    return np.concatenate([standardised, np.ones((len(standardised), 1))], 1)
