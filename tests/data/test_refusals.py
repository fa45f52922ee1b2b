"""Damaged and hostile files are refused; the error has path, key, episode, row and a remedy."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from gymnasium import spaces

from dreamgym.data import (
    Dataset,
    DatasetError,
    DatasetMetadata,
    UnsupportedSpaceError,
    check,
    recover,
)
from dreamgym.data.hdf5 import schema
from tests.data.samples import assert_same_episode, write_random

IMAGES = DatasetMetadata(
    observation_space=spaces.Box(0, 255, (8, 8, 3), np.uint8), action_space=spaces.Discrete(2)
)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write_random(tmp_path / "good.h5", [5, 3, 8, 2])


def replace(path: Path, key: str, **kwargs: object) -> None:
    """Replace a dataset by another one, or by a link."""
    with h5py.File(path, "r+") as file:
        del file[key]
        link = kwargs.pop("link", None)
        if link is not None:
            file[key] = link
        else:
            file.create_dataset(key, **kwargs)


def damage(change: Callable[[h5py.File], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            change(file)

    return apply


def set_value(key: str, index: object, value: object) -> Callable[[Path], None]:
    return damage(lambda file: file[key].__setitem__(index, value))


def set_attribute(name: str, value: object) -> Callable[[Path], None]:
    if isinstance(value, str):
        return damage(lambda file: schema.set_attribute(file, name, value))
    return damage(lambda file: file.attrs.__setitem__(name, value))


def add_external_link(path: Path) -> None:
    replace(path, "steps/reward", link=h5py.ExternalLink("other.h5", "/x"))


def make_external_storage(path: Path) -> None:
    (path.parent / "raw.bin").write_bytes(bytes(1000))
    raw = [(str(path.parent / "raw.bin"), 0, 88)]
    replace(path, "steps/reward", shape=(22,), dtype="f4", external=raw)


def make_virtual(path: Path) -> None:
    layout = h5py.VirtualLayout(shape=(22,), dtype="f4")
    layout[:] = h5py.VirtualSource(str(path.parent / "other.h5"), "x", shape=(22,))
    with h5py.File(path, "r+") as file:
        del file["steps/reward"]
        file.create_virtual_dataset("steps/reward", layout)


def make_cycle(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["steps/reward"]
        file["steps/reward"] = file["steps"]


def chunked_with_a_hole(path: Path) -> None:
    replace(path, "steps/reward", shape=(22,), dtype="f4", chunks=(4,), maxshape=(None,))
    set_value("steps/reward", slice(0, 3), 1.0)(path)


FLOAT = "f4"
REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "external link": (add_external_link, r"/steps/reward: it is an external link to '/x'"),
    "soft link": (
        lambda p: replace(p, "steps/reward", link=h5py.SoftLink("/steps/action")),
        r"/steps/reward: it is a soft link",
    ),
    "external storage": (make_external_storage, r"/steps/reward: its data are outside the file"),
    "virtual": (make_virtual, r"/steps/reward: it is a virtual dataset"),
    "cycle": (make_cycle, r"/steps/reward: it is not a dataset"),
    "declares more than it stores": (
        lambda p: replace(p, "steps/obs/observation", shape=(2**36, 3), dtype="f4", chunks=True),
        r"/steps/obs/observation: it declares 22 rows but stores only 0 bytes",
    ),
    "declares many episodes": (
        lambda p: replace(p, "episodes/crc", shape=(2**40,), dtype="u4", chunks=True),
        r"/episodes/crc: it declares 4 rows but stores only 0 bytes",
    ),
    "declares a terabyte of episodes": (
        damage(lambda f: [f["episodes/" + k].resize((2**40,)) for k in f["episodes"]]),
        r"/episodes/start: it declares .* rows but stores only",
    ),
    "missing chunk": (chunked_with_a_hole, r"/steps/reward: it declares 22 rows but stores only"),
    "contiguous, never written": (
        lambda p: replace(p, "steps/reward", shape=(22,), dtype="f4"),
        r"/steps/reward: it declares",
    ),
    "object dtype": (
        lambda p: replace(p, "steps/reward", shape=(22,), dtype=h5py.string_dtype()),
        r"/steps/reward: its dtype is object",
    ),
    "reference dtype": (
        lambda p: replace(p, "steps/reward", shape=(22,), dtype=h5py.ref_dtype),
        r"/steps/reward: its dtype is object",
    ),
    "compound dtype": (
        lambda p: replace(p, "steps/reward", shape=(22,), dtype=np.dtype([("a", "f4")])),
        r"/steps/reward: its dtype is",
    ),
    "void dtype": (
        lambda p: replace(p, "steps/reward", shape=(22,), dtype="V4"),
        r"/steps/reward: its dtype is",
    ),
    "another dtype": (
        lambda p: replace(p, "steps/reward", data=np.zeros(22)),
        r"/steps/reward: its rows are float64 \(\); the space has float32",
    ),
    "another shape": (
        lambda p: replace(p, "steps/obs/observation", data=np.zeros((22, 4), FLOAT)),
        r"/steps/obs/observation: its rows are float32 \(4,\)",
    ),
    "scalar": (
        lambda p: replace(p, "steps/reward", data=np.float32(0)),
        r"/steps/reward: its rows are",
    ),
    "too few rows": (
        lambda p: replace(p, "steps/reward", data=np.zeros(21, FLOAT)),
        r"/steps/reward: it has 21 rows; expected 22",
    ),
    "a key is missing": (
        damage(lambda f: f.__delitem__("steps/action")),
        r"/steps/action: it is missing",
    ),
    "missing group": (damage(lambda f: f.__delitem__("episodes")), r"/episodes: it is missing"),
    "negative start": (
        set_value("episodes/start", 0, -6),
        r"/episodes/start: episode 0: it is -6; it must not be negative",
    ),
    "overlap": (
        set_value("episodes/start", 1, 5),
        r"/episodes/start: episode 1: it is 5; expected 6",
    ),
    "non-monotone": (
        set_value("episodes/start", slice(1, 3), [10, 6]),
        r"/episodes/start: episode 1: it is 10",
    ),
    "zero-length episode": (set_value("episodes/length", 2, 0), r"episode 2: it is 0; an episode"),
    "negative length": (set_value("episodes/length", 2, -8), r"episode 2: it is -8; an episode"),
    "huge length": (set_value("episodes/length", 3, 2**62), r"episode 3: it is 46116"),
    "length beyond the rows": (set_value("episodes/length", 3, 90), r"has 22 rows; expected 110"),
    "seed": (set_value("episodes/seed", 3, -2), r"/episodes/seed: episode 3: it is -2"),
    "env_index": (set_value("episodes/env_index", 1, -1), r"/episodes/env_index: episode 1"),
    "no end flag": (
        set_value("episodes/complete", 1, False),
        r"/episodes/complete: episode 1: complete = False, but terminated = True",
    ),
    "bit rot": (
        set_value("steps/obs/observation", (7, 1), 0.25),
        r"/episodes/crc: episode 1: its checksum does not fit",
    ),
    "flag rot": (set_value("episodes/truncated", 2, True), r"episode 2: its checksum"),
    "NaN": (set_value("steps/obs/observation", (8, 2), np.nan), r"episode 1"),
    "no format": (set_attribute("format", "else"), "its format attribute is b'else'"),
    "newer schema": (set_attribute("schema_version", 2), "schema version is 2.*upgrade"),
    "schema of text": (set_attribute("schema_version", "one"), "schema_version is b'one'"),
    "space gone": (
        damage(lambda f: f.attrs.__delitem__("action_space")),
        "@action_space: the attribute is missing",
    ),
    "text of variable length": (
        damage(lambda f: f.attrs.__setitem__("policy", "random")),
        "@policy: the attribute is missing, or not text of fixed length",
    ),
    "space not JSON": (
        set_attribute("action_space", "{"),
        "@action_space: the attribute is not JSON",
    ),
    "space of arrays": (set_attribute("action_space", [1, 2]), "@action_space"),
    "malformed space": (
        set_attribute("action_space", json.dumps({"type": "Discrete", "n": -1})),
        "@action_space",
    ),
    "seed not a number": (set_attribute("seed", '"x"'), "@seed: it is 'x'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(good: Path, name: str) -> None:
    change, message = REFUSED[name]
    change(good)
    with pytest.raises(DatasetError, match=message) as caught:
        Dataset(good)
    assert str(good) in str(caught.value)


def test_an_unknown_type_of_space(good: Path) -> None:
    set_attribute("action_space", json.dumps({"type": "Graph"}))(good)
    with pytest.raises(UnsupportedSpaceError, match="Graph"):
        Dataset(good)


def test_nan_with_a_valid_checksum_is_located(tmp_path: Path) -> None:
    """Another writer may compute the checksum of bad data."""
    path = write_random(tmp_path / "d.h5", [5, 3])
    set_value("steps/obs/observation", (8, 2), np.nan)(path)
    problems = check(path).problems
    message = "/steps/obs/observation: episode 1, row 2: it holds NaN or an infinity (in 1 rows)"
    assert any(problem.startswith(message) for problem in problems)


def test_actions_outside_are_counted(tmp_path: Path) -> None:
    path = write_random(tmp_path / "d.h5", [5, 3])
    set_value("steps/action", [1, 3, 7], 9)(path)
    problems = check(path).problems
    assert any(
        "/steps/action: episode 0, row 1: 2 actions lie outside Discrete(2), the worst by 8" in p
        for p in problems
    )


def test_the_zero_row_of_an_episode_is_not_checked_as_an_action(tmp_path: Path) -> None:
    metadata = DatasetMetadata(
        observation_space=spaces.Box(-1, 1, (2,)), action_space=spaces.Box(1, 2, (1,))
    )
    path = write_random(tmp_path / "d.h5", [5, 3], metadata)
    assert check(path).ok
    Dataset(path).close()


def test_skipped_episodes_are_listed_and_the_file_is_unchanged(good: Path) -> None:
    set_value("steps/obs/observation", (7, 1), 0.25)(good)
    before = good.read_bytes()
    with Dataset(good, on_bad="skip") as dataset:
        assert dataset.lengths.tolist() == [5, 8, 2]
        assert len(dataset.skipped) == 1
        assert "episode 1" in dataset.skipped[0]
        batch = dataset.segments([0, 1, 2], 3).at(np.arange(15))
        assert not np.any(batch.observation == 0.25)
    assert good.read_bytes() == before
    for row in (0, 10, 20):
        set_value("steps/obs/observation", (row, 1), 0.25)(good)
    with pytest.raises(DatasetError, match="all 4 episodes are bad"):
        Dataset(good, on_bad="skip")


NOT_HDF5: dict[str, tuple[bytes, str]] = {
    "empty": (b"", r"it is empty \(0 bytes\)"),
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
        "Git LFS pointer.*lfs pull",
    ),
    "html": (b"\n<!DOCTYPE html><html>", "an HTML page"),
    "npz": (b"PK\x03\x04" + bytes(40), "not a readable npz file"),
    "npy": (b"\x93NUMPY\x01\x00", "a single NumPy array"),
    "pickle": (b"\x80\x04\x95\x00", "a Python pickle.*never loads"),
    "gzip": (b"\x1f\x8b\x08", "gzip"),
    "text": (b"1,2,3\n", "unknown format: it is a file that begins with.*DatasetWriter"),
    "only the signature": (b"\x89HDF\r\n\x1a\n", "truncated|superblock"),
    "unknown version": (b"\x89HDF\r\n\x1a\n\x09" + bytes(90), "superblock has version 9"),
}


@pytest.mark.parametrize("name", NOT_HDF5)
def test_files_that_are_not_hdf5_are_recognised(tmp_path: Path, name: str) -> None:
    content, message = NOT_HDF5[name]
    path = tmp_path / "d.h5"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        Dataset(path)


def test_paths_that_are_not_files(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such file"):
        Dataset(tmp_path / "none.h5")
    with pytest.raises(DatasetError, match="folder"):
        Dataset(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(DatasetError, match="not a regular file"):
            Dataset(tmp_path / "pipe")


@pytest.mark.parametrize("base", [0, 512])
def test_a_file_after_a_user_block(tmp_path: Path, base: int) -> None:
    """HDF5 itself writes its base address into the superblock; a prepended block leaves it 0."""
    path = write_random(tmp_path / "plain.h5", [5, 3], IMAGES)
    moved = tmp_path / "moved.h5"
    if base:
        with h5py.File(path) as plain, h5py.File(moved, "w", userblock_size=base) as file:
            for name, value in plain.attrs.items():
                schema.set_attribute(file, name, value.decode() if name != "schema_version" else 1)
            for name in plain:
                plain.copy(name, file)
    else:
        moved.write_bytes(bytes(512) + path.read_bytes())
    for memory in (0, 1 << 30):
        with Dataset(path) as dataset, Dataset(moved, memory=memory) as other:
            assert dataset.checksum == other.checksum
            for index in range(len(dataset)):
                assert_same_episode(dataset.episode(index), other.episode(index))
    with moved.open("r+b") as raw:
        raw.truncate(moved.stat().st_size - 1)
    with pytest.raises(DatasetError, match="truncated"):
        Dataset(moved)


@pytest.mark.parametrize("keep", [0.99, 0.5, 0.01])
def test_a_truncated_file(good: Path, keep: float) -> None:
    content = good.read_bytes()
    good.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(DatasetError, match="truncated"):
        Dataset(good)


def test_hdf5_that_is_not_a_dataset(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(
        DatasetError, match=r"unknown format: it is an HDF5 file with the keys \['x'\]"
    ):
        Dataset(tmp_path / "d.h5")


def test_a_dataset_without_episodes(good: Path) -> None:
    with h5py.File(good, "r+") as file:
        for column in file["episodes"].values():
            column.resize((0,))
    with pytest.raises(DatasetError, match="no episode"):
        Dataset(good)


def test_bit_rot_in_images(tmp_path: Path) -> None:
    path = write_random(tmp_path / "d.h5", [5, 3, 8], IMAGES)
    set_value("steps/obs/observation", (7, 0, 0, 0), 77)(path)
    assert any("episode 1" in problem for problem in check(path).problems)
    with pytest.raises(DatasetError, match="episode 1: its checksum"):
        Dataset(path)


def test_an_env_spec_is_not_executed(tmp_path: Path) -> None:
    """Reading a dataset treats the environment's spec as text."""
    path = write_random(tmp_path / "d.h5", [5, 3])
    spec = '{"id": "X-v0", "entry_point": "os:system", "kwargs": {"command": "touch hacked"}}'
    set_attribute("env_spec", spec)(path)
    with Dataset(path) as dataset:
        assert dataset.env_spec == spec
    assert not (tmp_path / "hacked").exists()


