"""Settings that all families have that predict the patches of a frozen vision model."""

from __future__ import annotations

from dataclasses import dataclass, field

from dreamgym._settings import check_at_least
from dreamgym.models.nn.objective import RewardObjective


@dataclass(frozen=True, kw_only=True)
class PatchObjective(RewardObjective):
    """Units of the rewards, and weights of the losses; see `RewardObjective`.

    Heads, probe and decoder do not shape the predictor, so their weights say little.

    Attributes:
        rollout_steps: steps that the predictor is unrolled in the loss; 1 trains one-step
            predictions alone.
        reward: weight of the reward's loss.
        termination: weight of the termination's cross-entropy, without class weights.
        vector: weight of the squared error of predicted or decoded vectors.
        image: weight of the squared error of decoded images.
    """

    rollout_steps: int = 2
    reward: float = 1.0
    termination: float = 1.0
    vector: float = 1.0
    image: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "rollout_steps")
        check_at_least(self, 0, "reward", "termination", "vector", "image")


@dataclass(frozen=True, kw_only=True)
class PatchConfig:
    """Sizes of a model of patches.

    Attributes:
        encoder: the frozen vision model of the transformers library: its name on the hub, as "NAME"
            or "NAME@REVISION", or the path of its folder. It is downloaded if it is not there. Its
            weights are safetensors; they are not saved with a world, which keeps the name, the
            revision that was found, and a checksum.
        image_size: side in pixels that images are resized to; a multiple of the encoder's patch.
        context: frames in a full window; with the next one, the oldest is dropped.
        blocks: transformer blocks of the predictor.
        heads: attention heads of the predictor.
        cells: side of the grid of means over patches that policies and heads see.
        hidden: width of the hidden layers of heads, probe and decoder.
        decoder: whether a decoder of images is fitted beside the model, without shaping it. Only
            with it has a dream observations; without it `view="latent"`.
        cache_gigabytes: memory for patches in a fit, in which each image is encoded once as long as
            there is room; it is released after the fit.
        range_margin: share of the training data's range by which it is widened on each side; a
            dream whose vectors leave the widened range ends with the worst return in the data. None
            turns this off.
        objective: units of the rewards and weights of the losses.
    """

    encoder: str
    image_size: int
    context: int = 3
    blocks: int = 2
    heads: int = 4
    cells: int = 4
    hidden: int = 128
    decoder: bool = True
    cache_gigabytes: float = 4.0
    range_margin: float | None = 0.3
    objective: PatchObjective = field(default_factory=PatchObjective)

    def __post_init__(self) -> None:
        check_at_least(self, 1, "image_size", "blocks", "heads", "cells", "hidden")
        check_at_least(self, 2, "context")
        check_at_least(self, 0, "cache_gigabytes")
        if self.range_margin is not None:
            check_at_least(self, 0, "range_margin")
        if not self.encoder:
            raise ValueError(
                "encoder='': give the name or the folder of a vision model of the transformers "
                "library; there is no encoder without pretrained weights"
            )
