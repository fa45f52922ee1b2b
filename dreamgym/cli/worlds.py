"""`dreamgym fit`: a dataset into a world."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dreamgym.cli.errors import keeping
from dreamgym.cli.options import (
    EMA,
    Accumulate,
    ActionsOf,
    BatchSize,
    Device,
    JsonFile,
    Keys,
    LearningRate,
    Optimizer,
    Patience,
    Precision,
    Schedule,
    Seed,
    Skip,
    SourceEnv,
    Terminals,
    foreign_options,
    given,
)
from dreamgym.cli.output import number, progress_bar, say, show_figures, show_table, write_json

if TYPE_CHECKING:
    from dreamgym.data import FrameSkip


def fit(
    dataset: Annotated[
        Path, typer.Argument(metavar="DATASET", help="A file or a folder of shards.")
    ],
    family: Annotated[
        str, typer.Option("--family", metavar="NAME", help="The family of world models.")
    ] = "mdn-rnn",
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset", metavar="NAME", help="A published size of the family, such as doom."
        ),
    ] = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="The world; by default worlds/DATASET."),
    ] = None,
    updates: Annotated[
        int | None,
        typer.Option(
            "--updates", min=1, metavar="N", help="Optimiser updates; by default the family's."
        ),
    ] = None,
    segment_length: Annotated[
        int | None,
        typer.Option(
            "--segment-length",
            min=1,
            metavar="N",
            help="Steps seen in one piece; by default the family's.",
        ),
    ] = None,
    batch_size: BatchSize = None,
    accumulate: Accumulate = None,
    optimizer: Optimizer = None,
    learning_rate: LearningRate = None,
    schedule: Schedule = None,
    ema: EMA = None,
    precision: Precision = None,
    patience: Patience = None,
    held_out: Annotated[
        float | None,
        typer.Option(
            "--held-out",
            min=0.0,
            max=1.0,
            metavar="SHARE",
            help="Of the episodes, kept to choose and measure by; by default 0.1.",
        ),
    ] = None,
    horizon: Annotated[
        int | None,
        typer.Option(
            "--horizon",
            min=1,
            metavar="N",
            help="Recommended length of dreams; by default the real limit, at most 200, and less "
            "where held-out episodes say so.",
        ),
    ] = None,
    device: Device = "auto",
    tensorboard: Annotated[
        Path | None,
        typer.Option("--tensorboard", metavar="FOLDER", help="Log the losses to TensorBoard."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Let a world that stands there give way.")
    ] = False,
    mix: Annotated[
        list[str] | None,
        typer.Option(
            "--mix",
            metavar="DATASET=WEIGHT",
            help="A further dataset to draw from by weight, DATASET having 1; once for each.",
        ),
    ] = None,
    frame_skip: Skip = 1,
    actions: ActionsOf = "blocks",
    keys: Keys = None,
    memory: Annotated[
        float | None,
        typer.Option(
            "--memory",
            min=0.0,
            metavar="GB",
            help="Of observations to hold in memory, at most; by default 1. The rest is read from "
            "the file, ahead of the fit.",
        ),
    ] = None,
    terminals: Terminals = None,
    env: SourceEnv = None,
    json_file: JsonFile = None,
) -> None:
    """Fit a world to DATASET: a folder that can be dreamt in.

    The best weights are chosen on held-out episodes.

    A fit that was stopped goes on from its last checkpoint when the same command is given again.

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
    config = default_config(
        family,
        preset,
        device=device,
        overwrite=overwrite,
        **given(
            updates=updates,
            segment_length=segment_length,
            batch_size=batch_size,
            accumulate=accumulate,
            optimizer=optimizer,
            learning_rate=learning_rate,
            schedule=schedule,
            ema=ema,
            precision=precision,
            patience=patience,
            held_out=held_out,
            horizon=horizon,
            tensorboard=str(tensorboard) if tensorboard else None,
        ),
    )

    def kept() -> str:
        if checkpoint.exists():
            return f"the fit so far is in {checkpoint}; the same command goes on from there"
        return "nothing was written"

    reading = given(
        keys=keys or None,
        memory=None if memory is None else int(memory * 1e9),
        foreign=foreign_options(terminals, env, keys) if terminals or env else None,
    )
    skip = FrameSkip(steps=frame_skip, actions=actions)  # type: ignore[arg-type]  # it says which
    begin = time.perf_counter()
    bar = progress_bar("fit") if is_first() else nullcontext(None)
    with keeping(kept), _opened(dataset, mix, skip, reading) as data, bar as report:
        world = fit_world(
            data, out=target, family=family, seed=seed, config=config, progress=report
        )
    if is_first():
        _tell(world, target, time.perf_counter() - begin, json_file)


