"""What IRIS's families share: phases, the step, and the losses of tokens, rewards and ends."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import gymnasium as gym
import torch
import torch.nn.functional as F
from torch import Tensor

from dreamgym.models.base import (
    LatentDiagnostics,
    Prediction,
    Segment,
    State,
    Temperature,
    WorldModel,
)
from dreamgym.models.iris.config import TokenObjective, TransformerConfig
from dreamgym.models.iris.delta_vision import DeltaTokeniser
from dreamgym.models.iris.transformer import TokenTransformer, draw_tokens, start
from dreamgym.models.nn.actions import ActionEncoder
from dreamgym.models.nn.conv import Pixels
from dreamgym.models.nn.encoding_cache import EncodingCache
from dreamgym.models.nn.image_tokens import Tokeniser, autoencoder_terms, token_use
from dreamgym.models.nn.quantisers import Quantised, quantise
from dreamgym.models.nn.windows import put
from dreamgym.models.observations import Observation, join_parts, only_part
from dreamgym.models.reduction import masked_mean
from dreamgym.models.statistics import Statistics


class TokenConfig(Protocol):
    """What `TokenModel` reads of a family's config; see `IRISConfig`."""

    @property
    def image_size(self) -> int:
        """Side in pixels that images are resized to."""
        ...

    @property
    def transformer(self) -> TransformerConfig:
        """Sizes of the transformer."""
        ...

    @property
    def tokeniser_updates(self) -> int:
        """Updates that fit the tokeniser alone."""
        ...

    @property
    def objective(self) -> TokenObjective:
        """Units of the rewards and weights of the losses."""
        ...


