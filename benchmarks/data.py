"""Speed of writing and reading data, beside the limit of the machine, and crash safety.

    python benchmarks/data.py [--quick] [--json FILE] [--folder FOLDER] [--only SECTION ...]

Ratios are taken in one run: the two sides take turns, and the median of the turns' ratios counts.
What needs no disk (vectors, the recorder's part of a step) is measured in CPU time, which other
work on the machine disturbs least. With `--json FILE`, every section that is done is kept in
`FILE.part` until all are: a run that was stopped goes on from there when it is started again,
and sections measured with `--only`, perhaps by another interpreter, are not measured again.
The comparison with Minari needs `pip install minari[create]`, that with CarRacing
`gymnasium[box2d]`; without them their rows are left out.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
from gymnasium import spaces
from support.reporting import Row, at_least, below, parser, report

sys.path.insert(0, str(Path(__file__).parents[1]))

from dreamgym.data import (
    Dataset,
    DatasetMetadata,
    DatasetWriter,
    Episode,
    Recorder,
    check,
    convert,
    record,
)
from tests.data.killing import can_kill, kill_at, sample, survive, write_counting

FRAME = (64, 64, 3)
STEPS = 200  # in an episode of images
METADATA = DatasetMetadata(
    observation_space=spaces.Box(0, 255, FRAME, np.uint8),
    action_space=spaces.Box(-1, 1, (3,)),
)


@dataclass(frozen=True, kw_only=True)
class Size:
    """Sizes of the measurements."""

    episodes: int
    turns: int
    kills: int
    large_bytes: int
    checked_bytes: int
    many: int


QUICK = Size(episodes=40, turns=5, kills=60, large_bytes=0, checked_bytes=2 * 10**8, many=5_000)
FULL = Size(
    episodes=600,
    turns=15,
    kills=1200,
    large_bytes=10 * 10**9,
    checked_bytes=3 * 10**9,
    many=200_000,
)


def main() -> None:
    """Run all sections and report."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--folder", type=Path, help="where to put the files; deleted afterwards")
    arguments.add_argument("--only", nargs="+", choices=list(SECTIONS), help="measure only these")
    given = arguments.parse_args()
    size = QUICK if given.quick else FULL
    kept = Kept(None if given.json is None else given.json.with_name(given.json.name + ".part"))
    rows, failed = [], []
    for name in given.only or SECTIONS:
        key, begin = f"{name} {size}", time.perf_counter()
        if kept.rows(key) is None:
            try:
                with tempfile.TemporaryDirectory(dir=given.folder) as folder:
                    kept.put(key, list(SECTIONS[name](Path(folder), size)))
            except Exception:
                traceback.print_exc()
                failed.append(name)
        rows += kept.rows(key) or []
        print(f"{name}: {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
    if failed:
        sys.exit(f"these failed: {', '.join(failed)}; the same command measures only them again")
    if not given.only:
        kept.forget()
    report(rows, given)


class Kept:
    """Rows of the finished sections, kept in a file if one is given."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._sections: dict[str, list[dict[str, Any]]] = {}
        if path is not None and path.exists():
            self._sections = json.loads(path.read_text(encoding="utf-8"))

    def rows(self, key: str) -> list[Row] | None:
        """Return the rows of one section, or None if it was not measured."""
        found = self._sections.get(key)
        return None if found is None else [Row(**row) for row in found]

    def put(self, key: str, rows: list[Row]) -> None:
        """Store the rows of one section."""
        self._sections[key] = [asdict(row) for row in rows]
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(self._sections), encoding="utf-8")

    def forget(self) -> None:
        """Delete the file, once everything is measured."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def episode(rng: np.random.Generator) -> Episode:
    """Return one episode of random images, which cannot be compressed."""
    return Episode(
        observations=rng.integers(0, 256, (STEPS + 1, *FRAME), dtype=np.uint8),
        actions=rng.uniform(-1, 1, (STEPS, 3)).astype(np.float32),
        rewards=np.zeros(STEPS, np.float32),
        terminated=False,
        truncated=True,
        complete=True,
    )


def write(path: Path, episodes: int) -> float:
    """Write `episodes` episodes; return the seconds until the last was committed."""
    one = episode(np.random.default_rng(0))
    with DatasetWriter(path, METADATA) as writer:
        begin = time.perf_counter()
        for _ in range(episodes):
            writer.add(one)
        return time.perf_counter() - begin


def recording(folder: Path, size: Size) -> Iterator[Row]:
    """Measure the throughput of the writer and the overhead of the recorder."""
    seconds = []
    for turn in range(size.turns):
        path = folder / f"write{turn}.h5"
        seconds.append(write(path, 40))
        path.unlink()
    speed = 40 * STEPS / statistics.median(seconds)
    yield at_least("writer, 64x64x3", speed, "steps/s", 30_000)
    seconds = []
    for turn in range(3):
        begin = time.perf_counter()
        record("CartPole-v1", steps=10_000, out=folder / f"cartpole{turn}.h5")
        seconds.append(time.perf_counter() - begin)
    yield below("record 10,000 steps of CartPole", min(seconds), "s", 1.5)
    with contextlib.suppress(gym.error.Error, ModuleNotFoundError):
        yield below("recorder on CarRacing's step", car_racing(folder, size), "ratio", 0.15)


def car_racing(folder: Path, size: Size) -> float:
    """Return the time of a recorded step over that of a plain one, minus one."""
    plain = gym.make("CarRacing-v3", max_episode_steps=200)
    recorded = Recorder(gym.make("CarRacing-v3", max_episode_steps=200), folder / "car.h5")
    plain.action_space.seed(0)
    actions = [plain.action_space.sample() for _ in range(200)]  # the last one commits

    def drive(env: Any) -> float:
        env.reset(seed=1)
        begin = time.process_time()
        for action in actions:
            env.step(action)
        return time.process_time() - begin

    drive(plain), drive(recorded)
    ratios = [drive(recorded) / drive(plain) for _ in range(size.turns)]
    recorded.close()
    plain.close()
    return statistics.median(ratios) - 1


def images(folder: Path, size: Size) -> Iterator[Row]:
    """Compare segments of images with a NumPy memmap of the same frames, and with Minari's API."""
    path, raw = folder / "images.h5", folder / "images.raw"
    write(path, size.episodes)
    frames = episode(np.random.default_rng(0)).observations
    with raw.open("wb") as file:
        for _ in range(size.episodes):
            frames.tofile(file)
    mapped = np.memmap(raw, np.uint8, "r", shape=(size.episodes * (STEPS + 1), *FRAME))
    with Dataset(path, memory=0) as dataset:
        for length in (16, 64):
            draws = 1600 // length
            sampler = dataset.segments(np.arange(len(dataset)), length)
            ours = windows(lambda rng, s=sampler: s.draw(16, rng), draws)
            theirs = windows(lambda rng, n=length: from_memmap(mapped, n, rng), draws)
            ratio = statistics.median(ours() / theirs() for _ in range(size.turns))
            yield at_least(f"images, length {length}, over memmap", ratio, "ratio", 0.55)
        sampler = dataset.segments(np.arange(len(dataset)), 16)
        with contextlib.suppress(ImportError):
            slow = windows(minari_windows(folder), 1)
            fast = windows(lambda rng: sampler.draw(16, rng), 100)
            ratio = statistics.median(fast() / slow() for _ in range(3))
            yield at_least("images, length 16, over Minari's API", ratio, "ratio", 1000)
        if cold := cold_ratio(path, sampler):
            yield below("images, cold: disk bytes over useful", cold, "ratio", 1.5)
    raw.unlink()


def windows(
    draw: Callable[[np.random.Generator], Any],
    draws: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Callable[[], float]:
    """Windows per second, in batches of 16."""

    def measure() -> float:
        rng = np.random.default_rng(0)
        begin = clock()
        for _ in range(draws):
            draw(rng)
        return 16 * draws / (clock() - begin)

    measure()  # warm
    return measure


def from_memmap(mapped: np.memmap, length: int, rng: np.random.Generator) -> np.ndarray:
    """Read windows with a plain loop over a memmap: the limit that the others are compared with."""
    batch = np.empty((16, length + 1, *FRAME), np.uint8)
    for row, start in zip(batch, rng.integers(0, len(mapped) - length - 1, 16), strict=True):
        row[...] = mapped[start : start + length + 1]
    return batch


def minari_windows(folder: Path) -> Callable[[np.random.Generator], None]:
    """Read windows with Minari's API, which reads and decodes whole episodes."""
    os.environ["MINARI_DATASETS_PATH"] = str(folder / "minari")
    import minari
    from minari.data_collector import EpisodeBuffer

    rng = np.random.default_rng(0)
    buffers = []
    for index in range(4):
        one = episode(rng)
        flags = np.zeros(STEPS, bool)
        buffers.append(
            EpisodeBuffer(
                id=index,
                observations=one.observations,
                actions=one.actions,
                rewards=one.rewards,
                terminations=flags,
                truncations=flags,
            )
        )
    dataset = minari.create_dataset_from_buffers(
        "bench/images-v0",
        buffers,
        observation_space=METADATA.observation_space,
        action_space=METADATA.action_space,
    )

    def draw(rng: np.random.Generator) -> None:
        for index in rng.integers(0, 4, 16):
            whole = dataset[int(index)].observations
            start = int(rng.integers(0, STEPS - 16))
            np.array(whole[start : start + 17])

    return draw


def cold_ratio(path: Path, sampler: Any) -> float | None:
    """Return bytes read from disk over bytes requested, with the file out of the page cache."""
    if not Path("/proc/self/io").exists():
        return None
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before = disk_bytes()
    batch = sampler.draw(64, np.random.default_rng(1))
    read = disk_bytes() - before
    return read / batch.observation.nbytes if read else None


def disk_bytes() -> int:
    """Return the bytes that this process has read from a disk."""
    found = re.search(r"^read_bytes: (\d+)$", Path("/proc/self/io").read_text(), re.MULTILINE)
    return int(found.group(1)) if found else 0


def vectors(folder: Path, size: Size) -> Iterator[Row]:
    """Compare segments of vectors in memory with the fancy indexing alone that they need."""
    with Dataset(record("CartPole-v1", steps=10_000, out=folder / "cartpole.h5")) as dataset:
        sampler = dataset.segments(np.arange(len(dataset)), 16)
        rows = np.random.default_rng(0).normal(size=(10_000, 4)).astype(np.float32)
        actions, rewards = np.zeros(10_000, np.int64), np.zeros(10_000, np.float32)
        steps = np.arange(17)

        def index(rng: np.random.Generator) -> None:
            where = rng.integers(0, 9_000, 16)[:, None] + steps
            for values in (rows, actions, rewards):
                values[where]

        # One core: CPU time is the time.
        ours = windows(lambda rng: sampler.draw(16, rng), 4000, time.process_time)
        bare = windows(index, 4000, time.process_time)
        speeds = [(ours(), bare()) for _ in range(size.turns)]
    speed = statistics.median(a for a, _ in speeds)
    ratio = statistics.median(a / b for a, b in speeds)
    # The bar is either of the two.
    holds = speed >= 400_000 or ratio >= 0.8
    yield Row(
        name="vectors, length 16", value=speed, unit="windows/s", bar=">= 400000", holds=holds
    )
    yield Row(name="vectors, length 16, over bare indices", value=ratio, unit="ratio")


def kills(folder: Path, size: Size) -> Iterator[Row]:
    """Kill the writer at a write call, recover, append, and compare every row."""
    if not can_kill():
        return
    lost = done = seed = 0
    while done < size.kills:
        sample(seed)
        path = folder / f"whole{seed}.h5"
        _, calls = kill_at(1 << 60, lambda counter, p=path, s=seed: write_counting(p, counter, s))
        chosen = np.unique(np.linspace(1, calls, min(calls, size.kills - done)).astype(int))
        for call in chosen.tolist():
            place = folder / f"kill-{seed}-{call}"
            place.mkdir()
            committed, found = survive(
                place / "d.h5", call, append=call % 4 == 0 or size is FULL, seed=seed
            )
            lost += max(committed - found, 0)
            shutil.rmtree(place)
        done, seed = done + len(chosen), seed + 1
    yield Row(name="SIGKILL at sampled write calls", value=done, unit="kills")
    yield Row(
        name="committed episodes lost in them", value=lost, unit="episodes", bar="0", holds=not lost
    )


DRAW = """
import numpy as np
from dreamgym.data import Dataset, prefetch
dataset = Dataset(sys.argv[1], memory=1 << 30)
stream = prefetch(dataset.segments(np.arange(len(dataset)), 16), 16, np.random.default_rng(0))
for _ in range(300):
    next(stream)
"""
FIT = """
from dreamgym import FitConfig, fit
fit(sys.argv[1], config=FitConfig(updates=3, batch_size=8, evaluate_every=3, starts=256))
"""
PEAK = """
import re
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read()).group(1))
"""


def large(folder: Path, size: Size) -> Iterator[Row]:
    """Measure peak memory of sampling from, and fitting to, a large dataset within 1 GB."""
    if not size.large_bytes or not Path("/proc/self/status").exists():
        return
    path = folder / "large.h5"
    write(path, size.large_bytes // ((STEPS + 1) * int(np.prod(FRAME))))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    gigabytes = path.stat().st_size / 1e9
    for what, code in (("drawing from", DRAW), ("verifying and fitting to", FIT)):
        done = subprocess.run(
            [sys.executable, "-c", "import sys\n" + code + PEAK, str(path)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env=environment,
        )
        name = f"peak memory, {what} {gigabytes:.0f} GB"
        yield below(name, int(done.stdout.split()[-1]) * 1024 / 1e9, "GB", 1.5)


def checking(folder: Path, size: Size) -> Iterator[Row]:
    """Measure how fast images are checked, and whether the time is linear in the episodes."""
    path = folder / "checked.h5"
    write(path, size.checked_bytes // ((STEPS + 1) * int(np.prod(FRAME))))
    megabytes = path.stat().st_size / 1e6
    disk = megabytes / cold_read(path)
    yield Row(name="reading a file, out of the page cache", value=disk, unit="MB/s")
    evict(path)
    wall, cpu = timed(lambda: check(path))
    bar = min(200.0, disk / 2)
    yield at_least("check, images, out of the page cache", megabytes / wall, "MB/s", bar)
    yield at_least("check, images, by CPU time", megabytes / cpu, "MB/s", 200)
    path.unlink()
    seconds = []
    for count in (size.many // 20, size.many // 5):
        path = small_images(folder / f"{count}.h5", count)
        seconds.append(min(timed(lambda p=path: check(p))[1] for _ in range(3)))
        path.unlink()
    name = f"check, {size.many // 5:,} episodes of 16x16 images, CPU time"
    yield Row(name=name, value=seconds[1], unit="s")
    yield below("check, four times the episodes", seconds[1] / seconds[0], "ratio", 5)


def small_images(path: Path, count: int) -> Path:
    """Write `count` short episodes of small images, all of which begin with the same one."""
    rng = np.random.default_rng(0)
    metadata = DatasetMetadata(
        observation_space=spaces.Box(0, 255, (16, 16), np.uint8),
        action_space=spaces.Box(-1, 1, (3,)),
    )
    with DatasetWriter(path, metadata, commit_every=4096) as writer:
        for _ in range(count):
            images = rng.integers(0, 256, (11, 16, 16), dtype=np.uint8)
            images[0] = 0
            writer.add(
                Episode(
                    observations=images,
                    actions=np.zeros((10, 3), np.float32),
                    rewards=np.zeros(10, np.float32),
                    terminated=False,
                    truncated=True,
                    complete=True,
                )
            )
    return path


def timed(function: Callable[[], Any]) -> tuple[float, float]:
    """Return the seconds that a call took, and those of CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cpu


def evict(path: Path) -> None:
    """Take a file out of the page cache, where the system can."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cold_read(path: Path) -> float:
    """Return the seconds of reading a file from one end to the other, out of the page cache."""
    evict(path)
    begin = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.read(16 << 20):
            pass
    return time.perf_counter() - begin


def many(folder: Path, size: Size) -> Iterator[Row]:
    """Convert and check many short episodes; record with one commit each, and with shared ones."""
    rng = np.random.default_rng(0)
    rows = size.many * 5
    ends = np.arange(rows) % 5 == 4
    foreign, native = folder / "d4rl.hdf5", folder / "native.h5"
    with h5py.File(foreign, "w") as file:
        for name in ("observations", "next_observations"):
            file[name] = rng.normal(size=(rows, 4)).astype(np.float32)
        file["actions"] = rng.uniform(-1, 1, (rows, 2)).astype(np.float32)
        file["rewards"] = rng.normal(size=rows).astype(np.float32)
        file["terminals"], file["timeouts"] = ends, ends & False
    total = np.zeros(2)
    for what, work in (
        ("convert", lambda: convert(foreign, native)),
        ("check", lambda: check(native)),
    ):
        seconds = timed(work)
        total += seconds
        yield Row(name=f"{what} {size.many:,} episodes", value=seconds[0], unit="s")
    yield below(f"convert and check {size.many:,} episodes", total[0], "s", 120)
    yield below(f"convert and check {size.many:,} episodes, CPU time", total[1], "s", 120)
    few = max(200, size.many // 200)
    seconds = []
    for commit_every in (1, 100):
        out = folder / f"recorded{commit_every}.h5"
        env = gym.make("CartPole-v1", max_episode_steps=5)
        work = lambda e=env, o=out, n=commit_every: record(  # noqa: E731
            e, steps=5 * few, out=o, commit_every=n
        )
        seconds.append(timed(work)[0])
        name = f"record {few:,} episodes, a commit every {commit_every}"
        yield Row(name=name, value=seconds[-1], unit="s")


SECTIONS: dict[str, Callable[[Path, Size], Iterator[Row]]] = {
    "recording": recording,
    "images": images,
    "vectors": vectors,
    "checking": checking,
    "many": many,
    "kills": kills,
    "large": large,
}

if __name__ == "__main__":
    main()
