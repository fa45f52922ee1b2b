"""A model whose window of frames holds the patches of a frozen vision model."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import ClassVar, NamedTuple

import gymnasium as gym
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.models.base import (
    Prediction,
    Segment,
    State,
    Temperature,
    WorldModel,
    end_outside_data,
)
from dreamgym.models.nn.actions import ActionEncoder
from dreamgym.models.nn.codecs import Units
from dreamgym.models.nn.layers import at_least_float32, mlp
from dreamgym.models.nn.observation_codec import MID_GREY
from dreamgym.models.nn.reward_head import RewardHead
from dreamgym.models.nn.windows import at, push, put
from dreamgym.models.observations import Observation, map_observation
from dreamgym.models.patches.config import PatchConfig
from dreamgym.models.patches.senses import COLOURS, Normalisation, PatchSenses
from dreamgym.models.reduction import masked_mean
from dreamgym.models.statistics import Statistics

Entry = dict[str, Tensor]
"""One frame in a window, leaves (..., n): `patches`, and what else a family keeps of it."""


class Transitions(NamedTuple):
    """T consecutive transitions between frames in each of B segments.

    Attributes:
        before: frames before the transitions, leaves (B, T, n).
        after: frames after them, encoded or predicted.
        start: index of the first transition in the segment.
    """

    before: Entry
    after: Entry
    start: int

    @property
    def steps(self) -> slice:
        """Indices of the transitions' actions, rewards and masks in the segment."""
        return slice(self.start, self.start + self.after["patches"].shape[1])

    @property
    def arrivals(self) -> slice:
        """Indices of the observations after the transitions in the segment."""
        return slice(self.start + 1, self.steps.stop + 1)


