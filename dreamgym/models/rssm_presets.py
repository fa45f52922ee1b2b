"""The published RSSMs by name.

Sizes are those of the authors' papers and public code (google-research/planet, danijar/dreamer,
danijar/dreamerv2 with its Atari settings, danijar/dreamerv3). Vectors, which the first two did not
have, go through layers of the width of their heads. What the authors did to rewards before a model
saw them (clipping) is the environment's business. None of them ends a dream that leaves the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dreamgym.models.rssm_config import RSSMConfig, RSSMObjective

_UNIT_NORMAL = RSSMObjective(vectors="raw", rewards="raw", vector=0.5, image=0.5, reward=0.5)
"""Negative log likelihoods of normal distributions of spread one."""

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
    # The code weighs the log likelihood of the reward by ten.
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
    # A KL of weight 0.1, of which 0.8 goes to the prior.
    objective=replace(_UNIT_NORMAL, termination=5.0, dyn=0.08, rep=0.02, free_nats=0.0),
)


def _dreamer_v3(deter: int, hidden: int, classes: int, depth: int) -> RSSMConfig:
    """DreamerV3: vectors and rewards squashed, one set of losses for every size."""
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

FITS: Mapping[str, Mapping[str, Any]] = {
    "planet": _PLANET_FIT,
    "dreamer-v1": {**_PLANET_FIT, "learning_rate": 6e-4, "eps": 1e-7, "gradient_clip": 100.0},
    "dreamer-v2": {
        **_ADAM,
        "optimizer": "adamw",
        "learning_rate": 2e-4,
        "eps": 1e-5,
        # Theirs, 1e-6, is not multiplied by the learning rate.
        "weight_decay": 1e-6 / 2e-4,
        "gradient_clip": 100.0,
        "batch_size": 16,
        "segment_length": 50,
    },
    "dreamer-v3-1m": _DREAMER_V3_FIT,
    "dreamer-v3-12m": _DREAMER_V3_FIT,
    "dreamer-v3-200m": _DREAMER_V3_FIT,
}
"""How their authors fit them, by preset: for hundreds of thousands of updates, while data comes in.

The eps of Dreamer v1 is that of its library. PlaNet's code lets the learning rate rise over the
first 10,000 updates, more than a fit of logged data often has; its paper says nothing of it.
"""
