"""What a step costs in each family, with default configs and vectors of four numbers, on one core.

Every family's step is timed as it is prepared for a dream but not compiled, and beside it the plain
one. Start states have been filtered from eight observations. A family that takes images alone is
timed on images of the size that it works at, and with fewer rows.
"""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import torch
from support.reporting import Row, at_least, parser, report
from support.side_by_side import Call, side_by_side

from dreamgym.errors import PretrainedError
from dreamgym.models import FAMILIES, ModelSpec, WorldModel

SIZES = (64, 1024)
OBSERVED = 8

IMAGES = {
    "diamond": 64,
    "iris": 1024,
    "delta-iris": 1024,
    "genie": 1024,
    "dino-wm": 64,
    "vjepa2-ac": 64,
}
"""Families that take images alone, and the most rows that they are timed with."""

PAYS = {"storm": 1.25, "twister": 1.25, "diamond": 1.2}
"""Families whose prepared step has to be so many times as fast as the plain one, at every size."""


def main() -> None:
    """Time every family that has a default config."""
    arguments = parser(__doc__ or "").parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    turn, turns = (0.1, 3) if arguments.quick else (0.5, 9)
    rows = []
    for family in FAMILIES:
        try:
            spec = ModelSpec(family=family)
        except ValueError:  # a wrapper
            continue
        box = gym.spaces.Box(-3.0, 3.0, (4,), np.float32)
        if family in IMAGES:
            side = spec.config.image_size
            box = gym.spaces.Box(0, 255, (side, side, 3), np.uint8)
        try:
            model = spec.build(box, gym.spaces.Discrete(3)).eval().requires_grad_(False)
        except PretrainedError as error:
            print(f"{family}: left out, {error}")
            continue
        state = model.initial(1)
        size = sum(leaf.numel() * leaf.element_size() for leaf in state.values())
        rows.append(Row(name=f"{family}: state of a row", value=size, unit="bytes"))
        for count in (size for size in SIZES if size <= IMAGES.get(family, size)):
            prepared = model.prepare(count, torch.device("cpu"), torch.float32)
            calls = {"plain": dream(model, model, count), "prepared": dream(model, prepared, count)}
            taken = side_by_side(calls, turn=turn, turns=turns)
            name = f"{family}: step of {count} rows"
            rows.append(Row(name=name, value=1e3 * taken["prepared"], unit="ms"))
            ratio = taken["plain"] / taken["prepared"]
            name = f"{family}: plain / prepared, {count} rows"
            bar = PAYS.get(family)
            rows.append(
                Row(name=name, value=ratio, unit="ratio")
                if bar is None
                else at_least(name, ratio, "ratio", bar)
            )
    report(rows, arguments)


def dream(model: WorldModel, form: WorldModel, rows: int) -> Call:
    """Return a call that dreams one step further.

    Args:
        model: model that filters the start states.
        form: model that steps.
        rows: rows of a step.
    """
    action = torch.zeros(rows, dtype=torch.int64)
    state = model.initial(rows)
    for _ in range(OBSERVED):
        noise = torch.rand(rows, model.noise_dim)
        state = model.observe(state, action, observations(model, rows), noise)

    @torch.no_grad()
    def step() -> None:
        nonlocal state
        state, _ = form.step(state, action, torch.rand(rows, model.noise_dim))

    return step


def observations(model: WorldModel, rows: int) -> torch.Tensor:
    """Return random observations (rows, ...)."""
    box = model.observation_space
    if box.dtype == np.uint8:
        return torch.randint(0, 256, (rows, *box.shape), dtype=torch.uint8)
    return torch.randn(rows, *box.shape)


if __name__ == "__main__":
    main()
