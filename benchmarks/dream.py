"""How fast a dream steps: beside plain PyTorch and TorchRL on one core, and on a GPU.

Every figure is of whole steps through the Gymnasium vector API, with torch output, rows that reset
themselves in the same step, episode statistics and true last observations. The worlds are unfitted
ones of published sizes: they step as fast as fitted ones.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import dream_worlds
import torch
from dream_baselines import plain_family, plain_mdn_rnn
from dream_memory import memory_rows
from dream_products import DTYPES, gflops, product_calls, work_of
from dream_subjects import (
    OFTEN,
    SAMPLED,
    SUBJECTS,
    Subject,
    a_dream,
    model_alone,
    plain_of,
    stepping,
)
from reporting import Row, at_least, below, parser, report
from side_by_side import side_by_side

from dreamgym.world import World

OVERHEAD, FIXED_OVERHEAD = 0.10, 40.0
BETWEEN = 100.0
GPU_COUNTS = (1, 256, 4096, 16_384, 65_536)
TORCHRL = {1: 4.0, 64: 2.5, 1024: 2.5}
LIMITS = {
    # What an H200's products allow, in float32 and in bfloat16: env-steps a second.
    "V-M-C Car": (dream_worlds.v_m_c, SAMPLED, {"float32": 80e6, "bfloat16": 939e6}, 50e6),
    "RSSM v3-12M": (dream_worlds.rssm_12m, OFTEN, {"float32": 5.2e6, "bfloat16": 62e6}, 5e6),
    "LeWM": (dream_worlds.lewm, OFTEN, {"float32": 0.95e6, "bfloat16": 11e6}, 1e6),
}
OVER_PLAIN = 20.0
"""Times plain eager PyTorch at 256 rows, on a GPU."""


def against_plain(subject: Subject, count: int, timing: dict[str, Any]) -> list[Row]:
    """Ratios to the plain step, and what the engine adds to the model's own."""
    world = subject.world()
    envs = {
        dtype: a_dream(world, count, dtype=dtype, device="cpu", **subject.options)
        for dtype in DTYPES
    }
    calls = {"plain": plain_of(subject, world, count), "model": model_alone(envs["float32"])}
    calls |= {dtype: stepping(env) for dtype, env in envs.items()}
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
    """What a step takes beyond the model's own."""
    if count == 1:
        return [below(name, (whole - model) * 1e6, "us", FIXED_OVERHEAD)]
    if count >= 1024:
        return [below(name, (whole - model) / model, "share", OVERHEAD)]
    return []


def compiled(subject: Subject, timing: dict[str, Any]) -> list[Row]:
    """With `compile=True`, where PyTorch's compiler has what it needs."""
    rows = []
    world = subject.world()
    for count, dtype in ((1, "float32"), (1024, "float32"), (1024, "bfloat16")):
        env = a_dream(world, count, dtype=dtype, device="cpu", compile=True, **subject.options)
        step = stepping(env)
        step()
        if env.stepper.way != "compiled":
            print("no rows for compile=True: see the warning above")
            return []
        calls = {"plain": plain_of(subject, world, count), "ours": step, "model": model_alone(env)}
        seconds = side_by_side(calls, **timing)
        name = f"{subject.name}, {count} envs, {dtype}, compiled"
        ratio = seconds["plain"] / seconds["ours"]
        rows.append(_ratio(f"{name}: times plain", ratio, subject.bars[count, dtype]))
        if count == 1:
            name = f"{name}: adds to the eager model"
            rows += engine_adds(name, count, seconds["ours"], seconds["model"])
    return rows


