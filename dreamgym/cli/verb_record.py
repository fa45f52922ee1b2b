"""`dreamgym record`: real steps into a dataset."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from dreamgym.cli.acting import named_policy
from dreamgym.cli.failing import keeping
from dreamgym.cli.options import JsonFile, Seed
from dreamgym.cli.showing import number, progress_bar, say, write_json

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
