"""Everything that a machine with CUDA can tell about dreamgym, in one command of under 9 minutes.

Stages run one after the other, each in a process of its own with a time limit. What a stage finds
is in the JSON file as soon as it is there, so that nothing is lost where the machine, or the time
on it, is. A stage that fails or is cut off is one row of the result, and the next one begins.

    python benchmarks/gpu.py --json FILE       all of it; `make gpu` calls this
    python benchmarks/gpu.py --needs           what to install, for a machine without network
    python benchmarks/gpu.py --device cpu ...  the same stages on a CPU, small: to try this program
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import threading
import time
import tomllib
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
COUNTS = (1, 64, 1024, 4096, 16_384, 65_536)
FEW_COUNTS = (1, 64)
"""On a CPU, where only the program is tried."""

TESTED_WITH = ("pytest", "hypothesis", "scipy", "stable-baselines3")
"""Packages that the GPU tests import besides those of dreamgym itself."""

FAMILIES = ("mdn-rnn", "rssm", "jepa", "pets", "ensemble")
WORLDS = ("v_m_c", "rssm_12m", "lewm")
DREAM = {"view": "latent", "output": "torch", "autoreset_mode": "SameStep"}

Rows = Iterator[dict[str, Any]]


def needs() -> list[str]:
    """What has to be installed besides torch, as `pip` names it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    core = [line for line in project["dependencies"] if not line.startswith("torch")]
    return [*core, *TESTED_WITH]


# ---------------------------------------------------------------- the stages


def machine(device: str) -> Rows:
    """The device, the versions, and which packages are missing."""
    import torch

    yield {"name": "torch", "value": torch.__version__}
    yield {"name": "python", "value": platform.python_version()}
    names = [line.replace("_", "-").split(">")[0].split("=")[0].strip() for line in needs()]
    missing = [name for name in names if importlib.util.find_spec(name.replace("-", "_")) is None]
    yield {"name": "missing packages", "value": missing, "holds": not missing}
    if device == "cuda":
        facts = torch.cuda.get_device_properties(0)
        yield {"name": "device", "value": facts.name}
        yield {"name": "memory", "value": facts.total_memory / 1e9, "unit": "GB"}
        yield {"name": "CUDA", "value": torch.version.cuda}
        yield {"name": "bfloat16", "value": torch.cuda.is_bf16_supported()}
        yield from _ceilings()
    yield {"name": "compiler (triton)", "value": importlib.util.find_spec("triton") is not None}


def _ceilings() -> Rows:
    """What the device's memory and products reach, to read the other figures by."""
    import torch

    large = torch.empty(2**28, device="cuda")
    seconds = _timed(lambda: large.mul_(1.0), 10)
    yield {"name": "memory bandwidth", "value": 8 * large.numel() / seconds / 1e9, "unit": "GB/s"}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(8192, 8192, device="cuda", dtype=dtype)
        seconds = _timed(lambda a=a: a @ a, 5)
        rate = 2 * 8192**3 / seconds / 1e12
        yield {"name": f"products, {dtype}", "value": rate, "unit": "TFLOP/s"}


def ways(device: str) -> Rows:
    """Each family, eager, captured and compiled: whether it steps, how, and its time."""
    from support import worlds

    from dreamgym.dream import DreamVectorEnv

    count = 1024 if device == "cuda" else 8
    for family in FAMILIES:
        for asked in (False, "auto", True) if device == "cuda" else (False,):
            name = f"{family}, {count} dreams, compile={asked!r}"
            try:
                started = time.perf_counter()
                env = DreamVectorEnv(
                    _built(worlds, family), count, device=device, compile=asked, **DREAM
                )
                env.reset(seed=0)
                action = worlds.actions(count, str(env.device))
                env.step(action)
                first = time.perf_counter() - started
                row = {"name": name, "value": count / _timed(lambda: env.step(action), 20)}  # noqa: B023
                row |= {"unit": "env-steps/s", "execution": env.stepper.execution}
                yield row | {"first_step_seconds": first}
            except Exception as error:
                yield _failed(name, error)


def _built(worlds: Any, family: str) -> Any:
    if family == "pets":
        import gymnasium as gym
        import numpy as np

        from dreamgym.models import PETS, PETSConfig

        seen = gym.spaces.Box(-1.0, 1.0, (8,), np.float32)
        return worlds._world(worlds._built(PETS, worlds.CAR, PETSConfig(), seen))
    return worlds.family(family)


def tests(device: str) -> Rows:
    """`pytest -m gpu` over the files that have such tests."""
    files = sorted(
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("test_*.py")
        if "mark.gpu" in path.read_text(encoding="utf-8")
    )
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    yield {
        "name": "pytest -m gpu",
        "value": lines[-1] if lines else done.stderr[-2000:],
        "holds": done.returncode == 0,
        "failures": [line for line in lines if line.startswith(("FAILED", "ERROR"))],
        "output": done.stdout[-8000:] if done.returncode else "",
    }