ODD_SPECS = [
    [],
    "CartPole-v1",
    3,
    {},
    {"id": "", "kwargs": {}},
    {"id": "X-v0", "kwargs": []},
    {"id": "X-v0", "kwargs": {}, "max_episode_steps": -5},
    {"id": "X-v0", "kwargs": {}, "max_episode_steps": "ten"},
    {"id": "X-v0", "kwargs": {}, "max_episode_steps": True},
    {"id": "X-v0", "kwargs": {}, "additional_wrappers": ["os:system"]},
]


@pytest.mark.parametrize("spec", ODD_SPECS, ids=json.dumps)
def test_an_odd_env_spec_is_refused(tmp_path: Path, spec: object) -> None:
    """A fit would only fail at its end, when it saves the world."""
    path = write_random(tmp_path / "d.h5", [5, 3])
    set_attribute("env_spec", json.dumps(spec))(path)
    with pytest.raises(DatasetError, match="@env_spec: the environment's spec is not valid"):
        check(path)


def many_boxes(count: int, shape: list[int]) -> str:
    box = {"type": "Box", "dtype": "float32", "shape": shape, "low": 0.0, "high": 1.0}
    return json.dumps({"type": "Dict", "spaces": [[str(i), box] for i in range(count)]})


@pytest.mark.parametrize(("count", "shape"), [(40, [1 << 24]), (40, [1 << 26]), (1, [1 << 23])])
def test_spaces_larger_than_what_is_stored_are_refused(
    tmp_path: Path, count: int, shape: list[int]
) -> None:
    path = write_random(tmp_path / "d.h5", [5, 3])
    set_attribute("observation_space", many_boxes(count, shape))(path)
    begin = peak_memory()
    with pytest.raises(DatasetError, match=r"@observation_space: a space describes .* bytes"):
        check(path)
    assert peak_memory() - begin < 16 << 20


