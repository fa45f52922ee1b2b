"""`dreamgym record`: real steps into a dataset."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from dreamgym.cli.errors import keeping
from dreamgym.cli.options import (
    HtmlFile,
    JsonFile,
    Keys,
    Seed,
    SourceEnv,
    Terminals,
    foreign_options,
)
from dreamgym.cli.output import number, progress_bar, say, show_table, write_json
from dreamgym.cli.policies import named_policy

POLICY_HELP = (
    "random, or sticky:P, which repeats its last action with probability P. Sticky actions cover "
    "more where random steps cancel out: sticky:0.8 suits Pendulum and LunarLander. held:N holds "
    "each random action for N steps. Or a zip of "
    "Stable-Baselines3, or MODULE:FUNCTION, a function from an observation to an action."
)


def record(
    env: Annotated[
        str, typer.Argument(metavar="ENV", help="Id of the environment, such as CartPole-v1.")
    ],
    steps: Annotated[
        int, typer.Option("--steps", min=1, metavar="N", help="Real steps to record.")
    ] = 10_000,
    policy: Annotated[str, typer.Option("--policy", metavar="NAME", help=POLICY_HELP)] = "random",
    sample: Annotated[
        bool,
        typer.Option(
            "--sample", help="Sample a zip's actions; without it, the most likely is taken."
        ),
    ] = False,
    algo: Annotated[
        str | None,
        typer.Option(
            "--algo", metavar="NAME", help="Of a zip that dreamgym did not write: PPO, SAC, ..."
        ),
    ] = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="The dataset; by default ENV.h5 in this folder."
        ),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            "--workers", min=1, metavar="N", help="Processes; with several, FILE becomes a folder."
        ),
    ] = 1,
    go_on: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the recording in --out until it holds --steps."),
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Record real steps of ENV into a dataset, one HDF5 file of episodes.

    What is recorded is safe at once: Ctrl-C, a kill or a full disk loses no finished episode.
    Go on with --resume; after a kill, dreamgym recover first.

    Example: [bold]dreamgym record CartPole-v1 --steps 10000 --seed 0 --out cartpole.h5[/]
    """
    from dreamgym.data import Dataset, ShardPlan, record_shards, resume, resume_shards
    from dreamgym.data import record as record_steps

    path = out if out is not None else Path(_name(env) + (".h5" if workers == 1 else ""))

    if go_on and path.is_dir():
        workers = max(workers, len(list(path.glob("shard-*.h5"))))
    acting = named_policy(policy, env, algo, sample)

    def kept() -> str:
        if not path.exists():
            return "nothing was written"
        return f"the finished episodes are in {path}; --resume goes on with it"

    before = 0
    if go_on:
        with Dataset(path) as dataset:
            before = int(dataset.num_steps)
    begin = time.perf_counter()
    with keeping(kept), progress_bar("record") as report:
        if workers > 1:
            plan = ShardPlan(steps=steps, policy=acting, seed=seed, workers=workers)
            (resume_shards if go_on else record_shards)(env, path, plan, progress=report)
        elif go_on:
            resume(env, steps=steps, out=path, policy=acting, progress=report)
        else:
            record_steps(env, steps=steps, out=path, policy=acting, seed=seed, progress=report)
    seconds = time.perf_counter() - begin
    with Dataset(path) as dataset:
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
            "steps_per_second": (total - before) / seconds,
        },
    )
    counts = f"{number(total)} steps of {env} in {number(episodes)} episodes"
    say(f"{path}: {counts}, {number(seconds)} s")


def _name(env_id: str) -> str:
    """A file name out of an id: no module, no namespace's slash."""
    return env_id.split(":")[-1].replace("/", "-")


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


def recover(
    dataset: Annotated[
        Path, typer.Argument(metavar="DATASET", help="The file that was being recorded.")
    ],
    json_file: JsonFile = None,
) -> None:
    """Make a whole dataset of what a killed recording left; nothing is deleted.

    Every committed episode is kept. What the writer left stays beside it, as DATASET.killed.

    Example: [bold]dreamgym recover cartpole.h5[/]
    """
    from dreamgym.data import recover as recover_dataset

    with keeping(lambda: "nothing was lost; give the same command again"):
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
        ("as it was left", str(found.original)),
    ]
    if found.damaged:
        damaged = ", ".join(map(str, found.damaged))
        rows.append(("damaged, only there", f"episodes {damaged}"))
    if found.tail:
        rows.append(("rows of no episode", f"{number(found.tail_rows)}, in {found.tail}"))
    show_table(str(dataset), rows)
    if found.path is None:
        raise typer.Exit(1)


FORMATS = "Minari, D4RL, robomimic, stable-worldmodel, OGBench or npz"


def convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help=f"A file or folder: {FORMATS}.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The dataset to make.")],
    terminals: Terminals = None,
    env: SourceEnv = None,
    keys: Keys = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave bad episodes out, and list them.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Write SOURCE, a dataset of another library, as the native dataset OUT.

    The format is found by what is in the file; what was found is said. SOURCE is never changed.

    Example: [bold]dreamgym convert hopper-medium.hdf5 hopper.h5[/]
    """
    from dreamgym.data import convert as convert_dataset

    options = foreign_options(terminals, env, keys)
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


def pack(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="A file of dreamgym record.")],
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
            help="gzip, which everybody can read, or zstd, which is faster and needs "
            "dreamgym\\[hdf5plugin] to be read.",
        ),
    ] = "gzip",
    json_file: JsonFile = None,
) -> None:
    """Write DATASET compressed, for sharing; it reads as before, with the same checksums.

    Example: [bold]dreamgym pack cartpole.h5 cartpole-packed.h5[/]
    """
    from dreamgym.data import pack as pack_dataset

    with keeping(lambda: f"{dataset} is as it was"):
        pack_dataset(dataset, out, level=level, method=method)  # type: ignore[arg-type]  # checked
    before, after = dataset.stat().st_size, out.stat().st_size
    write_json(json_file, {"dataset": str(out), "bytes_before": before, "bytes_after": after})
    say(f"{out}: {before / 1e6:.2f} MB packed to {after / 1e6:.2f} MB")
