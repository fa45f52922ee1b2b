"""The verb of the online loop: improve."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from dreamgym.cli.errors import keeping
from dreamgym.cli.options import JsonFile, Seed, given, options_from
from dreamgym.cli.output import number, say, write_json
from dreamgym.online.config import PRESETS, Branches, ImproveConfig, improve_preset
from dreamgym.train.config import TrainConfig

_BRANCHES = {
    "first": "branch_first",
    "last": "branch_last",
    "from_steps": "branch_from",
    "to_steps": "branch_to",
}


@options_from(ImproveConfig, skip=("fit", "train"), rename=_BRANCHES)
def improve(
    env: Annotated[
        str,
        typer.Argument(
            metavar="ENV", help="The real environment: ID, or MODULE:ID if a module registers it."
        ),
    ],
    real_steps: Annotated[
        int, typer.Option("--real-steps", min=1, metavar="N", help="Real steps to record in all.")
    ],
    out: Annotated[
        Path,
        typer.Option("--out", metavar="FOLDER", help="Folder of the rounds, made or continued."),
    ],
    target: Annotated[
        float | None,
        typer.Option("--target", metavar="X", help="Mean real return at which the loop stops."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option("--preset", metavar="NAME", help=f"Published schedule: {', '.join(PRESETS)}."),
    ] = None,
    seed: Seed = 0,
    updates: Annotated[
        int | None, typer.Option("--updates", min=1, metavar="N", help="Updates of every fit.")
    ] = None,
    gamma: Annotated[
        float | None, typer.Option("--gamma", metavar="X", help="Discount factor of the policy.")
    ] = None,
    json_file: JsonFile = None,
    **settings: Any,
) -> None:
    """Record ENV, fit a world, train in its dreams, measure the policy, and again.

    Real steps that are recorded count towards the budget; those of measuring are shown beside it. A
    loop that was stopped, in whatever way, continues when the same command is run again.

    Example: [bold]dreamgym improve CartPole-v1 --real-steps 3000 --target 495 --out cartpole[/]
    """
    from dreamgym.online.loop import improve as improve_policy

    config = _config(preset, settings, updates, gamma)

    def kept() -> str:
        return f"the rounds so far are in {out}; the same command continues from there"

    with keeping(kept):
        result = improve_policy(
            env,
            real_steps=real_steps,
            out=out,
            target=target,
            seed=seed,
            config=config,
            progress=_show_round,
        )
    figures = {
        "folder": str(out),
        "best": result.best,
        "reached": result.reached,
        "policy": str(result.policy_path),
        "real_steps": result.real_steps,
        "evaluation_steps": result.evaluation_steps,
        "rounds": result.rounds,
    }
    write_json(json_file, figures)
    best = result.rounds[result.best - 1]
    measured = best["real_return"]
    shown = "not measured" if measured is None else f"real return {number(measured)}"
    say(
        f"{result.policy_path}: {shown}, {number(best['real_steps'])} real steps; evaluation took "
        f"{number(result.evaluation_steps)} more"
    )


def _config(
    preset: str | None, settings: dict[str, Any], updates: int | None, gamma: float | None
) -> ImproveConfig:
    """Return the settings that the options give.

    Raises:
        OnlineError: there is no such preset, or a number is out of range.
    """
    from dreamgym.fitting import default_config

    branch = {field: settings.pop(name) for field, name in _BRANCHES.items() if name in settings}
    config = improve_preset(preset, **settings)
    if branch:
        config = replace(config, branches=replace(config.branches or Branches(), **branch))
    if updates is not None:
        fit = config.fit or default_config(config.family)
        config = replace(config, fit=replace(fit, updates=updates))
    train: TrainConfig = replace(config.train, **given(gamma=gamma))
    return replace(config, train=train)


def _show_round(figures: dict[str, Any]) -> None:
    measured = figures["real_return"]
    shown = "" if measured is None else f", real return {number(measured)}"
    say(
        f"round {figures['round']}: {number(figures['real_steps'])} real steps{shown}, "
        f"{number(sum(figures['seconds'].values()))} s"
    )
