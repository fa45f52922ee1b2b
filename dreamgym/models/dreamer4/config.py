"""Sizes and losses of Dreamer 4, at small sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from dreamgym._settings import check_at_least, check_choice
from dreamgym.models.nn.codecs import Units
from dreamgym.models.nn.objective import RewardObjective


@dataclass(frozen=True, kw_only=True)
class Dreamer4Objective(RewardObjective):
    """Targets and losses of Dreamer 4; see `RewardObjective` for those of rewards.

    Attributes:
        vectors: units in which vectors are encoded and predicted; see `LatentObjective`.
        image_size: side in pixels that images are resized to, a multiple of the patch.
        dropped: largest share of an observation's patches that the tokeniser must do without; the
            share is drawn for each observation. A vector is never dropped.
        vector: weight of the vectors' squared errors, summed over numbers.
        image: weight of the images' squared errors, summed over numbers, with pixels in [0, 1].
        dynamics: weight of the squared errors of latents, summed over numbers.
        reward: weight of the reward's loss.
        termination: weight of the termination's cross-entropy.
        bootstrapped: share of a batch's rows that learns larger steps from two half as large.
    """

    vectors: Units = "standard"
    image_size: int = 32
    dropped: float = 0.9
    vector: float = 1.0
    image: float = 1.0
    dynamics: float = 1.0
    reward: float = 1.0
    termination: float = 1.0
    bootstrapped: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("vectors", self.vectors, get_args(Units))
        check_at_least(self, 1, "image_size")
        check_at_least(self, 0, "vector", "image", "dynamics", "reward", "termination")
        for name in ("dropped", "bootstrapped"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"{name}={getattr(self, name)}: expected a share of at least 0 and below 1"
                )


@dataclass(frozen=True, kw_only=True)
class Dreamer4Config:
    """Sizes of Dreamer 4; the defaults are a small model for vectors, or small images, on a CPU.

    Attributes:
        patch: side in pixels of the patches of images.
        latents: latent tokens of the tokeniser.
        channels: numbers in each of them, within [-1, 1].
        packing: latent tokens that are one token of the dynamics; a divisor of `latents`.
        tokenizer_width: width of the tokeniser's tokens.
        tokenizer_blocks: blocks of its encoder, and of its decoder.
        tokenizer_updates: updates in which the tokeniser alone is fitted, before the dynamics on a
            frozen one; at 0 both are fitted at once, and the dynamics has no gradient in it.
        context: observations before its own that a token attends to in one block with attention
            over time. Through all such blocks the model sees as many times more.
        width: width of the tokens of the dynamics, and of the hidden layers of the heads.
        blocks: blocks of the dynamics.
        time_every: every so many blocks, one attends over time too.
        heads: attention heads, in the tokeniser as well.
        mlp: width of the blocks' hidden layers, as a multiple of the tokens'.
        registers: tokens of the dynamics beside those of action, noise, latents and features.
        finest: denoising steps in the finest sampling that is learnt; a power of two.
        steps: denoising steps of a dream; a power of two up to `finest`.
        head_layers: hidden layers of the reward head and of the termination head.
        range_margin: share of the training data's range by which it is widened on each side; a
            dream whose vectors leave the widened range ends with the worst return in the data. None
            turns this off.
        objective: units of the targets and weights of the losses.
    """

    patch: int = 8
    latents: int = 4
    channels: int = 8
    packing: int = 1
    tokenizer_width: int = 64
    tokenizer_blocks: int = 2
    tokenizer_updates: int = 0
    context: int = 8
    width: int = 64
    blocks: int = 2
    time_every: int = 2
    heads: int = 4
    mlp: int = 2
    registers: int = 1
    finest: int = 8
    steps: int = 4
    head_layers: int = 1
    range_margin: float | None = 0.3
    objective: Dreamer4Objective = field(default_factory=Dreamer4Objective)

    def __post_init__(self) -> None:
        check_at_least(self, 1, "patch", "latents", "channels", "packing", "context", "heads")
        check_at_least(self, 1, "tokenizer_width", "tokenizer_blocks", "width", "blocks", "mlp")
        check_at_least(self, 1, "time_every", "steps")
        check_at_least(self, 2, "finest")
        check_at_least(self, 0, "registers", "tokenizer_updates", "head_layers")
        for name in ("tokenizer_width", "width"):
            if getattr(self, name) % (2 * self.heads):
                raise ValueError(
                    f"{name}={getattr(self, name)} is not divisible into heads={self.heads} heads "
                    "of an even width; pass a multiple of twice the heads"
                )
        if self.latents % self.packing:
            raise ValueError(f"packing={self.packing} is not a divisor of latents={self.latents}")
        if self.finest & (self.finest - 1) or self.steps & (self.steps - 1):
            raise ValueError(f"finest={self.finest}, steps={self.steps}: expected powers of two")
        if self.steps > self.finest:
            raise ValueError(f"steps={self.steps}: expected at most finest={self.finest}")
        if self.blocks < self.time_every:
            raise ValueError(
                f"time_every={self.time_every} leaves no attention over time in "
                f"blocks={self.blocks}; pass at most as many"
            )

    @property
    def window(self) -> int:
        """Observations before its own that an output depends on."""
        return self.blocks // self.time_every * self.context

    @property
    def tokens(self) -> int:
        """Tokens of the dynamics that hold the latents of one observation."""
        return self.latents // self.packing


PRESETS: Mapping[str, Dreamer4Config] = {
    "dreamer4-32px": Dreamer4Config(
        patch=4,
        latents=16,
        channels=32,
        packing=2,
        tokenizer_width=64,
        tokenizer_blocks=8,
        tokenizer_updates=20_000,
        context=32,
        width=128,
        blocks=8,
        time_every=4,
        heads=4,
        mlp=4,
        registers=4,
        finest=8,
        steps=4,
        range_margin=None,
        objective=Dreamer4Objective(rewards="two-hot"),
    )
}
"""Sizes of a public port (edwhu/dreamer4-jax) for images of 32 by 32, after Hafner et al. (arXiv
2509.24527), whose own models have 400 million and 1.6 billion parameters."""

PRESET_FITS: Mapping[str, Mapping[str, Any]] = {
    "dreamer4-32px": {
        "optimizer": "adam",
        "learning_rate": 3e-4,
        "weight_decay": 0.0,
        "schedule": "constant",
        "warm_up": 0,
        "gradient_clip": 1.0,
        "clip_by": "norm",
        "batch_size": 64,
        "segment_length": 64,
    }
}
"""How the port is fitted, but for the clipping and the length of the first phase."""
