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


def test_seeds_of_older_results_do_not_stay_beside_newer_ones(tmp_path: Path) -> None:
    write = """
import json, sys
from pathlib import Path
import learners
learners.RESULTS = Path(sys.argv[1])
learners.DOCS = learners.RESULTS / "train.md"
learners.write_docs()
"""
    run, cost = "Pendulum-v1, defaults of TRPO (sb3-contrib)", {"value": 7, "unit": "s"}
    seconds = [{"name": f"{run}: {what}", **cost} for what in ("dream steps", "CPU seconds")]
    for place, day, seeds, rest in (("x", 2, (0, 1), []), ("y", 1, (0, 1, 2), seconds)):
        rows = [{"name": f"{run}: real return, seed {k}", "value": 100 * day + k} for k in seeds]
        (tmp_path / place).mkdir()
        result = {"date": f"2026-01-0{day}", "versions": {}, "rows": [*rows, *rest]}
        (tmp_path / place / "learners.json").write_text(json.dumps(result))
    parts = ("learners", "defaults")
    page = "".join(f"<!-- {name}:begin -->old<!-- {name}:end -->" for name in parts)
    (tmp_path / "train.md").write_text(page)
    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    command = [sys.executable, "-c", write, str(tmp_path)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path})
    text = (tmp_path / "train.md").read_text()
    assert "| TRPO | `sb3-contrib` |  | 200, 201 |  |  |  |  |  | 7 | 7 |" in text