class PatchModel(WorldModel):
    """Common parts: the window, the frozen encoder, heads, the decoder, and their losses.

    A family adds its predictor: the next frame from a window (`following`), and the loss.

    State: `patches` (B, context, patches x numbers), oldest first, and what else the family keeps
    of a frame; `actions` (B, context, A), the encoded action after each of them; `length` (B,)
    int64, how many frames are set (what lies beyond is zero). Positions are those in the window,
    from the oldest frame on. A window is full at the context, or at the longest window that the
    model was fitted to, since later positions are untrained.

    Features: means of the newest frame's patches over a grid of `cells`, and what else is kept of
    it. A step is deterministic and takes no noise, as those of both families' authors.

    Args:
        observation_space: a Box of colour images, or a Dict of one such and of vectors.
        action_space: a Box, Discrete or MultiDiscrete space.
        config: sizes and losses.
        units: units of vectors and of a Box's actions: "standard", or "raw", the environment's.

    Raises:
        TypeError: a space is of another kind.
        ValueError: the encoder cannot take images of this size.
        PretrainedError: the encoder cannot be loaded.
    """

    family: ClassVar[str]
    normalisation: ClassVar[Normalisation]
    config: PatchConfig
    worst_return: Tensor
    trained: Tensor

    def __init__(
        self,
        observation_space: gym.Space,
        action_space: gym.Space,
        config: PatchConfig,
        *,
        units: Units = "standard",
    ) -> None:
        super().__init__(observation_space, action_space, config)
        self.encode_action, self.units = ActionEncoder(action_space), units
        if units == "raw" and isinstance(action_space, gym.spaces.Box):
            ones = torch.ones(self.encode_action.dim)
            self.encode_action.set_moments(torch.zeros_like(ones), ones)
        self.senses = PatchSenses(observation_space, config, self.normalisation, units, self.family)
        # Save the exact revision of the encoder with the config.
        self.config = replace(config, encoder=self.senses.encoder.resolved)
        self.cells = min(config.cells, self.senses.grid)
        sizes = self.entry_sizes()
        other = sum(size for name, size in sizes.items() if name != "patches")
        width = sizes["patches"] // self.senses.patches
        self.feature_dim, self.noise_dim = width * self.cells**2 + other, 0
        hidden, outcome = config.hidden, 2 * self.feature_dim + self.encode_action.dim
        reward = mlp(outcome, hidden, config.objective.reward_outputs)
        self.reward = RewardHead(reward, config.objective)
        self.termination = mlp(outcome, hidden, 1)
        self.decoder = PatchDecoder(self.senses, hidden) if config.decoder else None
        self.register_buffer("worst_return", torch.zeros(()))
        self.register_buffer("trained", torch.zeros((), dtype=torch.int64))

    # ------------------------------------------------------------ what a family adds

    @abstractmethod
    def entry_sizes(self) -> dict[str, int]:
        """Return the width of each leaf of an entry; of `patches`, the patches times a width."""

    @abstractmethod
    def entry(self, observation: Observation, *, cached: bool = False) -> Entry:
        """Return the entries, leaves (..., n), of observations (..., *shape).

        Args:
            observation: in the real environment's units.
            cached: whether the patches of images that were encoded before are looked up.
        """

    @abstractmethod
    def following(self, window: State, place: Tensor) -> Entry:
        """Return the predicted next frame, leaves (B, n).

        Args:
            window: a state with the action after its newest frame.
            place: (B,) places of the newest frames.
        """

    @abstractmethod
    def vectors(self, entry: Entry) -> Tensor:
        """Return the vectors (..., vector_size) of entries, in the model's units."""

    # ------------------------------------------------------------ filtering and dreaming

    @property
    def pretrained_weights(self) -> str:
        """See `WorldModel.pretrained_weights`; those of the encoder."""
        return self.senses.encoder.published

    def set_statistics(self, statistics: Statistics) -> None:
        """See `WorldModel.set_statistics`; the actions of a Box are standardised, or raw."""
        self.senses.set_moments(statistics.observation)
        if statistics.action is not None and self.units != "raw":
            self.encode_action.fit(statistics.action, standardise=True)
        self.reward.set_moments(statistics.reward_mean, statistics.reward_std)
        self.worst_return.copy_(statistics.worst_return)

    def initial(self, batch_size: int) -> State:
        """See `WorldModel.initial`; an empty window."""
        zeros, context = self.worst_return.new_zeros, self.config.context
        sizes = self.entry_sizes() | {"actions": self.encode_action.dim}
        state = {name: zeros(batch_size, context, size) for name, size in sizes.items()}
        return state | {"length": zeros(batch_size, dtype=torch.int64)}

    def observe(
        self, state: State, action: Tensor, observation: Observation, noise: Tensor
    ) -> State:
        """See `WorldModel.observe`; appends a frame to the window, and uses no noise."""
        return self._push(self._with_action(state, action), self.entry(observation))

    def step(
        self, state: State, action: Tensor, noise: Tensor, temperature: Temperature = 1.0
    ) -> tuple[State, Prediction]:
        """See `WorldModel.step`; deterministic. An empty window holds one frame of zeros."""
        window = self._with_action(state | {"length": state["length"].clamp(min=1)}, action)
        place = window["length"] - 1
        before = self._at(window, place)
        after = self.following(window, place)
        inputs = self._outcome(before, after, at(window["actions"], place))
        reward = self.reward.predict(inputs)
        termination = self.termination(inputs).squeeze(-1).sigmoid()
        outside = None
        if self.config.range_margin is not None and self.senses.sizes:
            outside = self.senses.outside_data(self.vectors(after), self.config.range_margin)
        prediction = Prediction(reward, termination, torch.zeros_like(reward))
        ended = end_outside_data(prediction, outside, self.worst_return)
        return self._push(window, after), ended

    def features(self, state: State) -> Tensor:
        """Return the pooled newest frame, (B, feature_dim)."""
        return self.pooled(self.newest(state))

    def goal_features(self, state: State) -> Tensor:
        """Return all numbers of the newest frame's patches, scaled to a distance per number.

        The Euclidean distance of two frames is then the root of their mean squared difference.
        """
        patches = self.newest(state)["patches"]
        return patches / patches.shape[-1] ** 0.5

    @property
    def decodes(self) -> bool:
        """See `WorldModel.decodes`; true if there is a decoder."""
        return self.decoder is not None

    def decode(self, state: State) -> Observation:
        """See `Decodes.decode`; the newest frame.

        Raises:
            AttributeError: there is no decoder.
        """
        if self.decoder is None:
            raise AttributeError(
                f"this {type(self).__name__} cannot decode with decoder=False; fit one with "
                'decoder=True, or dream with view="latent"'
            )
        entry = self.newest(state)
        vectors = [self.vectors(entry)] if self.senses.sizes else []
        return self.senses.to_observation([*vectors, self.decoder(self.visual(entry)) - MID_GREY])

    def newest(self, state: State) -> Entry:
        """Return the newest frame of each row, leaves (B, n); zeros for an empty window."""
        return self._at(state, state["length"].clamp(min=1) - 1)

    def visual(self, entry: Entry) -> Tensor:
        """Return the encoder's part of the patches, (..., patches, senses.width)."""
        patches = entry["patches"].unflatten(-1, (self.senses.patches, -1))
        return patches[..., : self.senses.width]

    def pooled(self, entry: Entry) -> Tensor:
        """Return entries as policies and heads see them: leaves (..., n) as (..., feature_dim)."""
        grid = self.senses.grid
        patches = entry["patches"].unflatten(-1, (grid, grid, -1)).movedim(-1, -3)
        lead = patches.shape[:-3]
        cells = F.adaptive_avg_pool2d(patches.reshape(-1, *patches.shape[-3:]), self.cells)
        others = [leaf for name, leaf in entry.items() if name != "patches"]
        return torch.cat([cells.flatten(1).reshape(*lead, -1), *others], -1)

    def window(self) -> Tensor:
        """Return how many frames fill a window: the context, or the longest one of the fit."""
        return torch.where(self.trained > 0, self.trained, self.config.context)

    def _encode_action(self, action: Tensor) -> Tensor:
        """Return raw actions (..., *shape) as (..., A)."""
        return self.encode_action(action).to(self.worst_return.dtype)

    def _with_action(self, state: State, action: Tensor) -> State:
        """Return a state with a raw action (B, ...) after its newest frame; none if it is empty."""
        encoded = self._encode_action(action)
        return state | {"actions": put(state["actions"], state["length"] - 1, encoded)}

    def _push(self, state: State, entry: Entry) -> State:
        """Return the state after a new frame; a full window loses its oldest one."""
        news = entry | {"actions": torch.zeros_like(state["actions"][:, 0])}
        pushed, length = push(state, state["length"], news, self.window(), slides=True)
        return {**{key: pushed[key] for key in state if key in pushed}, "length": length}

    def _at(self, state: State, place: Tensor) -> Entry:
        """Return the frames of windows at places (B,)."""
        return {name: at(state[name], place) for name in self.entry_sizes()}

    def _outcome(self, before: Entry, after: Entry, actions: Tensor) -> Tensor:
        """Return the inputs of the heads, for frames and encoded actions (..., A)."""
        old, new = self.pooled(before), self.pooled(after)
        return torch.cat([new, new - old, actions], -1)

    # ------------------------------------------------------------ fitting

    def after_fit(self) -> None:
        """See `WorldModel.after_fit`: release the cached patches."""
        self.senses.clear_cache()

    def update_window(self, frames: int) -> None:
        """Remember how long the windows of a fit are."""
        if self.training:
            self.trained.clamp_(min=frames)

    def total(
        self, segment: Segment, terms: dict[str, Tensor], actions: Tensor, seen: list[Transitions]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its terms, those of heads, probe and decoder included.

        Args:
            segment: B segments of L transitions.
            terms: the predictor's terms.
            actions: (B, L, A) encoded.
            seen: real and predicted transitions, on which heads, probe and decoder are fitted,
                without a gradient into them.
        """
        found = [self._readout_terms(segment, actions, each) for each in seen]
        terms = terms | {
            name: torch.stack([each[name] for each in found]).mean() for name in found[0]
        }
        objective = self.config.objective
        weighted = [getattr(objective, name, 1.0) * term for name, term in terms.items()]
        return torch.stack(weighted).sum(), {k: term.detach() for k, term in terms.items()}

    def _readout_terms(
        self, segment: Segment, actions: Tensor, transitions: Transitions
    ) -> dict[str, Tensor]:
        """Return the losses of heads, probe and decoder on some transitions."""
        before, after = (
            {name: leaf.detach() for name, leaf in entry.items()}
            for entry in (transitions.before, transitions.after)
        )
        steps, arrivals = transitions.steps, transitions.arrivals
        mask = segment.mask[:, steps]
        inputs = self._outcome(before, after, actions[:, steps])
        logit = self.termination(inputs).squeeze(-1)
        cross_entropy = F.binary_cross_entropy_with_logits(
            logit, segment.terminated[:, steps].to(logit.dtype), reduction="none"
        )
        terms = {
            "reward": masked_mean(self.reward.loss(inputs, segment.reward[:, steps]), mask),
            "termination": masked_mean(cross_entropy, mask),
        }
        observation = map_observation(lambda leaf: leaf[:, arrivals], segment.observation)
        vectors = self.vector_error(before, actions[:, steps], after, observation)
        if vectors is not None:
            terms["vector"] = masked_mean(vectors, mask)
        if self.decoder is not None:
            target = self.senses.image_targets(observation)
            error = (self.decoder(self.visual(after)) - target).square()
            terms["image"] = masked_mean(error.flatten(-3).mean(-1), mask)
        return terms

    @abstractmethod
    def vector_error(
        self, before: Entry, actions: Tensor, after: Entry, observation: Observation
    ) -> Tensor | None:
        """Return the squared error (B, T) of vectors after transitions; None without vectors.

        Args:
            before: frames before, without gradient.
            actions: (B, T, A) encoded.
            after: frames after, without gradient.
            observation: (B, T, ...) the observations after.
        """


class PatchDecoder(nn.Module):
    """Decodes patches to an image, by convolutions over the grid of patches.

    Args:
        senses: sizes of patches and images.
        hidden: channels of the hidden layer.
    """

    def __init__(self, senses: PatchSenses, hidden: int) -> None:
        super().__init__()
        self.grid, patch = senses.grid, senses.encoder.patch
        self.layers = nn.Sequential(
            nn.Conv2d(senses.width, hidden, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(hidden, COLOURS * patch**2, 3, padding=1),
            nn.PixelShuffle(patch),
        )

    def forward(self, patches: Tensor) -> Tensor:
        """Decode (..., patches, width) to unbounded floats (..., 3, side, side)."""
        lead = patches.shape[:-2]
        flat = patches.reshape(-1, *patches.shape[-2:]).mT.unflatten(-1, (self.grid, self.grid))
        image = at_least_float32(self.layers(flat))
        return image.unflatten(0, lead)
