"""Damage good files at random, and read them in a process of limited memory and time.

    python -m tests.mutations --count 10000 [--only NAME ...] [--seed N]

Reading a damaged file gives what is in it, or an error of dreamgym: never another exception, a
crash, a hang or a process that needs more memory. Every finding is printed with the number of its
mutation; `--seed` and that number repeat it (`--first NUMBER --count 1`).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import importlib.util
import io
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dreamgym._files import sha256
from dreamgym.errors import DreamgymError

SECONDS = 10  # of processor time, so that other processes on the machine do not matter
WALL_SECONDS = 120  # for what waits without end
MEMORY = 2 << 30  # beyond what the libraries have mapped
EACH = 250  # mutations in one process: libraries do not give all of their memory back
ROOT = Path(__file__).parents[1]

ODD_BYTES = [b"\x00", b"\xff", b"\x7f", b"\x01", b"\x80", b"\xff" * 8, bytes(64)]
ODD_VALUES: list[Any] = [
    *(None, True, "", "x", "1", [], {}, [[]], {"a": 1}, "../../x", "NaN"),
    *(0, -1, 1, 2, 3, 255, 2**31, 2**63, 2**70, -(2**63), 1e30, -0.5, float("nan"), float("inf")),
]
ODD_DTYPES = ["?", "i1", "u2", "i8", "u8", "f2", "f4", "f8", "c8", "S3", "U3", "M8[s]"]


# ---------------------------------------------------------------- damage


def damage_file(path: Path, rng: random.Random) -> None:
    """Damage a file in place: its bytes, or what its container holds."""
    content = path.read_bytes()
    if rng.random() < 0.4:
        path.write_bytes(damage_bytes(content, rng))
    elif content.startswith(b"\x89HDF"):
        with h5py.File(path, "r+") as file:
            for _ in range(rng.randint(1, 2)):
                damage_hdf5(file, rng)
    else:
        path.write_bytes(damage_content(content, rng))


def damage_content(content: bytes, rng: random.Random) -> bytes:
    """Damage bytes by what they are: JSON, zip, npy, safetensors, text, or anything."""
    if content.startswith(b"PK\x03\x04"):
        return damage_zip(content, rng)
    if content.startswith(b"\x93NUMPY"):
        return damage_npy(content, rng)
    if content[8:10] == b'{"':
        return damage_safetensors(content, rng)
    try:
        return json.dumps(damage_json(json.loads(content), rng)).encode()
    except ValueError:
        return damage_bytes(content, rng)


def damage_bytes(content: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(rng.randint(1, 5)):
        at = rng.randrange(len(damaged) + 1)
        value = rng.choice(ODD_BYTES) if rng.random() < 0.6 else rng.randbytes(rng.randint(1, 9))
        damaged[at : at + len(value)] = value[: max(0, len(damaged) - at)]
    if rng.random() < 0.2:
        del damaged[rng.randrange(len(damaged) + 1) :]
    if rng.random() < 0.05:
        damaged += bytes(rng.randint(1, 4096))
    return bytes(damaged)


def damage_json(value: Any, rng: random.Random) -> Any:
    """Replace, remove or repeat one value somewhere inside."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: damage_json(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        if rng.random() < 0.1:
            return value * 2 if rng.random() < 0.5 else value[:at]
        return [*value[:at], damage_json(value[at], rng), *value[at + 1 :]]
    if isinstance(value, str) and value[:1] in ("{", "[") and rng.random() < 0.8:
        try:
            return json.dumps(damage_json(json.loads(value), rng))
        except ValueError:
            pass
    if isinstance(value, int) and rng.random() < 0.3:
        return value * rng.choice([-1, 2, 10**6]) + rng.choice([-1, 0, 1])
    return rng.choice(ODD_VALUES)


def damage_zip(content: bytes, rng: random.Random) -> bytes:
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(buffer, "w", rng.choice([0, zipfile.ZIP_DEFLATED])) as new,
    ):
        chosen = rng.choice(old.namelist())
        for name in old.namelist():
            inner = old.read(name)
            if name != chosen:
                new.writestr(name, inner)
            elif (how := rng.random()) < 0.1:
                new.writestr(rng.choice(["x", "actions.npy", "data", *old.namelist()]), inner)
            elif how < 0.9:
                new.writestr(name, damage_content(inner, rng))
    return buffer.getvalue()


