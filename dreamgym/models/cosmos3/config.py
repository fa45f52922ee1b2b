"""Settings of Cosmos 3: which published pipeline, and its inputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from dreamgym._settings import check_at_least, check_choice
from dreamgym.models.nn.objective import RewardObjective

COSMOS3_NANO = "nvidia/Cosmos3-Nano"
"""The smaller of the published pipelines on the hub."""

Precision = Literal["bfloat16", "float32"]
View = Literal["ego_view", "third_person_view", "wrist_view", "concat_view"]


@dataclass(frozen=True, kw_only=True)
class Cosmos3Objective(RewardObjective):
    """Units of the rewards, and weights of the losses; see `RewardObjective`.

    Attributes:
        reward: weight of the reward's loss.
        termination: weight of the termination's cross-entropy, without class weights.
    """

    reward: float = 1.0
    termination: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 0, "reward", "termination")


@dataclass(frozen=True, kw_only=True)
class Cosmos3Config:
    """Which pipeline predicts frames, its inputs, and the sizes of the heads beside it.

    The defaults of the sampler are those that diffusers' documentation gives for actions.

    Attributes:
        domain: the embodiment whose actions these are, by the pipeline's name for it, such as
            "pusht" (2 numbers an action), "av" (9) or "droid_lerobot" (10).
        fps: frames a second in the data, an input of the pipeline.
        pipeline: the pipeline of the diffusers library: its name on the hub, as "NAME" or
            "NAME@REVISION", or the path of its folder. Its weights are safetensors; they are not
            saved with a world, which keeps the name, the revision that was found, and a checksum.
        image_size: height and width in pixels that images are resized to; None for their own. Both
            are multiples of the pixels to a side of a latent, 16 in the published pipelines.
        tier: the pipeline's size of canvas, 256, 480, 704 or 720: images are padded to it, and they
            have to fit into it.
        prompt: what happens, in a sentence.
        view: where the camera is.
        steps: denoising steps of a block.
        guidance: scale of classifier-free guidance; at 1 it is off, otherwise each denoising step
            runs the network twice.
        flow_shift: shift of the sampler's noise levels; None for the pipeline's own setting.
        guardrail: whether the pipeline's safety checker, of the package cosmos_guardrail, looks at
            every prompt and frame, as it does by default in diffusers.
        precision: dtype of the pipeline's weights.
        cells: side of the grid of mean colours that policies and heads see.
        hidden: width of the hidden layers of the heads.
        objective: units of the rewards and weights of the losses.
    """

    domain: str
    fps: float
    pipeline: str = COSMOS3_NANO
    image_size: tuple[int, int] | None = None
    tier: int = 256
    prompt: str = ""
    view: View = "ego_view"
    steps: int = 30
    guidance: float = 1.0
    flow_shift: float | None = 10.0
    guardrail: bool = True
    precision: Precision = "bfloat16"
    cells: int = 8
    hidden: int = 128
    objective: Cosmos3Objective = field(default_factory=Cosmos3Objective)

    def __post_init__(self) -> None:
        check_at_least(self, 1, "steps", "cells", "hidden")
        check_at_least(self, 0, "guidance")
        check_choice("view", self.view, get_args(View))
        check_choice("precision", self.precision, get_args(Precision))
        if not self.fps > 0:
            raise ValueError(f"fps={self.fps}: expected the frames a second of the data, above 0")
        if self.flow_shift is not None and not self.flow_shift > 0:
            raise ValueError(
                f"flow_shift={self.flow_shift}: expected a number above 0, or None for the "
                "pipeline's own setting"
            )
        if not self.pipeline:
            raise ValueError(
                "pipeline='': give the name or the folder of a Cosmos 3 pipeline; there is no "
                "model without pretrained weights"
            )
        size = self.image_size
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise ValueError(f"image_size={size}: expected height and width in pixels, at least 1")
