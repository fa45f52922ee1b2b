"""The verbs on datasets: record, check, recover, convert and pack."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from dreamgym.cli.errors import keeping
from dreamgym.cli.options import (
    AllowLoss,
    CheckedAlgorithm,
    CheckedFamily,
    Columns,
    HtmlFile,
    Ignored,
    ImageSize,
    JsonFile,
    Keys,
    NumActions,
    OverwriteDataset,
    RepeatLast,
    Seed,
    SourceEnv,
    Tasks,
    Terminals,
    foreign_options,
)
from dreamgym.cli.output import number, progress_bar, say, show_table, write_json
from dreamgym.cli.policies import POLICY_HELP, recording_policy

FORMATS = (
    "LeRobot, stable-worldmodel, Minari, D4RL, robomimic, ALOHA, RLDS, Zarr, MCAP, ROS bags, CSV, "
    "Parquet, Dreamer, npz"
)


def record(
    env: Annotated[
        str, typer.Argument(metavar="ENV", help="Id of the environment, e.g. CartPole-v1.")
    ],
    steps: Annotated[
        int, typer.Option("--steps", min=1, metavar="N", help="Real steps to record.")
    ] = 10_000,
    policy: Annotated[str, typer.Option("--policy", metavar="NAME", help=POLICY_HELP)] = "random",
    sample: Annotated[
        bool,
        typer.Option(
            "--sample", help="Sample the actions of a policy file; default: the most likely ones."
        ),
    ] = False,
    algo: Annotated[
        str | None,
        typer.Option(
            "--algo",
            metavar="NAME",
            help="Algorithm of a policy file that dreamgym did not write: PPO, SAC, ...",
        ),
    ] = None,
    world: Annotated[
        str | None,
        typer.Option(
            "--world",
            metavar="WORLD",
            help="World that a policy of the latent view was trained in: a folder or a name.",
        ),
    ] = None,
    seed: Seed = 0,
    max_episode_steps: Annotated[
        int | None,
        typer.Option(
            "--max-episode-steps",
            min=1,
            metavar="N",
            help="Truncate episodes after N steps; a task without an end needs it. Default: the "
            "environment's time limit.",
        ),
    ] = None,
    commit_every: Annotated[
        int,
        typer.Option(
            "--commit-every",
            min=1,
            metavar="N",
            help="Episodes in a commit, which takes milliseconds: more for many short episodes. A "
            "kill loses those since the last commit.",
        ),
    ] = 1,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="The dataset. Default: ENV.h5 in this folder."),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            "--workers", min=1, metavar="N", help="Processes; with several, FILE is a folder."
        ),
    ] = 1,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue the recording in --out until it has --steps."),
    ] = False,
    overwrite: OverwriteDataset = False,
    json_file: JsonFile = None,
) -> None:
    """Record real steps of ENV into a dataset, one HDF5 file of episodes.

    Finished episodes are safe from Ctrl-C, a kill or a full disk. Continue with --resume; after a
    kill, run dreamgym recover first.

    Example: [bold]dreamgym record CartPole-v1 --steps 10000 --seed 0 --out cartpole.h5[/]
    """
    from dreamgym import data

    if resume and overwrite:
        raise typer.BadParameter("--resume and --overwrite exclude each other")
    path = out if out is not None else Path(_file_name(env) + (".h5" if workers == 1 else ""))
    if resume and path.is_dir():
        workers = max(workers, len(list(path.glob("shard-*.h5"))))
    acting = recording_policy(policy, env, algo=algo, world=world, sample=sample)

    def kept() -> str:
        new = path.with_name(f"{path.name}.new")
        if overwrite and new.exists():
            return f"{path} is unchanged; the finished episodes are in {new}"
        if not path.exists():
            return "nothing was written"
        return f"the finished episodes are in {path}; --resume continues it"

    steps_before = 0
    if resume:
        with data.Dataset(path) as dataset:
            steps_before = int(dataset.num_steps)
    start = time.perf_counter()
    with keeping(kept), progress_bar("record") as report:
        if workers > 1:
            plan = data.ShardPlan(
                steps=steps,
                policy=acting,
                seed=seed,
                workers=workers,
                max_episode_steps=max_episode_steps,
                commit_every=commit_every,
            )
            if resume:
                data.resume_shards(env, path, plan, progress=report)
            else:
                data.record_shards(env, path, plan, overwrite=overwrite, progress=report)
        elif resume:
            data.resume(
                env,
                steps=steps,
                out=path,
                policy=acting,
                max_episode_steps=max_episode_steps,
                commit_every=commit_every,
                progress=report,
            )
        else:
            data.record(
                env,
                steps=steps,
                out=path,
                policy=acting,
                seed=seed,
                max_episode_steps=max_episode_steps,
                commit_every=commit_every,
                overwrite=overwrite,
                progress=report,
            )
    seconds = time.perf_counter() - start
    with data.Dataset(path) as dataset:
        episodes, total = int(dataset.num_episodes), int(dataset.num_steps)
        seed = seed if dataset.metadata.seed is None else dataset.metadata.seed
    write_json(
        json_file,
        {
            "dataset": str(path),
            "env_id": env,
            "policy": policy if isinstance(acting, str) else acting.name,
            "seed": seed,
            "steps": total,
            "episodes": episodes,
            "seconds": seconds,
            "steps_per_second": (total - steps_before) / seconds,
        },
    )
    counts = f"{number(total)} steps of {env} in {number(episodes)} episodes"
    say(f"{path}: {counts}, {number(seconds)} s")


def _file_name(env_id: str) -> str:
    """Return a file name for an id: without its module, and without slashes."""
    return env_id.split(":")[-1].replace("/", "-")


def check(
    dataset: Annotated[
        Path, typer.Argument(metavar="DATASET", help="A file or a folder, native or foreign.")
    ],
    terminals: Terminals = None,
    env: SourceEnv = None,
    keys: Keys = None,
    ignore: Ignored = None,
    allow_loss: AllowLoss = False,
    repeat_last: RepeatLast = False,
    columns: Columns = None,
    tasks: Tasks = None,
    image_size: ImageSize = None,
    num_actions: NumActions = None,
    family: CheckedFamily = None,
    algo: CheckedAlgorithm = None,
    html_file: HtmlFile = None,
    json_file: JsonFile = None,
) -> None:
    """Show what is in DATASET and what is wrong with it.

    The exit code is 1 if fitting would refuse the dataset, or the family or algorithm that is
    named would, and 0 otherwise.

    Example: [bold]dreamgym check cartpole.h5 --html cartpole.html[/]
    """
    from dreamgym.data import check as check_dataset
    from dreamgym.data import write_page

    foreign = foreign_options(
        terminals,
        env,
        keys=keys,
        ignore=ignore,
        columns=columns,
        tasks=tasks,
        image_size=image_size,
        num_actions=num_actions,
        allow_loss=allow_loss,
        repeat_last=repeat_last,
    )
    if html_file is None:
        card = check_dataset(dataset, foreign=foreign)
    else:
        card = write_page(dataset, html_file, foreign=foreign)
    if family is not None or algo is not None:
        from dreamgym.train.readiness import with_consumers

        card = with_consumers(card, family=family, algo=algo)
    write_json(json_file, card.as_dict())
    say(str(card))
    if not card.ok:
        raise typer.Exit(1)


def recover(
    dataset: Annotated[
        Path, typer.Argument(metavar="DATASET", help="The file of the killed recording.")
    ],
    json_file: JsonFile = None,
) -> None:
    """Make a complete dataset from the file of a killed recording; nothing is deleted.

    Every committed episode is kept. The original file stays beside it, as DATASET.killed.

    Example: [bold]dreamgym recover cartpole.h5[/]
    """
    from dreamgym.data import recover as recover_dataset

    with keeping(lambda: "nothing was lost; run the same command again"):
        found = recover_dataset(dataset)
    write_json(
        json_file,
        {
            "dataset": str(found.path) if found.path else None,
            "episodes": found.episodes,
            "steps": found.steps,
            "damaged_episodes": found.damaged,
            "tail": str(found.tail) if found.tail else None,
            "tail_rows": found.tail_rows,
            "original": str(found.original),
        },
    )
    rows = [
        ("recovered", str(found.path) if found.path else "nothing: no episode was committed"),
        ("episodes", number(found.episodes)),
        ("steps", number(found.steps)),
        ("original file", str(found.original)),
    ]
    if found.damaged:
        damaged = ", ".join(map(str, found.damaged))
        rows.append(("damaged episodes (only in the original)", damaged))
    if found.tail:
        rows.append(("rows outside any episode", f"{number(found.tail_rows)}, in {found.tail}"))
    show_table(str(dataset), rows)
    if found.path is None:
        raise typer.Exit(1)


def convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help=f"A file or folder: {FORMATS}.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The dataset to make.")],
    terminals: Terminals = None,
    env: SourceEnv = None,
    keys: Keys = None,
    ignore: Ignored = None,
    allow_loss: AllowLoss = False,
    repeat_last: RepeatLast = False,
    columns: Columns = None,
    tasks: Tasks = None,
    image_size: ImageSize = None,
    num_actions: NumActions = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave invalid episodes out, and list them.")
    ] = False,
    overwrite: OverwriteDataset = False,
    json_file: JsonFile = None,
) -> None:
    """Write SOURCE, a dataset of another library, as the native dataset OUT.

    The format is detected from the file's content and shown. SOURCE is never changed.

    Example: [bold]dreamgym convert hopper-medium.hdf5 hopper.h5[/]
    """
    from dreamgym.data import convert as convert_dataset

    options = foreign_options(
        terminals,
        env,
        keys=keys,
        ignore=ignore,
        columns=columns,
        tasks=tasks,
        image_size=image_size,
        num_actions=num_actions,
        allow_loss=allow_loss,
        repeat_last=repeat_last,
    )
    with keeping(lambda: f"{source} is unchanged"):
        done = convert_dataset(
            source,
            out,
            options=options,
            on_bad="skip" if skip_bad else "raise",
            overwrite=overwrite,
        )
    write_json(
        json_file,
        {
            "dataset": str(done.path),
            "format": done.format,
            "convention": done.convention,
            "episodes": done.episodes,
            "steps": done.steps,
            "skipped": done.skipped,
            "notes": done.notes,
        },
    )
    counts = f"{number(done.steps)} steps in {number(done.episodes)} episodes"
    show_table(str(out), [("found", done.convention), ("written", counts)])
    for note in done.notes:
        say(f"note: {note}")
    for skipped in done.skipped:
        say(f"skipped: {skipped}")


def pack(
    dataset: Annotated[
        Path, typer.Argument(metavar="DATASET", help="A file that dreamgym record made.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The packed dataset to make.")],
    level: Annotated[
        int,
        typer.Option("--level", min=1, max=9, metavar="N", help="1 is fast, 9 is small."),
    ] = 4,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            metavar="NAME",
            help="gzip, which every HDF5 library can read, or zstd, which is faster and needs "
            "dreamgym\\[hdf5plugin] for reading.",
        ),
    ] = "gzip",
    overwrite: OverwriteDataset = False,
    json_file: JsonFile = None,
) -> None:
    """Write a compressed copy of DATASET, for sharing; it reads the same, with the same checksums.

    Example: [bold]dreamgym pack cartpole.h5 cartpole-packed.h5[/]
    """
    from dreamgym.data import pack as pack_dataset

    before = dataset.stat().st_size if dataset.exists() else 0
    with keeping(lambda: f"{dataset} is unchanged"):
        pack_dataset(dataset, out, level=level, method=method, overwrite=overwrite)  # type: ignore[arg-type]  # checked there
    after = out.stat().st_size
    write_json(json_file, {"dataset": str(out), "bytes_before": before, "bytes_after": after})
    say(f"{out}: {before / 1e6:.2f} MB packed to {after / 1e6:.2f} MB")
