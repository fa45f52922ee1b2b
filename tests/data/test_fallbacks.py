"""Systems without positioned reads, preallocation or file locks give the same files and batches.

macOS has no `posix_fallocate`; Windows also lacks `preadv`, `memfd_create` and `fcntl`. They are
removed here to force the fallbacks.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from dreamgym.data import Dataset, DatasetError, DatasetWriter, check, record, resume
from dreamgym.data.hdf5 import guard, reader, writer
from dreamgym.data.storage import SlicedColumn
from tests.data.samples import assert_same_batch, dict_cartpole, image_cartpole, write_random

MISSING = {
    "nothing": (),
    "macos": ("posix_fallocate", "posix_fadvise", "memfd_create"),
    "windows": ("posix_fallocate", "posix_fadvise", "memfd_create", "preadv"),
}


@pytest.fixture(params=list(MISSING))
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    for name in MISSING[request.param]:
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setattr(reader, "PREADV_AVAILABLE", hasattr(os, "preadv"))
    if request.param == "windows":
        monkeypatch.setattr(guard, "fcntl", None)
    return request.param


@pytest.mark.parametrize("make", [image_cartpole, dict_cartpole])
def test_files_and_batches_are_the_same(
    system: str, tmp_path: Path, make: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = record(make(), steps=150, out=tmp_path / "d.h5")  # type: ignore[operator]
    resume(make(), steps=300, out=path)  # type: ignore[operator]
    with Dataset(path, memory=0) as here:
        columns = here._source.observations.values()
        if system == "windows":
            assert all(isinstance(column, SlicedColumn) for column in columns)
        monkeypatch.undo()
        reference = record(make(), steps=150, out=tmp_path / "r.h5")  # type: ignore[operator]
        resume(make(), steps=300, out=reference)  # type: ignore[operator]
        with Dataset(reference) as there:
            assert here.checksum == there.checksum
            for length, skip in ((1, 1), (16, 1), (5, 3)):
                a, b = (
                    d.segments(np.arange(len(d)), length, frame_skip=skip) for d in (here, there)
                )
                every = np.arange(a.num_transitions)
                assert_same_batch(a.at(every), b.at(every))
        here.verify()
    assert check(path).ok


def test_a_full_disk_is_reported(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if system == "nothing":
        pytest.skip("the operating system reports it; see test_writer.py")
    full = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda path: full)
    with pytest.raises(DatasetError, match="has room"):
        write_random(tmp_path / "d.h5", [3])
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_file_is_refused(system: str, tmp_path: Path) -> None:
    done = write_random(tmp_path / "a.h5", [3])
    writer = DatasetWriter.extend(done)
    with pytest.raises(DatasetError, match="a writer has it open"):
        Dataset(writer.partial_path)
    writer.close()
    with Dataset(done) as dataset:
        assert dataset.num_episodes == 1
