"""Composition by wrapping: a world model around another one, which is itself a world model."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, Self, cast

import gymnasium as gym
import torch
from torch import Tensor

from dreamgym.models.base import (
    Decodes,
    Prediction,
    Segment,
    State,
    Temperature,
    WorldModel,
    forward_hooks,
)
from dreamgym.models.observations import Observation


@forward_hooks(lambda wrapper: [wrapper.inner])
class Wrapper(WorldModel):
    """The model inside, except for what a subclass changes.

    States, features, noise and fitting are those of the model inside, so that its start states
    begin dreams of the wrapper too. Hooks that a subclass does not define are forwarded. A subclass
    has a config whose first field is `inner`, takes the model inside and the other fields as
    keywords, and overrides `step`, or `predict` if only the prediction changes.

    Args:
        inner: the model inside.
        config: a `config_type` that describes the wrapper and the model inside.
    """

    inner: WorldModel

    def __init__(self, inner: WorldModel, config: Any) -> None:
        super().__init__(inner.observation_space, inner.action_space, config)
        self.inner = inner
        self.feature_dim, self.noise_dim = inner.feature_dim, inner.noise_dim
        self.has_uncertainty = inner.has_uncertainty

    @classmethod
    def from_config(
        cls, observation_space: gym.Space, action_space: gym.Space, config: Any
    ) -> Self:
        """Build the wrapper around a model inside with fresh weights."""
        inner = config.inner.build(observation_space, action_space)
        settings = {f.name: getattr(config, f.name) for f in fields(config) if f.name != "inner"}
        return cls(inner, **settings)

    def predict(
        self, state: State, action: Tensor, following: State, prediction: Prediction
    ) -> Prediction:
        """Return the wrapper's prediction for a step.

        Args:
            state: the state before the step.
            action: (B, ...) raw.
            following: the state after the step.
            prediction: prediction of the model inside.
        """
        return prediction

    def carry(self, state: State, following: State) -> State:
        """Return the state after a step with what the wrapper keeps in states; by default nothing.

        Args:
            state: the state before the step.
            following: the state of the model inside after the step.
        """
        return following

    def initial(self, batch_size: int) -> State:
        """See `WorldModel.initial`."""
        return self.inner.initial(batch_size)

    def observe(
        self, state: State, action: Tensor, observation: Observation, noise: Tensor
    ) -> State:
        """See `WorldModel.observe`."""
        return self.inner.observe(state, action, observation, noise)

    def step(
        self, state: State, action: Tensor, noise: Tensor, temperature: Temperature = 1.0
    ) -> tuple[State, Prediction]:
        """See `WorldModel.step`."""
        following, prediction = self.inner.step(state, action, noise, temperature)
        following = self.carry(state, following)
        return following, self.predict(state, action, following, prediction)

    def unroll(
        self, state: State, actions: Tensor, noise: Tensor, temperature: Temperature = 1.0
    ) -> Iterator[tuple[State, Prediction]]:
        """See `WorldModel.unroll`; the steps of the model inside are taken by its own `unroll`."""
        if type(self).step is not Wrapper.step:
            yield from super().unroll(state, actions, noise, temperature)
            return
        steps = self.inner.unroll(state, actions, noise, temperature)
        for t, (following, prediction) in enumerate(steps):
            following = self.carry(state, following)
            yield following, self.predict(state, actions[:, t], following, prediction)
            state = following

    def features(self, state: State) -> Tensor:
        """See `WorldModel.features`."""
        return self.inner.features(state)

    def decode(self, state: State) -> Observation:
        """See `Decodes.decode`; available if the model inside decodes (`decodes`)."""
        return cast(Decodes, self.inner).decode(state)

    def loss(self, segment: Segment, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of the model inside."""
        return self.inner.loss(segment, noise)

    def prepare(self, num_envs: int, device: torch.device, dtype: torch.dtype) -> WorldModel:
        """Return a copy of the wrapper around the prepared form of the model inside."""
        prepared = self.inner.prepare(num_envs, device, dtype)
        # A deep copy takes the objects of its memo instead of copying them: the prepared form in
        # place of the model inside, and spaces, config and functions as they are.
        memo = {id(value): value for name, value in vars(self).items() if not name.startswith("_")}
        wrapper = copy.deepcopy(self, memo | {id(self.inner): prepared})
        return wrapper.to(device).eval()
