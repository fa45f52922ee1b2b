"""`benchmarks/planned_online.py`: every stage from end to end, and what is there is used again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_loop_is_measured_once(tmp_path):
    file, work = tmp_path / "rows.json", tmp_path / "work"
    command = [sys.executable, str(ROOT / "benchmarks" / "planned_online.py"), "--quick"]
    command += ["--work", str(work), "--json", str(file), "--seeds", "4"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}

    def rows() -> dict[str, float]:
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode in (0, 1), done.stderr  # 1 if the bar is missed
        return {row["name"]: row["value"] for row in json.loads(file.read_text())["rows"]}

    found = rows()
    assert "Pendulum-v1, seed 4, 300 real steps: recorded return up to 300 steps" in found
    kept = work / "Pendulum-v1-4" / "measured-300.json"
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "return_mean": 99.5}))
    assert rows()["Pendulum-v1, seed 4, 300 real steps: real return"] == 99.5
