"""Sizes and losses of IRIS, and the published ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dreamgym._settings import check_at_least
from dreamgym.models.nn.image_tokens import TokeniserObjective, check_levels
from dreamgym.models.nn.quantisers import QuantiserConfig


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes of the transformer over tokens.

    Attributes:
        context: frames in a full window, of which the last one is predicted.
        width: width of the tokens, and of the heads' hidden layers.
        blocks: transformer blocks; their MLPs are four times as wide as the tokens.
        heads: attention heads.
        dropout: dropout rate of embeddings, attention and blocks, in fitting only.
    """

    context: int = 9
    width: int = 128
    blocks: int = 3
    heads: int = 4
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_at_least(self, 2, "context")
        check_at_least(self, 1, "width", "blocks", "heads")
        if self.width % self.heads:
            raise ValueError(
                f"width={self.width} is not divisible into heads={self.heads} equal heads; pass a "
                "multiple of heads"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: expected a share of at least 0 and below 1")


@dataclass(frozen=True, kw_only=True)
class TokenObjective(TokeniserObjective):
    """Units of the rewards, and weights of the losses; see `TokeniserObjective`.

    Attributes:
        tokens: weight of the tokens' cross-entropy.
        reward: weight of the reward's loss.
        termination: weight of the termination's cross-entropy, without class weights.
    """

    tokens: float = 1.0
    reward: float = 1.0
    termination: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 0, "tokens", "reward", "termination")


@dataclass(frozen=True, kw_only=True)
class IRISConfig:
    """Sizes of IRIS; the defaults are a small model for images of 32 by 32 on a CPU.

    Attributes:
        image_size: side in pixels that images are resized to, a multiple of
            `2 ** (len(channels) - 1)`.
        channels: channels of each level of the encoder, and of the decoder in reverse; each level
            has half the side of the one before, and each pixel of the last one is a token.
        residual_blocks: residual blocks of a level in the encoder; the decoder has one more.
        attention: sides of the levels whose pixels attend to each other after each block.
        latent: channels of the encoder's output.
        quantiser: how these become tokens.
        transformer: sizes of the transformer.
        tokeniser_frames: largest number of frames of each batch that the tokeniser is fitted on.
        tokeniser_updates: updates that fit the tokeniser alone, after which it is frozen, each
            frame is encoded once, and the transformer is fitted; 0 fits both in every update, each
            by its own loss.
        objective: units of the rewards and weights of the losses.
    """

    image_size: int = 32
    channels: tuple[int, ...] = (16, 32, 32, 32)
    residual_blocks: int = 1
    attention: tuple[int, ...] = ()
    latent: int = 32
    quantiser: QuantiserConfig = field(default_factory=QuantiserConfig)
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    tokeniser_frames: int = 64
    tokeniser_updates: int = 500
    objective: TokenObjective = field(default_factory=TokenObjective)

    def __post_init__(self) -> None:
        check_at_least(self, 1, "image_size", "residual_blocks", "latent", "tokeniser_frames")
        check_at_least(self, 0, "tokeniser_updates")
        check_levels(self.image_size, self.channels, len(self.channels) - 1)


