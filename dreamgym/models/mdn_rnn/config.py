"""Sizes of an MDN-RNN."""

from __future__ import annotations

from dataclasses import dataclass

LOG_SIGMA_MAX = 2.0


@dataclass(frozen=True, kw_only=True)
class MDNRNNConfig:
    """Sizes of an MDN-RNN.

    Attributes:
        hidden: width of the LSTM.
        mixtures: components of each dimension's mixture.
        trunk: width of the hidden layer between LSTM and mixtures, which sees z and the action
            again; 0 for mixtures straight from the LSTM, as published.
        head: width of the hidden layers of the reward and termination heads; 0 for linear heads on
            h, as published. Both see the new z and the change to it, the termination head h too,
            the reward head the action: see `TransitionHeads`.
        log_sigma_min: floor of a component's log standard deviation, in units of the deltas'
            spread.
        range_margin: a dream that leaves the training data's range, widened on each side by this
            share of it, ends there with the worst return that the data has seen.
        restart_flag: M also sees whether an episode begins, as it does in Doom.
        image_size: height and width that images are resized to for the VAE.
        latent: width of an image's z.
        width: multiplies the channels of the VAE; 1 is the paper's.
        kl_tolerance: nats for each dimension of an image's z that the VAE may use freely.
        kl_scale: weight of the VAE's divergence; 1 as published, less leaves z less noise.
        foreground: how many times more the VAE's errors weigh where a frame differs by one from the
            mean frame; 0 as published.
        vision_frames: frames of each batch that the VAE is fitted on, at most.
        vision_updates: updates that fit the VAE alone; it stays as it is from then on, and M is
            fitted: so did the authors. 0 fits both in every update, the VAE by its own loss alone.
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
        least = {"hidden": 1, "mixtures": 1, "trunk": 0, "head": 0, "latent": 1}
        least |= {"image_size": 1, "vision_frames": 1, "vision_updates": 0}
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise ValueError(
                    f"{name}={getattr(self, name)}: give a whole number of at least {minimum}"
                )
        for name in ("kl_tolerance", "kl_scale", "foreground", "range_margin"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: give a number of at least 0")
        if self.width <= 0:
            raise ValueError(f"width={self.width}: give a number above 0")
        if self.log_sigma_min >= LOG_SIGMA_MAX:
            raise ValueError(f"log_sigma_min={self.log_sigma_min} must be below {LOG_SIGMA_MAX}")
