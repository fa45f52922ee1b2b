"""`dreamgym pack`: a dataset, small, for sharing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dreamgym.cli.failing import keeping
from dreamgym.cli.options import JsonFile
from dreamgym.cli.showing import say, write_json


def pack(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="A file of dreamgym record.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The packed dataset to make.")],
    level: Annotated[
        int,
        typer.Option("--level", min=1, max=9, metavar="N", help="1 is fast, 9 is small."),
    ] = 4,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            metavar="NAME",
            help="gzip, which everybody can read, or zstd, which is faster and needs "
            "dreamgym\\[hdf5plugin] to be read.",
        ),
    ] = "gzip",
    json_file: JsonFile = None,
) -> None:
    """Write DATASET compressed, for sharing; it reads as before, with the same checksums.

    Example: [bold]dreamgym pack cartpole.h5 cartpole-packed.h5[/]
    """
    from dreamgym.data import pack as pack_dataset

    with keeping(lambda: f"{dataset} is as it was"):
        pack_dataset(dataset, out, level=level, method=method)  # type: ignore[arg-type]  # checked
    before, after = dataset.stat().st_size, out.stat().st_size
    write_json(json_file, {"dataset": str(out), "bytes_before": before, "bytes_after": after})
    say(f"{out}: {before / 1e6:.2f} MB packed to {after / 1e6:.2f} MB")
