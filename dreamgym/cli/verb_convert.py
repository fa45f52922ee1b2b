"""`dreamgym convert`: somebody else's dataset into a native one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dreamgym.cli.failing import keeping
from dreamgym.cli.options import JsonFile, Keys, SourceEnv, Terminals, foreign_options
from dreamgym.cli.showing import number, say, show_table, write_json

FORMATS = "Minari, D4RL, robomimic, stable-worldmodel, OGBench or npz"


def convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help=f"A file or folder: {FORMATS}.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The dataset to make.")],
    terminals: Terminals = None,
    env: SourceEnv = None,
    keys: Keys = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave bad episodes out, and list them.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Write SOURCE, a dataset of another library, as the native dataset OUT.

    The format is found by what is in the file; what was found is said. SOURCE is never changed.

    Example: [bold]dreamgym convert hopper-medium.hdf5 hopper.h5[/]
    """
    from dreamgym.data import convert as convert_dataset

    options = foreign_options(terminals, env, keys)
    with keeping(lambda: f"{source} is as it was"):
        done = convert_dataset(source, out, options=options, on_bad="skip" if skip_bad else "raise")
    write_json(
        json_file,
        {
            "dataset": str(done.path),
            "format": done.format,
            "convention": done.convention,
            "episodes": done.episodes,
            "steps": done.steps,
            "skipped": done.skipped,
        },
    )
    counts = f"{number(done.steps)} steps in {number(done.episodes)} episodes"
    show_table(str(out), [("found", done.convention), ("written", counts)])
    for skipped in done.skipped:
        say(f"skipped: {skipped}")
