"""Sizes of V-JEPA 2-AC, and the published ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from dreamgym._settings import check_at_least, check_choice
from dreamgym.models.patches import PatchConfig

VJEPA2_LARGE = "facebook/vjepa2-vitl-fpc64-256"
"""V-JEPA 2 ViT-L/16 on the hub, the smallest one."""

VJEPA2_GIANT = "facebook/vjepa2-vitg-fpc64-256"
"""V-JEPA 2 ViT-g/16 on the hub, the encoder of the published predictor."""

Pose = Literal["learned", "droid"]
PatchUnits = Literal["standard", "raw"]

SMALLEST_HEAD = 6
"""Smallest width of an attention head: two numbers each for time, height and width."""


@dataclass(frozen=True, kw_only=True)
class VJEPA2ACConfig(PatchConfig):
    """Sizes of V-JEPA 2-AC; the defaults are a small predictor over the smallest encoder.

    Attributes:
        encoder: see `PatchConfig`; V-JEPA 2 ViT-L/16 by default.
        image_size: see `PatchConfig`; what the encoder takes.
        context: see `PatchConfig`. Segments of a fit have at most as many transitions.
        width: width of the predictor.
        mlp: width of the hidden layer in each block, as a multiple of the predictor's.
        units: units of the vectors and of a Box's actions: "standard", by the moments of the
            training data, or "raw", the environment's, as published.
        pose: how the vectors of the next frame follow: "learned" by a head, or "droid", by adding
            the action to the pose of a robot's hand, as the authors' planner does outside of the
            model. See `modules.droid_pose` for the order of the numbers.
        extrinsics: whether the predictor has the published encoder of camera extrinsics, which
            nothing uses. Its parameters are part of the published number.
    """

    encoder: str = VJEPA2_LARGE
    image_size: int = 256
    context: int = 4
    blocks: int = 4
    heads: int = 8
    width: int = 256
    mlp: int = 4
    units: PatchUnits = "standard"
    pose: Pose = "learned"
    extrinsics: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "width", "mlp")
        check_choice("units", self.units, get_args(PatchUnits))
        check_choice("pose", self.pose, get_args(Pose))
        head, rest = divmod(self.width, self.heads)
        if rest or head % 2 or head < SMALLEST_HEAD:
            raise ValueError(
                f"width={self.width} is not divisible into heads={self.heads} heads of an even "
                f"width of at least {SMALLEST_HEAD}"
            )
        if self.pose == "droid" and self.units != "raw":
            raise ValueError(
                "pose='droid' adds actions to a pose in the environment's units; pass units='raw'"
            )


PRESETS: Mapping[str, VJEPA2ACConfig] = {
    "vjepa2-ac": VJEPA2ACConfig(
        encoder=VJEPA2_GIANT,
        context=7,
        blocks=24,
        heads=16,
        width=1024,
        units="raw",
        pose="droid",
        extrinsics=True,
        decoder=False,
        range_margin=None,
    )
}
"""Assran et al. (arXiv 2506.09985): 305,220,992 parameters, fitted on 8 frames at 4 a second.

Observations are a Dict of a colour image and a pose of 7 numbers, actions are changes of the pose.
"""

PRESET_FITS: Mapping[str, Mapping[str, Any]] = {
    "vjepa2-ac": {
        "optimizer": "adamw",
        "learning_rate": 4.25e-4,
        "weight_decay": 0.04,
        "schedule": "constant",
        "warm_up": 15 / 315,
        "precision": "bf16-mixed",
        "batch_size": 256,
        "gradient_clip": 10.0,
        "clip_by": "norm",
        "segment_length": 7,
    }
}
"""How the authors fit it, for 94,500 updates; in the last 15 of 315 epochs the rate falls to 0."""
