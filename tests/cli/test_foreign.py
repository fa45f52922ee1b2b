"""From somebody's log to a trained policy, on the command line."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from dreamgym.cli import main
from dreamgym.data import Dataset, check
from tests.data.test_logs import (
    COLUMNS,
    IMAGES,
    encode,
    log_columns,
    write_aloha,
    write_csv,
    write_dreamer,
    write_parquet,
    write_zarr,
)

FOREIGN = Path(__file__).parents[1] / "data" / "foreign"
pytestmark = pytest.mark.xdist_group("cli")


def run(*lines: str) -> None:
    for line in lines:
        with pytest.raises(SystemExit) as leave:
            main(shlex.split(line))
        assert not leave.value.code, line


@pytest.mark.parametrize(
    ("source", "key"),
    [("lerobot_image_v3", "state"), ("lerobot_video_v21", "top")],
    ids=["vectors", "videos"],
)
def test_lerobot_to_a_policy(
    source: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("pyarrow", "av", "stable_baselines3"):
        pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    read = f"{FOREIGN / source} --key {key} --repeat-last"
    small = "--updates 2 --segment-length 4 --batch-size 4 --starts 4"
    run(
        f"check {read}",
        f"convert {FOREIGN / source} push.h5 --key {key} --repeat-last --image-size 16x24",
        f"fit push.h5 --family mdn-rnn {small}",
        "train worlds/push --algo PPO --steps 64 --num-envs 2 --out push.zip",
    )
    assert (tmp_path / "push.zip").exists()
    with Dataset(tmp_path / "push.h5") as dataset:
        assert dataset.observation_space.shape == {"state": (3,), "top": (16, 24, 3)}[key]


def make(name: str, folder: Path) -> Path:
    """Make a dataset of a format, or return the one that its library made."""
    if name == "aloha":
        return write_aloha(folder / "aloha", "padded")
    if name == "zarr":
        return write_zarr(folder / "d.zarr", 2)
    if name == "dreamer":
        return write_dreamer(folder / "dreamer", 2)
    if name == "log":
        data = [{"bytes": encode(image), "path": None} for image in IMAGES]
        return write_parquet(folder / "log.parquet", log_columns(camera=data))
    if name == "bags":
        from tests.data.test_ros import write_mcap

        (folder / "bags").mkdir()
        for number in range(2):
            write_mcap(folder / "bags" / f"{number}.mcap", number)
        return folder / "bags"
    return FOREIGN / name


LOG = "--columns 'observation={} action=left,right reward=score terminated=fell' --repeat-last"
BAG = "--terminals boundary --columns 'observation={} action=/command.linear.x reward=/score.data'"
CASES = {
    "worldmodel.lance": ("--key observation", "--key pixels"),
    "worldmodel_folder": ("--key observation", "--key pixels"),
    "worldmodel_video": ("--key observation", "--key pixels"),
    "stable_worldmodel.h5": ("--key proprio", "--key pixels"),
    "aloha": ("--key qpos --repeat-last", "--key top --repeat-last"),
    "zarr": ("--key state --repeat-last", "--key img --repeat-last"),
    "log": (LOG.format("x,y,angle"), LOG.format("camera")),
    "bags": (BAG.format("/joints.position"), BAG.format("/camera")),
    "dreamer": (None, ""),
    "minari_vectors": ("", None),
    "minari_jpeg": (None, "--key image"),
    "d3rlpy.h5": ("--num-actions 3 --repeat-last", None),
    "rlds": ("--key state", "--key image"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vectors", "images"])
@pytest.mark.parametrize("name", CASES)
def test_every_format_to_a_policy(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = CASES[name][kind == "images"]
    if options is None:
        pytest.skip("the sample has none")
    if name == "rlds":
        pytest.importorskip("tensorflow_datasets")
    monkeypatch.chdir(tmp_path)
    source = make(name, tmp_path)
    small = "--updates 2 --segment-length 3 --batch-size 4 --starts 4"
    run(
        f"check {source} {options}",
        f"convert {source} d.h5 {options}",
        f"fit d.h5 --family mdn-rnn {small}",
        "train worlds/d --algo PPO --steps 64 --num-envs 2 --out d.zip",
    )
    assert (tmp_path / "d.zip").exists()


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