def syncs(device: str) -> Rows:
    """Whether steps and resets of each family wait for the device: torch raises where they do."""
    import torch
    from support import worlds

    from dreamgym.dream import DreamVectorEnv

    for family in FAMILIES:
        for asked in (False, "auto"):
            name = f"{family}, compile={asked!r}: steps without a host sync"
            try:
                env = DreamVectorEnv(
                    _built(worlds, family), 64, device=device, compile=asked, **DREAM
                )
                env.reset(seed=0)
                action = worlds.actions(64, str(env.device))
                for _ in range(3):
                    env.step(action)
                if device == "cuda":
                    torch.cuda.set_sync_debug_mode("error")
                for _ in range(10):
                    env.step(action)
                yield {"name": name, "value": 10, "unit": "steps", "holds": True}
            except Exception as error:
                yield _failed(name, error)
            finally:
                if device == "cuda":
                    torch.cuda.set_sync_debug_mode("default")


def dream(device: str, world: str) -> Rows:
    """Env-steps a second of one world of published size, at 1 to 65,536 dreams."""
    from support import worlds

    from dreamgym.dream import DreamVectorEnv

    made = getattr(worlds, world)()
    for count in COUNTS if device == "cuda" else FEW_COUNTS:
        for dtype in ("float32", "bfloat16"):
            name = f"{world}, {count} dreams, {dtype}"
            try:
                env = DreamVectorEnv(made, count, device=device, dtype=dtype, **DREAM)
                env.reset(seed=0)
                space: Any = env.single_action_space
                action = worlds.actions(count, str(env.device), space)
                seconds = _timed(lambda: env.step(action), 50 if device == "cuda" else 3)  # noqa: B023
                row = {"name": name, "value": count / seconds, "unit": "env-steps/s"}
                yield row | {
                    "us_a_step": 1e6 * seconds,
                    "way": env.stepper.execution,
                    **_memory(device),
                }
                env.close()
            except Exception as error:
                yield _failed(name, error)


def rollout(device: str) -> Rows:
    """A policy and its dreams on one device, 64 steps at a time, nothing copied to the host."""
    import torch
    from support import worlds
    from torch import nn

    from dreamgym.dream import DreamVectorEnv

    for count in (4096, 65_536) if device == "cuda" else (8,):
        name = f"rollout of 64 steps, V-M-C, {count} dreams"
        try:
            env = DreamVectorEnv(worlds.v_m_c(), count, device=device, **DREAM)
            env.reset(seed=0)
            low = torch.from_numpy(worlds.CAR.low).to(env.device)
            span = torch.from_numpy(worlds.CAR.high).to(env.device) - low
            width = env.world.model.feature_dim
            policy = nn.Sequential(nn.Linear(width, 64), nn.Tanh(), nn.Linear(64, 3), nn.Sigmoid())
            policy = policy.to(env.device)

            @torch.no_grad()
            def act(seen: Any, policy: Any = policy, low: Any = low, span: Any = span) -> Any:
                return low + span * policy(seen)

            seconds = _timed(lambda: env.rollout(act, 64), 3)  # noqa: B023
            row = {"name": name, "value": 64 * count / seconds, "unit": "env-steps/s"}
            yield row | _memory(device)
        except Exception as error:
            yield _failed(name, error)


def ppo(device: str) -> Rows:
    """A rollout and an update of the PPO on tensors; policy, dream and update captured, or not."""
    from dreamgym.dream import capture

    for count in (256, 4096, 16_384) if device == "cuda" else (8,):
        for captured in (True, False) if device == "cuda" else (False,):
            name = f"PPO in Pendulum, {count} copies, {'captured' if captured else 'eager'}"
            graphs = dict(capture.GRAPHS)
            try:
                if not captured:
                    capture.GRAPHS.clear()
                learner = _ppo(count, device)
                rollout = learner.collect()
                steps = rollout.reward.numel()
                seconds = _timed(learner.collect, 2)
                update = _timed(lambda: learner.update(rollout), 1)  # noqa: B023
                row = {"name": name, "value": steps / (seconds + update), "unit": "env-steps/s"}
                row |= {"rollout_seconds": seconds, "update_seconds": update}
                yield row | _memory(device)
            except Exception as error:
                yield _failed(name, error)
            finally:
                capture.GRAPHS.update(graphs)


def _ppo(count: int, device: str) -> Any:
    from dreamgym.dream import DreamVectorEnv
    from dreamgym.train.network import ActorCritic
    from dreamgym.train.ppo import PPO, PPOSettings

    made = {"output": "torch", "autoreset_mode": "SameStep"}
    env = DreamVectorEnv("Pendulum-MDNRNN-v0", count, device=device, **made)
    spaces = env.single_observation_space, env.single_action_space
    network = ActorCritic(*spaces, mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 4.0]).to(env.device)
    batch_size = 1024 if count < 4096 else count * 16 // 8
    return PPO(env, network, PPOSettings(n_steps=16, batch_size=batch_size), seed=0)


