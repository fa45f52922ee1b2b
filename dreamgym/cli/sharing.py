"""The verbs that show worlds and publish them: worlds and push."""

from __future__ import annotations

from typing import Annotated

import typer

from dreamgym.cli.errors import keeping
from dreamgym.cli.options import JsonFile
from dreamgym.cli.output import number, say, show_columns, write_json
from dreamgym.world.zoo import ShippedWorld
from dreamgym.world.zoo import worlds as shipped_worlds


def worlds(json_file: JsonFile = None) -> None:
    """List the worlds that ship with dreamgym, and what policies trained in them reach.

    Every verb that takes a world takes these names. The real return is the mean of policies that
    were trained (or planned) only in the world, one for each seed; --json has each of them. Of
    a world for goals it is the share of them that plans reach.

    Example: [bold]dreamgym worlds --json worlds.json[/]
    """
    records = shipped_worlds()
    write_json(json_file, {"worlds": [each.as_dict() for each in records]})
    header = ["world", "task, family, observations", "MB", "real return [95%]", "random"]
    show_columns(f"{len(records)} worlds", header, [_row(each) for each in records])


def _row(world: ShippedWorld) -> list[str]:
    measured = "-"
    if world.real_return is not None and world.real_interval is not None:
        low, high = map(_figure, world.real_interval)
        measured = f"{_figure(world.real_return)} [{low}, {high}]"
        measured += "" if world.measure == "real return" else "% of goals"
    return [
        world.name,
        f"{world.env_id}, {world.family}, {world.observations}",
        f"{world.bytes / 1e6:.1f}",
        measured,
        "-" if world.random_return is None else _figure(world.random_return),
    ]


def _figure(value: float) -> str:
    return number(round(value)) if abs(value) >= 100 else number(round(value, 1))


def push(
    world: Annotated[
        str, typer.Argument(metavar="WORLD", help="A folder of dreamgym fit, or another world.")
    ],
    repository: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="Repository; it is made if there is none.")
    ],
    private: Annotated[
        bool, typer.Option("--private", help="Make a private repository, if it is made.")
    ] = False,
    message: Annotated[
        str | None, typer.Option("--message", metavar="TEXT", help="Message of the commit.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Publish WORLD with its card on the Hugging Face Hub.

    Log in first with [bold]hf auth login[/], or set HF_TOKEN. The name that is printed loads
    exactly this world, anywhere.

    Example: [bold]dreamgym push worlds/cartpole me/cartpole-world --private[/]
    """
    from dreamgym.world import push as push_world

    with keeping(lambda: "nothing was published, except perhaps an empty repository"):
        pushed = push_world(world, repository, private=private, message=message)
    write_json(json_file, pushed._asdict())
    say(pushed.url)
    say(pushed.world)
