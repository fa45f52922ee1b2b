"""Speed of a dream's step, beside plain PyTorch and TorchRL on one core, and on a GPU.

Every figure is of whole steps through the Gymnasium vector API, with torch output, rows that reset
themselves in the same step, episode statistics and true last observations. The worlds are unfitted
ones of published sizes: they step as fast as fitted ones. What a dream is compared with runs in a
process of its own, in turns with it: a dream's process keeps freed memory, which helps both.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from support import worlds
from support.baselines import plain_family, plain_mdn_rnn
from support.memory import memory_rows
from support.products import DTYPES, gflops, product_calls, work_of
from support.reporting import Row, at_least, below, parser, report
from support.side_by_side import Call, apart, side_by_side
from support.subjects import (
    OFTEN,
    SAMPLED,
    SUBJECTS,
    Subject,
    a_dream,
    model_alone,
    plain_apart,
    stepping,
)

from dreamgym.dream.watch import EVERY, watch
from dreamgym.world.world import World, load

OVERHEAD, FIXED_OVERHEAD = 0.10, 40.0
BETWEEN = 100.0
GPU_COUNTS = (1, 256, 4096, 16_384, 65_536)
TORCHRL = {1: 4.0, 64: 2.5, 1024: 2.5}
LIMITS = {
    # What an H200's products allow, in float32 and in bfloat16: env-steps a second.
    "V-M-C Car": (worlds.v_m_c, SAMPLED, {"float32": 80e6, "bfloat16": 939e6}, 50e6),
    "RSSM v3-12M": (worlds.rssm_12m, OFTEN, {"float32": 5.2e6, "bfloat16": 62e6}, 5e6),
    "LeWM": (worlds.lewm, OFTEN, {"float32": 0.95e6, "bfloat16": 11e6}, 1e6),
}
OVER_PLAIN = 20.0
"""Times plain eager PyTorch at 256 rows, on a GPU."""


def against_plain(subject: Subject, count: int, timing: dict[str, Any]) -> list[Row]:
    """Measure ratios to the plain step, and the time that the engine adds to the model's step."""
    world = subject.world()
    envs = {
        dtype: a_dream(world, count, dtype=dtype, device="cpu", **subject.options)
        for dtype in DTYPES
    }
    ours = {dtype: stepping(env) for dtype, env in envs.items()}
    with plain_apart(subject, count) as plain:
        calls = {"plain": plain, "model": model_alone(envs["float32"]), **ours}
        seconds = side_by_side(calls, **timing)
    rows = [_rate(f"{subject.name}, {count} envs: plain", count, seconds["plain"])]
    for dtype in envs:
        name = f"{subject.name}, {count} envs, {dtype}"
        rows.append(_rate(name, count, seconds[dtype]))
        ratio, bar = seconds["plain"] / seconds[dtype], subject.bars.get((count, dtype))
        rows.append(_ratio(f"{name}: times plain", ratio, bar))
    name = f"{subject.name}, {count} envs: the engine adds"
    return [*rows, *engine_adds(name, count, seconds["float32"], seconds["model"])]


def engine_adds(name: str, count: int, whole: float, model: float) -> list[Row]:
    """Return the row for the time that the engine adds to the model's step."""
    if count == 1:
        return [below(name, (whole - model) * 1e6, "us", FIXED_OVERHEAD)]
    if count >= 1024:
        return [below(name, (whole - model) / model, "share", OVERHEAD)]
    return []


def compiled(subject: Subject, timing: dict[str, Any]) -> list[Row]:
    """Measure with `compile=True`, if PyTorch's compiler works here."""
    rows = []
    world = subject.world()
    for count, dtype in ((1, "float32"), (1024, "float32"), (1024, "bfloat16")):
        env = a_dream(world, count, dtype=dtype, device="cpu", compile=True, **subject.options)
        step = stepping(env)
        step()
        if env.stepper.execution != "compiled":
            print("no rows for compile=True: see the warning above")
            return []
        with plain_apart(subject, count) as plain:
            calls = {"plain": plain, "ours": step, "model": model_alone(env)}
            seconds = side_by_side(calls, **timing)
        name = f"{subject.name}, {count} envs, {dtype}, compiled"
        ratio = seconds["plain"] / seconds["ours"]
        rows.append(_ratio(f"{name}: times plain", ratio, subject.bars[count, dtype]))
        if count == 1:
            name = f"{name}: adds to the eager model"
            rows += engine_adds(name, count, seconds["ours"], seconds["model"])
    return rows


