"""`dreamgym adopt`: a checkpoint of another library into a world."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from dreamgym.cli.failing import keeping
from dreamgym.cli.options import ActionsOf, JsonFile, Keys, Seed, Skip, given
from dreamgym.cli.showing import say, show_figures, write_json

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
    from dreamgym.adopting import from_lewm
    from dreamgym.data import Dataset, FrameSkip, skipping
    from dreamgym.fit_config import FitConfig
    from dreamgym.models import GoalReward

    skip = FrameSkip(steps=frame_skip, actions=actions)  # type: ignore[arg-type]  # it says which
    config = FitConfig(overwrite=overwrite, **given(horizon=horizon))
    with keeping(lambda: "nothing was written"), Dataset(dataset, keys=keys or None) as opened:
        if out.exists() and not overwrite:
            raise FileExistsError(f"{out} exists already; give another --out, or --overwrite")
        data = skipping(opened, skip)
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
        "frame_skip": skip.as_plain() or None,
        "goal": goal,
        "quality": world.quality,
    }
    write_json(json_file, figures)
    show_figures("On held-out episodes", world.quality)
    say(f"{out}: a world of {world.env_id or 'an unnamed environment'}, fitted elsewhere")


def _statistics(where: str | None, data: Any) -> Any:
    """The statistics that the user named; None where nothing was named."""
    from dreamgym.models import LeWMStatistics

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
