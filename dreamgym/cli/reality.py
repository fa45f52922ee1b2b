"""The verbs that carry policies to the real environment: transfer, evaluate and export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dreamgym.cli.errors import keeping
from dreamgym.cli.options import JsonFile, WorldDevice, given
from dreamgym.cli.output import (
    number,
    progress_bar,
    say,
    show_columns,
    show_table,
    write_json,
)
from dreamgym.cli.policies import (
    PLANNED,
    POLICY_HELP,
    evaluated_policy,
    exported_policy,
    planned_policy,
    policy_named,
)

if TYPE_CHECKING:
    from dreamgym.transfer import Comparison, Evaluation

Episodes = Annotated[
    int, typer.Option("--episodes", min=1, metavar="N", help="Real episodes of each policy.")
]
FirstSeed = Annotated[
    int | None,
    typer.Option("--seed", min=0, metavar="N", help="Episode k has seed N + k. Default: 10000."),
]
RealEnv = Annotated[
    str | None,
    typer.Option(
        "--env",
        metavar="ENV",
        help="The real environment, if the world does not name it: ID, or MODULE:ID if a module "
        "registers it.",
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        "--max-episode-steps",
        min=1,
        metavar="N",
        help="Truncate episodes after N steps (transfer: dreams, too); a task without an end needs "
        "it. Default: the real environment's time limit.",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option("--data", metavar="DATASET", help="Dataset that the world was fitted to."),
]


def transfer(
    policy: Annotated[str, typer.Argument(metavar="POLICY", help=POLICY_HELP)],
    world: Annotated[
        str,
        typer.Option(
            "--world", metavar="WORLD", help="World that it was trained in: a folder or a name."
        ),
    ],
    episodes: Episodes = 100,
    seed: FirstSeed = None,
    env: RealEnv = None,
    max_episode_steps: Limit = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="DATASET",
            help="Dataset that the world was fitted to: its policy is imitated and measured, too.",
        ),
    ] = None,
    baselines: Annotated[
        bool,
        typer.Option(
            "--baselines/--no-baselines",
            help="Measure random actions, and those of the data, in the same episodes.",
        ),
    ] = True,
    device: WorldDevice = "cpu",
    json_file: JsonFile = None,
) -> None:
    """Run POLICY in the real environment and in the dream, and compare.

    The gap is the mean dream return minus the mean real return.

    Example: [bold]dreamgym transfer cartpole-ppo.zip --world worlds/cartpole --json result.json[/]
    """
    from dreamgym.transfer import transfer_policy
    from dreamgym.world import load

    loaded, chosen = load(world).to(device), exported_policy(policy)
    if chosen is None:
        chosen = planned_policy(policy, loaded) if policy.startswith(PLANNED) else None
    with keeping(lambda: "nothing was written"), progress_bar("transfer") as report:
        result = transfer_policy(
            policy_named(policy) if chosen is None else chosen,
            loaded,
            episodes=episodes,
            env=env,
            max_episode_steps=max_episode_steps,
            data=data,
            baselines=baselines,
            progress=report,
            **given(seed=seed),
        )
    figures = result.as_dict()
    write_json(json_file, figures)
    show_table(
        f"{Path(policy).name} on {figures['env_id']}, {number(figures['episodes'])} episodes",
        [
            ("real return", _mean_row(figures, "real_return")),
            ("dream return", _mean_row(figures, "dream_return")),
            ("gap (dream - real)", _interval(figures["gap"], figures["gap_interval"])),
            ("steps, at most", number(figures["step_limit"])),
            ("view", figures["view"]),
            ("real steps", number(figures["real_steps"])),
            ("seconds", number(figures["real_seconds"] + figures["dream_seconds"])),
        ],
    )
    _show_comparison("In the same real episodes", result.comparison)
    say(f"Steps of an episode: {figures['step_limit_reason']}.")


def evaluate(
    policies: Annotated[
        list[str], typer.Argument(metavar="POLICY...", help=f"One or several. {POLICY_HELP}")
    ],
    env: Annotated[
        str | None,
        typer.Option(
            "--env",
            metavar="ENV",
            help="The real environment: ID, or MODULE:ID if a module registers it. Default: that "
            "of --world.",
        ),
    ] = None,
    world: Annotated[
        str | None,
        typer.Option(
            "--world",
            metavar="WORLD",
            help="World whose latents policies see, or in which plan:NAME plans.",
        ),
    ] = None,
    algo: Annotated[
        str | None,
        typer.Option(
            "--algo", metavar="NAME", help="Algorithm of files that dreamgym did not write."
        ),
    ] = None,
    episodes: Episodes = 100,
    seed: FirstSeed = None,
    max_episode_steps: Limit = None,
    videos: Annotated[
        Path | None,
        typer.Option("--videos", metavar="FOLDER", help="Write a video of the first 3 episodes."),
    ] = None,
    device: WorldDevice = "cpu",
    json_file: JsonFile = None,
) -> None:
    """Run policies in the real environment, all of them in the same episodes.

    Differences to the first policy are paired by episode.

    Example: [bold]dreamgym evaluate cartpole-ppo.zip random --env CartPole-v1 --json result.json[/]
    """
    from dreamgym.transfer import EpisodePlan, compare_policies
    from dreamgym.transfer.real import world_env_maker
    from dreamgym.world import load

    if env is None and world is None:
        raise typer.BadParameter("name the real environment with --env, or a world with --world")
    if world is None and device != "cpu":
        raise typer.BadParameter("--device is that of a world; name one with --world")
    loaded = None if world is None else load(world).to(device)
    rendered = {} if videos is None else {"render_mode": "rgb_array"}
    maker = world_env_maker(loaded, env, **rendered)
    named: dict[str, Any] = {}
    for text in policies:
        name = Path(text).name if Path(text).exists() else text
        named[text if name in named else name] = evaluated_policy(text, loaded, maker, algo)
    plan = EpisodePlan(
        episodes=episodes,
        max_episode_steps=max_episode_steps,
        videos=videos,
        **given(seed=seed),
    )
    with keeping(lambda: "nothing was written"), progress_bar("evaluate") as report:
        result = compare_policies(named, maker, plan, progress=report)
    write_json(json_file, result.as_dict())
    _show_comparison(f"{env or world}, {number(episodes)} episodes", result)


def export(
    world: Annotated[
        str | None,
        typer.Argument(
            metavar="[WORLD]",
            help="World that the policy was trained in; one that sees observations needs none.",
        ),
    ] = None,
    policy: Annotated[
        str | None, typer.Option("--policy", metavar="FILE", help="The policy's file.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="The folder to write.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="DATASET",
            help="Dataset that the world was fitted to: thresholds of the guard are measured on "
            "its held-out episodes. Default: no guard.",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Overwrite an existing folder.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Write encoder, filter and policy as ONNX, for a robot without dreamgym and torch.

    The folder holds controller.onnx, world.onnx (the world's step) and controller.json, which
    describes every input and output. examples/robot_loop.py runs it.

    Example: [bold]dreamgym export worlds/pole --policy ppo.zip --data pole.h5 --out robot[/]
    """
    from dreamgym.transfer import export_policy

    if out is None:
        raise typer.BadParameter("name the folder to write with --out")
    with keeping(lambda: "nothing was written"):
        description = export_policy(policy, world, out=out, data=data, overwrite=overwrite)
    write_json(json_file, description)
    guard = description["guard"]
    limits = {} if guard is None else guard["outputs"]
    latency = description["latency"]
    show_table(
        str(out),
        [
            ("graphs", ", ".join(description["graphs"])),
            ("noise", description["noise"]),
            *((f"{name}, at most", number(each["threshold"])) for name, each in limits.items()),
            ("a call, median", f"{latency['median_ms']} ms"),
            ("a call, 99%", f"{latency['p99_ms']} ms"),
        ],
    )
    if guard is None:
        say("There is no guard: it needs a world and --data.")


