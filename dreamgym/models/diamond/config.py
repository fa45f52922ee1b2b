"""Sizes, diffusion and losses of DIAMOND, and the published ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dreamgym._settings import check_at_least
from dreamgym.models.nn.conditional_conv import HEAD_WIDTH
from dreamgym.models.nn.objective import RewardObjective


@dataclass(frozen=True, kw_only=True)
class DIAMONDObjective(RewardObjective):
    """Units of the rewards, and weights of the losses; see `RewardObjective`.

    Attributes:
        frame: weight of the denoiser's squared error.
        reward: weight of the reward's loss.
        termination: weight of the termination's cross-entropy, without class weights.
    """

    frame: float = 1.0
    reward: float = 1.0
    termination: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 0, "frame", "reward", "termination")


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """Noise levels of the diffusion, relative to pixels in [-1, 1]; the defaults are published.

    Attributes:
        sigma_data: standard deviation of a pixel.
        sigma_offset: standard deviation of an offset that is added to all pixels of a channel in
            fitting, so that the network also learns to correct brightness.
        denoising_steps: Euler steps from noise to a frame; each is one evaluation of the network.
        sigma_min: smallest noise level above zero of these steps.
        sigma_max: largest noise level of these steps.
        rho: exponent of the spacing of these levels.
        log_mean: mean of the logarithm of the noise level in fitting.
        log_std: standard deviation of that logarithm.
        fitted_min: smallest noise level in fitting.
        fitted_max: largest noise level in fitting.
        context_noise: largest noise level of the past frames in fitting, in units of `sigma_data`.
            The network is told the level; in dreams it is zero. GameNGen (arXiv 2408.14837) uses
            0.7 against errors that accumulate; 0 turns this off, as published for DIAMOND.
    """

    sigma_data: float = 0.5
    sigma_offset: float = 0.3
    denoising_steps: int = 3
    sigma_min: float = 2e-3
    sigma_max: float = 5.0
    rho: float = 7.0
    log_mean: float = -0.4
    log_std: float = 1.2
    fitted_min: float = 2e-3
    fitted_max: float = 20.0
    context_noise: float = 0.0

    def __post_init__(self) -> None:
        check_at_least(self, 1, "denoising_steps", "rho")
        check_at_least(self, 0, "sigma_offset", "log_std", "context_noise")
        for name in ("sigma_data", "sigma_min", "fitted_min"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected a number above 0")
        for low, high in (("sigma_min", "sigma_max"), ("fitted_min", "fitted_max")):
            check_at_least(self, getattr(self, low), high)


@dataclass(frozen=True, kw_only=True)
class DIAMONDConfig:
    """Sizes of DIAMOND; the defaults are a small model for images of 32 by 32 on a CPU.

    Attributes:
        image_size: side in pixels that images are resized to, a multiple of `2 ** (levels - 1)` of
            both networks.
        frames: past frames, and actions after them, from which the next frame is predicted.
        channels: channels of each level of the denoiser; each level has half the side of the one
            before.
        blocks: residual blocks in each level of the denoiser, going down; one more going up.
        condition: width of the vector of noise level and actions; a multiple of `frames`.
        reward_channels: channels of each level of the network for rewards and terminations.
        reward_blocks: residual blocks in each of these levels.
        reward_condition: width of the action's vector in that network.
        hidden: width of its LSTM.
        targets: frames of each segment that an update of the denoiser predicts, drawn at random.
        diffusion: noise levels.
        objective: units of the rewards and weights of the losses.
    """

    image_size: int = 32
    frames: int = 4
    channels: tuple[int, ...] = (24, 24, 24)
    blocks: int = 1
    condition: int = 128
    reward_channels: tuple[int, ...] = (16, 16, 16, 16)
    reward_blocks: int = 1
    reward_condition: int = 64
    hidden: int = 128
    targets: int = 2
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    objective: DIAMONDObjective = field(default_factory=DIAMONDObjective)

    def __post_init__(self) -> None:
        check_at_least(self, 1, "image_size", "blocks", "reward_blocks", "hidden", "targets")
        check_at_least(self, 1, "reward_condition")
        check_at_least(self, 2, "frames", "condition")
        for name in ("channels", "reward_channels"):
            check_channels(name, getattr(self, name))
        if self.condition % (2 * self.frames):
            raise ValueError(
                f"condition={self.condition} is not a multiple of {2 * self.frames}, twice the "
                f"frames={self.frames}: each action has an equal part of it"
            )
        multiple = 1 << (max(len(self.channels), len(self.reward_channels)) - 1)
        if self.image_size % multiple:
            near = max(multiple, multiple * round(self.image_size / multiple))
            raise ValueError(
                f"image_size={self.image_size} cannot be halved in every level: work at {near}, "
                f"or another multiple of {multiple}, or with fewer levels"
            )


def check_channels(name: str, channels: tuple[int, ...]) -> None:
    """Check the channels of the levels of a network.

    Raises:
        ValueError: there is no level, or its channels cannot be shared by the attention heads.
    """
    if not channels or min(channels) < 1:
        raise ValueError(f"{name}={channels}: expected at least one level, of at least one channel")
    for count in channels:
        groups, heads = max(1, count // 32), max(1, count // HEAD_WIDTH)
        if count % groups or count % heads:
            raise ValueError(
                f"{name}={channels}: {count} channels are not divisible into {groups} groups and "
                f"{heads} attention heads; pass multiples of {HEAD_WIDTH} up to 64, and of 32 above"
            )


PRESETS: Mapping[str, DIAMONDConfig] = {
    "diamond": DIAMONDConfig(
        image_size=64,
        channels=(64, 64, 64, 64),
        blocks=2,
        condition=256,
        reward_channels=(32, 32, 32, 32),
        reward_blocks=2,
        reward_condition=128,
        hidden=512,
        targets=1,
        objective=DIAMONDObjective(rewards="sign"),
    ),
    "diamond-16": DIAMONDConfig(
        image_size=16,
        channels=(16, 16),
        condition=64,
        reward_channels=(8, 8, 8),
        reward_condition=32,
        hidden=64,
    ),
}
"""Alonso et al. (arXiv 2405.12399), for images of Atari games, whose rewards count by their sign;
and a size for images of 16 by 16 on a CPU, which is not published."""

PRESET_FITS: Mapping[str, Mapping[str, Any]] = {
    "diamond": {
        "optimizer": "adamw",
        "learning_rate": 1e-4,
        "weight_decay": 1e-2,
        "schedule": "constant",
        "warm_up": 100,
        "gradient_clip": 1.0,
        "clip_by": "norm",
        "batch_size": 32,
        "segment_length": 19,
    }
}
"""How the authors fit it; they clip the gradient of rewards and terminations at 100 instead."""