@dataclass(frozen=True, kw_only=True)
class DeltaIRISConfig:
    """Sizes of Delta-IRIS; the defaults are a small model for images of 32 by 32 on a CPU.

    Attributes:
        image_size: side in pixels that images are resized to.
        channels: channels of each level of the convolutional networks.
        halved: for each level, whether the side is halved after it; the last level's side is that
            of the grid which is divided among the tokens.
        latent: channels of that grid.
        token_side: tokens along each side of the grid.
        quantiser: how the parts of the grid become tokens.
        transformer: sizes of the transformer. Its width is shared by the pixels of the grid: a
            frame is one entry, its embedding at that size.
        tokeniser_frames: largest number of transitions of each batch that the tokeniser is fitted
            on.
        tokeniser_updates: as of `IRISConfig`.
        objective: units of the rewards and weights of the losses.
    """

    image_size: int = 32
    channels: tuple[int, ...] = (16, 32, 32)
    halved: tuple[bool, ...] = (True, True, False)
    latent: int = 8
    token_side: int = 2
    quantiser: QuantiserConfig = field(default_factory=QuantiserConfig)
    transformer: TransformerConfig = field(default_factory=lambda: TransformerConfig(context=8))
    tokeniser_frames: int = 64
    tokeniser_updates: int = 500
    objective: TokenObjective = field(default_factory=TokenObjective)

    def __post_init__(self) -> None:
        check_at_least(self, 1, "image_size", "latent", "token_side", "tokeniser_frames")
        check_at_least(self, 0, "tokeniser_updates")
        if len(self.halved) != len(self.channels):
            raise ValueError(
                f"{len(self.channels)} channels {self.channels} and {len(self.halved)} flags "
                f"halved={self.halved}: give one flag for each level"
            )
        check_levels(self.image_size, self.channels, sum(self.halved))
        if self.side % self.token_side:
            raise ValueError(
                f"a grid of {self.side} by {self.side} cannot be divided among "
                f"{self.token_side} by {self.token_side} tokens; pass a token_side that divides it"
            )
        if self.transformer.width % self.side**2:
            raise ValueError(
                f"transformer.width={self.transformer.width} is not divisible among the "
                f"{self.side**2} pixels of a grid of {self.side} by {self.side}; pass a multiple"
            )

    @property
    def side(self) -> int:
        """Side of the grid."""
        return self.image_size >> sum(self.halved)


PRESETS: Mapping[str, IRISConfig] = {
    "iris": IRISConfig(
        image_size=64,
        channels=(64,) * 5,
        residual_blocks=2,
        attention=(8, 16),
        latent=512,
        quantiser=QuantiserConfig(levels=()),
        transformer=TransformerConfig(context=20, width=256, blocks=10, heads=4, dropout=0.1),
        tokeniser_frames=256,
        tokeniser_updates=0,
        objective=TokenObjective(rewards="sign", absolute=1.0, squared=0.0, worst=0.0),
    ),
    "iris-16": IRISConfig(
        image_size=16,
        channels=(16, 16, 16),
        latent=16,
        quantiser=QuantiserConfig(levels=(8, 4, 4)),
        transformer=TransformerConfig(context=5, width=64, blocks=2),
    ),
}
"""Micheli et al. (arXiv 2209.00588), for images of Atari games, whose rewards count by their sign,
but without their perceptual loss, which needs the weights of another network; and a size for images
of 16 by 16 on a CPU, which is not published."""

PRESET_FITS: Mapping[str, Mapping[str, Any]] = {
    "iris": {
        "optimizer": "adamw",
        "learning_rate": 1e-4,
        "weight_decay": 1e-2,
        "schedule": "constant",
        "warm_up": 0,
        "gradient_clip": 10.0,
        "clip_by": "norm",
        "batch_size": 64,
        "segment_length": 19,
    }
}
"""How the authors fit the transformer, by sequences of 20 frames. They fit the tokeniser to other
batches of 256 frames, without weight decay."""

DELTA_PRESETS: Mapping[str, DeltaIRISConfig] = {
    "delta-iris": DeltaIRISConfig(
        image_size=64,
        channels=(32, 32, 64, 64, 128),
        halved=(True, False, True, True, False),
        latent=16,
        quantiser=QuantiserConfig(levels=(), codes=1024, width=64, decay=0.99),
        transformer=TransformerConfig(context=26, width=256, blocks=3, heads=4, dropout=0.1),
        tokeniser_frames=256,
        tokeniser_updates=0,
        objective=TokenObjective(
            rewards="sign", commitment=0.02, tokens=0.1, reward=1.0, termination=0.1
        ),
    ),
}
"""Micheli et al. (arXiv 2406.19320), for images of Atari games. The transformer and its embedding
of frames have the published sizes; the tokeniser's networks are of the same kind as that."""

DELTA_PRESET_FITS: Mapping[str, Mapping[str, Any]] = {
    "delta-iris": {**PRESET_FITS["iris"], "segment_length": 26},
}
"""Sequences of the published length, and otherwise as IRIS is fitted."""