def against_products(timing: dict[str, Any]) -> list[Row]:
    """Measure the products' share of a step, and the ratio to plain of a step of nothing else.

    The share is the time that the step's matrix products take at this core's best rate, divided by
    the time of the whole step; 1.0 is the limit.
    """
    count, rows, products = 1024, [], product_calls()
    for subject in SUBJECTS:
        world = subject.world()
        wanted = {
            dtype: _stepping_so(world, count, dtype, False, subject.options) for dtype in DTYPES
        }
        work = work_of(wanted["float32"])  # type: ignore[arg-type]
        wanted["float32, compiled"] = _stepping_so(world, count, "float32", True, subject.options)
        steps = {way: step for way, step in wanted.items() if step is not None}
        calls = {f"product, {name}": call for name, call in products.items()}
        with plain_apart(subject, count) as plain:
            seconds = side_by_side({"plain": plain, **calls, **steps}, **timing)
        rates = {name: gflops(seconds[f"product, {name}"]) for name in products}
        best = {**rates, "float32": max(rates["float32"], rates["F.linear"])}
        for way in steps:
            least = work / best[way.split(",")[0]] / 1e9
            name = f"{subject.name}, {count} envs, {way}"
            if way in DTYPES:
                most = seconds["plain"] / least
                rows.append(_ratio(f"{name}: times plain if there were only products", most, None))
            share, bar = least / seconds[way], subject.share if "float32" in way else None
            rows.append(at_least(f"{name}: products' share of the step", share, "share", bar))
    measured = (Row(name=f"products, {name}", value=rates[name], unit="GFLOP/s") for name in rates)
    return [*measured, *rows]


def against_torchrl(counts: tuple[int, ...], ways: list[bool], timing: dict[str, Any]) -> list[Row]:
    """Compare V-M-C Car with TorchRL's model-based environment, in both usual ways to sample.

    Args:
        counts: numbers of rows.
        ways: whether our step is compiled, for each measurement.
        timing: arguments of `side_by_side`.
    """
    try:
        from support.torchrl_step import Distributed, torchrl_mdn_rnn
    except ImportError as error:
        print(f"no rows for TorchRL: {error}; pip install torchrl")
        return []
    world, rows = worlds.v_m_c(), []
    for count, bar in TORCHRL.items():
        if count not in counts:
            continue
        # A single row gains nothing from shorter weights.
        dtypes = DTYPES if count > 1 else ["float32"]
        ours = {
            f"{dtype}{', compiled' if way else ''}": step
            for dtype in dtypes
            for way in ways
            if (step := _stepping_so(world, count, dtype, way, SAMPLED)) is not None
        }
        with (
            apart(torchrl_mdn_rnn, count, Distributed) as drawn,
            apart(torchrl_mdn_rnn, count) as plainly,
        ):
            theirs = {"with torch.distributions": drawn, "drawn plainly": plainly}
            seconds = side_by_side({**theirs, **ours}, **timing)
        for way in ours:
            for how in theirs:
                name = f"V-M-C Car, {count} envs, {way}: times TorchRL {how}"
                rows.append(at_least(name, seconds[how] / seconds[way], "ratio", bar))
    return rows


def _stepping_so(
    world: World, count: int, dtype: str, compiles: bool, options: dict[str, Any]
) -> Call | None:
    """Return a step that is compiled or not, or None if it cannot be compiled as requested."""
    env = a_dream(world, count, device="cpu", dtype=dtype, compile=compiles, **options)
    step = stepping(env)
    step()
    if compiles and env.stepper.execution != "compiled":
        print("no rows for compile=True: see the warning above")
        return None
    return step


def between_steps(count: int, steps: int) -> Row:
    """Measure the time that a rollout spends between policy and engine, without stacking."""
    env = a_dream(worlds.v_m_c(), count)
    action = worlds.actions(count, env.device)
    clock = time.perf_counter  # process time is a system call, as slow as what is measured
    idle: list[float] = []
    ended = 0.0

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            nonlocal ended
            idle.append(clock() - ended)
            given = call(*arguments)
            ended = clock()
            return given

        return run

    env.stepper.step = timed(env.stepper.step)  # type: ignore[method-assign]
    with torch.no_grad():
        env.rollout(timed(lambda _: action), steps)
    # Each step has two such pauses, before the policy and before the engine; the first is warm-up.
    us = 1e6 * (median(idle[2::2]) + median(idle[3::2]))
    return below(f"rollout, {count} envs: between steps", us, "us a step", BETWEEN)


