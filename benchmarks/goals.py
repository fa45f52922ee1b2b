"""Planning towards goals: by a learned value, and by the distance of embeddings.

Two rooms with a door between them (`examples/stories/two_room.py`): in one fitted world after
another, the same planner goes from the same starts in one room to the same goals in the other, once
by the goal value of arXiv 2601.00844 and once by the distance of embeddings. `--work` keeps the
worlds.
"""

from __future__ import annotations

import argparse
import runpy
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from support.reporting import Row, at_least, parser, report

import dreamgym
from dreamgym.transfer.intervals import mean_interval

STORY = Path(__file__).resolve().parents[1] / "examples" / "stories" / "two_room.py"


def measure(seeds: list[int], pairs: int, steps: int, updates: int, work: Path) -> list[Row]:
    """Return the shares of goals that are reached, and the difference over paired starts."""
    story = runpy.run_path(str(STORY))
    work.mkdir(parents=True, exist_ok=True)
    reached: dict[str, list[np.ndarray]] = {"embeddings": [], "goal value": []}
    rows = []
    for seed in seeds:
        folder = work / f"world-{seed}"
        made = folder.is_dir()
        world = dreamgym.load(folder) if made else story["make_world"](work, seed, steps, updates)
        starts, goals = story["draw_pairs"](pairs, seed)
        for name, found in reached.items():
            places = story["walk"](world, starts, goals, learned=name == "goal value")
            nearest = np.linalg.norm(places - goals, axis=-1).min(0)
            found.append(nearest < story["REACHED"])
            label = f"Two-Room, seed {seed}, by {name}: goals reached"
            rows.append(Row(name=label, value=float(found[-1].mean()), unit="share"))
            print(label, found[-1].mean(), file=sys.stderr, flush=True)
    both = {name: np.concatenate(found).astype(float) for name, found in reached.items()}
    difference = both["goal value"] - both["embeddings"]
    low, high = mean_interval(difference)
    what = f"Two-Room, {len(seeds)} fits x {pairs} pairs, goal value minus embeddings"
    return [
        *rows,
        Row(name=f"{what}: goals reached", value=float(difference.mean()), unit="share"),
        at_least(f"{what}: low end of its 95% interval", low, "share", 0.0),
        Row(name=f"{what}: high end of its 95% interval", value=high, unit="share"),
    ]


def main(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        if arguments.quick:
            rows = measure([0], 2, 500, 30, work)
        else:
            rows = measure(list(range(arguments.seeds)), 40, 40_000, 1500, work)
    report(rows, arguments)


if __name__ == "__main__":
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--work", type=Path, help="folder of the worlds; default: none kept")
    main(options.parse_args())