def damage_npy(content: bytes, rng: random.Random) -> bytes:
    try:
        values = damage_array(np.load(io.BytesIO(content), allow_pickle=False), rng)
    except ValueError:
        return damage_bytes(content, rng)
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def damage_array(values: np.ndarray, rng: random.Random) -> np.ndarray:
    """Change values, dtype or shape."""
    how = rng.randrange(7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how == 0 and values.size:
            values = values.copy()
            at = rng.randrange(values.size)
            odd = [-1, 0, 255, 2**31, -(2**63)]
            odd += [float("nan"), float("inf"), 1e30] if values.dtype.kind == "f" else []
            values.flat[at] = np.array(rng.choice(odd)).astype(values.dtype)
            return values
        if how == 1:
            return values.astype(rng.choice(ODD_DTYPES))
    shapes = [(), (0,), (-1,), (1, -1), (-1, 1), (len(values) if values.ndim else 1, -1)]
    if how == 2 and values.size:
        return values.reshape(rng.choice([s for s in shapes if s not in ((), (0,))]))
    if how == 3:
        return values[: rng.randrange(len(values) + 1)] if values.ndim else values
    if how == 4 and values.ndim:
        return np.concatenate([values, values[: rng.randrange(len(values) + 1)]])
    if how == 5:
        return values[..., :0] if values.ndim else values
    return np.zeros(rng.choice([(), (0,), (3,), (2, 2)]), values.dtype)


def damage_safetensors(content: bytes, rng: random.Random) -> bytes:
    size = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + size])
    except ValueError:
        return damage_bytes(content, rng)
    data = bytearray(content[8 + size :])
    if rng.random() < 0.6:
        header = damage_json(header, rng)
    elif len(data) >= 4:
        at = 4 * rng.randrange(len(data) // 4)
        data[at : at + 4] = np.float32(rng.choice([np.nan, np.inf, 1e30, -1])).tobytes()
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)


def damage_hdf5(file: h5py.File, rng: random.Random) -> None:
    nodes: list[str] = []
    file.visit(nodes.append)
    name = rng.choice(nodes)
    node = file[name]
    owners = [owner for owner in (file, node) if len(owner.attrs)]
    if owners and rng.random() < 0.2:
        owner = rng.choice(owners)
        key = rng.choice(list(owner.attrs))
        value = owner.attrs[key]
        text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
        damaged = damage_content(text.encode(), rng)
        owner.attrs[key] = np.bytes_(damaged) if damaged.strip(b"\0") else 0
        return
    how = rng.randrange(6)
    small = isinstance(node, h5py.Dataset) and (node.size or 0) < 10**6
    values = node[()] if small else None
    del file[name]
    if how == 0:
        return
    if how == 1:
        file.create_group(name)
    elif how == 2:
        file[name] = h5py.SoftLink(f"/{rng.choice(nodes)}")
    elif how == 3:
        file.create_dataset(name, shape=(10**12, 3), dtype="f4", chunks=(1024, 3))
    elif isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        file[name] = damage_array(values, rng).astype("f4" if rng.random() < 0.1 else None)
    else:
        file[name] = np.zeros(3)


def damage(path: Path, rng: random.Random) -> None:
    """Damage a file, or one file of a folder; a world's checksums are made right again."""
    if path.is_file():
        return damage_file(path, rng)
    damage_file(rng.choice(sorted(each for each in path.rglob("*") if each.is_file())), rng)
    description = path / "world.json"
    if description.exists():
        try:
            content = json.loads(description.read_bytes())
            for name in content["files"]:
                content["files"][name]["sha256"] = sha256(path / name)
            description.write_text(json.dumps(content))
        except (ValueError, KeyError, TypeError, AttributeError, OSError):
            pass


# ---------------------------------------------------------------- what is read


def read_dataset(path: Path, stays: bool = True, **options: Any) -> None:
    """Check a dataset, and read it; it stays in its file if the format can."""
    from dreamgym.data import ForeignOptions, check

    foreign = ForeignOptions(**options) if options else None
    problems: list[str] = []
    try:
        problems = check(path, foreign=foreign).problems
    finally:
        read_everything(path, problems, 0 if stays else 1 << 30, foreign)


