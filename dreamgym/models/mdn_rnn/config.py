"""Sizes of an MDN-RNN, and the published ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dreamgym._settings import check_at_least

LOG_SIGMA_MAX = 2.0
"""Ceiling of a component's log standard deviation."""


@dataclass(frozen=True, kw_only=True)
class MDNRNNConfig:
    """Sizes of an MDN-RNN: V, the VAE of its images, and M, the recurrent model of V's latents.

    Attributes:
        hidden: width of the LSTM.
        mixtures: components of the mixture that predicts each dimension of z.
        trunk: width of the hidden layer between LSTM and mixtures, which also sees z and the
            action; 0 for mixtures straight from the LSTM, as published.
        head: width of the hidden layers of the reward and termination heads, which see the
            predicted transition (`TransitionHeads`); 0 for linear heads on h, as published.
        log_sigma_min: floor of a component's log standard deviation, in units of the standard
            deviation of the deltas.
        range_margin: share of the training data's range by which it is widened on each side, at
            least by three typical changes in a step; a dream that leaves the widened range ends
            with the worst return in the data.
        restart_flag: whether M also sees a flag that is one at an episode's start, as for Doom.
        image_size: height and width that images are resized to for the VAE.
        latent: width of an image's z.
        width: factor on the channels of the VAE; 1 is the paper's.
        kl_tolerance: free nats for each dimension of an image's z.
        kl_scale: weight of the VAE's KL divergence; 1 as published, less makes z less noisy.
        foreground: additional weight of the VAE's errors, proportional to how far a pixel differs
            from the mean frame; 0 as published.
        vision_frames: largest number of frames of each batch that the VAE is fitted on.
        vision_updates: updates that fit the VAE alone, after which it is frozen and M is fitted, as
            the authors did; 0 fits both in every update, each by its own loss.
    """

    hidden: int = 64
    mixtures: int = 5
    trunk: int = 64
    head: int = 64
    log_sigma_min: float = -3.0
    range_margin: float = 0.3
    restart_flag: bool = False
    image_size: int = 64
    latent: int = 32
    width: float = 0.5
    kl_tolerance: float = 0.5
    kl_scale: float = 1.0
    foreground: float = 0.0
    vision_frames: int = 128
    vision_updates: int = 0

    def __post_init__(self) -> None:
        check_at_least(self, 1, "hidden", "mixtures", "latent", "image_size", "vision_frames")
        check_at_least(self, 0, "trunk", "head", "vision_updates", "range_margin")
        check_at_least(self, 0, "kl_tolerance", "kl_scale", "foreground")
        if self.width <= 0:
            raise ValueError(f"width={self.width}: expected a number above 0")
        if self.log_sigma_min >= LOG_SIGMA_MAX:
            raise ValueError(
                f"log_sigma_min={self.log_sigma_min}: expected a number below {LOG_SIGMA_MAX}"
            )


PRESETS: Mapping[str, MDNRNNConfig] = {
    "carracing": MDNRNNConfig(hidden=256, trunk=0, head=0, latent=32, width=1.0),
    "doom": MDNRNNConfig(hidden=512, trunk=0, head=0, latent=64, width=1.0, restart_flag=True),
}
"""The models of Ha and Schmidhuber (arXiv 1803.10122, appendix A)."""

_PUBLISHED_FIT: Mapping[str, Any] = {
    "optimizer": "adam",
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "gradient_clip": 1.0,
    "clip_by": "value",
    "schedule": "constant",
    "warm_up": 0,
    "batch_size": 100,
}

PRESET_FITS: Mapping[str, Mapping[str, Any]] = {
    "carracing": _PUBLISHED_FIT,
    "doom": _PUBLISHED_FIT,
}
"""How the authors fit M: in batches of 100 sequences.

Their sequences are whole episodes (999 steps of CarRacing, 500 of Doom) of frames that V, fitted
before with a learning rate of 1e-4, has encoded once. Here V encodes every batch, and sequences
have the fit's `segment_length`.
"""
