"""`dreamgym check`: what is in a dataset, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dreamgym.cli.options import HtmlFile, JsonFile, SourceEnv, Terminals, foreign_options
from dreamgym.cli.showing import say, write_json


def check(
    dataset: Annotated[
        Path, typer.Argument(metavar="DATASET", help="A file or a folder, native or foreign.")
    ],
    terminals: Terminals = None,
    env: SourceEnv = None,
    html_file: HtmlFile = None,
    json_file: JsonFile = None,
) -> None:
    """Say what is in DATASET and what is wrong with it.

    The exit code is 1 where fitting would refuse the dataset, and 0 otherwise.

    Example: [bold]dreamgym check cartpole.h5 --html cartpole.html[/]
    """
    from dreamgym.data import check as check_dataset
    from dreamgym.data import write_page

    foreign = foreign_options(terminals, env)
    if html_file is None:
        card = check_dataset(dataset, foreign=foreign)
    else:
        card = write_page(dataset, html_file, foreign=foreign)
    write_json(json_file, card.as_dict())
    say(str(card))
    if not card.ok:
        raise typer.Exit(1)