def _tell(world: Any, target: Path, seconds: float, json_file: Path | None) -> None:
    """The figures of a world that was fitted into a folder."""
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
    show_figures("On held-out episodes", world.quality)
    say(f"{target}: a world of {world.env_id or 'an unnamed environment'}, {number(seconds)} s")


@contextmanager
def _opened(
    dataset: Path, mix: list[str] | None, skip: FrameSkip, reading: dict[str, Any]
) -> Iterator[Any]:
    """The dataset as it is to be read, or, where some are mixed, each with its weight."""
    from dreamgym.data import Dataset, with_frame_skip

    with ExitStack() as stack:
        parts = [
            (with_frame_skip(stack.enter_context(Dataset(path, **reading)), skip), weight)
            for path, weight in [(dataset, 1.0), *map(_weighted, mix or [])]
        ]
        yield parts if mix else parts[0][0]


def _weighted(text: str) -> tuple[Path, float]:
    """A path and its weight out of `PATH=WEIGHT`."""
    path, _, weight = text.rpartition("=")
    try:
        return Path(path or weight), float(weight) if path else 1.0
    except ValueError:
        raise typer.BadParameter(f"--mix {text}: {weight!r} is no number; say PATH=0.5") from None


def train(
    world: Annotated[
        str,
        typer.Argument(metavar="WORLD", help="A folder of dreamgym fit, or a world that ships."),
    ],
    algo: Annotated[
        str,
        typer.Option("--algo", metavar="NAME", help="PPO, A2C, SAC, TD3 or DQN (the extra sb3)."),
    ] = "PPO",
    seed: Seed = 0,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            min=1,
            metavar="N",
            help="Dream steps, rounded up to whole rollouts of all copies; by default ALGO's own.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="The policy; by default WORLD-ALGO.zip here."),
    ] = None,
    num_envs: Annotated[
        int | None,
        typer.Option("--num-envs", min=1, metavar="N", help="Copies of the dream side by side."),
    ] = None,
    view: Annotated[
        str | None,
        typer.Option(
            "--view", metavar="VIEW", help="observation or latent; by default the world's own."
        ),
    ] = None,
    horizon: Annotated[
        int | None,
        typer.Option(
            "--horizon", min=1, metavar="N", help="Length of dreams; by default the world's own."
        ),
    ] = None,
    gamma: Annotated[
        float | None,
        typer.Option("--gamma", min=0.0, max=1.0, metavar="X", help="Discount of rewards."),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature",
            metavar="X",
            help="By default 1; above it the dream is more uncertain than the model.",
        ),
    ] = None,
    device: Device = "cpu",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Let a policy that stands there give way.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Train a policy inside WORLD; the real environment is not touched.

    Example: [bold]dreamgym train worlds/cartpole --algo PPO --seed 0 --out cartpole-ppo.zip[/]
    """
    from dreamgym.train import TrainConfig, train_policy, with_zip_suffix
    from dreamgym.world.world import load

    dreamt = load(world)
    target = with_zip_suffix(out) if out is not None else Path(f"{dreamt.name}-{algo}.zip")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists already; give another path or --overwrite")
    chosen = given(
        num_envs=num_envs, view=view, horizon=horizon, gamma=gamma, temperature=temperature
    )
    config = TrainConfig(device=device, **chosen)
    begin = time.perf_counter()
    with keeping(lambda: "nothing was written"), progress_bar("train") as report:
        policy = train_policy(
            dreamt, algo=algo, seed=seed, steps=steps, out=target, config=config, progress=report
        )
    seconds = time.perf_counter() - begin
    card = policy.card.as_dict()
    speed = {"seconds": seconds, "steps_per_second": card["steps"] / seconds}
    named = {"policy": str(target), "network": card["policy"]}
    write_json(json_file, {**card, **named, **speed})
    last = f", dream return {number(policy.curve[-1][1])} at the end" if policy.curve else ""
    say(f"{target}: {algo}, {number(card['steps'])} dream steps, {number(seconds)} s{last}")


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
    from dreamgym.world.world import load

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


MEASURED = "dataset"


def adopt(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A folder with config.json and weights.")
    ],
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="Of the same environment.")],
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="The world to make.")],
    statistics: Annotated[
        str | None,
        typer.Option(
            "--statistics",
            metavar="WHERE",
            help="What the checkpoint was fitted with and does not say: dataset, to measure it "
            "there, or a JSON file with action_mean, action_std, pixel_mean and pixel_std.",
        ),
    ] = None,
    goal: Annotated[
        int | None,
        typer.Option(
            "--goal",
            min=0,
            metavar="EPISODE",
            help="Reward the nearness to this episode's last observation.",
        ),
    ] = None,
    frame_skip: Skip = 1,
    actions: ActionsOf = "blocks",
    keys: Keys = None,
    horizon: Annotated[
        int | None,
        typer.Option("--horizon", min=1, metavar="N", help="Recommended length of dreams."),
    ] = None,
    seed: Seed = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Let a world that stands there give way.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Make a world of CHECKPOINT, a LeWM of its authors' library, and a DATASET.

    The dataset gives the starts of dreams and measures their quality. A LeWM says nothing of
    rewards: give it a goal.

    Example: [bold]dreamgym adopt lewm-pusht pusht.h5 --frame-skip 5 --key pixels
    --statistics dataset --goal 0 --out worlds/pusht[/]
    """
    from dreamgym.data import Dataset, FrameSkip, with_frame_skip
    from dreamgym.fitting.config import FitConfig
    from dreamgym.fitting.importing import from_lewm
    from dreamgym.models import GoalReward

    skip = FrameSkip(steps=frame_skip, actions=actions)  # type: ignore[arg-type]  # it says which
    config = FitConfig(overwrite=overwrite, **given(horizon=horizon))
    with keeping(lambda: "nothing was written"), Dataset(dataset, keys=keys or None) as opened:
        if out.exists() and not overwrite:
            raise FileExistsError(f"{out} exists already; give another --out, or --overwrite")
        data = with_frame_skip(opened, skip)
        reached = None if goal is None else _last(opened.episode(goal).observations)
        world = from_lewm(
            checkpoint, data, statistics=_statistics(statistics, data), seed=seed, config=config
        )
        if reached is not None:
            world = world.with_model(GoalReward(world.model, reached))
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
    """The statistics that the user named; None where nothing was named."""
    from dreamgym.models.jepa import LeWMStatistics

    if where is None:
        return None
    if where == MEASURED:
        return LeWMStatistics.of(data)
    try:
        said = json.loads(Path(where).read_text())
    except (OSError, ValueError) as error:
        raise typer.BadParameter(
            f"--statistics {where}: {error}; say {MEASURED}, or give a JSON file"
        ) from None
    known = [field.name for field in fields(LeWMStatistics)]
    if not isinstance(said, dict) or not set(said) <= set(known):
        raise typer.BadParameter(f"--statistics {where}: give an object with {', '.join(known)}")
    return LeWMStatistics(**said)


def _last(observations: Any) -> Any:
    if isinstance(observations, dict):
        return {key: values[-1] for key, values in observations.items()}
    return observations[-1]
