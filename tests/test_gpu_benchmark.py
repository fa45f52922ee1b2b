"""`benchmarks/gpu.py` on a CPU: what it finds is kept, whatever becomes of the stages after."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_stage_that_is_cut_off_takes_nothing_with_it(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    asked = ["--device", "cpu", "--json", file]
    done = run(*asked, "--only", "rollout", "--only", "machine", "--limit", 1)
    assert done.returncode == 1
    rows = json.loads(file.read_text())["rows"]
    assert any("cut off after 1 s" in str(row["value"]) for row in rows)
    assert {row["stage"] for row in rows} == {"rollout", "machine"}


def test_every_row_says_what_it_measured(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    stages = [part for name in ("machine", "rollout", "ppo") for part in ("--only", name)]
    done = run("--device", "cpu", "--json", file, *stages)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(file.read_text())["rows"]
    for name in ("rollout", "PPO in Pendulum"):
        (rate,) = [row for row in rows if row["name"].startswith(name)]
        assert rate["value"] > 0
        assert rate["unit"] == "env-steps/s"


def test_it_says_what_it_needs_besides_torch() -> None:
    listed = run("--needs").stdout.split()
    assert any(line.startswith("gymnasium") for line in listed)
    assert not any(line.startswith("torch") for line in listed)
