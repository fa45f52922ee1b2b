"""Sizes of DINO-WM, and the published ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dreamgym._settings import check_at_least
from dreamgym.models.patches import PatchConfig, PatchObjective

DINOV2 = "facebook/dinov2-small"
"""DINOv2 ViT-S/14 on the hub, 22 million parameters, Apache 2.0."""


@dataclass(frozen=True, kw_only=True)
class DINOWMConfig(PatchConfig):
    """Sizes of DINO-WM; the defaults are a small predictor of 49 patches for a CPU.

    Attributes:
        encoder: see `PatchConfig`; DINOv2 ViT-S/14 by default, as published.
        image_size: see `PatchConfig`.
        head_width: width of an attention head.
        mlp: width of the hidden layer in each block.
        dropout: dropout rate in attention and blocks, in fitting only.
        action_width: numbers that an embedded action adds to each patch.
        vector_width: numbers that the embedded vectors add to each patch, where there are any.
    """

    encoder: str = DINOV2
    image_size: int = 98
    head_width: int = 32
    mlp: int = 512
    dropout: float = 0.0
    action_width: int = 10
    vector_width: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "head_width", "mlp", "action_width", "vector_width")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: expected a share of at least 0 and below 1")


PRESETS: Mapping[str, DINOWMConfig] = {
    "dino-wm": DINOWMConfig(
        image_size=196,
        context=3,
        blocks=6,
        heads=16,
        head_width=64,
        mlp=2048,
        dropout=0.1,
        range_margin=None,
        objective=PatchObjective(rollout_steps=1),
    )
}
"""Zhou et al. (arXiv 2411.04983). Images of 224 pixels are reduced to 196 there, 14 x 14 patches.

A transition covers 5 frames and all of their actions: fit it with a frame skip of 5.
"""

PRESET_FITS: Mapping[str, Mapping[str, Any]] = {
    "dino-wm": {
        "optimizer": "adamw",
        "learning_rate": 5e-4,
        "weight_decay": 1e-2,
        "schedule": "constant",
        "warm_up": 0,
        "batch_size": 32,
        "gradient_clip": 10.0,
        "clip_by": "norm",
        "segment_length": 3,
    }
}
"""How the authors' code fits it, for 100 epochs; the paper says 5e-5."""