def alarms_add(count: int, timing: dict[str, Any]) -> Row:
    """Measure the time that the alarms of a training add to a step of the shipped Pendulum world.

    A call is as many steps as lie between two looks of the alarms, of which few are compared.
    """
    world = load("Pendulum-MDNRNN-v0")

    def steps(env: Any) -> Call:
        step = stepping(env)
        return lambda: [step() for _ in range(EVERY)]

    options = {"device": "cpu", "view": None}
    watched = watch(a_dream(world, count, **options), on_alarm=lambda alarm: None)
    calls = {"plain": steps(a_dream(world, count, **options)), "watched": steps(watched)}
    seconds = side_by_side(calls, **timing)
    added = seconds["watched"] / seconds["plain"] - 1
    return Row(name=f"Pendulum world, {count} envs: the alarms add", value=added, unit="share")


def on_a_cpu(timing: dict[str, Any], *, quick: bool) -> list[Row]:
    """Measure ratios to plain PyTorch and to TorchRL, and the limit of this core."""
    counts = (1, 1024) if quick else (1, 64, 1024)
    rows = [
        row for subject in SUBJECTS for n in counts for row in against_plain(subject, n, timing)
    ]
    rows += [alarms_add(count, timing) for count in (64, 1024)]
    if quick:
        return rows + against_torchrl((1,), [False], timing)
    rows += against_torchrl(counts, [False, True], timing)
    rows += against_products(timing)
    return rows + [row for subject in SUBJECTS for row in compiled(subject, timing)]


def on_a_gpu(timing: dict[str, Any], *, quick: bool) -> list[Row]:
    """Print steps per second, and their ratio to the limit of the products."""
    counts = GPU_COUNTS[:3] if quick else GPU_COUNTS
    rows = []
    for name, (make, options, limits, bar) in LIMITS.items():
        world, best = make(), 0.0
        for dtype, limit in limits.items():
            for count in counts:
                env = a_dream(world, count, device="cuda", dtype=dtype, **options)
                seconds = side_by_side({"ours": stepping(env)}, **timing)["ours"]
                label = f"{name}, {count} envs, {dtype}"
                rows.append(_rate(label, count, seconds))
                rows.append(
                    Row(name=f"{label}: of the limit", value=count / seconds / limit, unit="share")
                )
                best = max(best, count / seconds)
                env.close()
                del env
                gc.collect()
                torch.cuda.empty_cache()
        rows.append(at_least(f"{name}: the most", best, "env-steps/s", bar))
        rows.append(_over_plain(name, world, options, timing))
    return rows


def _over_plain(name: str, world: World, options: dict[str, Any], timing: dict[str, Any]) -> Row:
    action = worlds.actions(256, "cuda", world.model.action_space)  # type: ignore[arg-type]
    plain = plain_mdn_rnn(256, "cuda") if name == "V-M-C Car" else plain_family(world, action)
    ours = stepping(a_dream(world, 256, device="cuda", **options))
    seconds = side_by_side({"plain": plain, "ours": ours}, **timing)
    ratio = seconds["plain"] / seconds["ours"]
    return at_least(f"{name}, 256 envs: times plain", ratio, "ratio", OVER_PLAIN)


def _rate(name: str, count: int, seconds: float) -> Row:
    return Row(name=name, value=count / seconds, unit="env-steps/s")


def _ratio(name: str, ratio: float, bar: float | None) -> Row:
    return at_least(name, ratio, "ratio", bar)


def main() -> None:
    arguments: argparse.ArgumentParser = parser(__doc__.splitlines()[0])
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    timing = {"turn": 0.04, "turns": 2} if chosen.quick else {"turn": 0.06, "turns": 45}
    on_device = on_a_gpu if torch.cuda.is_available() else on_a_cpu
    rows = on_device(timing, quick=chosen.quick)
    rows.append(between_steps(4096, 8 if chosen.quick else 50))
    rows += memory_rows()
    report(rows, chosen)


if __name__ == "__main__":
    main()
