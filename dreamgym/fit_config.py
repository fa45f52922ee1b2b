"""Settings of a fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dreamgym.files import nearest
from dreamgym.models import FAMILIES


class FitError(RuntimeError):
    """A fit that cannot go on; the last good checkpoint is kept."""


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Settings of a fit.

    Attributes:
        updates: optimiser updates in all.
        batch_size: segments in a batch.
        segment_length: transitions in a segment.
        learning_rate: the peak, after a warm-up of a tenth; a cosine brings it to nothing.
        weight_decay: of AdamW.
        gradient_clip: greatest norm of the gradient.
        held_out: share of episodes kept out of the fit, for choosing and measuring.
        evaluate_every: updates between two looks at the held-out episodes, each with a checkpoint.
        starts: states in the bank that dreams begin from.
        horizon: recommended length of dreams; None for the real limit, at most 200 steps.
        device: "auto", "cpu", "cuda", ...
        threads: inside an operation, on a CPU; None for torch's own choice. One is fastest for
            small models.
        overwrite: let a world at `out` give way.
        tensorboard: folder to log to, or None.
        model: the family's own config, or None for its default.
    """

    updates: int = 2000
    batch_size: int = 64
    segment_length: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 1e-5
    gradient_clip: float = 10.0
    held_out: float = 0.1
    evaluate_every: int = 250
    starts: int = 1024
    horizon: int | None = None
    device: str = "auto"
    threads: int | None = 1
    overwrite: bool = False
    tensorboard: str | None = None
    model: Any = None

    def __post_init__(self) -> None:
        least = {"updates": 1, "batch_size": 1, "segment_length": 1, "evaluate_every": 1}
        least |= {"starts": 2, "horizon": 1, "threads": 1}
        for name, minimum in least.items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise ValueError(f"{name}={value}: give a whole number of at least {minimum}")
        for name in ("learning_rate", "gradient_clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: give a number above 0")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out={self.held_out}: give a share between 0 and 1")


def recommended(family: str, preset: str | None = None, **settings: Any) -> FitConfig:
    """The settings that a family's authors used, save those that are given.

    Args:
        family: a name of the table of families.
        preset: a published config of that family, such as "doom"; None for its small default.
        **settings: fields of `FitConfig`.

    Raises:
        ValueError: no such family or preset; the message has the nearest.
        TypeError: no such setting.
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}: {nearest(family, FAMILIES)}")
    chosen = {**FAMILIES[family].fit_defaults, **settings}
    if preset is not None:
        presets = FAMILIES[family].presets
        if preset not in presets:
            raise ValueError(
                f"the {family} family has no preset {preset!r}: {nearest(preset, presets)}"
            )
        chosen.setdefault("model", presets[preset])
    return FitConfig(**chosen)