def _timed(call: Callable[[], Any], repeats: int) -> float:
    """Seconds that a call takes, the median of five runs after a warm-up."""
    import torch

    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for _ in range(2):
        call()
    taken = []
    for _ in range(5):
        wait()
        started = time.perf_counter()
        for _ in range(repeats):
            call()
        wait()
        taken.append((time.perf_counter() - started) / repeats)
    return sorted(taken)[2]


def _memory(device: str) -> dict[str, float]:
    import torch

    if device != "cuda":
        return {}
    peak = torch.cuda.max_memory_allocated() / 1e9
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return {"peak_GB": peak}


def _failed(name: str, error: Exception) -> dict[str, Any]:
    trace = "".join(traceback.format_exception(error))[-4000:]
    first = next(iter(str(error).splitlines()), "")
    return {"name": name, "value": f"{type(error).__name__}: {first}"[:300], "holds": False} | {
        "trace": trace
    }


STAGES: dict[str, tuple[Callable[[str], Rows], int]] = {
    "machine": (machine, 45),
    "syncs": (syncs, 55),
    "tests": (tests, 110),
    **{f"dream {name}": (lambda device, n=name: dream(device, n), 55) for name in WORLDS},
    "rollout": (rollout, 35),
    "ppo": (ppo, 40),
    "ways": (ways, 80),
}
"""Each stage and the seconds that it may take: 530 in all, the slowest to tell its tale last."""


# ---------------------------------------------------------------- running them


def run_stage(name: str, device: str) -> None:
    """Print the rows of one stage as lines of JSON; this process is the stage's own."""
    sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]
    try:
        for row in STAGES[name][0](device):
            print(json.dumps(row, default=str), flush=True)
    except Exception as error:  # what was found before it is kept
        print(json.dumps(_failed(name, error)), flush=True)


def in_a_process(name: str, device: str, limit: float) -> Rows:
    """The rows of a stage as they come, until it ends or its time is over."""
    command = [sys.executable, __file__, "--stage", name, "--device", device]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *_python_path()])}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    cut = threading.Event()

    def stop() -> None:
        cut.set()
        process.kill()

    timer = threading.Timer(limit, stop)
    complaints: list[str] = []
    reader = threading.Thread(target=lambda: complaints.extend(process.stderr), daemon=True)  # type: ignore[arg-type]
    timer.start()
    reader.start()
    try:
        for line in process.stdout or ():
            try:
                row = json.loads(line)
            except ValueError:
                continue  # what a library printed
            if isinstance(row, dict):
                yield row
        process.wait()
    finally:
        timer.cancel()
        process.kill()
    reader.join(2)
    if cut.is_set():
        yield {"name": name, "value": f"cut off after {limit:.0f} s", "holds": False}
    elif process.returncode:
        text = "".join(complaints)[-4000:]
        value = f"the process ended with {process.returncode}"
        yield {"name": name, "value": value, "holds": False, "trace": text}


def _python_path() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def write(path: Path, result: dict[str, Any]) -> None:
    """Write the result so far beside the file and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(result, indent=2, default=str) + "\n", encoding="utf-8")
    os.replace(beside, path)


def main() -> int:
    """Run what is asked for; 0 where every row that must hold does."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), metavar="FILE")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--needs", action="store_true", help="print the packages and end")
    parser.add_argument("--only", action="append", choices=list(STAGES), metavar="STAGE")
    parser.add_argument("--limit", type=float, help="seconds of each stage, in place of its own")
    parser.add_argument("--stage", choices=list(STAGES), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.needs:
        print("\n".join(needs()))
        return 0
    if chosen.stage:
        run_stage(chosen.stage, chosen.device)
        return 0
    result: dict[str, Any] = {"benchmark": "gpu", "rows": []}
    started = time.perf_counter()
    for name in chosen.only or STAGES:
        print(f"== {name}", flush=True)
        started = time.perf_counter()
        for row in in_a_process(name, chosen.device, chosen.limit or STAGES[name][1]):
            result["rows"].append({"stage": name, **row})
            write(chosen.json, result)
            mark = {True: "yes", False: "NO"}.get(row.get("holds"), "")  # type: ignore[arg-type]
            print(f"  {row['name']}: {row.get('value')} {row.get('unit', '')} {mark}", flush=True)
        seconds = round(time.perf_counter() - started, 1)
        result["rows"].append({"stage": name, "name": "seconds", "value": seconds, "unit": "s"})
        write(chosen.json, result)
    print(f"{chosen.json}: {time.perf_counter() - started:.0f} s")
    return int(any(row.get("holds") is False for row in result["rows"]))


if __name__ == "__main__":
    sys.exit(main())
