"""Good files, damaged at random: reading gives a clear error or the original data.

HDF5 may crash on a damaged file and end the process, so each damaged file is opened in a forked
child. A crash, a hang or a wrong result in the child fails the test.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dreamgym.data import Dataset, DatasetError, DatasetMetadata, UnsupportedSpaceError, check
from tests.data.samples import write_random

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
FINE, REFUSED, WRONG = 0, 3, 4
SECONDS = 10


def in_a_child(work: Callable[[], int]) -> int:
    """Run `work` in a forked child; return its exit code, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = WRONG
        try:
            signal.alarm(SECONDS)  # a hang ends with SIGALRM
            code = work()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


class Good:
    """A good file, and everything that reading it gives."""

    def __init__(self, path: Path, metadata: DatasetMetadata, memory: int) -> None:
        self.path = write_random(path, [5, 3, 8, 2, 40], metadata)
        self.content = path.read_bytes()
        self.memory = memory
        with Dataset(path) as dataset:
            self.everything = everything(dataset)

    def load(self, path: Path) -> int:
        """Read a damaged copy from end to end, and compare it with the good file."""
        try:
            check(path)
            with Dataset(path, memory=self.memory) as dataset:
                dataset.verify()
                read = everything(dataset)
        except (DatasetError, UnsupportedSpaceError) as error:
            return REFUSED if str(path) in str(error) or "space" in str(error) else WRONG
        return FINE if read == self.everything else WRONG


def everything(dataset: Dataset) -> list[object]:
    sampler = dataset.segments(np.arange(len(dataset)), 4)
    batch = sampler.at(np.arange(sampler.num_transitions))
    observation = batch.observation
    parts = list(observation.values()) if isinstance(observation, dict) else [observation]
    return [
        dataset.observation_space,
        dataset.action_space,
        dataset.checksum,
        *(array.tobytes() for array in [*parts, *batch[1:]]),
    ]


@pytest.fixture(scope="module")
def goods(tmp_path_factory: pytest.TempPathFactory) -> list[Good]:
    folder = tmp_path_factory.mktemp("good")
    vectors = DatasetMetadata(
        observation_space=spaces.Box(-1, 1, (3,)), action_space=spaces.Box(-1, 1, (2,))
    )
    images = DatasetMetadata(
        observation_space=spaces.Dict(
            image=spaces.Box(0, 255, (8, 8, 3), np.uint8), vector=spaces.Box(-1, 1, (2,))
        ),
        action_space=spaces.Discrete(3),
    )
    return [
        Good(folder / "vectors.h5", vectors, 1 << 30),
        Good(folder / "images.h5", images, 0),
    ]


# Damage: a position in the file, and the bytes to put there. Some are likely to confuse a parser.
DAMAGE = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from([b"\x00", b"\xff", b"\x7f", b"\x01", b"\x80", b"\xff" * 8, bytes(64)])
        | st.binary(min_size=1, max_size=9),
    ),
    min_size=1,
    max_size=6,
)


@given(st.integers(0, 1), DAMAGE, st.none() | st.floats(0, 1.2))
@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_bytes(
    tmp_path: Path,
    goods: list[Good],
    which: int,
    damage: list[tuple[float, bytes]],
    length: float | None,
) -> None:
    good = goods[which]
    content = bytearray(good.content)
    for place, value in damage:
        at = int(place * len(content))
        content[at : at + len(value)] = value[: len(content) - at]
    if length is not None:
        content = (content + bytes(len(content)))[: int(length * len(content))]
    path = tmp_path / "damaged.h5"
    path.write_bytes(content)
    assert in_a_child(lambda: good.load(path)) in (FINE, REFUSED)


@given(st.integers(0, 1), st.integers(0, 5999), st.integers(0, 255))
@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_structure(
    tmp_path: Path, goods: list[Good], which: int, place: int, value: int
) -> None:
    """One byte in the headers at the beginning of the file."""
    good = goods[which]
    content = bytearray(good.content)
    content[place] = value
    path = tmp_path / "damaged.h5"
    path.write_bytes(content)
    assert in_a_child(lambda: good.load(path)) in (FINE, REFUSED)


NAMES = [
    "steps",
    "steps/obs",
    "steps/obs/observation",
    "steps/action",
    "steps/reward",
    "episodes",
    *(f"episodes/{name}" for name in ("start", "length", "terminated", "complete", "crc", "seed")),
]
CHANGES = ["delete", "group", "soft", "external", "short", "long", "zeros", "other dtype", "swap"]


CHANGE = st.tuples(st.sampled_from(NAMES), st.sampled_from(CHANGES))


@given(st.lists(CHANGE, min_size=1, max_size=3))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_contents(
    tmp_path: Path, goods: list[Good], changes: list[tuple[str, str]]
) -> None:
    good = goods[0]
    path = tmp_path / "damaged.h5"
    path.unlink(missing_ok=True)
    shutil.copy(good.path, path)
    with h5py.File(path, "r+") as file:
        for name, change in changes:
            change_one(file, name, change)
    assert in_a_child(lambda: good.load(path)) in (FINE, REFUSED)


def change_one(file: h5py.File, name: str, change: str) -> None:
    try:
        node = file[name]
    except (KeyError, RuntimeError):  # removed by an earlier change
        return
    small = isinstance(node, h5py.Dataset) and node.size < 10**6
    values = node[:] if small else None
    if values is not None and change == "zeros":
        node[...] = 0
        return
    if values is not None and change == "swap":
        node[...] = values[::-1]
        return
    del file[name]
    if change == "group":
        file.create_group(name)
    elif change == "soft":
        file[name] = h5py.SoftLink("/steps/reward")
    elif change == "external":
        file[name] = h5py.ExternalLink("/etc/hostname", "/x")
    elif values is not None and change == "short":
        file[name] = values[:-1]
    elif values is not None and change == "long":
        shape = (10**12, *values.shape[1:])
        file.create_dataset(name, shape=shape, dtype=values.dtype, chunks=True)
    elif values is not None and change == "other dtype":
        file[name] = values.astype(np.float64 if values.dtype.kind != "f" else np.float16)


ATTRIBUTES = ["format", "schema_version", "observation_space", "action_space", "seed", "versions"]
JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=5,
)


@given(
    st.sampled_from(ATTRIBUTES),
    st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=30)
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.binary(min_size=1, max_size=9)
    | JSON_LIKE.map(json.dumps),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_attributes(tmp_path: Path, goods: list[Good], name: str, value: object) -> None:
    good = goods[0]
    path = tmp_path / "damaged.h5"
    path.unlink(missing_ok=True)
    shutil.copy(good.path, path)
    with h5py.File(path, "r+") as file:
        file.attrs[name] = np.void(value) if isinstance(value, bytes) else value
    assert in_a_child(lambda: good.load(path)) in (FINE, REFUSED)
