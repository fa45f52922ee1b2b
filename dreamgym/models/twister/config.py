"""Sizes and losses of TWISTER, and the published ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dreamgym._settings import check_at_least, check_choice
from dreamgym.models.nn.conv import ACTIVATIONS
from dreamgym.models.nn.objective import LatentObjective
from dreamgym.models.nn.transformer import check_sizes


@dataclass(frozen=True, kw_only=True)
class TWISTERObjective(LatentObjective):
    """Targets and losses of TWISTER; see `LatentObjective` for the others.

    Attributes:
        contrastive: weight of the contrastive loss; at 0 it is left out, and its networks too.
        contrastive_steps: how many latents the contrastive loss predicts: the present one, and
            those up to this number less one steps ahead.
        contrastive_decay: ratio of the weights of two consecutive ones; weights sum to one.
        smallest_crop: smallest share of an image's area that is cropped for the contrastive loss;
            at 1 the latents of the images themselves are predicted.
    """

    contrastive: float = 1.0
    contrastive_steps: int = 4
    contrastive_decay: float = 0.75
    smallest_crop: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 0, "contrastive")
        check_at_least(self, 1, "contrastive_steps")
        for name in ("contrastive_decay", "smallest_crop"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected above 0 and at most 1")

    @property
    def step_weights(self) -> list[float]:
        """Weight of each of the `contrastive_steps`."""
        weights = [self.contrastive_decay**ahead for ahead in range(self.contrastive_steps)]
        return [weight / sum(weights) for weight in weights]


@dataclass(frozen=True, kw_only=True)
class TWISTERConfig:
    """Sizes of TWISTER; the defaults are a small model for vectors, or small images, on a CPU.

    Attributes:
        context: latents before its own that a token attends to in one block. Through all blocks the
            model sees `blocks` times as many, and its state holds them.
        width: width of the tokens, and of the hidden layers of the heads.
        blocks: transformer blocks.
        heads: attention heads.
        mlp: width of the hidden layer in each block.
        pre_norm: whether blocks normalise their inputs, which can be fitted with larger learning
            rates, and not their sums, as published.
        dropout: dropout rate in attention and blocks, in fitting only.
        stoch: number of categoricals in a latent.
        classes: classes of each categorical, at most 256.
        unimix: share of the uniform distribution in every categorical.
        head_layers: hidden layers of the reward head and of the termination head.
        units: width of the layers of the vector encoder and the vector decoder.
        layers: hidden layers of the vector encoder and of the vector decoder.
        activation: activation in these, in the heads and on images: "relu", "elu" or "silu".
        image_depth: channels of the first convolution on images.
        range_margin: share of the training data's range by which it is widened on each side; a
            dream whose vectors leave the widened range ends with the worst return in the data. None
            turns this off, as in the published model.
        objective: units of the targets and weights of the losses.
    """

    context: int = 8
    width: int = 128
    blocks: int = 2
    heads: int = 4
    mlp: int = 256
    pre_norm: bool = True
    dropout: float = 0.0
    stoch: int = 16
    classes: int = 16
    unimix: float = 0.01
    head_layers: int = 2
    units: int = 128
    layers: int = 2
    activation: str = "silu"
    image_depth: int = 16
    range_margin: float | None = 0.3
    objective: TWISTERObjective = field(default_factory=TWISTERObjective)

    def __post_init__(self) -> None:
        check_at_least(self, 2, "classes")
        check_at_least(self, 1, "context", "width", "blocks", "heads", "mlp", "stoch")
        check_at_least(self, 1, "units", "layers", "image_depth")
        check_at_least(self, 0, "head_layers")
        check_choice("activation", self.activation, ACTIVATIONS)
        check_sizes(self)

    @property
    def window(self) -> int:
        """Tokens that an output depends on."""
        return self.blocks * self.context + 1


PRESETS: Mapping[str, TWISTERConfig] = {
    "twister": TWISTERConfig(
        context=8,
        width=512,
        blocks=4,
        heads=8,
        mlp=1024,
        pre_norm=False,
        dropout=0.1,
        stoch=32,
        classes=32,
        image_depth=32,
        units=512,
        range_margin=None,
        objective=TWISTERObjective(
            vectors="symlog",
            rewards="symlog-two-hot",
            vector=1.0,
            dyn=0.5,
            rep=0.1,
            free_nats=1.0,
            contrastive_steps=10,
        ),
    )
}
"""Burchi and Timofte (arXiv 2503.04416), for images of Atari games."""

PRESET_FITS: Mapping[str, Mapping[str, Any]] = {
    "twister": {
        "optimizer": "adam",
        "learning_rate": 1e-4,
        "weight_decay": 0.0,
        "schedule": "constant",
        "warm_up": 0,
        "gradient_clip": 1000.0,
        "clip_by": "norm",
        "batch_size": 16,
        "segment_length": 64,
    }
}
"""How the authors fit it, with one update for each step in the environment."""