def read_everything(path: Path, problems: list[str], memory: int, foreign: Any) -> None:
    """Read every episode, and some segments; a dataset without problems has no bad episode."""
    from dreamgym.data import Dataset

    with Dataset(path, memory=memory, on_bad="skip", foreign=foreign) as dataset:
        for index in range(len(dataset)):
            try:
                dataset.episode(index)
            except DreamgymError:
                if not problems:
                    raise
        dataset.segments(np.arange(len(dataset)), 4).draw(4, np.random.default_rng(0))


def read_without_library(path: Path) -> None:
    """Read a dataset whose library is not installed: it is refused before, or named."""
    with contextlib.suppress(ModuleNotFoundError):
        read_dataset(path)


def read_world(path: Path) -> None:
    """Load a world and dream two steps."""
    import dreamgym
    from dreamgym.dream.vector_env import DreamVectorEnv

    env = DreamVectorEnv(dreamgym.load(path), 4, device="cpu")
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(2):
        env.step(env.action_space.sample())


def read_policy(path: Path) -> None:
    """Load a policy and let it act."""
    from dreamgym.train import load_policy

    policy = load_policy(path)
    space = policy.observation_space
    policy.predict(np.zeros((2, *space.shape), space.dtype))


WHOLE = ("robomimic", "OGBench", "Ha & Schmidhuber", "npz episodes")
"""Formats of which only whole episodes can be read."""

OWN = ("flat columns by group", "npz episodes of any names")
LOGS = ("CSV or Parquet log", "Parquet log")

Target = tuple[Path, Callable[[Path], None]]


def make_targets(folder: Path) -> dict[str, Target]:
    """Make a good file or folder of every kind, with the function that reads it."""
    from gymnasium import spaces

    from dreamgym.data import DatasetMetadata
    from dreamgym.train import TrainConfig, train_policy
    from tests.data import test_formats as formats
    from tests.data import test_logs as logs
    from tests.data import test_ros as ros
    from tests.data.samples import write_random
    from tests.small_worlds import small_world

    images = DatasetMetadata(
        observation_space=spaces.Dict(
            image=spaces.Box(0, 255, (8, 8, 3), np.uint8), vector=spaces.Box(-1, 1, (2,))
        ),
        action_space=spaces.Discrete(3),
    )
    targets: dict[str, Target] = {
        "native": (write_random(folder / "n.h5", [5, 3, 8, 2, 40]), read_dataset),
        "native images": (write_random(folder / "i.h5", [5, 3, 8], images), read_dataset),
    }
    samples = formats.make_samples(folder)
    for path in sorted(formats.FOREIGN.iterdir()):
        if path not in samples.values() and (path.is_dir() or path.suffix == ".h5"):
            samples[path.name] = path

    if importlib.util.find_spec("pyarrow"):
        samples["Parquet log"] = logs.write_parquet(folder / "log.parquet", logs.log_columns())
    samples["flat columns by group"] = logs.write_own_groups(folder / "own.h5")
    samples["npz episodes of any names"] = logs.write_own_files(folder / "own")
    missing = () if importlib.util.find_spec("tensorflow_datasets") else ("RLDS", "rlds")
    for name, path in samples.items():
        options: dict[str, Any] = {"terminals": "termination", "stays": name not in WHOLE}
        if name in LOGS:
            options["columns"] = logs.COLUMNS
        elif name == "MCAP or ROS bag":
            options["columns"] = ros.COLUMNS
        elif name in OWN:
            options["columns"] = logs.OWN
        read = functools.partial(read_dataset, **options)
        targets[name] = path, read_without_library if name in missing else read
    for kind in ("mdn-rnn", "ensemble", "nested"):
        targets[f"world {kind}"] = small_world(kind).save(folder / kind), read_world
    quick = TrainConfig(num_envs=16, n_steps=16, batch_size=64)
    for learner, suffix in (("sb3", "zip"), ("ppo", "safetensors")):
        path = folder / f"policy.{suffix}"
        train_policy(small_world(), steps=256, out=path, config=quick, learner=learner)
        targets[f"policy {learner}"] = path, read_policy
    return targets


# ---------------------------------------------------------------- running


