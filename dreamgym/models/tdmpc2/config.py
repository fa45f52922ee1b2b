"""Sizes and losses of TD-MPC2, and the published ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from dreamgym._settings import check_at_least, check_choice
from dreamgym.models.nn.codecs import Units


@dataclass(frozen=True, kw_only=True)
class TDMPC2Config:
    """Sizes and losses of TD-MPC2; the defaults are a small model for a CPU.

    Attributes:
        vectors: units in which observations are encoded: "raw" as published, "symlog" or
            "standard", by the moments of the training data.
        latent: width of the latent.
        group: numbers of the latent that SimNorm makes a distribution; it divides `latent`.
        encoder_layers: layers of the encoder, of which the last gives the latent.
        encoder: width of the encoder's hidden layers.
        mlp: width of the hidden layers of all other networks.
        values: networks in the ensemble of Q functions.
        bins: bins of two-hot rewards and values, an odd number.
        dropout: dropout rate in the first layer of the Q functions, in fitting only.
        zero_init: whether the last layers of reward and Q functions start at zero, as published.
        encoder_rate: learning rate of the encoder, as a share of that of the others.
        discount: discount factor of the values. The authors take (T - 5) / T, limited to 0.95 to
            0.995, for episodes of T steps.
        rho: weight of each further step of a segment in the losses, as a factor.
        consistency: weight of the squared error of predicted latents.
        reward: weight of the reward's cross-entropy.
        value: weight of the values' cross-entropy.
        termination: weight of the termination's cross-entropy; 0 leaves out its head, as published
            for tasks without terminations.
        entropy: weight of the policy's entropy.
        target_rate: share of the Q functions that their targets take over in each update.
        range_margin: share of the training data's range by which it is widened on each side; a
            dream whose vectors, as a probe decodes them, leave the widened range ends with the
            worst return in the data. None leaves out the probe, as in the published model: dreams
            then have no observations.
    """

    vectors: Units = "standard"
    latent: int = 64
    group: int = 8
    encoder_layers: int = 2
    encoder: int = 128
    mlp: int = 128
    values: int = 2
    bins: int = 101
    dropout: float = 0.0
    zero_init: bool = False
    encoder_rate: float = 1.0
    discount: float = 0.99
    rho: float = 0.5
    consistency: float = 20.0
    reward: float = 0.1
    value: float = 0.1
    termination: float = 1.0
    entropy: float = 1e-4
    target_rate: float = 0.01
    range_margin: float | None = 0.3

    def __post_init__(self) -> None:
        check_choice("vectors", self.vectors, get_args(Units))
        check_at_least(self, 1, "latent", "group", "encoder_layers", "encoder", "mlp", "values")
        if self.latent % self.group:
            raise ValueError(
                f"latent={self.latent} is not divisible into groups of group={self.group}; pass a "
                "multiple of group"
            )
        if self.bins < 3 or self.bins % 2 == 0:
            raise ValueError(f"bins={self.bins}: expected an odd number of at least 3")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: expected a share of at least 0 and below 1")
        for name in ("encoder_rate", "discount", "rho", "target_rate"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected a number in (0, 1]")
        check_at_least(self, 0, "consistency", "reward", "value", "termination", "entropy")


def _published(latent: int, mlp: int, values: int) -> TDMPC2Config:
    """Return a published size; the two smallest have the same encoder but for its output."""
    return TDMPC2Config(
        vectors="raw",
        latent=latent,
        encoder=256,
        mlp=mlp,
        values=values,
        dropout=0.01,
        zero_init=True,
        encoder_rate=0.3,
        range_margin=None,
    )


PRESETS: Mapping[str, TDMPC2Config] = {
    "tdmpc2-1m": _published(128, 384, 2),
    "tdmpc2-5m": _published(512, 512, 5),
}
"""Hansen et al. (arXiv 2310.16828), for observations that are vectors."""

_FIT: Mapping[str, Any] = {
    "optimizer": "adam",
    "learning_rate": 3e-4,
    "weight_decay": 0.0,
    "schedule": "constant",
    "warm_up": 0,
    "gradient_clip": 20.0,
    "clip_by": "norm",
    "batch_size": 256,
    "segment_length": 3,
}

PRESET_FITS: Mapping[str, Mapping[str, Any]] = dict.fromkeys(PRESETS, _FIT)
"""How the authors fit them, with one update for each step in the environment."""
