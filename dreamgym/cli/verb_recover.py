"""`dreamgym recover`: a whole dataset out of what a killed writer left."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dreamgym.cli.failing import keeping
from dreamgym.cli.options import JsonFile
from dreamgym.cli.showing import number, show_table, write_json


def recover(
    dataset: Annotated[
        Path, typer.Argument(metavar="DATASET", help="The file that was being recorded.")
    ],
    json_file: JsonFile = None,
) -> None:
    """Make a whole dataset of what a killed recording left; nothing is deleted.

    Every committed episode is kept. What the writer left stays beside it, as DATASET.killed.

    Example: [bold]dreamgym recover cartpole.h5[/]
    """
    from dreamgym.data import recover as recover_dataset

    with keeping(lambda: "nothing was lost; give the same command again"):
        found = recover_dataset(dataset)
    write_json(
        json_file,
        {
            "dataset": str(found.path) if found.path else None,
            "episodes": found.episodes,
            "steps": found.steps,
            "damaged_episodes": found.damaged,
            "tail": str(found.tail) if found.tail else None,
            "tail_rows": found.tail_rows,
            "original": str(found.original),
        },
    )
    rows = [
        ("recovered", str(found.path) if found.path else "nothing: no episode was committed"),
        ("episodes", number(found.episodes)),
        ("steps", number(found.steps)),
        ("as it was left", str(found.original)),
    ]
    if found.damaged:
        damaged = ", ".join(map(str, found.damaged))
        rows.append(("damaged, only there", f"episodes {damaged}"))
    if found.tail:
        rows.append(("rows of no episode", f"{number(found.tail_rows)}, in {found.tail}"))
    show_table(str(dataset), rows)
    if found.path is None:
        raise typer.Exit(1)