def mutate(name: str, target: Target, seed: int, number: int, work: Path) -> None:
    """Damage a copy of a target and read it."""
    path, read = target
    copy = work / path.name
    if path.is_dir():
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(path, copy)
    else:
        shutil.copy(path, copy)
    with contextlib.suppress(ValueError, TypeError, LookupError, OverflowError, RuntimeError):
        damage(copy, random.Random(f"{name} {seed} {number}"))  # not every change can be made
    with contextlib.suppress(DreamgymError, ImportError):  # a library that is not installed
        read(copy)


def limit_memory() -> None:
    """Allow the process `MEMORY` bytes more than it has mapped now."""
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))


def skip_speed_test() -> None:
    """Leave out the 0.05 s for which `check` draws windows: every mutation reads windows anyway."""
    from dreamgym.data import checking

    checking._SPEED_TEST_SECONDS = 0.0


def work_through(
    folder: Path, names: list[str] | None, seed: int, numbers: range, state: Path
) -> None:
    """Read mutations of several targets, all by default.

    The first line of `state` has their names; each other one says what is read, and what was found.

    It is the child: a crash, a hang or the end of the memory ends it.
    """
    warnings.simplefilter("ignore")
    targets = make_targets(folder)
    limit_memory()
    skip_speed_test()
    names = list(targets) if names is None else names
    unknown = sorted(set(names) - set(targets))
    if unknown:
        raise SystemExit(f"there are no targets {unknown}; there are {list(targets)}")
    with tempfile.TemporaryDirectory() as work, state.open("w") as log:
        print(json.dumps(names), file=log, flush=True)
        for name in names:
            for number in numbers:
                if number % 25 == 0:
                    gc.collect()  # threads of TensorFlow, whose stacks are counted as memory
                print(json.dumps([name, number]), file=log, flush=True)
                signal.setitimer(signal.ITIMER_PROF, SECONDS)
                signal.alarm(WALL_SECONDS)
                try:
                    mutate(name, targets[name], seed, number, Path(work))
                except Exception as error:
                    frames = traceback.extract_tb(error.__traceback__)
                    own = [each for each in frames if "/dreamgym/" in each.filename] or frames
                    place = f"{Path(own[-1].filename).name}:{own[-1].lineno}"
                    found = f"{type(error).__name__} at {place}: {str(error)[:150]}"
                    print(json.dumps([name, number, found]), file=log, flush=True)
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.alarm(0)


def find_faults(
    names: list[str] | None, count: int, seed: int = 0, first: int = 0
) -> Iterator[tuple[str, int, str]]:
    """Yield what reading mutations gave that it must not: target, number and description."""
    numbers = range(first, first + count)
    waiting: list[tuple[list[str] | None, range]] = [
        (names, numbers[start : start + EACH]) for start in range(0, count, EACH)
    ]
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state"
        while waiting:
            todo, numbers = waiting.pop(0)
            state.unlink(missing_ok=True)
            made = Path(tempfile.mkdtemp(dir=folder))
            span = str(numbers.start), str(numbers.stop)
            arguments = ["--child", str(made), json.dumps(todo), str(seed), str(state), *span]
            child = subprocess.run(
                [sys.executable, "-m", "tests.mutations", *arguments],
                cwd=ROOT,
                capture_output=True,
                text=True,
            )
            shutil.rmtree(made)
            if not state.exists():
                raise RuntimeError(child.stderr[-2000:])
            todo, *lines = (json.loads(line) for line in state.read_text().splitlines())
            yield from (tuple(line) for line in lines if len(line) == 3)
            if child.returncode:
                if not lines:
                    raise RuntimeError(child.stderr[-2000:])
                name, number = lines[-1][:2]
                yield name, number, f"it ended with {child.returncode}"
                rest = todo[todo.index(name) + 1 :]
                left = [([name], range(number + 1, numbers.stop)), (rest, numbers)]
                waiting = [each for each in left if each[0] and len(each[1])] + waiting


def main() -> None:
    """Run the command."""
    if sys.argv[1:2] == ["--child"]:
        folder, names, seed, state, start, stop = sys.argv[2:]
        numbers = range(int(start), int(stop))
        work_through(Path(folder), json.loads(names), int(seed), numbers, Path(state))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="mutations of each target")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", help="names of targets")
    given = parser.parse_args()
    findings = 0
    for name, number, text in find_faults(given.only, given.count, given.seed, given.first):
        print(f"{name}, mutation {number}: {text}", flush=True)
        findings += 1
    print(f"{findings} findings")
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
