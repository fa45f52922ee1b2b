"""Composition by wrapping: a world model around another one, which is itself a world model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, Self

import gymnasium as gym
import torch
from torch import Tensor

from dreamgym.models.base import (
    Decodes,
    LatentDiagnostics,
    Prediction,
    Segment,
    State,
    Temperature,
    WorldModel,
)
from dreamgym.models.observations import Observation
from dreamgym.models.statistics import Statistics


class Wrapper(WorldModel):
    """The model inside, unchanged but for what a subclass changes.

    States, features, noise and fitting are those of the model inside, so its starts begin dreams of
    the composition too. It decodes where the model inside does. A subclass has a config whose
    first field is `inner`, takes the model inside and the other fields as keywords, and overrides
    `step`, or `predict` where only the prediction changes.

    Args:
        inner: the model inside.
        config: a `config_type` that says so.
    """

    inner: WorldModel
    decode: Callable[[State], Observation]

    def __init__(self, inner: WorldModel, config: Any) -> None:
        super().__init__(inner.observation_space, inner.action_space, config)
        self.inner = inner
        self.feature_dim, self.noise_dim = inner.feature_dim, inner.noise_dim
        self.has_uncertainty = inner.has_uncertainty
        if isinstance(inner, Decodes):
            self.decode = inner.decode

    @classmethod
    def from_config(
        cls, observation_space: gym.Space, action_space: gym.Space, config: Any
    ) -> Self:
        """The composition around a model inside with fresh weights."""
        inner = config.inner.build(observation_space, action_space)
        settings = {f.name: getattr(config, f.name) for f in fields(config) if f.name != "inner"}
        return cls(inner, **settings)

    def predict(
        self, state: State, action: Tensor, following: State, prediction: Prediction
    ) -> Prediction:
        """What is said of a step, given what the model inside says.

        Args:
            state: before the step.
            action: (B, ...) raw.
            following: the state after it.
            prediction: of the model inside.
        """
        return prediction

    @property
    def assumes_single_env_steps(self) -> bool:
        """See `WorldModel.assumes_single_env_steps`."""
        return self.inner.assumes_single_env_steps

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
        return following, self.predict(state, action, following, prediction)

    def features(self, state: State) -> Tensor:
        """See `WorldModel.features`."""
        return self.inner.features(state)

    def loss(self, segment: Segment, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the model inside."""
        return self.inner.loss(segment, noise)

    @property
    def phase_starts(self) -> tuple[int, ...]:
        """See `WorldModel.phase_starts`."""
        return self.inner.phase_starts

    def before_fit(self) -> None:
        """See `WorldModel.before_fit`."""
        self.inner.before_fit()

    def after_fit(self) -> None:
        """See `WorldModel.after_fit`."""
        self.inner.after_fit()

    def set_statistics(self, statistics: Statistics) -> None:
        """See `WorldModel.set_statistics`."""
        self.inner.set_statistics(statistics)

    def after_update(self) -> None:
        """See `WorldModel.after_update`."""
        self.inner.after_update()

    def after_evaluation(self, terms: dict[str, Tensor]) -> None:
        """See `WorldModel.after_evaluation`."""
        self.inner.after_evaluation(terms)

    def diagnostics(self, segment: Segment, noise: Tensor) -> LatentDiagnostics:
        """See `WorldModel.diagnostics`."""
        return self.inner.diagnostics(segment, noise)

    def prepare(self, num_envs: int, device: torch.device, dtype: torch.dtype) -> WorldModel:
        """The same composition around the model inside, arranged for speed."""
        again = type(self).__new__(type(self))
        Wrapper.__init__(again, self.inner.prepare(num_envs, device, dtype), self.config)
        again.adopt(self)
        return again.to(device).eval()

    def adopt(self, other: Self) -> None:
        """Take over what a subclass holds besides the model inside and the config."""
