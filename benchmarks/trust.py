"""How far reports can be trusted: ranking, recalibrated coverage and false alarms on sound fits.

For every task and seed: record, fit, and report with a ranking of policies that are trained in the
dream; coverage is measured on more data of another seed. Further families are fitted once each,
and reported on without a ranking. What is made lies in `--work` and is used again, so that a run
that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from support.mixed_data import record_mixed
from support.reporting import Row, at_least, below, parser, report

import dreamgym
from dreamgym.models import MDNRNNConfig
from dreamgym.trust import RankingConfig
from dreamgym.trust import report as trust_report

ENOUGH = 100
"""Windows of a horizon at which coverage is judged: fewer leave several points to chance."""

TIMES = 4
"""Steps of the data on which coverage is judged, as a multiple of those of the fit: windows of one
episode are alike, so that it is episodes that have to be many."""

QUICK = RankingConfig(seeds=1, steps=16_384, stages=1, episodes=2, temperatures=())


@dataclass(frozen=True, kw_only=True)
class Task:
    """One environment, its data and its fit.

    Attributes:
        steps: real steps to record.
        policy: policy of the recording; "mixed" for a controller with random actions mixed in.
        fit: settings of the fit that differ from the defaults.
        ranking: how policies are made.
        seeds: seeds of the fits.
    """

    steps: int
    policy: str
    fit: Mapping[str, Any] = field(default_factory=dict)
    ranking: RankingConfig = field(default_factory=RankingConfig)
    seeds: tuple[int, ...] = (0, 1, 2)


TASKS = {
    "CartPole-v1": Task(steps=10_000, policy="random"),
    "Pendulum-v1": Task(steps=20_000, policy="sticky:0.8"),
    "LunarLander-v3": Task(
        steps=120_000,
        policy="mixed",
        fit={
            "updates": 6000,
            "learning_rate": 5e-3,
            "horizon": 600,
            # Policies hover where dreams go on outside the data: far above its highest flight.
            "model": MDNRNNConfig(hidden=128, trunk=128, head=128, range_margin=0.05),
            "segment_length": 32,
        },
        ranking=RankingConfig(steps=1_000_000, temperatures=()),
        seeds=(3, 4, 5),  # the settings were chosen on others
    ),
}

OTHER_FAMILIES = ("rssm", "pets", "ensemble")
"""Families that are fitted once to CartPole, for false alarms."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One task, family and seed, and the folder of its results."""

    env_id: str
    family: str
    seed: int
    work: Path
    quick: bool

    @property
    def folder(self) -> Path:
        """Folder of the results."""
        return self.work / f"{self.env_id}-{self.family}-{self.seed}"

    def data(self, seed: int, times: int = 1) -> Path:
        """Return the data of a seed, which families share."""
        task, path = TASKS[self.env_id], self.work / f"{self.env_id}-{seed}-x{times}.h5"
        steps = times * (1500 if self.quick else task.steps)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            if task.policy == "mixed":
                record_mixed(self.env_id, steps, path, seed)
            else:
                dreamgym.record(self.env_id, steps=steps, policy=task.policy, seed=seed, out=path)
        return path

    def figures(self, ranked: bool) -> dict[str, Any]:
        """Return the report on the fit, as JSON, with coverage on other data."""
        kept = self.folder / "report.json"
        if not kept.exists():
            world = self._world()
            task = TASKS[self.env_id]
            ranking = (QUICK if self.quick else task.ranking) if ranked else False
            own = trust_report(
                world, self.data(self.seed), ranking=ranking, work=self.folder / "ranking"
            )
            other = trust_report(world, self.data(self.seed + 100, TIMES))
            own.save(self.folder / "report.html")
            figures = {
                **own.as_dict(),
                "intervals": other.figures.get("intervals"),
                "seconds_unranked": other.seconds,
            }
            kept.write_text(json.dumps(figures, default=float) + "\n", encoding="utf-8")
        loaded: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        return loaded

    def _world(self) -> Any:
        folder = self.folder / "world"
        if not folder.exists():
            settings = dict(TASKS[self.env_id].fit) if self.family == "mdn-rnn" else {}
            config = dreamgym.default_config(self.family, **settings)
            if self.quick:
                config = replace(config, updates=30)
            data = self.data(self.seed)
            return dreamgym.fit(data, folder, family=self.family, seed=self.seed, config=config)
        return dreamgym.load(folder)


