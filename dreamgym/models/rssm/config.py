"""Sizes and losses of the RSSM, and those of the published ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from dreamgym._settings import check_at_least, check_choice
from dreamgym.models.nn.conv import ACTIVATIONS
from dreamgym.models.nn.objective import LatentObjective

Norm = Literal["none", "gates", "layer", "rms"]


@dataclass(frozen=True, kw_only=True)
class RSSMObjective(LatentObjective):
    """Targets and losses of an RSSM; see `LatentObjective`."""


@dataclass(frozen=True, kw_only=True)
class RSSMConfig:
    """Sizes of an RSSM; the defaults are a small model in the style of DreamerV3.

    Attributes:
        deter: width of the deterministic, recurrent state h.
        hidden: width of the layers around it.
        stoch: number of categoricals, or of Gaussian dimensions, in the stochastic state z.
        classes: classes of each categorical; 0 makes z Gaussian.
        blocks: blocks of DreamerV3's block-diagonal GRU; 0 for an ordinary GRU.
        prior_layers: hidden layers between h and the prior over z.
        norm: what is normalised: "none", "gates" (the GRU's gates, by LayerNorm), or every layer by
            "layer" (LayerNorm) or "rms" (RMSNorm).
        activation: activation of every layer: "relu", "elu" or "silu".
        units: width of the layers of vector encoder, vector decoder and heads.
        layers: hidden layers of the vector encoder and of the vector decoder.
        head_layers: hidden layers of the reward head and of the termination head.
        image_depth: channels of the first convolution on images.
        unimix: share of the uniform distribution in every categorical.
        range_margin: share of the training data's range by which it is widened on each side; a
            dream whose vectors leave the widened range ends with the worst return in the data. None
            turns this off, as in the published models.
        objective: units of the targets and weights of the losses.
    """

    deter: int = 128
    hidden: int = 128
    stoch: int = 16
    classes: int = 16
    blocks: int = 4
    prior_layers: int = 1
    norm: Norm = "rms"
    activation: str = "silu"
    units: int = 128
    layers: int = 2
    head_layers: int = 1
    image_depth: int = 16
    unimix: float = 0.01
    range_margin: float | None = 0.3
    objective: RSSMObjective = field(default_factory=RSSMObjective)

    def __post_init__(self) -> None:
        check_at_least(self, 1, "deter", "hidden", "stoch", "prior_layers")
        check_at_least(self, 1, "units", "layers", "image_depth")
        check_at_least(self, 0, "head_layers")
        if self.classes < 0 or self.classes == 1:
            raise ValueError(
                f"classes={self.classes}: expected at least 2, or 0 for a Gaussian state"
            )
        if self.blocks < 0 or (self.blocks and self.deter % self.blocks):
            raise ValueError(
                f"deter={self.deter} is not divisible into blocks={self.blocks} equal blocks; pass "
                "a divisor of deter, or 0 for an ordinary GRU"
            )
        check_choice("norm", self.norm, get_args(Norm))
        check_choice("activation", self.activation, ACTIVATIONS)
        if not 0 <= self.unimix < 1:
            raise ValueError(f"unimix={self.unimix}: expected a share of at least 0 and below 1")


# Negative log likelihoods of unit-variance normal distributions.
_UNIT_NORMAL = RSSMObjective(vectors="raw", rewards="raw", vector=0.5, image=0.5, reward=0.5)

_PLANET = RSSMConfig(
    deter=200,
    hidden=200,
    stoch=30,
    classes=0,
    blocks=0,
    norm="none",
    activation="relu",
    units=200,
    layers=2,
    head_layers=2,
    image_depth=32,
    unimix=0.0,
    range_margin=None,
    # The published code multiplies the reward's log likelihood by ten.
    objective=replace(_UNIT_NORMAL, reward=5.0, rep=1.0, free_nats=3.0),
)

_DREAMER_V1 = replace(
    _PLANET,
    activation="elu",
    units=400,
    objective=replace(_UNIT_NORMAL, termination=10.0, rep=1.0, free_nats=3.0, free_nats_of="batch"),
)

_DREAMER_V2 = replace(
    _DREAMER_V1,
    deter=600,
    hidden=600,
    stoch=32,
    classes=32,
    norm="gates",
    layers=4,
    head_layers=4,
    image_depth=48,
    # KL weight 0.1, of which 0.8 trains the prior.
    objective=replace(_UNIT_NORMAL, termination=5.0, dyn=0.08, rep=0.02, free_nats=0.0),
)


def _dreamer_v3(deter: int, hidden: int, classes: int, depth: int) -> RSSMConfig:
    """Return a DreamerV3 of one size; all sizes have the same losses."""
    return RSSMConfig(
        deter=deter,
        hidden=hidden,
        stoch=32,
        classes=classes,
        blocks=8,
        prior_layers=2,
        norm="rms",
        activation="silu",
        units=hidden,
        layers=3,
        head_layers=1,
        image_depth=depth,
        unimix=0.01,
        range_margin=None,
        objective=RSSMObjective(
            vectors="symlog", rewards="two-hot", vector=1.0, dyn=1.0, rep=0.1, free_nats=1.0
        ),
    )


PRESETS: Mapping[str, RSSMConfig] = {
    "planet": _PLANET,
    "dreamer-v1": _DREAMER_V1,
    "dreamer-v2": _DREAMER_V2,
    "dreamer-v3-1m": _dreamer_v3(512, 64, 4, 4),
    "dreamer-v3-12m": _dreamer_v3(2048, 256, 16, 16),
    "dreamer-v3-200m": _dreamer_v3(8192, 1024, 64, 64),
}
"""Hafner et al.: PlaNet (arXiv 1811.04551), Dreamer (1912.01603), DreamerV2 (2010.02193) and
DreamerV3 (2301.04104)."""

_ADAM: Mapping[str, Any] = {
    "optimizer": "adam",
    "weight_decay": 0.0,
    "schedule": "constant",
    "warm_up": 0,
}

_PLANET_FIT = {
    **_ADAM,
    "learning_rate": 1e-3,
    "eps": 1e-4,
    "gradient_clip": 1000.0,
    "clip_by": "norm",
    "batch_size": 50,
    "segment_length": 50,
}

_DREAMER_V3_FIT = {
    "optimizer": "laprop",
    "learning_rate": 4e-5,
    "betas": (0.9, 0.999),
    "eps": 1e-20,
    "weight_decay": 0.0,
    "gradient_clip": 0.3,
    "clip_by": "agc",
    "schedule": "constant",
    "warm_up": 1000,
    "batch_size": 16,
    "segment_length": 64,
}


PRESET_FITS: Mapping[str, Mapping[str, Any]] = {
    "planet": _PLANET_FIT,
    "dreamer-v1": {**_PLANET_FIT, "learning_rate": 6e-4, "eps": 1e-7, "gradient_clip": 100.0},
    "dreamer-v2": {
        **_ADAM,
        "optimizer": "adamw",
        "learning_rate": 2e-4,
        "eps": 1e-5,
        # The authors' 1e-6 is not multiplied by the learning rate; torch multiplies it.
        "weight_decay": 1e-6 / 2e-4,
        "gradient_clip": 100.0,
        "clip_by": "norm",
        "batch_size": 16,
        "segment_length": 50,
    },
    "dreamer-v3-1m": _DREAMER_V3_FIT,
    "dreamer-v3-12m": _DREAMER_V3_FIT,
    "dreamer-v3-200m": _DREAMER_V3_FIT,
}
"""How the authors of the presets fit them, for hundreds of thousands of updates on growing data.

The eps of Dreamer v1 is the default of its library. PlaNet's code raises the learning rate over the
first 10,000 updates, which is not done here: fits of logged data are often shorter.
"""
