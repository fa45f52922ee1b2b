"""The verb that opens a page in which one acts inside a dream: play."""

from __future__ import annotations

import os
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dreamgym.cli.output import say
from dreamgym.cli.policies import PLANNED, POLICY_HELP, exported_policy, policy_named

if TYPE_CHECKING:
    from dreamgym.world import World


def play(
    world: Annotated[
        str, typer.Argument(metavar="WORLD", help="World to play in: a folder or a name.")
    ],
    env: Annotated[
        str | None,
        typer.Option(
            "--env",
            metavar="ENV",
            help="The real environment to play beside the dream, if the world does not name it: "
            "ID, or MODULE:ID if a module registers it.",
        ),
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            "--policy", metavar="POLICY", help=f"May play, too; may be repeated. {POLICY_HELP}"
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="DATASET", help="Dataset from whose episodes dreams start, too."
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="FOLDER", help="Folder for clips and episodes."),
    ] = Path("play"),
    seed: Annotated[
        int, typer.Option("--seed", min=0, metavar="N", help="Seed of the first episode.")
    ] = 0,
    port: Annotated[
        int,
        typer.Option(
            "--port",
            min=0,
            max=65535,
            metavar="N",
            help="Port of the page. Default: a free one.",
            show_default=False,
        ),
    ] = 0,
    device: Annotated[
        str, typer.Option("--device", metavar="NAME", help="Device of the dream.")
    ] = "auto",
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")
    ] = True,
) -> None:
    """Play in the dream of WORLD, in the browser, beside the real environment.

    The page is served on this machine only, at an address with a random token. Ctrl-C ends it.

    Example: [bold]dreamgym play CartPole-MDNRNN-v0 --policy cartpole-ppo.zip[/]
    """
    from dreamgym.play.protocol import Conversation
    from dreamgym.play.server import PlayServer
    from dreamgym.play.session import PlaySession
    from dreamgym.world import load

    loaded = load(world)
    names = _names(policy or ())

    def session() -> PlaySession:
        # A policy may remember what it saw, so every page has its own.
        policies = {name: _player(text, loaded) for name, text in names.items()}
        return PlaySession(loaded, env=env, policies=policies, data=data, device=device)

    session().close()  # what is wrong is said here, and not in the browser
    try:
        server = PlayServer(lambda: Conversation(session(), out, seed), port)
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        raise OSError(f"port {port} cannot be used: {reason}; choose another --port") from error
    with server:
        say(f"playing {loaded.name} at {server.url} (Ctrl-C ends)")
        if browser and _has_a_screen():
            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("ended")


def _has_a_screen() -> bool:
    """Return whether a browser would have a window; a text browser would take the terminal."""
    shows = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return sys.platform != "linux" or bool(shows)


def _names(policies: Sequence[str]) -> dict[str, str]:
    """Return policies of the command line by their names on the page: short ones that differ."""
    short = [Path(text).name if Path(text).exists() else text for text in policies]
    return {
        name if short.count(name) == 1 else text: text
        for name, text in zip(short, policies, strict=True)
    }


def _player(text: str, world: World) -> Any:
    """Return the policy that a name on the command line means, for a dream of a world."""
    exported = exported_policy(text)
    if exported is not None:
        return exported
    named = policy_named(text)
    if isinstance(named, str) and named.startswith(PLANNED):
        return named
    if isinstance(named, Path):
        from dreamgym.train import load_policy

        return load_policy(named, world=world)
    return named
