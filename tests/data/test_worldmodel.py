"""The other forms of stable-worldmodel: Lance tables, and folders of JPEG files or videos.

`foreign/worldmodel*` were made by `World.collect` of stable-worldmodel 0.1.1 on its Pendulum: three
episodes of five steps, images of 32x32.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from dreamgym.data import Dataset, DatasetError, ForeignOptions, check
from dreamgym.data.formats import lance_process
from tests.data.test_formats import flags, read_both_ways

FOREIGN = Path(__file__).parent / "foreign"
NEEDED = {"worldmodel.lance": "lance", "worldmodel_folder": "PIL", "worldmodel_video": "av"}


@pytest.fixture(params=NEEDED)
def source(request: pytest.FixtureRequest) -> Path:
    pytest.importorskip(NEEDED[request.param])
    return FOREIGN / request.param


def test_rewards_belong_to_the_action_before(source: Path, tmp_path: Path) -> None:
    """Pendulum's reward follows from the state and the action that led to it."""
    episodes = read_both_ways(source, tmp_path)
    assert flags(episodes) == [(5, False, True, True)] * 3
    for episode in episodes:
        seen = episode.observations
        assert seen["pixels"].dtype == np.uint8
        assert seen["pixels"].shape == (6, 32, 32, 3)
        assert np.ptp(seen["pixels"].astype(int), axis=0).max() > 50  # the pendulum moves
        cosine, sine, speed = seen["observation"][:-1].T
        torque = np.clip(episode.actions[:, 0], -2, 2)
        cost = np.arctan2(sine, cosine) ** 2 + 0.1 * speed**2 + 0.001 * torque**2
        np.testing.assert_allclose(episode.rewards, -cost, rtol=1e-3, atol=1e-3)


def test_keys_are_chosen(source: Path) -> None:
    with Dataset(source, foreign=ForeignOptions(keys=("pixels",)), memory=0) as dataset:
        assert dataset.observation_space.shape == (32, 32, 3)
        assert dataset.episode(1).observations.shape == (6, 32, 32, 3)


def test_a_damaged_episode_is_named(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(FOREIGN / "worldmodel_folder", tmp_path / "d"))
    image = copy / "pixels" / "ep_1_step_3.jpeg"
    image.write_bytes(image.read_bytes()[:100])
    with pytest.raises(DatasetError, match=r"ep_1_step_3\.jpeg: episode 1: it is not a JPEG"):
        Dataset(copy)
    with Dataset(copy, on_bad="skip") as dataset:
        assert len(dataset) == 2
    image.unlink()
    assert "there is no such file" in check(copy).problems[0]


def test_several_lance_tables_in_a_folder(tmp_path: Path) -> None:
    pytest.importorskip("lance")
    for name in ("a.lance", "b.lance"):
        shutil.copytree(FOREIGN / "worldmodel.lance", tmp_path / name)
    with pytest.raises(DatasetError, match=r"tables \['a.lance', 'b.lance'\]; give one of them"):
        Dataset(tmp_path)
    shutil.rmtree(tmp_path / "b.lance")
    assert check(tmp_path).episodes == 3


def damaged_lance(folder: Path, at: int, value: bytes) -> Path:
    """Return a copy of the table with other bytes in its data file."""
    pytest.importorskip("lance")
    copy = Path(shutil.copytree(FOREIGN / "worldmodel.lance", folder / "d.lance"))
    file = next(copy.glob("data/*.lance"))
    content = bytearray(file.read_bytes())
    content[at : at + len(value)] = value
    file.write_bytes(content)
    return copy


@pytest.mark.skipif(sys.platform != "linux", reason="no limits of other processes")
def test_where_lance_aborts_only_the_read_fails(tmp_path: Path) -> None:
    """An odd offset of an image makes Lance ask for gigabytes, and abort without them."""
    resource = pytest.importorskip("resource")
    copy = damaged_lance(tmp_path, 15578, bytes([248, 161, 128, 152, 107, 101, 139]))
    lance_process.open_table(copy)
    process = lance_process._child(os.getpid())._process
    assert process is not None
    used = int(Path(f"/proc/{process.pid}/statm").read_text().split()[0])
    used *= resource.getpagesize()
    resource.prlimit(process.pid, resource.RLIMIT_AS, (used + (1 << 30), -1))
    with pytest.raises(OSError, match="Lance ended its process: memory allocation of"):
        lance_process.read_rows(copy, "pixels", 13, 4)
    assert check(FOREIGN / "worldmodel.lance").episodes == 3


def test_a_panic_of_lance_is_an_error_of_dreamgym(tmp_path: Path) -> None:
    copy = damaged_lance(tmp_path, 0, b"")
    for file in copy.glob("_versions/*.manifest"):
        file.write_bytes(
            file.read_bytes().replace(b"fixed_size_list:float:3", b"fixed_size_lisx:float:3")
        )
    with pytest.raises(DatasetError, match="Unsupported logical type"):
        Dataset(copy)