def _mean_row(figures: dict[str, Any], name: str) -> str:
    return _interval(figures[f"{name}_mean"], figures[f"{name}_interval"])


def _interval(value: float, bounds: Any) -> str:
    low, high = bounds
    return f"{value:.1f}  (95%: {low:.1f} to {high:.1f})"


def _show_comparison(title: str, comparison: Comparison) -> None:
    """Show the returns of policies, and differences of the others to the first."""
    results = comparison.evaluations
    succeeds = any(each.success is not None for each in results.values())
    first = next(iter(results))
    header = ["policy", "return [95%]", "IQM [95%]"]
    header += ["success [95%]", "began at goal"] if succeeds else []
    header += ["minus the first, paired [95%]"] if len(results) > 1 else []
    rows = []
    for name, result in results.items():
        row = [
            name,
            _short(result.mean, result.interval),
            _short(result.iqm, result.iqm_interval),
        ]
        if succeeds:
            row += [_success(result), number(int(sum(result.at_goal)))]  # type: ignore[arg-type]
        if len(results) > 1:
            row.append("" if name == first else _short(*comparison.difference(name, first)))
        rows.append(row)
    show_columns(title, header, rows)


def _short(value: float, bounds: tuple[float, float]) -> str:
    return f"{number(value)} [{number(bounds[0])}, {number(bounds[1])}]"


def _success(result: Evaluation) -> str:
    rate, bounds = result.success_rate, result.success_interval
    return "-" if rate is None or bounds is None else _short(rate, bounds)
