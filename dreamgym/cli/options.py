"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def _not_a_folder(path: Path | None) -> Path | None:
    """Refuse a file that cannot be written before the work, not after it."""
    if path is not None and path.is_dir():
        raise typer.BadParameter(f"{path} is a folder; give the name of a file")
    return path


JsonFile = Annotated[
    Path | None,
    typer.Option(
        "--json", metavar="FILE", callback=_not_a_folder, help="Write the figures to FILE as JSON."
    ),
]


HtmlFile = Annotated[
    Path | None,
    typer.Option(
        "--html", metavar="FILE", callback=_not_a_folder, help="Write one page with pictures."
    ),
]


Seed = Annotated[
    int,
    typer.Option(
        "--seed", min=0, metavar="N", help="Of all that is random: same seed, same result."
    ),
]


Device = Annotated[
    str,
    typer.Option(
        "--device", metavar="NAME", help="auto (CUDA where there is one), cpu, cuda, cuda:1, ..."
    ),
]


def given(**options: Any) -> dict[str, Any]:
    """The options that the user gave: those left out take the library's own default."""
    return {name: value for name, value in options.items() if value is not None}


Terminals = Annotated[
    str | None,
    typer.Option(
        "--terminals",
        metavar="WORD",
        help="What an ambiguous end flag of a foreign file means: termination (the task ended) or "
        "boundary.",
    ),
]


SourceEnv = Annotated[
    str | None,
    typer.Option(
        "--env",
        metavar="ENV",
        help="The environment that a foreign file comes from, for its id and spaces.",
    ),
]


Skip = Annotated[
    int,
    typer.Option(
        "--frame-skip",
        min=1,
        metavar="N",
        help="Steps of the environment that one step of a dream spans.",
    ),
]


ActionsOf = Annotated[
    str,
    typer.Option(
        "--actions",
        metavar="WORD",
        help="With a frame skip, the action is the block of all N (blocks), or one that is held "
        "for N steps (repeated; record with --policy held:N).",
    ),
]


Keys = Annotated[
    list[str] | None,
    typer.Option("--key", metavar="KEY", help="Observation to take, of several; once for each."),
]


def foreign_options(terminals: str | None, env: str | None, keys: list[str] | None = None) -> Any:
    """What the user says about a foreign file.

    Args:
        terminals: as `ForeignOptions` has it.
        env: id of the environment, which is made to ask for its spaces.
        keys: observation keys to take.

    Raises:
        ValueError: another word for `terminals`.
        DatasetError: no such environment.
    """
    from dreamgym.data import ForeignOptions
    from dreamgym.data.recording import make_env

    known: dict[str, Any] = {}
    if env is not None:
        made = make_env(env)
        known = {
            "env_id": env,
            "observation_space": made.observation_space,
            "action_space": made.action_space,
        }
        made.close()
    return ForeignOptions(
        terminals=terminals,  # type: ignore[arg-type]  # checked, with an error that says the words
        keys=tuple(keys) if keys else None,
        **known,
    )


BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        min=1,
        metavar="N",
        help="Segments in a batch, over all processes; by default the family's.",
    ),
]


Accumulate = Annotated[
    int | None,
    typer.Option(
        "--accumulate",
        min=1,
        metavar="N",
        help="Pieces that a batch is worked on in, to need less memory; by default 1.",
    ),
]


Optimizer = Annotated[
    str | None,
    typer.Option(
        "--optimizer", metavar="NAME", help="adamw, adam or laprop; by default the family's."
    ),
]


LearningRate = Annotated[
    float | None,
    typer.Option("--learning-rate", metavar="RATE", help="The peak; by default the family's."),
]


Schedule = Annotated[
    str | None,
    typer.Option(
        "--schedule",
        metavar="WORD",
        help="How the learning rate goes on after its warm-up: cosine or constant; by default the "
        "family's.",
    ),
]


EMA = Annotated[
    float | None,
    typer.Option(
        "--ema",
        min=0.0,
        max=1.0,
        metavar="SHARE",
        help="Keep a running mean of the weights, of which an update keeps SHARE, such as 0.999; "
        "by default none.",
    ),
]


Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="WORD",
        help="32-true, or bf16-mixed for matrix products in bfloat16; by default the family's.",
    ),
]


Patience = Annotated[
    int | None,
    typer.Option(
        "--patience",
        min=1,
        metavar="N",
        help="Stop after N looks at the held-out episodes without a lower loss; by default never.",
    ),
]
