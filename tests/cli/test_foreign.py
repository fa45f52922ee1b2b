"""From somebody's log to a trained policy, on the command line."""

from __future__ import annotations

import functools
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dreamgym.cli import main
from dreamgym.data import Dataset, check
from dreamgym.models.observations import is_image
from tests.data.test_formats import d4rl, npz_episode
from tests.data.test_logs import (
    ACT,
    COLUMNS,
    ENDS,
    IMAGES,
    OBS,
    REW,
    T,
    encode,
    log_columns,
    write_aloha,
    write_csv,
    write_dreamer,
    write_parquet,
    write_zarr,
)

FOREIGN = Path(__file__).parents[1] / "data" / "foreign"
DOCS = Path(__file__).parents[2] / "docs" / "data.md"
LIBRARIES = {
    "LeRobot": ("pyarrow", "av"),
    "stable-worldmodel": ("lance", "av"),
    "RLDS": ("tensorflow_datasets",),
    "CSV and Parquet logs": ("pyarrow",),
}
"""What a card needs beside what every test has."""
QUICK = {("LeRobot", 0, 0), ("LeRobot", 3, 1)}
"""Card, form and line of the tests that are not slow."""
pytestmark = pytest.mark.xdist_group("cli")


def run(*lines: str) -> None:
    for line in lines:
        with pytest.raises(SystemExit) as leave:
            main(shlex.split(line))
        assert not leave.value.code, line


def documented() -> dict[str, list[str]]:
    """Return the lines of each card of docs/data.md that go from a file to a policy."""
    cards = DOCS.read_text(encoding="utf-8").split("\n## Foreign formats\n")[1].split("\n## ")[0]
    found = {}
    for card in cards.split("\n### ")[1:]:
        heading, text = card.split("\n", 1)
        lines = re.findall(r"^\$ (.*)$", text.replace("\\\n", " "), re.MULTILINE)
        found[heading] = [re.sub(r" +&& +", " && ", line) for line in lines]
    del found["A format that is not read"]
    return found


def copied(*names: str) -> Callable[[Path], None]:
    """Return a function that puts samples where the documented lines expect them."""

    def make(folder: Path) -> None:
        for name in names:
            source, _, place = name.partition(":")
            if (FOREIGN / source).is_dir():
                shutil.copytree(FOREIGN / source, folder / place)
            else:
                shutil.copy(FOREIGN / source, folder / place)

    return make


def make_logs(folder: Path) -> None:
    names = [f"frames/{row}.png" for row in range(len(IMAGES))]
    (folder / "frames").mkdir()
    for name, image in zip(names, IMAGES, strict=True):
        (folder / name).write_bytes(encode(image))
    write_csv(folder / "log.csv", log_columns(camera=names))


def make_parquet(folder: Path) -> None:
    images = [{"bytes": encode(image), "path": None} for image in IMAGES]
    write_parquet(folder / "log.csv", log_columns(camera=images))


def make_recordings(folder: Path, kind: str = "mcap") -> None:
    from tests.data.test_ros import write_bag, write_mcap

    (folder / "runs").mkdir()
    for number in range(2):
        path = folder / "runs" / f"{number}"
        if kind == "mcap":
            write_mcap(path.with_suffix(".mcap"), number)
        else:
            write_bag(path.with_suffix(".bag") if kind == "bag 1" else path, number, kind)


def make_flat(folder: Path) -> None:
    """D4RL's layout, and OGBench's with images."""
    d4rl(folder / "hopper-medium.hdf5", timeouts=np.arange(40) % 10 == 9)
    rows = slice(0, 4 * T)
    columns = {"observations": IMAGES[rows], "actions": ACT[rows], "terminals": ENDS[rows]}
    np.savez(folder / "visual-cube-play.npz", **columns)


def make_robomimic(folder: Path) -> None:
    with h5py.File(folder / "lift.hdf5", "w") as file:
        for k in range(4):
            part = slice(k * T, (k + 1) * T)
            demo = file.create_group(f"data/demo_{k}")
            demo["actions"], demo["rewards"], demo["dones"] = ACT[part], REW[part], ENDS[part]
            demo["obs/robot0_eef_pos"] = OBS[part]
            demo["obs/agentview_image"] = IMAGES[part]


