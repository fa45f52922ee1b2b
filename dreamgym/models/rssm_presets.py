"""The published RSSMs by name.

Sizes are those of the authors' papers and public code (google-research/planet, danijar/dreamer,
danijar/dreamerv2 with its Atari settings, danijar/dreamerv3). Vectors, which the first two did not
have, go through layers of the width of their heads. What the authors did to rewards before a model
saw them (clipping) is the environment's business. None of them ends a dream that leaves the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

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
