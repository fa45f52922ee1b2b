"""`dreamgym convert`: somebody else's dataset into a native one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dreamgym.cli.failing import keeping
from dreamgym.cli.options import JsonFile
from dreamgym.cli.showing import number, say, show_table, write_json

FORMATS = "Minari, D4RL, robomimic, stable-worldmodel, OGBench or npz"


def convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help=f"A file or folder: {FORMATS}.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The dataset to make.")],
    terminals: Annotated[
        str | None,
        typer.Option(
            "--terminals",
            metavar="WORD",
            help="What an ambiguous end flag means: termination (the task ended) or boundary.",
        ),
    ] = None,
    env: Annotated[
        str | None,
        typer.Option(
            "--env", metavar="ENV", help="The environment it comes from, for its id and spaces."
        ),
    ] = None,
    keys: Annotated[
        list[str] | None,
        typer.Option("--key", metavar="KEY", help="Observation to take; once for each."),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave bad episodes out, and list them.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Write SOURCE, a dataset of another library, as the native dataset OUT.

    The format is found by what is in the file; what was found is said. SOURCE is never changed.

    Example: [bold]dreamgym convert hopper-medium.hdf5 hopper.h5[/]
    """
    from dreamgym.data import ForeignOptions
    from dreamgym.data import convert as convert_dataset

    options = ForeignOptions(
        terminals=terminals,  # type: ignore[arg-type]  # checked, with an error that says the words
        keys=tuple(keys) if keys else None,
        **(_of_environment(env) if env else {}),
    )
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


def _of_environment(env_id: str) -> dict[str, Any]:
    """Id and spaces of a real environment."""
    import gymnasium as gym

    env = gym.make(env_id)
    try:
        return {
            "env_id": env_id,
            "observation_space": env.observation_space,
            "action_space": env.action_space,
        }
    finally:
        env.close()