def make_npz(folder: Path) -> None:
    (folder / "episodes").mkdir()
    (folder / "rollouts").mkdir()
    for k in range(4):
        part = slice(k * T, (k + 1) * T)
        npz_episode(folder / "episodes" / f"{k}.npz", T + 1, T, terminated=True, truncated=False)
        actions = ACT[part].astype(np.float16)
        np.savez(folder / "rollouts" / f"{k}.npz", obs=IMAGES[part], action=actions)


def make_dreamer(folder: Path, version: int) -> None:
    (folder / "logdir").mkdir()
    write_dreamer(folder / "logdir" / "replay", version, vector=OBS)


SAMPLES: dict[str, list[Callable[[Path], Any]]] = {
    "LeRobot": [
        copied(f"lerobot_{kind}:pusht")
        for kind in ("image_v3", "video_v3", "image_v21", "video_v21")
    ],
    "stable-worldmodel": [
        copied(f"{name}:pusht.lance")
        for name in ("worldmodel.lance", "worldmodel_folder", "worldmodel_video")
    ],
    "ALOHA and ACT": [lambda folder: write_aloha(folder / "episodes", "padded")],
    "RLDS": [copied("rlds:bridge/1.0.0")],
    "Zarr replay buffers": [lambda folder: write_zarr(folder / "pusht.zarr", 2)],
    "MCAP and ROS bags": [
        functools.partial(make_recordings, kind=kind) for kind in ("mcap", "bag 1", "bag 2")
    ],
    "CSV and Parquet logs": [make_logs, make_parquet],
    "Minari": [copied("minari_vectors:cartpole/random-v0", "minari_jpeg:cartpole/pixels-v0")],
    "D4RL and OGBench": [make_flat],
    "robomimic": [make_robomimic],
    "npz episodes": [make_npz],
    "Dreamer": [functools.partial(make_dreamer, version=version) for version in (2, 3)],
    "Replay buffers": [copied("d3rlpy.h5:buffer.h5", "d3rlpy_images.h5:frames.h5")],
}
"""Functions that make the files of each card, in all forms of the format."""


def test_every_card_goes_from_vectors_and_from_images_to_a_policy() -> None:
    lines = documented()
    assert lines.keys() == SAMPLES.keys()
    for heading, typed in lines.items():
        assert len(typed) == 2, heading
        for line in typed:
            verbs = [each.split()[:2] for each in line.split(" && ")]
            assert verbs == [["dreamgym", v] for v in ("check", "convert", "fit", "train")]


@pytest.mark.parametrize(
    ("heading", "form", "line"),
    [
        pytest.param(
            heading,
            form,
            line,
            id=f"{heading}-{form}-{'images' if line else 'vectors'}",
            marks=() if (heading, form, line) in QUICK else pytest.mark.slow,
        )
        for heading, forms in SAMPLES.items()
        for form in range(len(forms))
        for line in range(2)
    ],
)
def test_the_documented_lines_lead_to_a_policy(
    heading: str, form: int, line: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they are typed, but with a fit and a training of a second."""
    for module in LIBRARIES.get(heading, ()):
        pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    SAMPLES[heading][form](tmp_path)
    typed = [each.removeprefix("dreamgym ") for each in documented()[heading][line].split(" && ")]
    check_line, convert_line, fit_line, train_line = typed
    run(
        check_line,
        convert_line,
        f"{fit_line} --updates 2 --segment-length 3 --batch-size 4 --starts 4",
        f"{train_line} --steps 64 --num-envs 2",
    )
    world, dataset = Path(train_line.split()[1]), shlex.split(convert_line)[2]
    assert Path(f"{world.name}-PPO.zip").exists()
    with Dataset(dataset) as converted:
        (box,) = converted.metadata.observation_columns().values()
    assert is_image(box) == bool(line)


def test_columns_and_tasks_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "log.csv", log_columns())
    roles = " ".join(
        f"{role}={','.join(names) if isinstance(names, tuple) else names}"
        for role, names in COLUMNS.items()
    )
    run(f"convert log.csv log.h5 --columns {roles!r} --repeat-last")
    assert check(tmp_path / "log.h5").ended["terminated"] == 4
    run(f"check {FOREIGN / 'lerobot_image_v3'} --task push --allow-loss --key state")
    assert "2 (0 terminated" in capsys.readouterr().out
    run(f"check {FOREIGN / 'd3rlpy.h5'} --num-actions 3 --repeat-last")
    with pytest.raises(SystemExit) as leave:
        main(["check", "log.csv", "--columns", "reward"])
    assert leave.value.code == 1
    assert "expected ROLE=NAME" in capsys.readouterr().err
