"""The verbs that make worlds and policies: fit, train and import-checkpoint."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dreamgym._files import local_path
from dreamgym.cli.errors import keeping
from dreamgym.cli.options import (
    AllowLoss,
    Columns,
    Ignored,
    ImageSize,
    JsonFile,
    Keys,
    NumActions,
    OverwritePolicy,
    OverwriteWorld,
    RepeatLast,
    Seed,
    Skip,
    SkippedActions,
    SourceEnv,
    Tasks,
    Terminals,
    foreign_options,
    given,
    options_from,
)
from dreamgym.cli.output import number, progress_bar, say, show_figures, write_json
from dreamgym.fitting.config import FitConfig
from dreamgym.train.config import TrainConfig
from dreamgym.train.registry import LEARNERS, describe_algorithms, find_learner

if TYPE_CHECKING:
    from dreamgym.data import FrameSkip

MEASURED = "dataset"  # --statistics dataset

_PACKAGES = {
    path.parent.name.replace("_", "-")
    for path in (Path(__file__).parents[1] / "models").glob("*/model.py")
}
FAMILY_NAMES = sorted(_PACKAGES - {"cosmos3"} | {"delta-iris", "ensemble"})
"""Families that a name alone chooses, for the help: the table of families would import torch.

A package is a family, but `iris` has two, `cosmos3` has no default config, and of the wrappers only
`ensemble` has one. A test compares them with the table.
"""


@options_from(FitConfig, skip=("overwrite",), rename={"name": "optimizer"})
def fit(
    dataset: Annotated[
        Path, typer.Argument(metavar="DATASET", help="A file or a folder of shards.")
    ],
    family: Annotated[
        str,
        typer.Option(
            "--family", metavar="NAME", help=f"Family of world models: {', '.join(FAMILY_NAMES)}."
        ),
    ] = "mdn-rnn",
    preset: Annotated[
        str | None,
        typer.Option("--preset", metavar="NAME", help="Published size of the family, e.g. doom."),
    ] = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="The world. Default: worlds/DATASET."),
    ] = None,
    overwrite: OverwriteWorld = False,
    mix: Annotated[
        list[str] | None,
        typer.Option(
            "--mix",
            metavar="DATASET=WEIGHT",
            help="Another dataset and its sampling weight (DATASET has 1); may be repeated.",
        ),
    ] = None,
    frame_skip: Skip = 1,
    actions: SkippedActions = "blocks",
    keys: Keys = None,
    memory: Annotated[
        float | None,
        typer.Option(
            "--memory",
            min=0.0,
            metavar="GB",
            help="Most observations to hold in memory. Default: 1. The rest is prefetched from the "
            "file.",
        ),
    ] = None,
    terminals: Terminals = None,
    env: SourceEnv = None,
    ignore: Ignored = None,
    allow_loss: AllowLoss = False,
    repeat_last: RepeatLast = False,
    columns: Columns = None,
    tasks: Tasks = None,
    image_size: ImageSize = None,
    num_actions: NumActions = None,
    json_file: JsonFile = None,
    **settings: Any,
) -> None:
    """Fit a world model to DATASET and save it as a world, a folder to dream in.

    The best weights are chosen on held-out episodes. A fit that was stopped continues from its last
    checkpoint when the same command is run again.

    The defaults of the settings below are general ones; a family or preset may have its own.

    In several processes: [bold]torchrun --nproc-per-node 2 -m dreamgym.cli fit cartpole.h5[/]

    Example: [bold]dreamgym fit cartpole.h5 --family mdn-rnn --seed 0 --out worlds/cartpole[/]
    """
    from dreamgym.data import FrameSkip
    from dreamgym.fitting.checkpoint import path_for
    from dreamgym.fitting.config import default_config
    from dreamgym.fitting.distributed import is_first
    from dreamgym.fitting.loop import fit as fit_world

    target = out if out is not None else Path("worlds") / dataset.stem
    checkpoint = path_for(target)
    config = default_config(family, preset, overwrite=overwrite, **settings)

    def kept() -> str:
        if checkpoint.exists():
            return f"the fit so far is in {checkpoint}; the same command continues from there"
        return "nothing was written"

    reading = given(
        keys=keys or None,
        memory=None if memory is None else int(memory * 1e9),
        foreign=foreign_options(
            terminals,
            env,
            ignore=ignore,
            columns=columns,
            tasks=tasks,
            image_size=image_size,
            num_actions=num_actions,
            allow_loss=allow_loss,
            repeat_last=repeat_last,
        ),
    )
    skip = FrameSkip(steps=frame_skip, actions=actions)  # type: ignore[arg-type]  # checked there
    start = time.perf_counter()
    bar = progress_bar("fit") if is_first() else nullcontext(None)
    with keeping(kept), _open_datasets(dataset, mix, skip, reading) as data, bar as report:
        world = fit_world(
            data, out=target, family=family, seed=seed, config=config, progress=report
        )
    if is_first():
        _show_fit(world, target, time.perf_counter() - start, json_file)


def _show_fit(world: Any, target: Path, seconds: float, json_file: Path | None) -> None:
    """Show and write the figures of a world that was fitted into a folder."""
    figures = {
        "world": str(target),
        "family": world.provenance["fit"]["family"],
        "seed": world.provenance["fit"]["seed"],
        "env_id": world.env_id,
        "horizon": world.horizon,
        "frame_skip": world.frame_skip.to_json() or None,
        "seconds": seconds,
        "quality": world.quality,
        "provenance": world.provenance,
    }
    write_json(json_file, figures)
    show_figures("On held-out episodes", {"horizon": world.horizon, **world.quality})
    say(f"{target}: a world of {world.env_id or 'an unnamed environment'}, {number(seconds)} s")
    if world.env_id is None:
        say("note: transfer, play and a ranking need the real environment: fit with --env ENV")


@contextmanager
def _open_datasets(
    dataset: Path, mix: list[str] | None, skip: FrameSkip, reading: dict[str, Any]
) -> Iterator[Any]:
    """Open the dataset, or, if some are mixed, all of them as pairs (dataset, weight)."""
    from dreamgym.data import Dataset, with_frame_skip

    with ExitStack() as stack:
        parts = [
            (with_frame_skip(stack.enter_context(Dataset(path, **reading)), skip), weight)
            for path, weight in [(dataset, 1.0), *map(_parse_weighted, mix or [])]
        ]
        yield parts if mix else parts[0][0]


def _parse_weighted(text: str) -> tuple[Path, float]:
    """Parse `PATH=WEIGHT`."""
    path, _, weight = text.rpartition("=")
    try:
        return Path(path or weight), float(weight) if path else 1.0
    except ValueError:
        raise typer.BadParameter(
            f"--mix {text}: {weight!r} is not a number; expected e.g. PATH=0.5"
        ) from None


@options_from(TrainConfig)
def train(
    world: Annotated[
        str,
        typer.Argument(
            metavar="WORLD", help="A folder, a world that ships with dreamgym, or hf://owner/name."
        ),
    ],
    algo: Annotated[
        str | None,
        typer.Option(
            "--algo",
            metavar="NAME",
            help=f"{describe_algorithms()}. Default: the first of the learner.",
        ),
    ] = None,
    learner: Annotated[
        str | None,
        typer.Option(
            "--learner",
            metavar="NAME",
            help=f"Learner library: {', '.join(LEARNERS)}. Default: the first that has ALGO.",
        ),
    ] = None,
    seed: Seed = 0,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            min=1,
            metavar="N",
            help="Dream steps, rounded up to whole rollouts of all copies. Default: ALGO's own.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="The policy. Default: WORLD-ALGO in this folder."
        ),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(
            "--seeds",
            min=1,
            metavar="N",
            help="Policies to train, of --seed and the seeds after it, as many at once as there "
            "are processors; each seed is added to the name of its file.",
        ),
    ] = 1,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on from the checkpoints of a training that was stopped, up to --steps in all.",
        ),
    ] = False,
    checkpoint_every: Annotated[
        int,
        typer.Option(
            "--checkpoint-every", min=1, metavar="N", help="Dream steps between checkpoints."
        ),
    ] = 100_000,
    tensorboard: Annotated[
        Path | None,
        typer.Option(
            "--tensorboard",
            metavar="FOLDER",
            help="Write TensorBoard logs to FOLDER, with --seeds to a subfolder for each.",
        ),
    ] = None,
    real_data: Annotated[
        Path | None,
        typer.Option(
            "--real-data",
            metavar="DATASET",
            help="Dataset of real transitions, of which each batch takes the share --real-share.",
        ),
    ] = None,
    evaluate_every: Annotated[
        int | None,
        typer.Option(
            "--evaluate-every",
            min=1,
            metavar="N",
            help="Dream steps between evaluations in the real environment, which cost real steps.",
        ),
    ] = None,
    evaluate_episodes: Annotated[
        int,
        typer.Option(
            "--evaluate-episodes", min=1, metavar="N", help="Real episodes of an evaluation."
        ),
    ] = 10,
    overwrite: OverwritePolicy = False,
    json_file: JsonFile = None,
    **settings: Any,
) -> None:
    """Train a policy inside WORLD; the real environment is not used.

    Only --evaluate-every measures the policy in the real environment while it trains.

    Settings without a default take the algorithm's or the world's own.

    Example: [bold]dreamgym train worlds/cartpole --algo PPO --seed 0 --out cartpole-ppo.zip[/]
    """
    from dreamgym.train import Monitoring, train_policy, train_seeds
    from dreamgym.train.seeds import seed_path
    from dreamgym.world import load

    if resume and overwrite:
        raise typer.BadParameter("--resume and --overwrite exclude each other")
    loaded = load(world)
    entry = find_learner(algo, learner)
    algo = algo or entry.algorithms[0]
    target = entry.policy_path(out or f"{loaded.name}-{algo}")
    several = [seed_path(target, seed + index) for index in range(seeds)] if seeds > 1 else []
    for path in several or [target]:
        if overwrite and several:
            path.unlink(missing_ok=True)
        if not (overwrite or resume):
            _check_new(path)
    finished = [str(path) for path in several or [target] if resume and path.exists()]
    evaluate = None
    if evaluate_every is not None:
        say(
            f"Each evaluation is {evaluate_episodes} episodes in the real environment; their steps "
            "are real ones, which the card of the policy counts."
        )
        evaluate = partial(_evaluate, world=world, episodes=evaluate_episodes)
    monitoring = Monitoring(
        checkpoint_every=checkpoint_every,
        tensorboard=None if tensorboard is None else str(tensorboard),
        evaluate_every=evaluate_every,
        evaluate=evaluate,
    )
    arguments: dict[str, Any] = {"algo": algo, "learner": learner, "steps": steps}
    arguments |= {"config": TrainConfig(**settings), "monitoring": monitoring, "resume": resume}
    arguments |= {"real_data": real_data}
    start = time.perf_counter()
    with keeping(lambda: "nothing was written"), progress_bar("train") as report:
        if several:
            chosen = range(seed, seed + seeds)
            train_seeds(world, chosen, out=target, progress=report, **arguments)
        else:
            train_policy(loaded, seed=seed, out=target, progress=report, **arguments)
    seconds = time.perf_counter() - start
    figures = [_trained(path) for path in several or [target]]
    for each in figures:
        if each["policy"] not in finished:
            each |= {"seconds": seconds, "steps_per_second": each["steps"] / seconds}
        _show_trained(each, steps)
    write_json(json_file, {"policies": figures} if several else figures[0])


def _check_new(path: Path) -> None:
    """Raise `FileExistsError` if there is a policy already, or an unfinished one."""
    from dreamgym.train.training import checkpoint_path

    if path.exists():
        raise FileExistsError(f"{path} exists already; give another path or --overwrite")
    unfinished = checkpoint_path(path)
    if unfinished.exists():
        raise FileExistsError(
            f"{unfinished} is a training that was stopped; --resume goes on from it, --overwrite "
            "starts again"
        )


def _show_trained(figures: dict[str, Any], asked: int | None) -> None:
    """Print the alarms of a training, and one line on its policy.

    Args:
        figures: those of `_trained`; with "seconds" where it was trained now.
        asked: dream steps that were asked for; None for the algorithm's own number.
    """
    done = f"{figures['policy']}: {figures['algo']}, {number(figures['steps'])} dream steps"
    if "seconds" not in figures:
        say(f"{done}: it was finished, and nothing was trained; --overwrite trains it again")
        return
    if asked is not None and figures["steps"] > asked:
        done += f" ({number(asked)} were asked for; rollouts are whole)"
    last = ""
    if figures["curve"]:
        last = f", dream return {number(figures['curve'][-1][1])} at the end"
    for alarm in figures["alarms"]:
        say(f"alarm: {alarm}")
    say(f"{done}, {number(figures['seconds'])} s{last}")


def _trained(path: Path) -> dict[str, Any]:
    """Return the figures of a policy that was trained, from its file."""
    from dreamgym.train import load_policy

    card = load_policy(path).card.as_dict()
    return {**card, "network": card["policy"], "policy": str(path)}


def _evaluate(policy: Any, *, world: str, episodes: int) -> dict[str, float]:
    """Measure a policy in the real environment while it trains."""
    from dreamgym.transfer import transfer_policy

    result = transfer_policy(policy, world, episodes=episodes, baselines=False)
    return {
        "real return": result.real.mean,
        "real return error": result.real.std / result.real.episodes**0.5,
        "gap": result.gap,
        "real steps": float(result.real.steps or 0),
    }


def import_checkpoint(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A folder with config.json and weights.")
    ],
    dataset: Annotated[
        Path, typer.Argument(metavar="DATASET", help="A dataset of the same environment.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="The world to make.")],
    statistics: Annotated[
        str | None,
        typer.Option(
            "--statistics",
            metavar="WHERE",
            help="Normalisation that the checkpoint was fitted with and does not store: the word "
            "dataset, to measure it in DATASET, or a JSON file with action_mean, action_std, "
            "pixel_mean and pixel_std.",
        ),
    ] = None,
    goal: Annotated[
        int | None,
        typer.Option(
            "--goal",
            min=0,
            metavar="EPISODE",
            help="Reward closeness to the last observation of this episode.",
        ),
    ] = None,
    frame_skip: Skip = 1,
    actions: SkippedActions = "blocks",
    keys: Keys = None,
    horizon: Annotated[
        int | None,
        typer.Option("--horizon", min=1, metavar="N", help="Recommended length of dreams."),
    ] = None,
    seed: Seed = 0,
    overwrite: OverwriteWorld = False,
    json_file: JsonFile = None,
) -> None:
    """Make a world of a LeWM CHECKPOINT, as stable-worldmodel writes it, and a DATASET.

    The dataset provides the start states of dreams and the figures of their quality. A LeWM does
    not predict rewards: give it a goal.

    Example: [bold]dreamgym import-checkpoint lewm-pusht pusht.h5 --frame-skip 5 --key pixels
    --statistics dataset --goal 0 --out worlds/pusht[/]
    """
    from dreamgym.data import Dataset, FrameSkip, with_frame_skip
    from dreamgym.data.layout import index_rows
    from dreamgym.fitting.importing import from_lewm
    from dreamgym.models import GoalReward

    skip = FrameSkip(steps=frame_skip, actions=actions)  # type: ignore[arg-type]  # checked there
    config = FitConfig(overwrite=overwrite, **given(horizon=horizon))
    with keeping(lambda: "nothing was written"), Dataset(dataset, keys=keys or None) as opened:
        if out.exists() and not overwrite:
            raise FileExistsError(f"{out} exists already; give another --out, or --overwrite")
        data = with_frame_skip(opened, skip)
        goal_observation = None
        if goal is not None:
            goal_observation = index_rows(opened.episode(goal).observations, -1)
        world = from_lewm(
            checkpoint, data, statistics=_statistics(statistics, data), seed=seed, config=config
        )
        if goal_observation is not None:
            world = world.with_model(GoalReward(world.model, goal_observation))
        world.save(out, overwrite=overwrite)
    figures = {
        "world": str(out),
        "env_id": world.env_id,
        "horizon": world.horizon,
        "frame_skip": skip.to_json() or None,
        "goal": goal,
        "quality": world.quality,
    }
    write_json(json_file, figures)
    show_figures("On held-out episodes", world.quality)
    say(f"{out}: a world of {world.env_id or 'an unnamed environment'}, fitted elsewhere")


def _statistics(where: str | None, data: Any) -> Any:
    """Return the statistics that `--statistics` names, or None."""
    from dreamgym.models.jepa import LeWMStatistics

    if where is None:
        return None
    if where == MEASURED:
        return LeWMStatistics.of(data)
    try:
        values = json.loads(local_path(where).read_text())
    except (OSError, ValueError) as error:
        raise typer.BadParameter(
            f"--statistics {where}: {error}; expected {MEASURED}, or a JSON file"
        ) from None
    known = [field.name for field in fields(LeWMStatistics)]
    if not isinstance(values, dict) or not set(values) <= set(known):
        raise typer.BadParameter(
            f"--statistics {where}: expected a JSON object with {', '.join(known)}"
        )
    return LeWMStatistics(**values)
