"""Settings of a fit. This module does not import torch; command-line options are made from it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from dreamgym._settings import check_at_least, check_choice, nearest

Optimizer = Literal["adamw", "adam", "laprop"]
Clip = Literal["norm", "value", "agc"]
Schedule = Literal["cosine", "constant"]
Precision = Literal["32-true", "bf16-mixed"]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Settings of the optimizer, the learning-rate schedule and gradient clipping.

    Attributes:
        name: "adamw"; "adam", whose weight decay is added to the gradient; or "laprop" (Ziyin et
            al. 2020, arXiv 2002.04839), which normalises the gradient before it applies momentum,
            and which DreamerV3 uses.
        learning_rate: peak learning rate, reached after the warm-up.
        betas: decay rates of the running means of the gradient and of its square.
        eps: number added to the root of the mean square.
        weight_decay: decay of the weights in each update, in units of the learning rate.
        gradient_clip: limit of the gradient, applied as `clip_by` says.
        clip_by: "norm" limits the norm of the whole gradient to `gradient_clip`; "value" limits
            each of its numbers; "agc" limits the norm of each tensor's gradient to `gradient_clip`
            times the norm of the tensor, which counts as at least 1e-3 (arXiv 2102.06171, in
            DreamerV3's form); then `gradient_clip` is at most 1.
        schedule: after the warm-up, "cosine" decays the learning rate to zero at the last update;
            "constant" keeps it.
        warm_up: updates in which the learning rate rises linearly from zero; a number below 1 is a
            share of all updates.
        ema: decay rate of an exponential moving average of the weights, such as 0.999; it is this
            average that is evaluated and kept. 0 for none. In early updates the rate is smaller,
            (1 + updates) / (10 + updates), so that the initial weights are soon forgotten.
        accumulate: gradient-accumulation steps per batch. More steps need less memory. The gradient
            is that of the whole batch, except for statistics of a batch (batch normalisation,
            SIGReg), which are computed per micro-batch.
    """

    name: Optimizer = "adamw"
    learning_rate: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-5
    # Loose: under a tight limit of the norm, a likelihood that sharpens lets the gradients of the
    # heads of rewards and terminations shrink, which Adam does not make up for while it varies.
    gradient_clip: float = 1000.0
    clip_by: Clip = "norm"
    schedule: Schedule = "cosine"
    warm_up: float = 0.1
    ema: float = 0.0
    accumulate: int = 1

    def __post_init__(self) -> None:
        check_choice("name", self.name, get_args(Optimizer))
        check_choice("clip_by", self.clip_by, get_args(Clip))
        check_choice("schedule", self.schedule, get_args(Schedule))
        for name in ("learning_rate", "gradient_clip", "eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected a number above 0")
        if self.clip_by == "agc" and self.gradient_clip > 1:
            raise ValueError(
                f"gradient_clip={self.gradient_clip:g} with clip_by='agc': expected at most 1, a "
                "share of each weight's norm; give gradient_clip=1, or clip_by='norm'"
            )
        check_at_least(self, 0, "weight_decay", "warm_up")
        check_at_least(self, 1, "accumulate")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={self.betas}: expected two numbers in [0, 1)")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema={self.ema}: expected a number in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Settings of a fit.

    Attributes:
        updates: total number of optimizer updates.
        batch_size: segments in a batch, over all processes.
        segment_length: transitions in a segment.
        held_out: share of the episodes kept out of training, for selection and metrics.
        evaluate_every: updates between two evaluations on held-out episodes; each evaluation saves
            a checkpoint.
        patience: evaluations without a lower held-out loss after which the fit stops early; None
            never stops early.
        starts: states in the bank of start states, half of them filtered over up to
            `segment_length` steps; fewer for large images and long segments.
        horizon: recommended length of dreams; None for the real limit (without one, three times the
            longest episode), at most 200 steps, and less if dreams are worse than the repeat-last
            baseline (`dreamgym.metrics.recommend`).
        device: "auto", "cpu", "cuda", ...; under `torchrun` each process takes its own device of
            this type.
        precision: "32-true", or "bf16-mixed" for matrix products in bfloat16; weights, states,
            logits and samples remain float32.
        threads: threads within an operation on a CPU; None for torch's own choice. One is fastest
            for small models.
        overwrite: overwrite an existing world.
        tensorboard: folder of TensorBoard logs, or None.
        model: config of the family, or None for its default; or a fitted model of the family, to
            continue from its weights and normalisers, for example with more data.
        refit_normalisers: with a fitted model, fit its normalisers and the range of its data to
            the data of this fit, as MBPO's code does before every refit (arXiv 1906.08253). Without
            it dreams end where the first data ended.
        optimizer: settings of the optimizer.
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
    refit_normalisers: bool = False
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        check_at_least(self, 1, "updates", "batch_size", "segment_length", "evaluate_every")
        optional = ("horizon", "threads", "patience")
        check_at_least(self, 1, *(name for name in optional if getattr(self, name) is not None))
        check_at_least(self, 2, "starts")
        check_choice("precision", self.precision, get_args(Precision))
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out={self.held_out}: expected a number between 0 and 1")
        if self.batch_size % self.optimizer.accumulate:
            raise ValueError(
                f"batch_size={self.batch_size} cannot be divided into "
                f"accumulate={self.optimizer.accumulate} equal parts; give a multiple of it"
            )


def default_config(family: str, preset: str | None = None, **settings: Any) -> FitConfig:
    """Return settings that suit a family, or those of a preset's authors, with changes.

    Args:
        family: name of a family in the registry.
        preset: published config of that family, such as "doom"; None for its small default.
        **settings: fields of `FitConfig`, and fields of `OptimizerConfig` under their own names,
            except that its `name` is `optimizer`:
            `default_config("rssm", optimizer="laprop", updates=500)`. A whole `OptimizerConfig` can
            be given as `optimizer`, too.

    Raises:
        ValueError: unknown family or preset; the message names the nearest one.
        TypeError: unknown setting.
    """
    from dreamgym.models.spec import family_class  # imports torch; the command line must not

    model_class = family_class(family)
    values = dict(model_class.fit_defaults)
    if preset is not None:
        if preset not in model_class.presets:
            raise ValueError(
                f"the {family} family has no preset {preset!r}: "
                f"{nearest(preset, model_class.presets)}"
            )
        values = dict(model_class.preset_fits.get(preset, values))
        values["model"] = model_class.presets[preset]
    optimizer_names = {
        "optimizer" if each.name == "name" else each.name for each in fields(OptimizerConfig)
    }
    known = optimizer_names | {each.name for each in fields(FitConfig)}
    for name in settings:
        if name not in known:
            raise TypeError(f"there is no setting {name!r}: {nearest(name, known)}")
    if isinstance(settings.get("optimizer"), OptimizerConfig):
        values = {name: value for name, value in values.items() if name not in optimizer_names}
        return FitConfig(**{**values, **settings})
    values |= settings
    optimizer = {name: values.pop(name) for name in optimizer_names & values.keys()}
    if "optimizer" in optimizer:
        optimizer["name"] = optimizer.pop("optimizer")
    return FitConfig(**values, optimizer=OptimizerConfig(**optimizer))


recommended = default_config
"""Former name of `default_config`, kept for scripts."""
