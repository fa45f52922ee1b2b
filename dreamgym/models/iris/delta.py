"""Delta-IRIS: world models with context-aware tokenisation (Micheli et al. 2024, 2406.19320)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium as gym
import torch
from torch import Tensor, nn

from dreamgym.models.base import Segment, State
from dreamgym.models.iris.config import DELTA_PRESET_FITS, DELTA_PRESETS, DeltaIRISConfig
from dreamgym.models.iris.delta_vision import DeltaTokeniser, frame_encoder
from dreamgym.models.iris.token_model import TokenModel
from dreamgym.models.iris.transformer import TokenTransformer
from dreamgym.models.nn.layers import LayerNorm
from dreamgym.models.nn.windows import at, push, put
from dreamgym.models.observations import Observation, get_part
from dreamgym.models.reduction import evenly_spaced

BYTE = 255.0
"""Value of the brightest pixel."""


class DeltaIRIS(TokenModel):
    """Tokens of what changes from a frame to the next, and a transformer that predicts them.

    An autoencoder that sees the frame before and the action encodes only what these do not
    determine, so a few tokens are enough. The transformer's sequence has for each frame one
    embedding of it, the action, and the tokens of the change; past frames are seen in full by
    their embeddings. A step decodes the next frame, since the one after it needs its embedding.

    State: `frame` (B, channels, side, side) uint8, the newest; `embedded` (B, context, width), the
    embeddings of the frames in the window, oldest first; `actions` (B, context, A), the encoded
    action after each; `tokens` (B, context, tokens) int16, the change after each; `length` (B,)
    int64, how many frames are set (what lies beyond is zero). Features: the embeddings of the
    newest frame and of the one before it. The published policies see frames, as
    `view="observation"` shows them.

    Positions, the window and the rewards are as those of `IRIS`.

    Args:
        observation_space: a Box of images.
        action_space: a Box, Discrete or MultiDiscrete space.
        config: sizes and losses.

    Raises:
        TypeError: a space is of another kind.
    """

    config_type = DeltaIRISConfig
    presets: ClassVar[Mapping[str, DeltaIRISConfig]] = DELTA_PRESETS
    preset_fits: ClassVar[Mapping[str, Mapping[str, Any]]] = DELTA_PRESET_FITS
    config: DeltaIRISConfig
    tokeniser: DeltaTokeniser

    def __init__(
        self, observation_space: gym.Space, action_space: gym.Space, config: DeltaIRISConfig
    ) -> None:
        super().__init__(observation_space, action_space, config, "delta-iris")
        channels, sizes = self.pixels.channels, config.transformer
        self.shape = (channels, config.image_size, config.image_size)
        self.tokeniser = DeltaTokeniser(channels, self.encode_action.dim, config)
        tokens = self.tokeniser.tokens
        self.embed_frame = nn.Sequential(
            frame_encoder(channels, sizes.width // config.side**2, config),
            nn.Flatten(),
            LayerNorm(sizes.width),
        )
        self.transformer = TokenTransformer(
            self.tokeniser.quantiser.count,
            self.encode_action.dim,
            sizes.context * (tokens + 2),
            sizes,
            config.objective,
        )
        self.feature_dim, self.noise_dim = 2 * sizes.width, tokens
        self.longest, self.pending, self.held = sizes.context, 3, 0

    def initial(self, batch_size: int) -> State:
        """See `WorldModel.initial`; an empty window and a black frame."""
        sizes, zeros = self.config.transformer, self.transformer.position.new_zeros
        tokens = (batch_size, sizes.context, self.tokeniser.tokens)
        return {
            "frame": zeros(batch_size, *self.shape, dtype=torch.uint8),
            "embedded": zeros(batch_size, sizes.context, sizes.width),
            "actions": zeros(batch_size, sizes.context, self.encode_action.dim),
            "tokens": zeros(tokens, dtype=torch.int16),
            "length": zeros(batch_size, dtype=torch.int64),
        }

    def observe(
        self, state: State, action: Tensor, observation: Observation, noise: Tensor
    ) -> State:
        """See `WorldModel.observe`; the embedding of the frame, and the tokens of the change."""
        frame = self._frames(get_part(observation, self.key))
        acted = self.acted(state, action)
        tokens = self.tokeniser.encode(
            self._pixels(state["frame"]), self._newest_action(acted), self._pixels(frame)
        )
        # An episode's first frame is no change of another one.
        length = torch.where(state["length"] == 0, 0, acted["length"])
        return self._push(acted | {"length": length}, tokens, frame)

    def features(self, state: State) -> Tensor:
        """Return the embeddings of the newest two frames, (B, 2 x width), zero if not set."""
        embedded = []
        for back in (1, 2):
            place = state["length"] - back
            values = at(state["embedded"], place.clamp(min=0))
            embedded.append(torch.where((place >= 0).unsqueeze(-1), values, 0.0))
        return torch.cat(embedded, -1)

    def decode(self, state: State) -> Observation:
        """Return the newest frame as an observation (B, ...)."""
        return self._as_observation(state["frame"].float() / BYTE)

    def entries(self, window: State) -> tuple[Tensor, Tensor]:
        """See `TokenModel.entries`; each frame's embedding, the action, and the change's tokens."""
        count = self.tokeniser.tokens + 2
        place = (window["length"] - 1) * count + 1
        leaves = (window[name] for name in ("embedded", "actions", "tokens"))
        return self._sequence(*leaves), place

    def content(self, window: State) -> Tensor:
        """See `TokenModel.content`."""
        tokens = window["tokens"].to(self.dtype)
        return torch.cat([window["embedded"], window["actions"], tokens], -1)

    def arrive(self, window: State, tokens: Tensor) -> State:
        """See `TokenModel.arrive`; the next frame is decoded, and rounded to bytes."""
        vectors = self.tokeniser.quantiser.lookup(tokens)
        before = self._pixels(window["frame"])
        images = self.tokeniser.decode(vectors, before, self._newest_action(window))
        frame = (images.clamp(0.0, 1.0) * BYTE).round().to(torch.uint8)
        return self._push(window, tokens, frame)

    def _push(self, window: State, tokens: Tensor, frame: Tensor) -> State:
        """Return the state after the tokens (B, tokens) of a change, and the frame it led to."""
        newest = window["length"] - 1
        changed = put(window["tokens"], newest, tokens.to(window["tokens"].dtype))
        news = {
            "embedded": self._embed(frame),
            "actions": torch.zeros_like(window["actions"][:, 0]),
            "tokens": torch.zeros_like(window["tokens"][:, 0]),
        }
        leaves = window | {"tokens": changed}
        leaves, length = push(leaves, window["length"], news, self.window())
        return {"frame": frame, **leaves, "length": length}

    def _sequence(self, embedded: Tensor, actions: Tensor, tokens: Tensor) -> Tensor:
        """Return embedded entries (B, F x (tokens + 2), width).

        Args:
            embedded: (B, F, width) of frames.
            actions: (B, F, A) encoded.
            tokens: (B, F, tokens).
        """
        action = self.transformer.embed_action(actions).to(self.dtype)
        given = torch.stack([embedded, action], 2)
        return torch.cat([given, self.transformer.embed(tokens)], 2).flatten(1, 2)

    def _tokeniser_terms(self, segment: Segment) -> dict[str, Tensor]:
        frames = get_part(segment.observation, self.key)
        chosen = evenly_spaced(segment.mask.flatten(), self.config.tokeniser_frames)
        before, after = (
            self._pixels(self._frames(part.flatten(0, 1)[chosen]))
            for part in (frames[:, :-1], frames[:, 1:])
        )
        action = self._encode_action(segment.action).flatten(0, 1)[chosen]
        quantised = self._quantise(self.tokeniser.latents(before, action, after))
        decoded = self.tokeniser.decode(quantised.vectors, before, action)
        return self._autoencoder_terms(decoded, after, quantised)

    def _transformer_terms(self, segment: Segment, *, cached: bool) -> dict[str, Tensor]:
        frames = self._frames(get_part(segment.observation, self.key))
        actions = self._encode_action(segment.action)
        tokens = self._encode(frames, actions, cached=cached)
        steps, count = actions.shape[1], self.tokeniser.tokens
        embedded = self._embed(frames[:, :-1].flatten(0, 1)).unflatten(0, actions.shape[:2])
        outputs = self.transformer(self._sequence(embedded, actions, tokens))
        outputs = outputs.unflatten(1, (steps, count + 2))
        return self._prediction_terms(
            segment, (outputs[:, :, 1], outputs[:, :, 1 : 1 + count]), tokens
        )

    def _held_out_tokens(self, segment: Segment) -> Tensor:
        frames = self._frames(get_part(segment.observation, self.key))
        actions = self._encode_action(segment.action)
        return self._encode(frames, actions, cached=False)[segment.mask]

    @torch.no_grad()
    def _encode(self, frames: Tensor, actions: Tensor, *, cached: bool) -> Tensor:
        """Return the tokens (B, L, tokens) int64 of the changes between frames.

        Args:
            frames: (B, L + 1, channels, side, side) of bytes.
            actions: (B, L, A) encoded.
            cached: whether transitions that were encoded before are looked up.
        """
        lead = actions.shape[:2]
        before, action, after = (
            leaf.flatten(0, 1) for leaf in (frames[:, :-1], actions, frames[:, 1:])
        )

        def encode(rows: Tensor | slice) -> Tensor:
            pixels = self._pixels(before[rows]), self._pixels(after[rows])
            return self.tokeniser.encode(pixels[0], action[rows], pixels[1])

        if not cached:
            return encode(slice(None)).unflatten(0, lead)
        parts = [before.flatten(1), action.contiguous().view(torch.uint8), after.flatten(1)]
        weights = [*self.tokeniser.parameters(), *self.tokeniser.buffers()]
        return self.cache.encode(torch.cat(parts, 1), weights, encode).unflatten(0, lead)

    def _embed(self, frames: Tensor) -> Tensor:
        """Return the embeddings (N, width) of frames (N, channels, side, side) of bytes."""
        embedded: Tensor = self.embed_frame(2 * self._pixels(frames) - 1)
        return embedded

    def _newest_action(self, window: State) -> Tensor:
        """Return the encoded action (B, A) after the newest frame."""
        return at(window["actions"], window["length"] - 1)

    def _frames(self, images: Tensor) -> Tensor:
        """Return frames (..., channels, side, side) of bytes for images (..., *box.shape)."""
        return (self.pixels.to_float(images) * BYTE).round().to(torch.uint8)

    def _pixels(self, frames: Tensor) -> Tensor:
        """Return frames of bytes in [0, 1]."""
        return frames.to(self.dtype) / BYTE