def against_products(timing: dict[str, Any]) -> list[Row]:
    """What this core's matrix products allow, were there nothing else in a step."""
    count, rows, products = 1024, [], product_calls()
    for subject in SUBJECTS:
        world, calls = subject.world(), dict(products)
        calls["plain"] = plain_of(subject, world, count)
        steps = {}
        for dtype in DTYPES:
            env = a_dream(world, count, dtype=dtype, device="cpu", **subject.options)
            steps[f"ours, {dtype}"] = stepping(env)
        work = work_of(steps["ours, float32"])
        seconds = side_by_side(calls | steps, **timing)
        for dtype in DTYPES:
            least = work / gflops(seconds[dtype]) / 1e9
            name = f"{subject.name}, {count} envs, {dtype}"
            most = seconds["plain"] / least
            rows.append(_ratio(f"{name}: times plain if there were only products", most, None))
            share = least / seconds[f"ours, {dtype}"]
            rows.append(Row(name=f"{name}: products' share of the step", value=share, unit="share"))
    rates = {name: gflops(seconds[name]) for name in products}
    return [
        *(
            Row(name=f"products, {name}", value=rate, unit="GFLOP/s")
            for name, rate in rates.items()
        ),
        *rows,
    ]


def against_torchrl(timing: dict[str, Any]) -> list[Row]:
    """V-M-C Car against TorchRL's model-based environment, drawn both ways that one writes it."""
    try:
        from dream_torchrl import Distributed, torchrl_mdn_rnn
    except ImportError as error:
        print(f"no rows for TorchRL: {error}; pip install torchrl")
        return []
    world, rows = dream_worlds.v_m_c(), []
    for count, bar in TORCHRL.items():
        calls = {
            "with torch.distributions": torchrl_mdn_rnn(count, Distributed),
            "drawn plainly": torchrl_mdn_rnn(count),
        }
        ours = stepping(a_dream(world, count, device="cpu"))
        seconds = side_by_side(calls | {"ours": ours}, **timing)
        for how in calls:
            name = f"V-M-C Car, {count} envs: times TorchRL {how}"
            rows.append(at_least(name, seconds[how] / seconds["ours"], "ratio", bar))
    return rows


def between_steps(count: int, steps: int) -> Row:
    """What a rollout does between the policy and the engine, without stacking what it has seen."""
    env = a_dream(dream_worlds.v_m_c(), count)
    action = dream_worlds.actions(count, env.device)
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
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
    # Each step has two such pauses, before the policy and before the engine; the first is no pause.
    us = 1e6 * (median(idle[2::2]) + median(idle[3::2]))
    return below(f"rollout, {count} envs: between steps", us, "us a step", BETWEEN)


def on_a_gpu(timing: dict[str, Any]) -> list[Row]:
    """Env-steps a second and their ratio to what the products allow."""
    rows = []
    for name, (make, options, limits, bar) in LIMITS.items():
        world, best = make(), 0.0
        for dtype, limit in limits.items():
            for count in GPU_COUNTS:
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
    action = dream_worlds.actions(256, "cuda", world.model.action_space)  # type: ignore[arg-type]
    plain = plain_mdn_rnn(256, "cuda") if name == "V-M-C Car" else plain_family(world, action)
    ours = stepping(a_dream(world, 256, device="cuda", **options))
    seconds = side_by_side({"plain": plain, "ours": ours}, **timing)
    ratio = seconds["plain"] / seconds["ours"]
    return at_least(f"{name}, 256 envs: times plain", ratio, "ratio", OVER_PLAIN)


def _rate(name: str, count: int, seconds: float) -> Row:
    return Row(name=name, value=count / seconds, unit="env-steps/s")


def _ratio(name: str, ratio: float, bar: float | None) -> Row:
    if bar is None:
        return Row(name=name, value=ratio, unit="ratio")
    return at_least(name, ratio, "ratio", bar)


def main() -> None:
    arguments: argparse.ArgumentParser = parser(__doc__.splitlines()[0])
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    timing = {"turn": 0.04, "turns": 3} if chosen.quick else {"turn": 0.3, "turns": 9}
    if torch.cuda.is_available():
        rows = on_a_gpu(timing)
    else:
        rows = []
        for subject in SUBJECTS:
            for count in (1, 1024) if chosen.quick else (1, 64, 1024):
                rows += against_plain(subject, count, timing)
        rows += against_torchrl(timing)
        rows += against_products(timing)
        for subject in [] if chosen.quick else SUBJECTS:
            rows += compiled(subject, timing)
    rows.append(between_steps(4096, 8 if chosen.quick else 50))
    rows += memory_rows()
    report(rows, chosen)


if __name__ == "__main__":
    main()
