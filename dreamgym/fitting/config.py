"""Settings of a fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from dreamgym._files import nearest

Optimizer = Literal["adamw", "adam", "laprop"]


Clip = Literal["norm", "value", "agc"]


Schedule = Literal["cosine", "constant"]


Precision = Literal["32-true", "bf16-mixed"]


KNOWN: dict[str, tuple[str, ...]] = {
    "name": ("adamw", "adam", "laprop"),
    "clip_by": ("norm", "value", "agc"),
    "schedule": ("cosine", "constant"),
    "precision": ("32-true", "bf16-mixed"),
}


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How the weights follow the gradient.

    Attributes:
        name: "adamw"; "adam", whose weight decay is part of the gradient; or "laprop" (Ziyin et
            al. 2020, arXiv 2002.04839), which divides by the gradients' spread before it takes
            their momentum, and with which DreamerV3 is fitted.
        learning_rate: the peak, after the warm-up.
        betas: decay of the mean of gradients and of that of their squares.
        eps: added to the root of the mean square.
        weight_decay: times the learning rate, the share of each weight that an update takes away.
        gradient_clip: how much gradient there may be, see `clip_by`.
        clip_by: "norm", the norm of the whole gradient is at most `gradient_clip`; "value", each
            number of it; "agc", the norm of each tensor's is at most `gradient_clip` times that of
            the tensor, which counts for at least 1e-3 (arXiv 2102.06171, in DreamerV3's form).
        schedule: after the warm-up, "cosine" brings the learning rate down to nothing at the last
            update, "constant" leaves it.
        warm_up: updates in which the learning rate rises from nothing; below 1, their share of all.
        ema: with more than 0, what is evaluated and kept is a running mean of the weights, of which
            an update keeps this share (0.999, say); at first less, (1 + updates) / (10 + updates),
            so that a short fit is not held back by how it began.
        accumulate: pieces that a batch is worked on in, one after the other. Each needs so much
            less memory; the gradient is that of the whole batch, but for statistics of a batch
            itself (batch normalisation, SIGReg), which are those of a piece.
    """

    name: Optimizer = "adamw"
    learning_rate: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-5
    gradient_clip: float = 10.0
    clip_by: Clip = "norm"
    schedule: Schedule = "cosine"
    warm_up: float = 0.1
    ema: float = 0.0
    accumulate: int = 1

    def __post_init__(self) -> None:
        _check_known(self, ("name", "clip_by", "schedule"))
        for name in ("learning_rate", "gradient_clip", "eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: give a number above 0")
        for name in ("weight_decay", "warm_up"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: give a number of at least 0")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={self.betas}: give two shares of at least 0 and below 1")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema={self.ema}: give a share of at least 0 and below 1")
        _check_least(self, {"accumulate": 1})


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Settings of a fit.

    Attributes:
        updates: optimiser updates in all.
        batch_size: segments in a batch, over all processes.
        segment_length: transitions in a segment.
        held_out: share of episodes kept out of the fit, for choosing and measuring.
        evaluate_every: updates between two looks at the held-out episodes, each with a checkpoint.
        patience: looks without a lower held-out loss after which the fit stops early; None never.
        starts: states in the bank that dreams begin from.
        horizon: recommended length of dreams; None for the real limit, at most 200 steps, and less
            where dreams are worse than no change (`dreamgym.quality.recommend`).
        device: "auto", "cpu", "cuda", ...; under `torchrun` each process takes its own of the kind.
        precision: "32-true", or "bf16-mixed": matrix products in bfloat16, while weights, states,
            logits and what is sampled from them stay float32.
        threads: inside an operation, on a CPU; None for torch's own choice. One is fastest for
            small models.
        overwrite: let a world at `out` give way.
        tensorboard: folder to log to, or None.
        model: the family's own config, or None for its default; or a fitted model of the family,
            from whose weights and normalisers to go on, with more data, say.
        optimizer: how the weights follow the gradient.
    """

    updates: int = 2000
    batch_size: int = 64
    segment_length: int = 16
    held_out: float = 0.1
    evaluate_every: int = 250
    patience: int | None = None
    starts: int = 1024
    horizon: int | None = None
    device: str = "auto"
    precision: Precision = "32-true"
    threads: int | None = 1
    overwrite: bool = False
    tensorboard: str | None = None
    model: Any = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        least = {"updates": 1, "batch_size": 1, "segment_length": 1, "evaluate_every": 1}
        _check_least(self, {**least, "starts": 2, "horizon": 1, "threads": 1, "patience": 1})
        _check_known(self, ("precision",))
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out={self.held_out}: give a share between 0 and 1")
        if self.batch_size % self.optimizer.accumulate:
            raise ValueError(
                f"batch_size={self.batch_size} cannot be worked on in "
                f"accumulate={self.optimizer.accumulate} equal pieces; give a multiple of it"
            )


def _check_least(config: Any, least: dict[str, int]) -> None:
    for name, minimum in least.items():
        value = getattr(config, name)
        if value is not None and value < minimum:
            raise ValueError(f"{name}={value}: give a whole number of at least {minimum}")


def _check_known(config: Any, names: Sequence[str]) -> None:
    for name in names:
        value = getattr(config, name)
        if value not in KNOWN[name]:
            raise ValueError(f"{name}={value!r}: {nearest(str(value), KNOWN[name])}")


def default_config(family: str, preset: str | None = None, **settings: Any) -> FitConfig:
    """The settings that a family's authors used, save those that are given.

    Args:
        family: a name of the table of families.
        preset: a published config of that family, such as "doom"; None for its small default.
        **settings: fields of `FitConfig`, and those of `OptimizerConfig` by their own names, with
            `optimizer` for its `name`: `recommended("rssm", optimizer="laprop", updates=500)`. Or
            a whole `OptimizerConfig` as `optimizer`.

    Raises:
        ValueError: no such family or preset; the message has the nearest.
        TypeError: no such setting.
    """
    from dreamgym.models import FAMILIES  # torch: the command line reads the configs without it

    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}: {nearest(family, FAMILIES)}")
    known = FAMILIES[family]
    chosen = dict(known.fit_defaults)
    if preset is not None:
        if preset not in known.presets:
            raise ValueError(
                f"the {family} family has no preset {preset!r}: {nearest(preset, known.presets)}"
            )
        chosen = {**known.preset_fits.get(preset, chosen), "model": known.presets[preset]}
    own = {"optimizer" if each.name == "name" else each.name for each in fields(OptimizerConfig)}
    wanted = own | {each.name for each in fields(FitConfig)}
    for name in settings:
        if name not in wanted:
            raise TypeError(f"there is no setting {name!r}: {nearest(name, wanted)}")
    if isinstance(settings.get("optimizer"), OptimizerConfig):
        return FitConfig(**{**{k: v for k, v in chosen.items() if k not in own}, **settings})
    chosen |= settings
    of_optimizer = {key: chosen.pop(key) for key in own & chosen.keys()}
    if "optimizer" in of_optimizer:
        of_optimizer["name"] = of_optimizer.pop("optimizer")
    return FitConfig(**chosen, optimizer=OptimizerConfig(**of_optimizer))
