"""IRIS: transformers are sample-efficient world models (Micheli et al. 2023, arXiv 2209.00588)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium as gym
import torch
import torch.nn.functional as F
from torch import Tensor

from dreamgym.models.base import Segment, State
from dreamgym.models.iris.config import PRESET_FITS, PRESETS, IRISConfig
from dreamgym.models.iris.token_model import TokenModel
from dreamgym.models.iris.transformer import TokenTransformer
from dreamgym.models.nn.image_tokens import Tokeniser, frame_tokens
from dreamgym.models.nn.windows import at, push
from dreamgym.models.observations import Observation, get_part
from dreamgym.models.reduction import evenly_spaced


class IRIS(TokenModel):
    """Frames as tokens, and a transformer that predicts them one by one.

    An autoencoder with a discrete bottleneck turns a frame into a few tokens. The transformer sees
    the tokens of the past frames and the action after each; from them it predicts reward and
    termination, and draws the tokens of the next frame. A token is drawn in the knowledge of those
    before it, so a frame is one of the possible ones, and not their average.

    State: `tokens` (B, context - 1, tokens) int16, oldest frame first; `actions` (B, context - 1,
    A), the encoded action after each; `length` (B,) int64, how many frames are set (what lies
    beyond is zero). Features: the codes of the newest frame and of the one before it. The published
    policies see decoded frames, as `view="observation"` shows them.

    Positions are learnt and absolute: the oldest frame has the first. When a frame comes to a full
    window, the older half of the window is dropped first, and the positions restart. So keys and
    values can be kept from step to step until then. A window is full at one frame less than the
    context, or at the longest segment that the model was fitted to. The authors drop everything but
    the newest frame.

    Rewards are expectations; the authors sample their sign.

    Args:
        observation_space: a Box of images.
        action_space: a Box, Discrete or MultiDiscrete space.
        config: sizes and losses.

    Raises:
        TypeError: a space is of another kind.
    """

    config_type = IRISConfig
    presets: ClassVar[Mapping[str, IRISConfig]] = PRESETS
    preset_fits: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESET_FITS
    config: IRISConfig
    tokeniser: Tokeniser

    def __init__(
        self, observation_space: gym.Space, action_space: gym.Space, config: IRISConfig
    ) -> None:
        super().__init__(observation_space, action_space, config, "iris")
        self.tokeniser = Tokeniser(self.pixels.channels, config)
        quantiser, tokens = self.tokeniser.quantiser, self.tokeniser.tokens
        self.transformer = TokenTransformer(
            quantiser.count,
            self.encode_action.dim,
            config.transformer.context * (tokens + 1),
            config.transformer,
            config.objective,
        )
        self.feature_dim = 2 * tokens * quantiser.width
        self.noise_dim = tokens
        self.longest, self.pending, self.held = config.transformer.context - 1, 2, tokens

    def initial(self, batch_size: int) -> State:
        """See `WorldModel.initial`; an empty window."""
        zeros, frames = self.transformer.position.new_zeros, self.config.transformer.context - 1
        return {
            "tokens": zeros(batch_size, frames, self.tokeniser.tokens, dtype=torch.int16),
            "actions": zeros(batch_size, frames, self.encode_action.dim),
            "length": zeros(batch_size, dtype=torch.int64),
        }

    def observe(
        self, state: State, action: Tensor, observation: Observation, noise: Tensor
    ) -> State:
        """See `WorldModel.observe`; the tokens of the frame."""
        begins = state["length"] == 0
        tokens = self._encode(get_part(observation, self.key))
        # What came before an episode's first frame was no action, and no frame of zeros either.
        acted = self.acted(state, action)
        return self.arrive(acted | {"length": torch.where(begins, 0, acted["length"])}, tokens)

    def features(self, state: State) -> Tensor:
        """Return the codes of the newest two frames, (B, 2 x tokens x width), zero if not set."""
        codes = []
        for back in (1, 2):
            place = state["length"] - back
            tokens = at(state["tokens"], place.clamp(min=0))
            vectors = self.tokeniser.quantiser.lookup(tokens).flatten(1)
            codes.append(torch.where((place >= 0).unsqueeze(-1), vectors, 0.0))
        return torch.cat(codes, -1)

    def decode(self, state: State) -> Observation:
        """Return the newest frame (B, ...) as decoded from its tokens."""
        tokens = at(state["tokens"], state["length"].clamp(min=1) - 1)
        images = self.tokeniser.decode(self.tokeniser.quantiser.lookup(tokens))
        return self._as_observation(images)

    def entries(self, window: State) -> tuple[Tensor, Tensor]:
        """See `TokenModel.entries`; each frame's tokens, and the action after them."""
        place = window["length"] * (self.tokeniser.tokens + 1) - 1
        return self._sequence(window["tokens"], window["actions"]), place

    def content(self, window: State) -> Tensor:
        """See `TokenModel.content`."""
        return torch.cat([window["tokens"].to(self.dtype), window["actions"]], -1)

    def arrive(self, window: State, tokens: Tensor) -> State:
        """See `TokenModel.arrive`."""
        news = {"tokens": tokens, "actions": torch.zeros_like(window["actions"][:, 0])}
        leaves, length = push(window, window["length"], news, self.window())
        return {**leaves, "length": length}

    def _sequence(self, tokens: Tensor, actions: Tensor) -> Tensor:
        """Return embedded entries (B, F x (tokens + 1), width).

        Args:
            tokens: (B, F, tokens).
            actions: (B, F, A) encoded.
        """
        action = self.transformer.embed_action(actions).to(self.dtype).unsqueeze(2)
        return torch.cat([self.transformer.embed(tokens), action], 2).flatten(1, 2)

    def _tokeniser_terms(self, segment: Segment) -> dict[str, Tensor]:
        frames = get_part(segment.observation, self.key).flatten(0, 1)
        observed = F.pad(segment.mask, (1, 0), value=True).flatten()
        chosen = frames[evenly_spaced(observed, self.config.tokeniser_frames)]
        images = self.pixels.to_float(chosen).to(self.dtype)
        quantised = self._quantise(self.tokeniser.latents(images))
        decoded = self.tokeniser.decode(quantised.vectors)
        return self._autoencoder_terms(decoded, images, quantised)

    def _transformer_terms(self, segment: Segment, *, cached: bool) -> dict[str, Tensor]:
        tokens = self._encode(get_part(segment.observation, self.key), cached=cached)
        count, steps = self.tokeniser.tokens, segment.action.shape[1]
        actions = F.pad(self._encode_action(segment.action), (0, 0, 0, 1))
        outputs = self.transformer(self._sequence(tokens, actions)[:, :-1])
        # From the first action on: an action, and the tokens of the frame after it.
        outputs = outputs[:, count:].unflatten(1, (steps, count + 1))
        of = outputs[:, :, 0], outputs[:, :, :count]
        return self._prediction_terms(segment, of, tokens[:, 1:])

    def _held_out_tokens(self, segment: Segment) -> Tensor:
        tokens = self._encode(get_part(segment.observation, self.key))
        return tokens[F.pad(segment.mask, (1, 0), value=True)]

    def _encode(self, frames: Tensor, *, cached: bool = False) -> Tensor:
        """Return the tokens (..., tokens) int64 of frames (..., *box.shape) of bytes.

        Args:
            frames: the frames.
            cached: whether frames that were encoded before are looked up.
        """
        return frame_tokens(self.tokeniser, self.pixels, frames, self.cache if cached else None)
