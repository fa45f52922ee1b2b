"""`dreamgym fit`: a dataset into a world."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from dreamgym.cli.failing import keeping
from dreamgym.cli.options import Device, JsonFile, Seed, given
from dreamgym.cli.showing import number, progress_bar, say, show_figures, write_json


def fit(
    dataset: Annotated[
        Path, typer.Argument(metavar="DATASET", help="A file or a folder of shards.")
    ],
    family: Annotated[
        str, typer.Option("--family", metavar="NAME", help="The family of world models.")
    ] = "mdn-rnn",
    seed: Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="The world; by default worlds/DATASET."),
    ] = None,
    updates: Annotated[
        int | None,
        typer.Option("--updates", min=1, metavar="N", help="Optimiser updates; by default 2000."),
    ] = None,
    segment_length: Annotated[
        int | None,
        typer.Option(
            "--segment-length", min=2, metavar="N", help="Steps seen in one piece; by default 16."
        ),
    ] = None,
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
            help="Recommended length of dreams; by default the real limit, at most 200.",
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
    json_file: JsonFile = None,
) -> None:
    """Fit a world to DATASET: a folder that can be dreamt in.

    The best weights are chosen on held-out episodes.

    A fit that was stopped goes on from its last checkpoint when the same command is given again.

    Example: [bold]dreamgym fit cartpole.h5 --family mdn-rnn --seed 0 --out worlds/cartpole[/]
    """
    from dreamgym.checkpoint import path_for
    from dreamgym.fit_config import FitConfig
    from dreamgym.fitting import fit as fit_world

    target = out if out is not None else Path("worlds") / dataset.stem
    checkpoint = path_for(target)
    config = FitConfig(
        device=device,
        overwrite=overwrite,
        **given(
            updates=updates,
            segment_length=segment_length,
            held_out=held_out,
            horizon=horizon,
            tensorboard=str(tensorboard) if tensorboard else None,
        ),
    )

    def kept() -> str:
        if checkpoint.exists():
            return f"the fit so far is in {checkpoint}; the same command goes on from there"
        return "nothing was written"

    begin = time.perf_counter()
    with keeping(kept), progress_bar("fit") as report:
        world = fit_world(
            dataset, out=target, family=family, seed=seed, config=config, progress=report
        )
    seconds = time.perf_counter() - begin
    write_json(
        json_file,
        {
            "world": str(target),
            "family": family,
            "seed": seed,
            "env_id": world.env_id,
            "horizon": world.horizon,
            "seconds": seconds,
            "quality": world.quality,
            "provenance": world.provenance,
        },
    )
    show_figures("On held-out episodes", world.quality)
    say(f"{target}: a world of {world.env_id or 'an unnamed environment'}, {number(seconds)} s")
