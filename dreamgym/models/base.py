"""The contract that every world model keeps, and the two unrolls built on it."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol, Self, TypeVar, runtime_checkable

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from dreamgym._device import product_dtype
from dreamgym.data import SegmentBatch
from dreamgym.data.spaces import is_float
from dreamgym.models.observations import Observation, as_tensors, map_observation
from dreamgym.models.statistics import Statistics

State = dict[str, Tensor]
"""A model's belief about the present. Leaves are batch-first, (B, ...), and float or integer."""

Temperature = float | Tensor
"""Sampling temperature, above 0: one number, or (B,) with one for each row."""


class Prediction(NamedTuple):
    """Prediction for one imagined step, in the real environment's units.

    Attributes:
        reward: (B,) reward.
        termination: (B,) probability in [0, 1] that the new state is terminal.
        uncertainty: (B,) epistemic uncertainty, >= 0; zeros for a model that has none.
    """

    reward: Tensor
    termination: Tensor
    uncertainty: Tensor


class Segment(NamedTuple):
    """B windows of L consecutive transitions.

    Attributes:
        observation: (B, L + 1, ...) in the real environment's units and dtype, or a dict of such.
        action: (B, L, ...); `action[:, t]` leads from `observation[:, t]` to the next.
        reward: (B, L); `reward[:, t]` follows `action[:, t]`.
        terminated: (B, L) bool; true where `observation[:, t + 1]` is terminal. A truncation is
            not a termination.
        mask: (B, L) bool; false on the padding after an episode's end.
    """

    observation: Observation
    action: Tensor
    reward: Tensor
    terminated: Tensor
    mask: Tensor


class KLDiagnostic(NamedTuple):
    """Information that a stochastic latent carries about an observation.

    Attributes:
        nats: (N, D) KL divergence of the posterior from the prior at N observations, for each
            dimension (each categorical) of the latent.
        free: free nats of the loss; 0 if it has none.
        granted: "each" if they are free for each dimension, "all" for the sum over dimensions.
        remedy: advice if the latent carries nothing, or no more than the free nats.
    """

    nats: Tensor
    free: float
    granted: str
    remedy: str


class EmbeddingDiagnostic(NamedTuple):
    """Spread of a batch of embeddings.

    Attributes:
        std: () standard deviation, mean over dimensions.
        effective_rank: () effective rank of the covariance, between 1 and `width`.
        width: dimensions of an embedding.
        remedy: advice if the embeddings have collapsed.
    """

    std: Tensor
    effective_rank: Tensor
    width: int
    remedy: str


class CodeDiagnostic(NamedTuple):
    """Usage of the codes of a discrete bottleneck.

    Attributes:
        shares: (K,) relative frequency of each code in a batch.
        min_perplexity: perplexity of the shares below which the codes have collapsed.
        remedy: advice if the codes have collapsed or have no effect.
        effect: (N,) PSNR, in dB, of dreams under the codes inferred from the real frames, minus
            that under random codes; None for codes that dreams are not controlled by.
    """

    shares: Tensor
    min_perplexity: float
    remedy: str
    effect: Tensor | None = None

    @classmethod
    def of(
        cls,
        codes: Tensor,
        count: int,
        min_perplexity: float,
        remedy: str,
        effect: Tensor | None = None,
    ) -> CodeDiagnostic:
        """Return the diagnostic of codes (...) below `count`; see the attributes."""
        used = torch.bincount(codes.flatten(), minlength=count).float()
        return cls(used / used.sum().clamp(min=1), min_perplexity, remedy, effect)

    @property
    def perplexity(self) -> Tensor:
        """Exponential of the entropy of the shares (): K if all are equal, 1 for a single code."""
        return torch.special.entr(self.shares).sum().exp()


class LatentDiagnostics(NamedTuple):
    """Diagnostics of a model's latents on one batch, by the name of the latent.

    A model's only latent has the name "", as the only part of an observation has.

    Attributes:
        divergences: stochastic latents, which can collapse onto their prior.
        spreads: embeddings, which can collapse onto one point.
        codes: codes of discrete bottlenecks, which can collapse onto a few.
    """

    divergences: dict[str, KLDiagnostic]
    spreads: dict[str, EmbeddingDiagnostic]
    codes: Mapping[str, CodeDiagnostic] = MappingProxyType({})