class TokenModel(WorldModel):
    """A tokeniser of frames, and a transformer that draws a frame's tokens one after another.

    The transformer's sequence has a block of entries for each frame. At the entry of an action it
    predicts reward, termination and the first token of what follows.

    Args:
        observation_space: a Box of images.
        action_space: a Box, Discrete or MultiDiscrete space.
        config: sizes and losses.
        family: name of the family, for messages.

    Attributes:
        tokeniser: set by the family, as the others.
        transformer: the transformer.
        longest: transitions of the longest segment, and frames of a full window.
        pending: entries up to the action, and with it, whose keys no earlier step has computed.
        held: numbers of the newest block in `content` that earlier steps have computed keys of.

    Raises:
        TypeError: a space is of another kind.
    """

    config: Any
    fit_defaults: ClassVar[Mapping[str, Any]] = {
        "batch_size": 16,
        "segment_length": 8,
        "learning_rate": 1e-3,
        "gradient_clip": 10.0,
        "clip_by": "norm",
    }
    tokeniser: Tokeniser | DeltaTokeniser
    transformer: TokenTransformer
    longest: int
    pending: int
    held: int
    trained: Tensor
    updates: Tensor

    def __init__(
        self,
        observation_space: gym.Space,
        action_space: gym.Space,
        config: TokenConfig,
        family: str,
    ) -> None:
        super().__init__(observation_space, action_space, config)
        side = config.image_size
        self.key, box = only_part(observation_space, family)
        self.pixels = Pixels(box, (side, side))
        self.encode_action = ActionEncoder(action_space)
        self.register_buffer("trained", torch.zeros((), dtype=torch.int64))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.cache = EncodingCache()

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.transformer.position.dtype

    # ------------------------------------------------------------ fits

    def set_statistics(self, statistics: Statistics) -> None:
        """See `WorldModel.set_statistics`."""
        if statistics.action is not None:
            self.encode_action.fit(statistics.action)
        self.transformer.reward.set_moments(statistics.reward_mean, statistics.reward_std)

    @property
    def phase_starts(self) -> tuple[int, ...]:
        """See `WorldModel.phase_starts`: the transformer is fitted after the tokeniser."""
        return (self.config.tokeniser_updates,) if self.config.tokeniser_updates else ()

    @property
    def selects_by_loss(self) -> bool:
        """See `WorldModel.selects_by_loss`; tokens that say less are easier to predict.

        So losses can be compared only if the tokeniser is frozen while the transformer is fitted.
        """
        return bool(self.config.tokeniser_updates)

    def before_fit(self) -> None:
        """See `WorldModel.before_fit`: the tokeniser is fitted first again."""
        self.updates.zero_()

    def after_fit(self) -> None:
        """See `WorldModel.after_fit`: release the cached tokens."""
        self.cache = EncodingCache()

    def after_update(self) -> None:
        """Count the updates: the tokeniser is frozen after `tokeniser_updates` of them."""
        self.updates += 1

    def loss(self, segment: Segment, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of the tokeniser on some of the frames, plus the transformer's on all.

        The transformer's has no gradient in the tokeniser. With `tokeniser_updates` the tokeniser
        is fitted first and the transformer after it; in eval mode the loss always has both.

        Raises:
            ValueError: the segment is longer than the window.
        """
        most = self.longest
        if segment.action.shape[1] > most:
            raise ValueError(
                f"segments have {segment.action.shape[1]} transitions, the window {most}: fit with "
                f"segment_length={most} or less, or with a larger transformer.context"
            )
        alone = self.config.tokeniser_updates
        tokeniser_first = bool(alone and self.training and self.updates < alone)
        frozen = bool(alone and self.training and not tokeniser_first)
        terms = {} if frozen else self._tokeniser_terms(segment)
        if not tokeniser_first:
            if self.training:
                self.trained.clamp_(min=segment.action.shape[1])
            terms |= self._transformer_terms(segment, cached=frozen)
        weights = vars(self.config.objective)
        total = sum((weights.get(k, 1.0) * v for k, v in terms.items()), torch.zeros(()))
        return total, {name: term.detach() for name, term in terms.items()}

    @abstractmethod
    def _tokeniser_terms(self, segment: Segment) -> dict[str, Tensor]:
        """Return the terms of the tokeniser's loss; frames under padding are left out."""

    @abstractmethod
    def _transformer_terms(self, segment: Segment, *, cached: bool) -> dict[str, Tensor]:
        """Return the terms of the transformer's loss.

        Args:
            segment: B segments of L transitions.
            cached: whether the tokeniser is frozen, so that tokens can be kept.
        """

    @abstractmethod
    def _held_out_tokens(self, segment: Segment) -> Tensor:
        """Return the tokens (N, tokens) of what a segment shows; padding is left out."""

    def diagnostics(self, segment: Segment, noise: Tensor) -> LatentDiagnostics:
        """See `WorldModel.diagnostics`: how the codes of tokens are used."""
        tokens = self._held_out_tokens(segment)
        return LatentDiagnostics({}, {}, {"": token_use(self.tokeniser.quantiser, tokens)})

    def _quantise(self, latents: Tensor) -> Quantised:
        """Return latents (N, tokens, width) as codes; a moving codebook follows them in a fit."""
        return quantise(self.tokeniser.quantiser, latents, follow=self.training)

    def _autoencoder_terms(
        self, decoded: Tensor, images: Tensor, quantised: Quantised
    ) -> dict[str, Tensor]:
        """Return the terms of the autoencoder for images (N, channels, side, side)."""
        weights, quantiser = self.config.objective, self.tokeniser.quantiser
        return autoencoder_terms(decoded, images, quantised, weights, quantiser)

    def _prediction_terms(
        self, segment: Segment, outputs: tuple[Tensor, Tensor], tokens: Tensor
    ) -> dict[str, Tensor]:
        """Return the terms of predicted tokens, rewards and ends.

        Args:
            segment: B segments of L transitions.
            outputs: the transformer's outputs at actions (B, L, width), and at the entries before
                each token (B, L, tokens, width).
            tokens: (B, L, tokens) int64.
        """
        net, (at_actions, before_tokens) = self.transformer, outputs
        logits = net.logits(before_tokens)
        of_tokens = F.cross_entropy(logits.movedim(-1, 1), tokens, reduction="none").mean(-1)
        end = net.termination(at_actions).movedim(-1, 1)
        of_end = F.cross_entropy(end, segment.terminated.long(), reduction="none")
        return {
            "tokens": masked_mean(of_tokens, segment.mask),
            "reward": masked_mean(net.reward.loss(at_actions, segment.reward), segment.mask),
            "termination": masked_mean(of_end, segment.mask),
        }

    # ------------------------------------------------------------ steps

    def step(
        self, state: State, action: Tensor, noise: Tensor, temperature: Temperature = 1.0
    ) -> tuple[State, Prediction]:
        """See `WorldModel.step`; tokens are drawn one after another."""
        window = self.acted(state, action)
        entries, place = self.entries(window)
        h, known = start(self.transformer, entries, place)
        before, sampling = (known, None), (noise, temperature)
        tokens, _ = draw_tokens(self.transformer, (h, place), before, sampling)
        reward, termination = self.transformer.outcome(h)
        return self.arrive(window, tokens), Prediction(
            reward, termination, torch.zeros_like(reward)
        )

    def acted(self, state: State, action: Tensor) -> State:
        """Return a state with an action (B, ...) after its newest frame.

        An empty window then holds one frame of zeros, so that it can be stepped.
        """
        length = state["length"].clamp(min=1)
        actions = put(state["actions"], length - 1, self._encode_action(action))
        return state | {"actions": actions, "length": length}

    @abstractmethod
    def entries(self, window: State) -> tuple[Tensor, Tensor]:
        """Return the sequence of a window (B, T, width), and the place (B,) of its newest action.

        Positions are not added yet.
        """

    @abstractmethod
    def content(self, window: State) -> Tensor:
        """Return what the entries follow from, (B, frames, n), for comparisons."""

    @abstractmethod
    def arrive(self, window: State, tokens: Tensor) -> State:
        """Return the state after drawn tokens (B, tokens)."""

    def window(self) -> Tensor:
        """Return how many frames fill a window: all, or the longest segment of the fit.

        Later positions are untrained, and would turn dreams into noise.
        """
        most = self.longest
        return torch.where(self.trained > 0, self.trained.clamp(max=most), most)

    def _encode_action(self, action: Tensor) -> Tensor:
        """Return raw actions (..., *shape) as (..., A)."""
        return self.encode_action(action).to(self.dtype)

    def _as_observation(self, images: Tensor) -> Observation:
        """Return images (B, channels, side, side) in [0, 1] as an observation."""
        return join_parts({self.key: self.pixels.to_bytes(images)})