def miscoverage(found: dict[str, Any], key: str, horizon: int) -> float:
    """Return the largest difference from nominal coverage up to a horizon, in points."""
    judged = [
        i
        for i, (steps, windows) in enumerate(zip(found["horizons"], found["windows"], strict=True))
        if steps <= horizon and windows >= ENOUGH and i < len(found[key])
    ]
    coverage = np.array([found[key][i] for i in judged])  # (K, levels), or (K, levels, 2 halves)
    nominal = np.array(found["levels"]).reshape(1, -1, *[1] * (coverage.ndim - 2))
    return float(100 * np.abs(coverage - nominal).max())


def rows_of(run: Run, figures: dict[str, Any]) -> list[Row]:
    """Return the rows of one ranked fit."""
    name = f"{run.env_id}, seed {run.seed}"
    ranking, found = figures["figures"]["ranking"], figures["intervals"]
    low, high = ranking.get("spearman_interval") or (float("nan"), float("nan"))
    horizon = figures["figures"]["world"]["horizon"]
    rows = [
        Row(name=f"{name}: Spearman", value=ranking.get("spearman") or 0.0, unit="correlation"),
        Row(name=f"{name}: low end of its 95% interval", value=low, unit="correlation"),
        Row(name=f"{name}: high end of its 95% interval", value=high, unit="correlation"),
        Row(name=f"{name}: policies", value=ranking["count"], unit="policies"),
        Row(
            name=f"{name}: regret@1, share of the range",
            value=ranking["regret_share"],
            unit="share",
        ),
    ]
    if found is not None and not run.quick:
        raw, again, halves = (
            miscoverage(found, key, horizon)
            for key in ("coverage", "recalibrated", "recalibrated_each_way")
        )
        rows.append(Row(name=f"{name}: raw coverage, largest error", value=raw, unit="points"))
        rows.append(below(f"{name}: recalibrated coverage, largest error", again, "points", 7.0))
        # Half of the episodes calibrates the other: a single half also errs by its own sample.
        name = f"{name}: recalibrated coverage of a half alone, largest error"
        rows.append(Row(name=name, value=halves, unit="points"))
    return rows


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--tasks", nargs="+", default=list(TASKS))
    arguments.add_argument("--families", nargs="*", default=list(OTHER_FAMILIES))
    arguments.add_argument("--work", type=Path, help="folder of what is made; default: none kept")
    chosen = arguments.parse_args()
    if chosen.work is not None:
        measure(chosen, chosen.work)
    with tempfile.TemporaryDirectory() as folder:
        measure(chosen, Path(folder))


def measure(chosen: argparse.Namespace, work: Path) -> None:
    """Measure everything, and end with the table."""
    rows, verdicts, seconds = [], {}, []
    tasks = chosen.tasks[:1] if chosen.quick else chosen.tasks
    for env_id in tasks:
        ranks = []
        seeds = TASKS[env_id].seeds
        for seed in seeds[:1] if chosen.quick else seeds:
            run = Run(env_id=env_id, family="mdn-rnn", seed=seed, work=work, quick=chosen.quick)
            figures = run.figures(ranked=True)
            rows += rows_of(run, figures)
            ranks.append(figures["figures"]["ranking"].get("spearman") or 0.0)
            verdicts[f"{env_id}, mdn-rnn, seed {seed}"] = figures["verdict"]
            seconds.append(figures["seconds_unranked"])
            print(env_id, seed, figures["verdict"], ranks[-1], flush=True)
        mean = float(np.mean(ranks))
        what = f"{env_id}, {len(ranks)} fits: mean Spearman"
        rows.append(
            Row(name=what, value=mean, unit="correlation")
            if chosen.quick
            else at_least(what, mean, "correlation", 0.9)
        )
    for env_id in [] if chosen.quick else [each for each in tasks if each == "CartPole-v1"]:
        for family in chosen.families:
            run = Run(env_id=env_id, family=family, seed=0, work=work, quick=False)
            figures = run.figures(ranked=False)
            verdicts[f"{env_id}, {family}, seed 0"] = figures["verdict"]
            seconds.append(figures["seconds_unranked"])
            print(env_id, family, figures["verdict"], flush=True)
    wrong = [name for name, verdict in verdicts.items() if verdict == "do not use"]
    count = f"{len(verdicts)} sound fits: verdicts of 'do not use'"
    rows.append(
        Row(name=count, value=len(wrong), unit="fits")
        if chosen.quick
        else below(count, len(wrong), "fits", 1)
    )
    slowest = f"slowest of {len(seconds)} reports without ranking"
    rows.append(
        Row(name=slowest, value=max(seconds), unit="s")
        if chosen.quick
        else below(slowest, max(seconds), "s", 180)
    )
    report(rows, chosen)


if __name__ == "__main__":
    main()
