"""Sizes and losses of Genie, and the published ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from dreamgym._settings import check_at_least, check_choice
from dreamgym.models.nn.conditional_conv import GROUP
from dreamgym.models.nn.image_tokens import TokeniserObjective, check_levels
from dreamgym.models.nn.quantisers import MAX_CODES, QuantiserConfig

Actions = Literal["real", "latent"]


@dataclass(frozen=True, kw_only=True)
class GenieObjective(TokeniserObjective):
    """Units of the rewards, and weights of the losses; see `TokeniserObjective`.

    Attributes:
        commitment: as there, of tokens and of latent actions. The error of pixels is small: with a
            weight of 1 the vectors follow the codes and not the frames.
        latent_actions: weight of the pixels' error of the next frame, given the latent action,
            which trains the latent action model; it is made up of those of the tokeniser.
        tokens: weight of the cross-entropy of masked tokens, which trains the dynamics.
        action_map: weight of the cross-entropy of the latent action, given the real one.
        reward: weight of the reward's loss.
        termination: weight of the termination's cross-entropy, without class weights.
    """

    commitment: float = 0.02
    latent_actions: float = 1.0
    tokens: float = 1.0
    action_map: float = 1.0
    reward: float = 1.0
    termination: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        heads = ("latent_actions", "tokens", "action_map", "reward", "termination")
        check_at_least(self, 0, *heads)


@dataclass(frozen=True, kw_only=True)
class GenieConfig:
    """Sizes of Genie; the defaults are a small model for images of 32 by 32 on a CPU.

    Attributes:
        action_space: the actions of dreams, "real" or "latent". A fit needs "real";
            `Genie.in_latent_actions` gives a fitted model the other one.
        image_size: side in pixels that images are resized to, a multiple of
            `2 ** (len(channels) - 1)`.
        channels: channels of each level of the tokeniser; each pixel of the last one is a token.
        residual_blocks: residual blocks of a level in the encoder; the decoder has one more.
        attention: sides of the levels whose pixels attend to each other after each block.
        latent: channels of the encoder's output.
        quantiser: how these become tokens.
        latent_actions: how the change to a frame becomes one of a few latent actions.
        context: frames before its own that a token attends to in one block. Through all blocks the
            model sees `blocks` times as many.
        width: width of the tokens, and of the heads' hidden layers.
        blocks: blocks of the dynamics, each with attention over space and over time.
        heads: attention heads.
        action_frames: frames before the next one that the latent action model sees, at most
            `context` times `blocks`.
        action_patch: side in pixels of its patches, a divisor of `image_size`.
        action_width: channels of its convolutions, a multiple of 32 above 64.
        action_blocks: residual blocks of its encoder, and of its decoder.
        steps: MaskGIT steps that draw a frame, at most its tokens.
        min_mask_rate: smallest rate at which a frame's tokens are masked in fitting; the rate of
            each frame is uniform between it and 1.
        tokeniser_frames: largest number of frames of each batch that the tokeniser is fitted on,
            and of transitions that the latent action model is fitted on.
        tokeniser_updates: updates that fit the tokeniser alone, after which it is frozen; 0 fits
            everything in every update, each by its own loss.
        action_updates: updates after these that fit the latent action model alone, after which it
            is frozen; 0 fits it along with the dynamics.
        objective: units of the rewards and weights of the losses.
    """

    action_space: Actions = "real"
    image_size: int = 32
    channels: tuple[int, ...] = (16, 32, 32, 32)
    residual_blocks: int = 1
    attention: tuple[int, ...] = ()
    latent: int = 32
    quantiser: QuantiserConfig = field(default_factory=QuantiserConfig)
    latent_actions: QuantiserConfig = field(
        default_factory=lambda: QuantiserConfig(levels=(2, 2, 2))
    )
    context: int = 4
    width: int = 128
    blocks: int = 3
    heads: int = 4
    action_frames: int = 2
    action_patch: int = 4
    action_width: int = 32
    action_blocks: int = 2
    steps: int = 3
    min_mask_rate: float = 0.5
    tokeniser_frames: int = 64
    tokeniser_updates: int = 500
    action_updates: int = 500
    objective: GenieObjective = field(default_factory=GenieObjective)

    def __post_init__(self) -> None:
        check_choice("action_space", self.action_space, get_args(Actions))
        check_at_least(self, 1, "image_size", "residual_blocks", "latent", "tokeniser_frames")
        check_at_least(self, 1, "context", "width", "blocks", "heads", "steps")
        check_at_least(self, 1, "action_frames", "action_patch", "action_width", "action_blocks")
        check_at_least(self, 0, "tokeniser_updates", "action_updates")
        check_levels(self.image_size, self.channels, len(self.channels) - 1)
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width={self.width} is not divisible into heads={self.heads} heads of an even "
                "width; pass a multiple of twice the heads"
            )
        if self.action_frames > self.window:
            raise ValueError(
                f"action_frames={self.action_frames}: a state has the last {self.window} frames "
                "(context x blocks); pass at most as many"
            )
        if self.latent_actions.count >= MAX_CODES:
            raise ValueError(
                f"{self.latent_actions.count} latent actions: expected less than {MAX_CODES}, as "
                "one more number stands for none"
            )
        if self.image_size % self.action_patch:
            raise ValueError(
                f"images of {self.image_size} pixels cannot be cut into patches of "
                f"{self.action_patch}: pass a divisor of image_size as action_patch"
            )
        groups = max(1, self.action_width // GROUP)
        if self.action_width % groups:
            raise ValueError(
                f"action_width={self.action_width} is not divisible into {groups} groups; pass a "
                f"multiple of {GROUP}, or less than {2 * GROUP}"
            )
        if self.steps > self.tokens:
            raise ValueError(
                f"steps={self.steps}: a frame has {self.tokens} tokens, and every step draws at "
                "least one; pass at most as many"
            )
        if not 0 <= self.min_mask_rate < 1:
            raise ValueError(
                f"min_mask_rate={self.min_mask_rate}: expected a rate of at least 0 and below 1"
            )
        if self.action_updates and not self.tokeniser_updates:
            raise ValueError(
                f"action_updates={self.action_updates} and tokeniser_updates=0: latent actions are "
                "inferred from tokens, so they cannot be frozen before these; give both or neither"
            )

    @property
    def tokens(self) -> int:
        """Tokens of a frame."""
        return (self.image_size >> (len(self.channels) - 1)) ** 2

    @property
    def window(self) -> int:
        """Frames that an output depends on, besides its own."""
        return self.context * self.blocks


PRESETS: Mapping[str, GenieConfig] = {
    "genie-coinrun": GenieConfig(
        image_size=64,
        channels=(64, 128, 256),
        residual_blocks=2,
        latent=256,
        quantiser=QuantiserConfig(levels=(), codes=1024, width=32, decay=0.99),
        latent_actions=QuantiserConfig(levels=(), codes=6, width=32, decay=0.99),
        context=2,
        width=512,
        blocks=12,
        heads=8,
        action_width=128,
        action_blocks=4,
        steps=25,
        tokeniser_frames=256,
        tokeniser_updates=100_000,
        action_updates=50_000,
    ),
    "genie-16": GenieConfig(
        image_size=16,
        channels=(16, 16, 16),
        latent=16,
        quantiser=QuantiserConfig(levels=(8, 4, 4)),
        width=64,
        blocks=2,
    ),
}
"""The size of the CoinRun study of arXiv 2402.15391, as the public reproduction Jafar has it (Willi
et al. 2024): 256 tokens of 1,024 codes of width 32, 6 latent actions of width 32, dynamics of 12
blocks of width 512 with 8 heads, 25 MaskGIT steps. Every block of theirs sees 16 frames; here each
sees 2 before its own, and all together 24. The networks of the tokeniser and of the latent action
model are others, and so are the phases: theirs take 200,000 to 300,000 updates each. And a size for
images of 16 by 16 on a CPU, which is not published."""

PRESET_FITS: Mapping[str, Mapping[str, Any]] = {
    "genie-coinrun": {
        "optimizer": "adamw",
        "learning_rate": 3e-5,
        "weight_decay": 1e-4,
        "schedule": "cosine",
        "warm_up": 5000,
        "batch_size": 36,
        "gradient_clip": 10.0,
        "clip_by": "norm",
        "segment_length": 15,
    }
}
"""How the reproduction fits the dynamics, by sequences of 16 frames."""