class WorldModel(nn.Module, ABC):
    """A model of one environment that can filter, step and score.

    A family subclasses it, lists itself in `dreamgym/models/registry.py`, and keeps this contract,
    which `tests/contract` checks for every family in the table:

    - The constructor takes `(observation_space, action_space, config)` and raises TypeError for a
      space that the family cannot model.
    - A model holds parameters and normalisers (buffers, fitted on training episodes only), never a
      state. A state is a value that the caller keeps; its leaves may be integers (tokens, lengths).
    - `step` and `observe` are pure: they change neither their arguments nor the model, and draw
      random numbers only from `noise`. A row does not depend on the other rows.
    - A step never syncs with the host (no `.item()`, no `if tensor`) unless
      `host_sync.host_sync_allowed` permits it, and it compiles to one graph; a model that cannot
      keep this says so (`foreign_step`).
    - Rewards, observations and actions are in the real environment's units. `decode`, if there is
      one, returns observations within the bounds of the space.
    - A dream that leaves the data should end: compute a mask of those rows and pass it to
      `end_outside_data`. Without it a policy drifts to where the model extrapolates.

    The methods that are not abstract are optional hooks. Wrappers and ensembles forward all of them
    (`HOOKS`, `forward_hooks`), so a new hook needs no further code there.

    Attributes:
        observation_space: space of one real environment.
        action_space: space of one real environment, or of latent actions (`takes_data_actions`).
        config: the family's config, a frozen dataclass.
        config_type: class of the config.
        feature_dim: width of `features`.
        noise_dim: independent U(0, 1) numbers that one row needs for `step` or `observe`.
        has_uncertainty: whether predictions carry an uncertainty; otherwise it is zero.
        presets: published configs by name.
        fit_defaults: fit settings for the default config, by the names that
            `dreamgym.default_config` takes.
        preset_fits: fit settings that the authors of a preset used, by the preset's name.
        fast_form: class of the form that `prepare` returns, called with the model on its device,
            the rows of every step and the dtype of matrix products; set in the family's package.
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
        """Build a model with fresh weights; a wrapper builds the model inside first.

        Args:
            observation_space: space of one real environment.
            action_space: space of one real environment.
            config: a `config_type`.
        """
        return cls(observation_space, action_space, config)

    @abstractmethod
    def initial(self, batch_size: int) -> State:
        """Return the state before the first observation; leaves (batch_size, ...)."""

    @abstractmethod
    def observe(
        self, state: State, action: Tensor, observation: Observation, noise: Tensor
    ) -> State:
        """Take in a real observation (filter, posterior).

        Args:
            state: the state before `action`; the initial state at an episode's first observation.
            action: (B, ...) raw action that led to the observation; zeros at an episode's first.
            observation: (B, ...) in the real environment's units, or a dict of such.
            noise: (B, noise_dim) uniforms in [0, 1).
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

    def unroll(
        self, state: State, actions: Tensor, noise: Tensor, temperature: Temperature = 1.0
    ) -> Iterator[tuple[State, Prediction]]:
        """Yield the state and the prediction after each of several steps under given actions.

        It is a loop over `step`. A fast form may keep what consecutive steps share.

        Args:
            state: leaves (B, ...).
            actions: (B, L, ...) raw actions.
            noise: (B, L, noise_dim) uniforms.
            temperature: as in `step`.
        """
        for t in range(actions.shape[1]):
            state, prediction = self.step(state, actions[:, t], noise[:, t], temperature)
            yield state, prediction

    @abstractmethod
    def features(self, state: State) -> Tensor:
        """Return the flat view of a state that a policy sees, (B, feature_dim)."""

    @abstractmethod
    def loss(self, segment: Segment, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss to minimise, and its named terms (scalars, detached).

        Args:
            segment: B windows of L transitions.
            noise: (B, L + 1, noise_dim) uniforms, one row for each observation.
        """

    def goal_features(self, state: State) -> Tensor:
        """Return numbers (B, n) whose distance to those of a goal says how far it is to go there.

        By default the features. Override it where the model has learned a better distance.
        """
        return self.features(state)

    @property
    def decodes(self) -> bool:
        """Whether the model can `decode` states; `isinstance(model, Decodes)` reads this.

        By default a model decodes if it has the method. Override it where that depends on the
        config, or on a model inside.
        """
        return callable(getattr(self, "decode", None))

    @property
    def phase_starts(self) -> tuple[int, ...]:
        """Update indices at which training switches to another sub-model; empty by default."""
        return ()

    @property
    def data_action_space(self) -> gym.Space:
        """Action space of the data, by which files describe the model.

        It is `action_space`, unless dreams take other actions (`takes_data_actions`).
        """
        return self.action_space

    @property
    def takes_data_actions(self) -> bool:
        """Whether dreams take the data's actions, and not others, as latent ones.

        If not, actions mean nothing in the real environment, even if the spaces are equal.
        """
        return True

    @property
    def assumes_single_env_steps(self) -> bool:
        """Whether reward or termination assume one environment step per model step.

        Such a model cannot be combined with a frame skip.
        """
        return False

    @property
    def foreign_step(self) -> bool:
        """Whether a step is that of a foreign library, which syncs with the host on every device.

        Such a step takes seconds, beside which a sync is nothing. It is neither prepared, compiled
        nor captured, and no world takes one while it is fitted, made or loaded: there are no
        figures of its dreams, and no reduced horizon.
        """
        return False

    @property
    def pretrained_weights(self) -> str | None:
        """Published weights that a world of the model needs and does not hold, and their licence.

        In words, for the card of the world; None if there are none.
        """
        return None

    @property
    def selects_by_loss(self) -> bool:
        """Whether a fit keeps the weights with the lowest held-out loss, or else the last ones.

        Override it where a lower loss is not a better model, as with values that are their own
        targets.
        """
        return True

    def set_statistics(self, statistics: Statistics) -> None:
        """Fit the normalisers; called once, before fitting, with training episodes only."""

    def before_fit(self) -> None:
        """Prepare for training that resumes from existing weights."""

    def after_fit(self) -> None:
        """Release training-only caches; called once after training."""

    def after_update(self) -> None:
        """Update EMA targets and the like; called after every optimiser update."""

    def after_evaluation(self, terms: dict[str, Tensor]) -> None:
        """Use held-out losses, for example to choose elites.

        Called after each evaluation, before the best weights are kept.

        Args:
            terms: the terms of `loss` in eval mode, each the mean over the held-out batches.
        """

    def diagnostics(self, segment: Segment, noise: Tensor) -> LatentDiagnostics:
        """Return latent diagnostics for the training alarms; empty by default.

        Args:
            segment: B held-out windows of L transitions.
            noise: (B, L + 1, noise_dim) uniforms.
        """
        return LatentDiagnostics({}, {})

    def prepare(self, num_envs: int, device: torch.device, dtype: torch.dtype) -> WorldModel:
        """Return the same function arranged for speed, or the model itself, on a device.

        Args:
            num_envs: rows of every later step.
            device: device of every later step.
            dtype: dtype of matrix products, float32 (with a warning) where the device has no
                other; state, logits and sampling stay float32.

        Raises:
            ValueError: the family has no fast form, and `dtype` is not float32.
        """
        self.to(device)
        dtype = product_dtype(device.type, dtype)
        # The members of an ensemble may be foreign, whose steps cannot be batched.
        if self.fast_form is not None and not self.foreign_step:
            return self.fast_form(self, num_envs, dtype)
        if dtype != torch.float32:
            raise ValueError(
                f"{type(self).__name__} has no fast form for dtype {dtype}; pass dtype='float32'"
            )
        return self


class _DecodesMeta(type(Protocol)):  # type: ignore[misc]
    """Metaclass of `Decodes`: `isinstance` reads `decodes`, which a wrapper forwards."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return bool(getattr(instance, "decodes", False))


@runtime_checkable
class Decodes(Protocol, metaclass=_DecodesMeta):
    """A model that can turn a state back into an observation; see `WorldModel.decodes`."""

    def decode(self, state: State) -> Observation:
        """Return the observation (B, ...) that a state represents.

        It is in the real environment's units and within the bounds of its space.
        """
        ...


@runtime_checkable
class Values(Protocol):
    """An object that values states, for planners; a model may be one itself."""

    def value(self, state: State) -> Tensor:
        """Return the return expected from each state on, (B,), in the real environment's units.

        Where the planner that asks has a discount, it is the discounted return.
        """
        ...


@runtime_checkable
class Acts(Protocol):
    """An object that proposes an action in each state, for planners; a model may be one itself."""

    def policy(self, state: State, noise: Tensor) -> Tensor:
        """Return raw actions (B, ...).

        Args:
            state: leaves (B, ...).
            noise: (B, 1) uniforms in [0, 1), from which further ones may be derived.
        """
        ...


def _is_hook(name: str, member: object) -> bool:
    """Return whether a member of `WorldModel` is an optional hook, which wrappers forward."""
    return (
        not name.startswith("_")
        and (isinstance(member, property) or inspect.isfunction(member))
        and not getattr(member, "__isabstractmethod__", False)
        # A fast form of the inner model is not a fast form of the wrapper, nor are its steps.
        and name not in ("prepare", "unroll")
    )


HOOKS: dict[str, Any] = {k: v for k, v in vars(WorldModel).items() if _is_hook(k, v)}
"""The optional hooks of `WorldModel` by name: methods and properties with a default."""

Model = TypeVar("Model", bound=WorldModel)


def forward_hooks(
    to: Callable[[Any], Iterable[WorldModel]],
) -> Callable[[type[Model]], type[Model]]:
    """Return a class decorator that forwards hooks to the models which an instance holds.

    Hooks that the class defines itself stay. Of the others, a method is called on every inner
    model and returns the first one's result; a property is read from the first.

    Args:
        to: the inner models of an instance, at least one.
    """

    def decorate(model_type: type[Model]) -> type[Model]:
        for name, hook in HOOKS.items():
            if name not in vars(model_type):
                setattr(model_type, name, _forwarding(name, hook, to))
        return model_type

    return decorate


def _forwarding(name: str, hook: Any, to: Callable[[Any], Iterable[WorldModel]]) -> Any:
    """Return a method or property that forwards one hook."""
    if isinstance(hook, property):
        return property(lambda self: getattr(next(iter(to(self))), name), doc=hook.__doc__)

    @wraps(hook)
    def forward(self: WorldModel, *args: Any, **kwargs: Any) -> Any:
        first, *_ = [getattr(inner, name)(*args, **kwargs) for inner in to(self)]
        return first

    return forward


def end_outside_data(
    prediction: Prediction, outside: Tensor | None, worst_return: Tensor
) -> Prediction:
    """End the dreams that left the training data, with the worst return that the data has shown.

    This is the pessimistic MDP of MOReL (Kidambi et al. 2020, arXiv 2005.05951, definition 2), with
    the family's own measure of what is unknown. A policy then gains nothing by going where the
    model extrapolates. Every family calls it at the end of `step`.

    Args:
        prediction: the model's prediction, leaves (B,).
        outside: (B,) bool, true where the new state is outside the data; None if the model cannot
            tell, which changes nothing.
        worst_return: () the lowest return from any step of the data (`Statistics.worst_return`).
    """
    if outside is None:
        return prediction
    return prediction._replace(
        reward=torch.where(outside, worst_return, prediction.reward),
        termination=torch.where(outside, 1.0, prediction.termination),
    )


def select(mask: Tensor, new: State, old: State) -> State:
    """Take the rows of `new` where `mask` (B,) is true and those of `old` elsewhere.

    Leaves keep the order of `old`.
    """
    return {
        key: torch.where(mask.view(-1, *[1] * (leaf.ndim - 1)), new[key], leaf)
        for key, leaf in old.items()
    }


def stack(states: list[State]) -> State:
    """Stack states along a new second axis: leaves (B, ...) become (B, L, ...)."""
    return {key: torch.stack([state[key] for state in states], 1) for key in states[0]}


def as_segment(batch: SegmentBatch, device: torch.device) -> Segment:
    """Convert a batch of `Dataset.segments` or `Dataset.windows` to tensors on a device."""
    rest = (torch.from_numpy(np.ascontiguousarray(leaf)).to(device) for leaf in batch[1:])
    return Segment(as_tensors(batch.observation, device), *rest)


def model_device(model: nn.Module) -> torch.device:
    """Return the device of a model's parameters; the CPU where it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def zero_action(space: gym.Space, batch_size: int, device: torch.device | str) -> Tensor:
    """Return the action that comes with an episode's first observation: (batch_size, ...) zeros."""
    dtype = torch.float32 if is_float(space) else torch.int64
    return torch.zeros((batch_size, *(space.shape or ())), dtype=dtype, device=device)


def filter_states(model: WorldModel, segment: Segment, noise: Tensor) -> State:
    """Feed real observations to the model, starting from its initial state.

    Args:
        model: any world model.
        segment: only `observation` (B, L + 1, ...) and `action` (B, L, ...) are read.
        noise: (B, L + 1, noise_dim) uniforms.

    Returns:
        The states after each observation, leaves (B, L + 1, ...); meaningless under padding.
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
        state: start states, leaves (B, ...).
        actions: (B, L, ...) raw actions.
        noise: (B, L, noise_dim) uniforms.
        temperature: as in `WorldModel.step`.

    Returns:
        The states after each action, leaves (B, L, ...), and predictions with leaves (B, L).
    """
    unrolled = model.unroll(state, actions, noise, temperature)
    states, predictions = map(list, zip(*unrolled, strict=True))
    stacked = Prediction(*(torch.stack(leaves, 1) for leaves in zip(*predictions, strict=True)))
    return stack(states), stacked
