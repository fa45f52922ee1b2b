"""The contract that every world model keeps, and the two unrolls built on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, Self, runtime_checkable

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from dreamgym._device import product_dtype
from dreamgym.data import SegmentBatch
from dreamgym.models.observations import Observation, as_tensors, map_observation
from dreamgym.models.statistics import Statistics


class KLDiagnostic(NamedTuple):
    """How much an observation says through a stochastic latent, where nothing else was known.

    Attributes:
        nats: (N, D) divergence of the posterior from the prior at N observations, of each
            dimension (each categorical) of the latent.
        free: nats that the loss grants for nothing; 0 where it grants none.
        granted: whether they are free for each dimension ("each") or for all together ("all").
        remedy: what to do where the latent says nothing, or no more than what is free.
    """

    nats: Tensor
    free: float
    granted: str
    remedy: str


class EmbeddingDiagnostic(NamedTuple):
    """How far embeddings differ from each other.

    Attributes:
        std: () mean over dimensions of the standard deviation.
        effective_rank: () of their covariance, between 1 and `width`.
        width: of an embedding.
        remedy: what to do where they do not differ.
    """

    std: Tensor
    effective_rank: Tensor
    width: int
    remedy: str


class LatentDiagnostics(NamedTuple):
    """What a model shows of its latents on a batch, by the name of the latent.

    A lone latent is called "", as a lone part of an observation is.

    Attributes:
        divergences: of stochastic latents.
        spreads: of embeddings that nothing but the loss keeps from being all the same.
    """

    divergences: dict[str, KLDiagnostic]
    spreads: dict[str, EmbeddingDiagnostic]


State = dict[str, Tensor]

"""What a model believes now. Every leaf is batch-first: (B, ...)."""


Temperature = float | Tensor


class Prediction(NamedTuple):
    """What one imagined step says, in the real environment's units.

    Attributes:
        reward: (B,) reward.
        termination: (B,) probability in [0, 1] that the new state is terminal.
        uncertainty: (B,) epistemic uncertainty, >= 0; zeros where a model has none.
    """

    reward: Tensor
    termination: Tensor
    uncertainty: Tensor


class Segment(NamedTuple):
    """B unbroken windows of L transitions, as the reader draws them.

    Attributes:
        observation: (B, L + 1, ...) in the real environment's units and dtype, or a dict of such.
        action: (B, L, ...); `action[:, t]` leaves `observation[:, t]`.
        reward: (B, L); paid for `action[:, t]`.
        terminated: (B, L) bool; true where `observation[:, t + 1]` is terminal. Truncation is not
            here.
        mask: (B, L) bool; false on the padding after an episode's end.
    """

    observation: Observation
    action: Tensor
    reward: Tensor
    terminated: Tensor
    mask: Tensor


class WorldModel(nn.Module, ABC):
    """A model of one environment that can filter, step and score.

    It holds parameters and normalisers, never a state: a state is a value that the caller keeps.

    Attributes:
        observation_space: of one real environment.
        action_space: of one real environment.
        feature_dim: width of `features`.
        noise_dim: how many independent U(0, 1) numbers one row's step or observe uses.
        has_uncertainty: whether predictions carry an uncertainty; zeros stand in them otherwise.
        presets: published configs by name.
        fit_defaults: settings of a fit of the default config, by the names that
            `dreamgym.recommended` takes.
        fast_form: class of the form that `prepare` gives, made from a model on its device, the
            rows of every step and the dtype of matrix products; set by the family's package.
        preset_fits: those that the authors of a preset used, by the preset's name.
    """

    config_type: ClassVar[type]
    presets: ClassVar[Mapping[str, Any]] = {}
    fit_defaults: ClassVar[Mapping[str, Any]] = {}
    preset_fits: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    fast_form: ClassVar[type[Any] | None] = None
    feature_dim: int
    noise_dim: int
    has_uncertainty: bool = False

    def __init__(self, observation_space: gym.Space, action_space: gym.Space, config: Any) -> None:
        super().__init__()
        self.observation_space = observation_space
        self.action_space = action_space
        self.config = config

    @classmethod
    def from_config(
        cls, observation_space: gym.Space, action_space: gym.Space, config: Any
    ) -> Self:
        """A model with fresh weights; a model around another one makes that one first.

        Args:
            observation_space: of one real environment.
            action_space: of one real environment.
            config: a `config_type`.
        """
        return cls(observation_space, action_space, config)

    @abstractmethod
    def initial(self, batch_size: int) -> State:
        """The state before anything was seen; leaves (batch_size, ...)."""

    @abstractmethod
    def observe(
        self, state: State, action: Tensor, observation: Observation, noise: Tensor
    ) -> State:
        """Take in a real observation (filter, posterior).

        Args:
            state: the state before `action`; the initial state at an episode's first observation.
            action: (B, ...) the action that led here, raw; zeros at an episode's first observation.
            observation: (B, ...) in the real environment's units, or a dict of such.
            noise: (B, noise_dim) uniforms.
        """

    @abstractmethod
    def step(
        self, state: State, action: Tensor, noise: Tensor, temperature: Temperature = 1.0
    ) -> tuple[State, Prediction]:
        """Imagine one step (prior): a pure function of its arguments.

        Args:
            state: leaves (B, ...).
            action: (B, ...) raw: int64 indices for Discrete, the Box's own units otherwise.
            noise: (B, noise_dim) uniforms in [0, 1).
            temperature: > 0, a number or (B,); 1 samples the model as it was fitted.

        Returns:
            The next state, and the prediction for it.
        """

    @abstractmethod
    def features(self, state: State) -> Tensor:
        """The flat view of a state that a policy sees, (B, feature_dim)."""

    @abstractmethod
    def loss(self, segment: Segment, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to minimise, and its named terms (scalars, detached).

        Args:
            segment: B windows of L transitions.
            noise: (B, L + 1, noise_dim) uniforms, one row for each observation.
        """

    @property
    def phase_starts(self) -> tuple[int, ...]:
        """Updates at which another part of the model begins to be fitted; mostly there are none."""
        return ()

    @property
    def assumes_single_env_steps(self) -> bool:
        """Whether it knows what holds for single steps of the real environment, not for several."""
        return False

    def set_statistics(self, statistics: Statistics) -> None:
        """Fit the normalisers; called once, before fitting, with training episodes only."""

    def before_fit(self) -> None:
        """Called before a fit that goes on from these weights, which are unlike fresh ones."""

    def after_fit(self) -> None:
        """Called when a fit has ended: what was kept for it alone can go."""

    def after_update(self) -> None:
        """Called after every optimiser update: EMA targets and the like."""

    def after_evaluation(self, terms: dict[str, Tensor]) -> None:
        """Called after each look at held-out episodes, before the best weights are kept.

        Args:
            terms: the terms of `loss` in eval mode, each the mean over the held-out batches.
        """

    def diagnostics(self, segment: Segment, noise: Tensor) -> LatentDiagnostics:
        """What the model shows of its latents, for the alarms of a fit; by default nothing.

        Args:
            segment: B windows of L transitions, held out.
            noise: (B, L + 1, noise_dim) uniforms.
        """
        return LatentDiagnostics({}, {})

    def prepare(self, num_envs: int, device: torch.device, dtype: torch.dtype) -> WorldModel:
        """The same function arranged for speed, or the model itself on the device.

        Args:
            num_envs: rows that every later step will have.
            device: where it will run.
            dtype: of matrix products, float32 (with a warning) where the device has no others;
                state, logits and sampling stay float32.

        Raises:
            ValueError: the family has no fast form, and `dtype` is not float32.
        """
        self.to(device)
        dtype = product_dtype(device.type, dtype)
        if self.fast_form is not None:
            return self.fast_form(self, num_envs, dtype)
        if dtype != torch.float32:
            raise ValueError(
                f"{type(self).__name__} has no fast form for dtype {dtype}; pass dtype='float32'"
            )
        return self


