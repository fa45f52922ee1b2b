"""What a step costs in each family, with default configs and vectors of four numbers, on one core.

Every family's step is timed as it is prepared for a dream but not compiled, beside it the plain
one, and the one with products in bfloat16 where the family has it. Start states are copies of one,
which has been filtered from eight observations. A family that takes images alone is timed on images
of the size that it works at, and with fewer rows. A frozen encoder that cannot be loaded is
replaced by an untrained one of its published size: a step does not call it, and its patches are as
many.

Two families are timed at their published sizes, too, in dreams that reset themselves. The products'
share of a step there is the time that its matrix products and convolutions would take at the rate
of this core's best product, which runs in turns with it, divided by the time of the step.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import suppress
from dataclasses import replace

import gymnasium as gym
import numpy as np
import torch
from support import worlds
from support.products import gflops, product_calls, work_of
from support.reporting import Row, at_least, parser, report
from support.side_by_side import Call, side_by_side
from support.subjects import OFTEN, a_dream, stepping

from dreamgym._device import computes_bfloat16
from dreamgym.errors import PretrainedError
from dreamgym.models import FAMILIES, ModelSpec, WorldModel
from dreamgym.models.base import State

SIZES = (64, 1024)
OBSERVED = 8

IMAGES = {
    "diamond": 64,
    "iris": 1024,
    "delta-iris": 1024,
    "genie": 64,
    "dino-wm": 64,
    "vjepa2-ac": 64,
}
"""Families that take images alone, and the most rows that they are timed with."""

PAYS = {"storm": 1.25, "twister": 1.25, "diamond": 1.2}
"""Families whose prepared step has to be so many times as fast as the plain one, at every size."""

PUBLISHED = {"storm": ((1, 64, 1024), 64), "diamond": ((1, 4, 16), 2)}
"""Families whose published size is timed: the rows, and the steps of which the work is the mean,
because windows grow and are cut."""

SHARE = 0.5
"""Share of the products in the step of the most rows."""


def main() -> None:
    """Time every family that has a default config."""
    options = parser((__doc__ or "").splitlines()[0])
    options.add_argument("--families", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    arguments = options.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    turn, turns = (0.1, 3) if arguments.quick else (0.5, 9)
    rows = []
    for family in arguments.families:
        try:
            spec = ModelSpec(family=family)
        except ValueError:  # a wrapper
            continue
        box = gym.spaces.Box(-3.0, 3.0, (4,), np.float32)
        if family in IMAGES:
            side = spec.config.image_size
            box = gym.spaces.Box(0, 255, (side, side, 3), np.uint8)
        began, model = time.perf_counter(), built(spec, box).eval().requires_grad_(False)
        start = start_state(model)
        size = sum(leaf.numel() * leaf.element_size() for leaf in start.values())
        rows.append(Row(name=f"{family}: state of a row", value=size, unit="bytes"))
        for count in (size for size in SIZES if size <= IMAGES.get(family, size)):
            forms = {"plain": model, "prepared": prepared(model, count, torch.float32)}
            if computes_bfloat16("cpu"):
                with suppress(ValueError):  # a family, or a member of an ensemble, without a form
                    forms["bfloat16"] = prepared(model, count, torch.bfloat16)
            calls = {name: dream(form, start, count) for name, form in forms.items()}
            taken = side_by_side(calls, turn=turn, turns=turns)
            name = f"{family}: step of {count} rows"
            rows.append(Row(name=name, value=1e3 * taken["prepared"], unit="ms"))
            ratio = taken["plain"] / taken["prepared"]
            name = f"{family}: plain / prepared, {count} rows"
            bar = PAYS.get(family)
            rows.append(at_least(name, ratio, "ratio", bar))
            if "bfloat16" in taken:
                ratio = taken["prepared"] / taken["bfloat16"]
                name = f"{family}: float32 / bfloat16, {count} rows"
                rows.append(Row(name=name, value=ratio, unit="ratio"))
        if family in PUBLISHED and not arguments.quick:
            rows += published(family, turn, turns)
        print(f"{family}: {time.perf_counter() - began:.0f} s", flush=True)
    report(rows, arguments)


def published(family: str, turn: float, turns: int) -> list[Row]:
    """Time dreams of the published size, and measure the products' share of a step."""
    world, rows = worlds.published(family), []
    counts, steps = PUBLISHED[family]
    for count in counts:
        step = stepping(a_dream(world, count, device="cpu", **OFTEN))
        work = work_of(lambda step=step: [step() for _ in range(steps)]) / steps
        products = product_calls()
        calls = {name: products[name] for name in ("F.linear", "float32")}
        taken = side_by_side({**calls, "step": step}, turn=turn, turns=turns)
        rate = 1e9 * gflops(min(taken[name] for name in calls))
        name = f"{family}, published size, {count} envs"
        rows.append(Row(name=name, value=count / taken["step"], unit="env-steps/s"))
        share, bar = work / rate / taken["step"], SHARE if count == counts[-1] else None
        rows.append(at_least(f"{name}: products' share of the step", share, "share", bar))
    return rows


def built(spec: ModelSpec, box: gym.spaces.Box) -> WorldModel:
    """Build a model; its frozen encoder is untrained if it cannot be loaded."""
    actions = gym.spaces.Discrete(3)
    try:
        return spec.build(box, actions)
    except PretrainedError as error:
        import transformers

        print(f"{spec.family}: an untrained encoder; {error}")
        encoder = (
            transformers.VJEPA2Model(transformers.VJEPA2Config())
            if spec.family == "vjepa2-ac"
            else transformers.Dinov2Model(
                transformers.Dinov2Config(
                    hidden_size=384, num_attention_heads=6, patch_size=14, image_size=518
                )
            )
        )
        with tempfile.TemporaryDirectory() as folder:
            encoder.save_pretrained(folder)
            config = replace(spec.config, encoder=folder)
            return replace(spec, config=config).build(box, actions)


def prepared(model: WorldModel, rows: int, dtype: torch.dtype) -> WorldModel:
    """Return the form of a model that a dream steps."""
    return model.prepare(rows, torch.device("cpu"), dtype)


def start_state(model: WorldModel) -> State:
    """Return a state of one row after some observations."""
    state, action = model.initial(1), torch.zeros(1, dtype=torch.int64)
    for _ in range(OBSERVED):
        noise = torch.rand(1, model.noise_dim)
        state = model.observe(state, action, observations(model, 1), noise)
    return state


def dream(form: WorldModel, start: State, rows: int) -> Call:
    """Return a call that dreams one step further.

    Args:
        form: model that steps.
        start: state of one row, in which all rows begin.
        rows: rows of a step.
    """
    action = torch.zeros(rows, dtype=torch.int64)
    state = {name: leaf.repeat_interleave(rows, 0) for name, leaf in start.items()}

    @torch.no_grad()
    def step() -> None:
        nonlocal state
        state, _ = form.step(state, action, torch.rand(rows, form.noise_dim))

    return step


def observations(model: WorldModel, rows: int) -> torch.Tensor:
    """Return random observations (rows, ...)."""
    box = model.observation_space
    if box.dtype == np.uint8:
        return torch.randint(0, 256, (rows, *box.shape), dtype=torch.uint8)
    return torch.randn(rows, *box.shape)


if __name__ == "__main__":
    main()
