"""`benchmarks/learners.py`: what it measured is kept, and used by the next run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_figure_that_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    file, work = tmp_path / "rows.json", tmp_path / "work"
    command = [sys.executable, str(ROOT / "benchmarks" / "learners.py"), "--parts", "truncation"]
    command += ["--learners", "ppo", "--work", str(work), "--json", str(file)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = []
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        (row,) = json.loads(file.read_text())["rows"]
        found.append(row["value"])
        (kept,) = work.iterdir()
        kept.write_text(json.dumps({"value": 9.5}))  # as if another run had found it
    assert row["name"] == "ppo: value at a truncation"
    assert abs(found[0] - 10) < 0.8
    assert found[1] == 9.5
