"""`dreamgym fit`: a dataset into a world."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dreamgym.cli.failing import keeping
from dreamgym.cli.fit_options import (
    EMA,
    Accumulate,
    BatchSize,
    LearningRate,
    Optimizer,
    Patience,
    Precision,
    Schedule,
)
from dreamgym.cli.options import (
    ActionsOf,
    Device,
    JsonFile,
    Keys,
    Seed,
    Skip,
    SourceEnv,
    Terminals,
    foreign_options,
    given,
)
from dreamgym.cli.showing import number, progress_bar, say, show_figures, write_json

if TYPE_CHECKING:
    from dreamgym.data import FrameSkip


def fit(
    dataset: Annotated[
        Path, typer.Argument(metavar="DATASET", help="A file or a folder of shards.")
    ],
    family: Annotated[
        str, typer.Option("--family", metavar="NAME", help="The family of world models.")
    ] = "mdn-rnn",
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset", metavar="NAME", help="A published size of the family, such as doom."
        ),
    ] = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="The world; by default worlds/DATASET."),
    ] = None,
    updates: Annotated[
        int | None,
        typer.Option(
            "--updates", min=1, metavar="N", help="Optimiser updates; by default the family's."
        ),
    ] = None,
    segment_length: Annotated[
        int | None,
        typer.Option(
            "--segment-length",
            min=1,
            metavar="N",
            help="Steps seen in one piece; by default the family's.",
        ),
    ] = None,
    batch_size: BatchSize = None,
    accumulate: Accumulate = None,
    optimizer: Optimizer = None,
    learning_rate: LearningRate = None,
    schedule: Schedule = None,
    ema: EMA = None,
    precision: Precision = None,
    patience: Patience = None,
    held_out: Annotated[
        float | None,
        typer.Option(
            "--held-out",
            min=0.0,
            max=1.0,
            metavar="SHARE",
            help="Of the episodes, kept to choose and measure by; by default 0.1.",
        ),
    ] = None,
    horizon: Annotated[
        int | None,
        typer.Option(
            "--horizon",
            min=1,
            metavar="N",
            help="Recommended length of dreams; by default the real limit, at most 200, and less "
            "where held-out episodes say so.",
        ),
    ] = None,
    device: Device = "auto",
    tensorboard: Annotated[
        Path | None,
        typer.Option("--tensorboard", metavar="FOLDER", help="Log the losses to TensorBoard."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Let a world that stands there give way.")
    ] = False,
    mix: Annotated[
        list[str] | None,
        typer.Option(
            "--mix",
            metavar="DATASET=WEIGHT",
            help="A further dataset to draw from by weight, DATASET having 1; once for each.",
        ),
    ] = None,
    frame_skip: Skip = 1,
    actions: ActionsOf = "blocks",
    keys: Keys = None,
    memory: Annotated[
        float | None,
        typer.Option(
            "--memory",
            min=0.0,
            metavar="GB",
            help="Of observations to hold in memory, at most; by default 1. The rest is read from "
            "the file, ahead of the fit.",
        ),
    ] = None,
    terminals: Terminals = None,
    env: SourceEnv = None,
    json_file: JsonFile = None,
) -> None:
    """Fit a world to DATASET: a folder that can be dreamt in.

    The best weights are chosen on held-out episodes.

    A fit that was stopped goes on from its last checkpoint when the same command is given again.

    In several processes: [bold]torchrun --nproc-per-node 2 -m dreamgym.cli fit cartpole.h5[/]

    Example: [bold]dreamgym fit cartpole.h5 --family mdn-rnn --seed 0 --out worlds/cartpole[/]
    """
    from dreamgym.checkpoint import path_for
    from dreamgym.data import FrameSkip
    from dreamgym.fit_config import recommended
    from dreamgym.fitting import fit as fit_world
    from dreamgym.processes import is_first

    target = out if out is not None else Path("worlds") / dataset.stem
    checkpoint = path_for(target)
    config = recommended(
        family,
        preset,
        device=device,
        overwrite=overwrite,
        **given(
            updates=updates,
            segment_length=segment_length,
            batch_size=batch_size,
            accumulate=accumulate,
            optimizer=optimizer,
            learning_rate=learning_rate,
            schedule=schedule,
            ema=ema,
            precision=precision,
            patience=patience,
            held_out=held_out,
            horizon=horizon,
            tensorboard=str(tensorboard) if tensorboard else None,
        ),
    )

    def kept() -> str:
        if checkpoint.exists():
            return f"the fit so far is in {checkpoint}; the same command goes on from there"
        return "nothing was written"

    reading = given(
        keys=keys or None,
        memory=None if memory is None else int(memory * 1e9),
        foreign=foreign_options(terminals, env, keys) if terminals or env else None,
    )
    skip = FrameSkip(steps=frame_skip, actions=actions)  # type: ignore[arg-type]  # it says which
    begin = time.perf_counter()
    bar = progress_bar("fit") if is_first() else nullcontext(None)
    with keeping(kept), _opened(dataset, mix, skip, reading) as data, bar as report:
        world = fit_world(
            data, out=target, family=family, seed=seed, config=config, progress=report
        )
    if is_first():
        _tell(world, target, time.perf_counter() - begin, json_file)


def _tell(world: Any, target: Path, seconds: float, json_file: Path | None) -> None:
    """The figures of a world that was fitted into a folder."""
    figures = {
        "world": str(target),
        "family": world.provenance["fit"]["family"],
        "seed": world.provenance["fit"]["seed"],
        "env_id": world.env_id,
        "horizon": world.horizon,
        "frame_skip": world.frame_skip.as_plain() or None,
        "seconds": seconds,
        "quality": world.quality,
        "provenance": world.provenance,
    }
    write_json(json_file, figures)
    show_figures("On held-out episodes", world.quality)
    say(f"{target}: a world of {world.env_id or 'an unnamed environment'}, {number(seconds)} s")


@contextmanager
def _opened(
    dataset: Path, mix: list[str] | None, skip: FrameSkip, reading: dict[str, Any]
) -> Iterator[Any]:
    """The dataset as it is to be read, or, where some are mixed, each with its weight."""
    from dreamgym.data import Dataset, skipping

    with ExitStack() as stack:
        parts = [
            (skipping(stack.enter_context(Dataset(path, **reading)), skip), weight)
            for path, weight in [(dataset, 1.0), *map(_weighted, mix or [])]
        ]
        yield parts if mix else parts[0][0]


def _weighted(text: str) -> tuple[Path, float]:
    """A path and its weight out of `PATH=WEIGHT`."""
    path, _, weight = text.rpartition("=")
    try:
        return Path(path or weight), float(weight) if path else 1.0
    except ValueError:
        raise typer.BadParameter(f"--mix {text}: {weight!r} is no number; say PATH=0.5") from None