@runtime_checkable
class Decodes(Protocol):
    """A model that can turn a state back into an observation."""

    def decode(self, state: State) -> Observation:
        """The observation (B, ...) that the state stands for, in the real environment's units."""
        ...


def select(mask: Tensor, new: State, old: State) -> State:
    """Take the rows of `new` where `mask` (B,) is true and those of `old` elsewhere.

    Leaves keep the order of `old`.
    """
    return {
        key: torch.where(mask.view(-1, *[1] * (leaf.ndim - 1)), new[key], leaf)
        for key, leaf in old.items()
    }


def stack(states: list[State]) -> State:
    """Stack states along a new time axis: leaves (B, ...) become (B, L, ...)."""
    return {key: torch.stack([state[key] for state in states], 1) for key in states[0]}


def segment_to(segment: Segment, device: torch.device | str) -> Segment:
    """The same segment on a device."""
    rest = (leaf.to(device) for leaf in segment[1:])
    return Segment(map_observation(lambda leaf: leaf.to(device), segment.observation), *rest)


def as_segment(batch: SegmentBatch, device: torch.device) -> Segment:
    """A batch of the reader as tensors on a device."""
    rest = (torch.from_numpy(np.ascontiguousarray(leaf)).to(device) for leaf in batch[1:])
    return Segment(as_tensors(batch.observation, device), *rest)


def zero_action(space: gym.Space, batch_size: int, device: torch.device | str) -> Tensor:
    """The action that is given with an episode's first observation: (batch_size, ...) zeros."""
    dtype = torch.float32 if isinstance(space, gym.spaces.Box) else torch.int64
    return torch.zeros((batch_size, *(space.shape or ())), dtype=dtype, device=device)


def filter_states(model: WorldModel, segment: Segment, noise: Tensor) -> State:
    """Feed real observations to the model, from the initial state on.

    Args:
        model: any world model.
        segment: only `observation` (B, L + 1, ...) and `action` (B, L, ...) are read.
        noise: (B, L + 1, noise_dim) uniforms.

    Returns:
        The states after each observation; leaves (B, L + 1, ...). Those under padding mean nothing.
    """
    batch, length = segment.action.shape[:2]
    state = model.initial(batch)
    action = zero_action(model.action_space, batch, segment.action.device)
    states = []
    for t in range(length + 1):
        observation = map_observation(lambda leaf, t=t: leaf[:, t], segment.observation)  # type: ignore[misc]
        state = model.observe(state, action, observation, noise[:, t])
        states.append(state)
        if t < length:
            action = segment.action[:, t]
    return stack(states)


def imagine(
    model: WorldModel,
    state: State,
    actions: Tensor,
    noise: Tensor,
    temperature: Temperature = 1.0,
) -> tuple[State, Prediction]:
    """Step the model open-loop under given actions.

    Args:
        model: any world model.
        state: leaves (B, ...), where the dream begins.
        actions: (B, L, ...) raw actions.
        noise: (B, L, noise_dim) uniforms.
        temperature: as in `WorldModel.step`.

    Returns:
        The states after each action, leaves (B, L, ...), and predictions with leaves (B, L).
    """
    states, predictions = [], []
    for t in range(actions.shape[1]):
        state, prediction = model.step(state, actions[:, t], noise[:, t], temperature)
        states.append(state)
        predictions.append(prediction)
    stacked = Prediction(*(torch.stack(leaves, 1) for leaves in zip(*predictions, strict=True)))
    return stack(states), stacked