def peak_memory() -> int:
    resource = pytest.importorskip("resource")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_a_discrete_space_of_many_actions_takes_no_memory(tmp_path: Path) -> None:
    metadata = DatasetMetadata(
        observation_space=spaces.Box(-1, 1, (3,)), action_space=spaces.Discrete(2**29)
    )
    path = write_random(tmp_path / "d.h5", [50, 50], metadata)
    begin = peak_memory()
    card = check(path)
    assert card.ok
    assert peak_memory() - begin < 64 << 20
    assert "Discrete" not in str(card.actions)
    assert 0 < card.actions["coverage"][0] <= 1


def test_a_missing_filter(tmp_path: Path) -> None:
    """The error for an unknown compression says what to install; the file is patched by hand."""
    path = write_random(tmp_path / "d.h5", [5, 3])
    replace(path, "steps/reward", data=np.zeros(10, FLOAT), chunks=(5,), compression="gzip")
    raw = bytearray(path.read_bytes())
    at = raw.find(b"deflate\x00") - 8  # id, length of the name, flags, number of values, name
    assert struct.unpack_from("<H", raw, at) == (1,)
    struct.pack_into("<H", raw, at, 32999)
    path.write_bytes(raw)
    with pytest.raises(DatasetError, match=r"filter 32999.*plugin is missing; install hdf5plugin"):
        Dataset(path)


def test_damaged_headers_do_not_crash_the_process(good: Path) -> None:
    """A crash inside HDF5 would end this process, so the file is opened in another one."""
    content = bytearray(good.read_bytes())
    for position in range(48, 400, 8):
        content[position] ^= 0xFF
    good.write_bytes(content)
    code = f"from dreamgym.data import Dataset, DatasetError\ntry:\n Dataset({str(good)!r})\n"
    code += "except DatasetError as error:\n print('refused', error)\n"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "refused" in done.stdout


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
@pytest.mark.parametrize("name", ["d.h5", "npz/1.npz", "shards/a.h5", "minari/main_data.hdf5"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    """Nobody writes to it: opening it would never end."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path)
    code = (
        "import signal, sys; signal.alarm(60)\n"
        "from dreamgym.data import DatasetError, check\n"
        "try: check(sys.argv[1])\n"
        "except DatasetError as error: print(error)\n"
    )
    given = path if path.parent == tmp_path else path.parent
    done = subprocess.run(
        [sys.executable, "-c", code, str(given)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) in done.stdout


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_is_not_recovered(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "d.h5.partial")
    with pytest.raises(DatasetError, match="not a regular file"):
        recover(tmp_path / "d.h5")
