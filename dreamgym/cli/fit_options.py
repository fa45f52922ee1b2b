"""Options of `fit` that say how the weights are moved; without them the family's authors say."""

from __future__ import annotations

from typing import Annotated

import typer

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
