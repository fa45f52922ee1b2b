"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def _not_a_folder(path: Path | None) -> Path | None:
    """Refuse a file that cannot be written before the work, not after it."""
    if path is not None and path.is_dir():
        raise typer.BadParameter(f"{path} is a folder; give the name of a file")
    return path


JsonFile = Annotated[
    Path | None,
    typer.Option(
        "--json", metavar="FILE", callback=_not_a_folder, help="Write the figures to FILE as JSON."
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        "--seed", min=0, metavar="N", help="Of all that is random: same seed, same result."
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device", metavar="NAME", help="auto (CUDA where there is one), cpu, cuda, cuda:1, ..."
    ),
]


def given(**options: Any) -> dict[str, Any]:
    """The options that the user gave: those left out take the library's own default."""
    return {name: value for name, value in options.items() if value is not None}
