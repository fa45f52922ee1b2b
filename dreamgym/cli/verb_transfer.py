"""`dreamgym transfer`: a policy back to the real environment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dreamgym.cli.failing import keeping
from dreamgym.cli.options import JsonFile, given
from dreamgym.cli.showing import number, progress_bar, show_table, write_json


def transfer(
    policy: Annotated[Path, typer.Argument(metavar="POLICY", help="A file of dreamgym train.")],
    world: Annotated[
        str,
        typer.Option(
            "--world", metavar="WORLD", help="The world it was trained in: a folder or a name."
        ),
    ],
    episodes: Annotated[
        int,
        typer.Option("--episodes", min=1, metavar="N", help="Real episodes, and as many dreamt."),
    ] = 100,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", min=0, metavar="N", help="Episode k starts from N + k; by default 10000."
        ),
    ] = None,
    env: Annotated[
        str | None,
        typer.Option(
            "--env", metavar="ENV", help="The real environment, where the world names none."
        ),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Run POLICY in the real environment and in the dream, and compare.

    The gap is the mean return of the dream less that of reality: what the dream promised too much.

    Example: [bold]dreamgym transfer cartpole-ppo.zip --world worlds/cartpole --json result.json[/]
    """
    from dreamgym.transfer import transfer_policy
    from dreamgym.world import load

    dreamt = load(world)
    with keeping(lambda: "nothing was written"), progress_bar("transfer") as report:
        result = transfer_policy(
            policy, dreamt, episodes=episodes, env=env, progress=report, **given(seed=seed)
        )
    figures = result.as_dict()
    write_json(json_file, figures)
    show_table(
        f"{policy.name} on {figures['env_id']}, {number(figures['episodes'])} episodes",
        [
            ("real return", _mean(figures, "real_return")),
            ("dream return", _mean(figures, "dream_return")),
            ("gap (dream - real)", _interval(figures["gap"], figures["gap_interval"])),
            ("sees", f"the {figures['view']} view"),
            ("real steps", number(figures["real_steps"])),
            ("seconds", number(figures["real_seconds"] + figures["dream_seconds"])),
        ],
    )


def _mean(figures: dict[str, Any], name: str) -> str:
    return _interval(figures[f"{name}_mean"], figures[f"{name}_interval"])


def _interval(value: float, interval: list[float]) -> str:
    low, high = interval
    return f"{value:.1f}  (95%: {low:.1f} to {high:.1f})"
