"""Sizes and losses of STORM, and the published ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dreamgym._settings import check_at_least, check_choice
from dreamgym.models.nn.conv import ACTIVATIONS
from dreamgym.models.nn.objective import LatentObjective
from dreamgym.models.nn.transformer import check_sizes


@dataclass(frozen=True, kw_only=True)
class STORMObjective(LatentObjective):
    """Targets and losses of STORM; see `LatentObjective`."""


@dataclass(frozen=True, kw_only=True)
class STORMConfig:
    """Sizes of STORM; the defaults are a small model for vectors, or small images, on a CPU.

    Attributes:
        context: latents in a full window. With the next one, the older half is dropped. Segments
            of a fit have at most as many transitions; if all have fewer, windows are as long as the
            longest of them.
        width: width of the tokens, and of the heads' hidden layers.
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
        activation: activation in these: "relu", "elu" or "silu".
        image_depth: channels of the first convolution on images.
        range_margin: share of the training data's range by which it is widened on each side; a
            dream whose vectors leave the widened range ends with the worst return in the data. None
            turns this off, as in the published model.
        objective: units of the targets and weights of the losses.
    """

    context: int = 16
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
    objective: STORMObjective = field(default_factory=STORMObjective)

    def __post_init__(self) -> None:
        check_at_least(self, 2, "context", "classes")
        check_at_least(self, 1, "width", "blocks", "heads", "mlp", "stoch")
        check_at_least(self, 1, "units", "layers", "image_depth")
        check_at_least(self, 0, "head_layers")
        check_choice("activation", self.activation, ACTIVATIONS)
        check_sizes(self)


PRESETS: Mapping[str, STORMConfig] = {
    "storm": STORMConfig(
        context=64,
        width=512,
        blocks=2,
        heads=8,
        mlp=1024,
        pre_norm=False,
        dropout=0.1,
        stoch=32,
        classes=32,
        image_depth=32,
        units=512,
        range_margin=None,
        objective=STORMObjective(
            vectors="symlog",
            rewards="symlog-two-hot",
            vector=1.0,
            dyn=0.5,
            rep=0.1,
            free_nats=1.0,
            free_nats_of="batch",
        ),
    )
}
"""Zhang et al. (arXiv 2310.09615), for images of Atari games."""

PRESET_FITS: Mapping[str, Mapping[str, Any]] = {
    "storm": {
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
