"""What stands where a file of a dataset should be: pipes, pointers of Git LFS, web pages."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dreamgym.data import DatasetError, ForeignOptions, check
from tests.data.test_formats import FOREIGN, make_samples
from tests.data.test_logs import IMAGES, encode, log_columns, write_csv

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
FILES = {
    "Minari": "main_data.hdf5",
    "LeRobot": "data/chunk-000/file-000.parquet",
    "LeRobot v2.1": "meta/episodes.jsonl",
    "LeRobot video": "videos/observation.images.top/chunk-000/file-000.mp4",
    "Lance": "data/*.lance",
    "Lance index": "_versions/*.manifest",
    "Ha & Schmidhuber": "1.npz",
    "npz episodes": "1.npz",
    "stable-worldmodel folder": "action.npz",
    "stable-worldmodel video": "pixels/ep_0.mp4",
    "ALOHA/ACT": "episode_0.hdf5",
    "Zarr replay buffer": "data/action/0.0",
    "Zarr metadata": ".zgroup",
    "Dreamer": "20260-6.npz",
    "images of a log": "frames/0.png",
    "D4RL": "",
    "CSV or Parquet log": "",
}
NEEDS = {"LeRobot video": "av", "stable-worldmodel video": "av", "Lance": "lance",
         "Lance index": "lance", "LeRobot": "pyarrow", "images of a log": "pyarrow"}  # fmt: skip


@pytest.fixture(params=FILES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """Return a good dataset, and one of its files, which is deleted."""
    name = request.param
    pytest.importorskip(NEEDS.get(name, "numpy"))
    samples = make_samples(tmp_path)
    samples |= {
        "LeRobot v2.1": FOREIGN / "lerobot_image_v21",
        "LeRobot video": FOREIGN / "lerobot_video_v3",
        "Lance index": samples["Lance"],
        "Zarr metadata": samples["Zarr replay buffer"],
        "stable-worldmodel folder": FOREIGN / "worldmodel_folder",
        "stable-worldmodel video": FOREIGN / "worldmodel_video",
    }
    copy = tmp_path / "copy"
    if name == "images of a log":
        (copy / "frames").mkdir(parents=True)
        names = [f"frames/{row}.png" for row in range(len(IMAGES))]
        for each, image in zip(names, IMAGES, strict=True):
            (copy / each).write_bytes(encode(image))
        write_csv(copy / "log.csv", log_columns(observation=names, action=np.zeros(len(IMAGES))))
    elif samples[name].is_dir():
        shutil.copytree(samples[name], copy)
    else:
        shutil.copy(samples[name], copy)
    file = next(copy.glob(FILES[name])) if FILES[name] else copy
    file.unlink()
    return copy, file


@pytest.fixture
def no_hang() -> Iterator[None]:
    """End the process after a minute."""
    signal.alarm(60)
    yield
    signal.alarm(0)


def problems_of(path: Path) -> str:
    try:
        return "\n".join(check(path, foreign=ForeignOptions(ignore=("score", "fell"))).problems)
    except DatasetError as error:
        return str(error)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
@pytest.mark.usefixtures("no_hang")
def test_a_pipe_in_a_folder_is_not_waited_for(place: tuple[Path, Path]) -> None:
    path, file = place
    os.mkfifo(file)
    assert "it is not a regular file" in problems_of(path)


def test_a_pointer_of_git_lfs_is_called_so(place: tuple[Path, Path]) -> None:
    path, file = place
    file.write_bytes(POINTER)
    found = problems_of(path)
    assert "it is a Git LFS pointer" in found
    assert "git lfs pull" in found


def test_a_web_page_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "1.npz").write_text("<!DOCTYPE html><html>Sign in</html>")
    assert "it is an HTML page; the download gave a web page" in problems_of(tmp_path / "d")
