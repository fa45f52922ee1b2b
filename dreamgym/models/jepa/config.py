"""Configuration of the JEPA family: architecture, objective and published presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, get_args

from dreamgym._settings import check_at_least, check_choice
from dreamgym.models.jepa.pretrained import PREFIX
from dreamgym.models.nn import vit

PredictionTarget = Literal["change", "next"]
ProbedParts = Literal["vectors", "all", "none"]

REGULARISERS = ("sigreg", "std", "cov", "temporal", "inverse")
"""Terms of the loss that are weighted by the field of `JEPAObjective` with the same name."""


@dataclass(frozen=True, kw_only=True)
class JEPAObjective:
    """Loss weights and training targets of a JEPA; a term with weight zero is not computed.

    Attributes:
        sigreg: weight of SIGReg (arXiv 2511.08544), the only regulariser of LeWM. It has to be
            tuned to the scale of the prediction error: LeWM's 0.09 balances the error of whole
            embeddings five frames ahead; the small change in one step needs a smaller weight.
        std: weight of VICReg's variance term.
        cov: weight of VICReg's covariance term.
        temporal: weight of the squared change of the embedding in one step.
        inverse: weight of the squared error of an inverse dynamics model, which predicts the action
            from the embeddings before and after it.
        rollout: number of steps that the predictor is unrolled open-loop in the loss, at most the
            length of a segment; 1 trains one-step predictions from real embeddings only. On
            CartPole the error of 50-step dreams is three times higher with 4 than with 12.
        momentum: initial EMA momentum of a target encoder, a slow copy of the encoder that provides
            the prediction targets without gradient. 0 uses the encoder itself, with gradient.
        momentum_updates: number of updates over which the momentum rises linearly to 1, as in
            I-JEPA (Assran et al. 2023, arXiv 2301.08243); set it to the number of updates in the
            fit.
        expectile: expectile of the goal value, between 0.5 (the mean over the data's actions) and 1
            (the best of them).
        value_discount: discount of the goal value for each step.
    """

    sigreg: float = 0.0
    std: float = 0.0
    cov: float = 0.0
    temporal: float = 0.0
    inverse: float = 0.0
    rollout: int = 1
    momentum: float = 0.0
    momentum_updates: int = 2000
    expectile: float = 0.9
    value_discount: float = 0.98

    def __post_init__(self) -> None:
        check_at_least(self, 0, *REGULARISERS)
        check_at_least(self, 1, "rollout", "momentum_updates")
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"momentum={self.momentum}: expected a number between 0 and 1")
        for name in ("expectile", "value_discount"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(
                    f"{name}={getattr(self, name)}: expected a number above 0 and below 1"
                )


@dataclass(frozen=True, kw_only=True)
class JEPAConfig:
    """Architecture and objective of a JEPA.

    Attributes:
        embedding: width of the embedding and of the predictor.
        context: number of frames that the predictor attends to.
        image_encoder: encoder of images: "conv"; "vit_SIZE_patchN", such as "vit_tiny_patch14"; or
            "transformers:NAME" or "transformers:NAME@REVISION" for a frozen, pretrained model of
            the transformers library. Vectors are always encoded by an MLP.
        image_size: height and width, in pixels, that images are resized to.
        image_width: factor on the channels of "conv", and of the probe's decoder of images.
        width: hidden width of the vector MLP and of the projectors.
        blocks: number of transformer blocks in the predictor.
        heads: number of attention heads in the predictor.
        head_width: width of each attention head.
        mlp: hidden width of the MLP in each block.
        dropout: dropout probability in the predictor.
        gate: standard deviation of the initial modulation weights; 0 is AdaLN-zero, where an
            untrained predictor ignores the action.
        predicts: output of the predictor: "next" for the next embedding, "change" for its
            difference to the current one, which works better where little changes in one step.
        probe: parts of the observation that a probe decodes from embeddings, without shaping them:
            "vectors" only, "all" including images, or "none". A model can decode, and has the view
            "observation", only if the probe covers the whole observation. With vectors alone, the
            probe also keeps dreams close to the data.
        goal_value: width of the embedding in which the distance to a goal is minus its value, see
            `GoalValue`; 0 for none.
        range_margin: relative margin added to each side of the training data's range; a dream whose
            probed vector leaves this range terminates with the worst return in the data.
        objective: loss weights and training targets.
    """

    embedding: int = 32
    context: int = 3
    image_encoder: str = "conv"
    image_size: int = 64
    image_width: float = 1.0
    width: int = 128
    blocks: int = 2
    heads: int = 4
    head_width: int = 16
    mlp: int = 128
    dropout: float = 0.0
    gate: float = 0.1
    predicts: PredictionTarget = "change"
    probe: ProbedParts = "vectors"
    goal_value: int = 0
    range_margin: float = 0.3
    objective: JEPAObjective = field(default_factory=lambda: JEPAObjective(sigreg=0.05, rollout=12))

    def __post_init__(self) -> None:
        check_at_least(self, 1, "embedding", "context", "image_size", "width")
        check_at_least(self, 1, "blocks", "heads", "head_width", "mlp")
        check_at_least(self, 0, "gate", "range_margin", "goal_value")
        if not self.image_width > 0:
            raise ValueError(f"image_width={self.image_width}: expected a number above 0")
        check_choice("predicts", self.predicts, get_args(PredictionTarget))
        check_choice("probe", self.probe, get_args(ProbedParts))
        if not 0 <= self.dropout < 1:
            raise ValueError(
                f"dropout={self.dropout}: expected a probability of at least 0 and below 1"
            )
        if self.image_encoder != "conv" and not self.image_encoder.startswith(PREFIX):
            try:
                vit.parse(self.image_encoder)
            except ValueError as error:
                raise ValueError(
                    f"image_encoder: {error}; or use 'conv' or '{PREFIX}NAME@REVISION'"
                ) from error


LEWM = JEPAConfig(
    embedding=192,
    context=3,
    image_encoder="vit_tiny_patch14",
    image_size=224,
    width=2048,
    blocks=6,
    heads=16,
    head_width=64,
    mlp=2048,
    dropout=0.1,
    gate=0.0,
    predicts="next",
    probe="none",
    objective=JEPAObjective(sigreg=0.09),
)
"""LeWM as published (arXiv 2603.19312): 18.03M parameters in 303 tensors, without our heads.

The authors train on segments of 3 transitions, where a transition covers 5 frames and all of their
actions: fit it with a frame skip of 5. `PRESET_FITS` holds their other hyperparameters.
"""

PRESETS: Mapping[str, JEPAConfig] = MappingProxyType(
    {
        "lewm": LEWM,
        "pldm": replace(JEPAConfig(), objective=JEPAObjective(std=18, cov=12, temporal=0.2)),
        "eb-jepa": replace(
            JEPAConfig(), objective=JEPAObjective(std=16, cov=8, temporal=12, inverse=1)
        ),
        "ema": replace(JEPAConfig(), objective=JEPAObjective(momentum=0.996, rollout=4)),
    }
)
"""LeWM as published, and the small default model with other objectives against collapse."""

PRESET_FITS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "lewm": {
            "learning_rate": 5e-5,
            "weight_decay": 1e-3,
            "gradient_clip": 1.0,
            "clip_by": "norm",
            "precision": "bf16-mixed",
            "schedule": "cosine",
            "warm_up": 0.01,
            "batch_size": 128,
            "segment_length": 3,
        },
    }
)
"""Hyperparameters that the authors of a preset train with, by the name of the preset."""
