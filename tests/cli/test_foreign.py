"""From somebody's log to a trained policy, on the command line."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from dreamgym.cli import main
from dreamgym.data import Dataset, check
from tests.data.test_logs import COLUMNS, log_columns, write_csv

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
