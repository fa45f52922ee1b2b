"""What a JEPA is made of and what it is fitted to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from dreamgym.models.jepa.pretrained import PREFIX
from dreamgym.models.nn import vit

Probe = Literal["vectors", "all", "none"]


Predicts = Literal["change", "next"]


@dataclass(frozen=True, kw_only=True)
class JEPAObjective:
    """The weights of a JEPA's losses; a term of weight zero is not computed.

    Attributes:
        sigreg: of SIGReg (arXiv 2511.08544), LeWM's only regulariser. It does not carry over from
            one scale of the prediction error to another: LeWM's 0.09 stands against whole
            embeddings five frames on, and much less against the small change in one step.
        std: of VICReg's variance term.
        cov: of its covariance term.
        temporal: of the squared change of the embedding in a step.
        inverse: of the squared error of an inverse dynamics model, which says the action from the
            embeddings before and after it.
        rollout: steps that the predictor is followed open-loop in the loss, at most a segment's; 1
            is the next embedding alone, from real ones. On CartPole, dreams 50 steps long come out
            three times worse with 4 than with 12.
        momentum: with more than 0, the targets are embeddings of a slow copy of the encoder, and no
            gradient flows into them: the share of the old copy that an update keeps, at first.
        momentum_updates: updates in which the momentum rises to 1, linearly as in I-JEPA
            (Assran et al. 2023, arXiv 2301.08243); give as many as the fit has.
    """

    sigreg: float = 0.0
    std: float = 0.0
    cov: float = 0.0
    temporal: float = 0.0
    inverse: float = 0.0
    rollout: int = 1
    momentum: float = 0.0
    momentum_updates: int = 2000

    def __post_init__(self) -> None:
        for name in ("sigreg", "std", "cov", "temporal", "inverse"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: a weight is at least 0")
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"momentum={self.momentum}: give a share between 0 and 1")
        for name in ("rollout", "momentum_updates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give a whole number of at least 1")


@dataclass(frozen=True, kw_only=True)
class JEPAConfig:
    """Sizes of a JEPA.

    Attributes:
        embedding: width of an embedding, and of the predictor.
        context: frames that the predictor sees.
        image_encoder: "conv"; "vit_SIZE_patchN", such as "vit_tiny_patch14"; or
            "transformers:NAME" or "transformers:NAME@REVISION", a pretrained model of the
            transformers library, which stays as it is. Vectors always have an MLP.
        image_size: height and width that images are resized to.
        width: of the hidden layers of the vectors' MLP and of the projectors.
        blocks: of the predictor.
        heads: of its attention.
        head_width: of each head.
        mlp: width of its blocks' hidden layer.
        dropout: in it.
        gate: spread of its modulation's weights at first; 0 is AdaLN-zero, where a fresh predictor
            does not yet see the action.
        predicts: "next" says the next embedding, "change" says what is added to this one: better
            where little changes in a step.
        probe: what a decoder reads off the embeddings, without shaping them: "vectors" only,
            "all" with images, or "none". A model decodes, and has the view "observation", where
            that is the whole of the observation; of vectors alone, it also keeps dreams near the
            data.
        range_margin: a dream whose probed vector leaves the training data's range, widened on each
            side by this share of it, ends there with the worst return that the data has seen.
        objective: the losses' weights.
    """

    embedding: int = 32
    context: int = 3
    image_encoder: str = "conv"
    image_size: int = 64
    width: int = 128
    blocks: int = 2
    heads: int = 4
    head_width: int = 16
    mlp: int = 128
    dropout: float = 0.0
    gate: float = 0.1
    predicts: Predicts = "change"
    probe: Probe = "vectors"
    range_margin: float = 0.3
    objective: JEPAObjective = field(default_factory=lambda: JEPAObjective(sigreg=0.05, rollout=12))

    def __post_init__(self) -> None:
        sizes = ("embedding", "context", "image_size", "width", "blocks", "heads", "head_width")
        for name in (*sizes, "mlp"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give a whole number of at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout}: give a share of at least 0 and below 1")
        for name in ("gate", "range_margin"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: give a number of at least 0")
        for name, known in (
            ("predicts", ("change", "next")),
            ("probe", ("vectors", "all", "none")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}: give one of {', '.join(known)}")
        if self.image_encoder != "conv" and not self.image_encoder.startswith(PREFIX):
            try:
                vit.parse(self.image_encoder)
            except ValueError as error:
                raise ValueError(
                    f"image_encoder: {error}; or say 'conv' or '{PREFIX}NAME@REVISION'"
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

"""LeWM as published (arXiv 2603.19312): 18.03M parameters in 303 tensors, heads apart.

Its authors fit it to segments of 3 transitions, each of 5 frames with all 5 actions kept: give a
frame skip of 5. The rest is in `FITS`.
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

"""Published models, and the small one with other guards against collapse."""


FITS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "lewm": {
            "learning_rate": 5e-5,
            "weight_decay": 1e-3,
            "gradient_clip": 1.0,
            "precision": "bf16-mixed",
            "schedule": "cosine",
            "warm_up": 0.01,
            "batch_size": 128,
            "segment_length": 3,
        },
    }
)

"""How authors fit a preset."""
