"""The verbs of the online loop: improve, and act and learn, its form as two processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from dreamgym.cli.errors import keeping
from dreamgym.cli.options import JsonFile, Seed, given, options_from
from dreamgym.cli.output import Report, number, progress_bar, say, write_json
from dreamgym.online.config import PRESETS, Branches, ImproveConfig, improve_preset
from dreamgym.train.config import TrainConfig

_BRANCHES = {
    "first": "branch_first",
    "last": "branch_last",
    "from_steps": "branch_from",
    "to_steps": "branch_to",
}
_ACTING = ("first_policy", "noise", "round_steps", "frame_skip", "actions", "max_episode_steps")
"""Settings of an actor."""
_NOT_LEARNING = (
    *("first_policy", "noise", "round_steps", "max_episode_steps"),
    *("bonus", "evaluation_episodes"),
)
"""Settings that a learner has no use for."""

EnvId = Annotated[
    str,
    typer.Argument(
        metavar="ENV", help="The real environment: ID, or MODULE:ID if a module registers it."
    ),
]
Preset = Annotated[
    str | None,
    typer.Option("--preset", metavar="NAME", help=f"Published schedule: {', '.join(PRESETS)}."),
]
Updates = Annotated[
    int | None, typer.Option("--updates", min=1, metavar="N", help="Updates of every fit.")
]
Planner = Annotated[
    str | None,
    typer.Option(
        "--planner",
        metavar="NAME",
        help="Planner or preset of a planner that acts, such as td-mpc2; nothing is trained in "
        "dreams.",
    ),
]
Gamma = Annotated[
    float | None, typer.Option("--gamma", metavar="X", help="Discount factor of the policy.")
]


@options_from(ImproveConfig, skip=("fit", "train"), rename=_BRANCHES)
def improve(
    env: EnvId,
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
    preset: Preset = None,
    seed: Seed = 0,
    updates: Updates = None,
    gamma: Gamma = None,
    planner: Planner = None,
    json_file: JsonFile = None,
    **settings: Any,
) -> None:
    """Record ENV, fit a world, train in its dreams, measure the policy, and again.

    Real steps that are recorded count towards the budget; those of measuring are shown beside it. A
    loop that was stopped, in whatever way, continues when the same command is run again.

    Example: [bold]dreamgym improve CartPole-v1 --real-steps 3000 --target 495 --out cartpole[/]
    """
    from dreamgym.online.loop import improve as improve_policy

    config = _config(preset, settings | given(planner=planner), updates, gamma)

    def kept() -> str:
        if not out.exists():
            return "nothing was written"
        return (
            f"the rounds so far are in {out}; the same command continues from there, and a "
            "training that was under way starts again"
        )

    with keeping(kept), _stage_bars() as stage_progress:
        result = improve_policy(
            env,
            real_steps=real_steps,
            out=out,
            target=target,
            seed=seed,
            config=config,
            progress=_show_round,
            stage_progress=stage_progress,
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


@options_from(
    ImproveConfig,
    skip=tuple(each.name for each in fields(ImproveConfig) if each.name not in _ACTING),
)
def act(
    env: EnvId,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="FOLDER", help="Folder that is shared with the learner."),
    ],
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps", min=1, metavar="N", help="Real steps to record. Default: until Ctrl-C."
        ),
    ] = None,
    seed: Seed = 0,
    planner: Planner = None,
    json_file: JsonFile = None,
    **settings: Any,
) -> None:
    """Record ENV with the newest policy of a learner, and never wait for it.

    The actor of two processes; `dreamgym learn FOLDER` is the other. Until there is a policy it
    records with --first-policy. It may be stopped or killed, and started again.

    Example: [bold]dreamgym act CartPole-v1 --out shared[/]
    """
    from dreamgym.online.parallel import act as act_in

    recorded: list[dict[str, Any]] = []

    def show(figures: dict[str, Any]) -> None:
        recorded.append(figures)
        version = figures["version"]
        by = f"version {version}" if version else "the first policy"
        say(f"{figures['dataset']}: {number(figures['steps'])} real steps, {by} acting")

    def kept() -> str:
        return f"all steps are in {out}; the same command records more"

    with keeping(kept):
        config = ImproveConfig(**settings, **given(planner=planner))
        act_in(env, out, steps=steps, seed=seed, config=config, progress=show)
    write_json(json_file, {"folder": str(out), "recorded": recorded})


@options_from(ImproveConfig, skip=("fit", "train", *_NOT_LEARNING), rename=_BRANCHES)
def learn(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder that is shared with the actor.")
    ],
    versions: Annotated[
        int | None,
        typer.Option(
            "--versions",
            min=1,
            metavar="N",
            help="Number of the last version to make, those before this call included. Default: "
            "until Ctrl-C.",
        ),
    ] = None,
    preset: Preset = None,
    seed: Seed = 0,
    updates: Updates = None,
    gamma: Gamma = None,
    planner: Planner = None,
    json_file: JsonFile = None,
    **settings: Any,
) -> None:
    """Fit worlds to what an actor records in FOLDER, and train its policy in their dreams.

    The learner of two processes; `dreamgym act ENV --out FOLDER` is the other. It waits for
    --first-steps real steps, and then makes a new version of world and policy whenever there is new
    data. It may be stopped or killed, and started again.

    Example: [bold]dreamgym learn shared[/]
    """
    from dreamgym.online.parallel import learn as learn_in

    def show(weights: dict[str, Any]) -> None:
        say(
            f"{folder / (weights['policy'] or weights['world'])}: version {weights['version']}, "
            f"{number(weights['real_steps'])} real steps"
        )

    def kept() -> str:
        return f"the versions so far are in {folder}; the same command continues from there"

    config = _config(preset, settings | given(planner=planner), updates, gamma)
    with keeping(kept):
        newest = learn_in(folder, versions=versions, seed=seed, config=config, progress=show)
    write_json(json_file, {"folder": str(folder), **newest})


@contextmanager
def _stage_bars() -> Iterator[Any]:
    """Show a progress bar for each stage of a round.

    Yields:
        A function of (round, stage, done, total) or (..., figures).
    """
    shown: tuple[int, str] | None = None
    report: Report | None = None
    with ExitStack() as bars:

        def stage_progress(round_number: int, stage: str, *progress: Any) -> None:
            nonlocal shown, report
            if (round_number, stage) != shown:
                bars.close()
                shown = round_number, stage
                report = bars.enter_context(progress_bar(f"round {round_number}: {stage}"))
            if report is not None:
                report(*progress)

        yield stage_progress


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
