"""TD-MPC2 in the online loop: MPPI acts, and nothing but the world is fitted.

Two tasks of the DeepMind Control Suite from state, as the paper measures them (arXiv 2310.16828):
an action is held for two steps, 100,000 real steps, and one update for each decision; and
Pendulum-v1 with the family's small default model, which takes minutes. The result is the last
world's planner, measured in real episodes afterwards; the curve is that of the episodes that it
recorded on the way, exploration included. What is made lies in `--work` and is used again, so that
a run that was stopped goes on; seeds can be run apart. The suite needs `dreamgym[dmc]`.

Batches have half of the published size, and the planner has fewer candidates and iterations, so
that a run of the suite takes hours on one core and not a day.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from support.reporting import Row, at_least, parser, report

import dreamgym
from dreamgym import ImproveConfig
from dreamgym.models import TDMPC2, TDMPC2Config
from dreamgym.online import improve_preset
from dreamgym.train.planners import PLANNER_PRESETS

EPISODES = 10
POINTS = 10
"""Points of the curve: means of as many parts of the recorded episodes."""
QUICK_STEPS = 300


def suite_config() -> ImproveConfig:
    """Return the settings of a task of the suite: the published model, and a smaller search."""
    model = replace(TDMPC2.presets["tdmpc2-1m"], termination=0.0)  # the tasks have no end
    fit = dreamgym.default_config(
        "tdmpc2", "tdmpc2-1m", batch_size=128, held_out=0.02, evaluate_every=10_000, starts=64
    )
    return improve_preset(
        "td-mpc2",
        planner=replace(
            PLANNER_PRESETS["td-mpc2"], candidates=96, iterations=3, elites=24, proposals=12
        ),
        first_steps=5_000,
        round_steps=1_000,
        frame_skip=2,
        actions="repeated",
        max_episode_steps=1_000,
        evaluation_episodes=0,
        train_ratio=fit.batch_size * fit.segment_length,  # one update for each decision
        fit=replace(fit, model=model),
    )


def small_config() -> ImproveConfig:
    """Return the settings of Pendulum-v1: the small default model, and a still smaller search."""
    published = improve_preset("td-mpc2")
    fit = replace(published.fit, batch_size=128, held_out=0.05, evaluate_every=10_000, starts=64)
    return replace(
        published,
        planner=replace(
            PLANNER_PRESETS["td-mpc2"], candidates=64, iterations=3, elites=16, proposals=8
        ),
        first_steps=1_000,
        round_steps=200,
        evaluation_episodes=0,
        train_ratio=fit.batch_size * fit.segment_length,
        fit=fit,
    )


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task, its budget and bar.

    Attributes:
        env: id of the environment.
        bar: mean real return to reach.
        config: settings of the loop.
        real_steps: real steps that the loop takes.
        published: mean return of TD-MPC2 at as many steps, over three seeds of its logs.
        sac: the same of SAC.
    """

    env: str
    bar: float
    config: ImproveConfig
    real_steps: int = 100_000
    published: float | None = None
    sac: float | None = None


TASKS = {
    "Pendulum-v1": Task(env="Pendulum-v1", bar=-200.0, config=small_config(), real_steps=3_000),
    "pendulum-swingup": Task(
        env="shimmy:dm_control/pendulum-swingup-v0",
        bar=650.0,
        config=suite_config(),
        published=724.0,
        sac=96.0,
    ),
    "reacher-easy": Task(
        env="shimmy:dm_control/reacher-easy-v0",
        bar=850.0,
        config=suite_config(),
        published=937.0,
        sac=540.0,
    ),
}


def quick(config: ImproveConfig) -> ImproveConfig:
    """Return settings with which nothing is learned, in seconds."""
    small = TDMPC2Config(latent=16, encoder=16, mlp=16, range_margin=None)
    return replace(
        config,
        planner=replace(config.planner, candidates=16, iterations=2, elites=4, proposals=4),
        first_steps=200,
        round_steps=100,
        max_episode_steps=100,
        fit=replace(config.fit, model=small, batch_size=32),
        train_ratio=24.0,
    )


@dataclass(frozen=True, kw_only=True)
class Run:
    """One task and seed, and the folder of its results."""

    name: str
    seed: int
    work: Path
    quick: bool
    real_steps: int

    @property
    def task(self) -> Task:
        """The task of this run."""
        return TASKS[self.name]

    @property
    def folder(self) -> Path:
        """Folder of this run's results."""
        return self.work / f"{self.name}-{self.seed}"

    @property
    def path(self) -> Path:
        """File of the figures."""
        return self.folder / f"measured-{self.real_steps}.json"

    def figures(self) -> dict[str, Any]:
        """Return the figures of the loop, its curve and the measured return of its last world."""
        path = self.path
        if path.exists():
            return json.loads(path.read_text())
        config = quick(self.task.config) if self.quick else self.task.config
        result = dreamgym.improve(
            self.task.env,
            real_steps=self.real_steps,
            out=self.folder / "loop",
            seed=self.seed,
            config=config,
            progress=self._say,
        )
        world, limit = result.load_world(), config.max_episode_steps
        measured = dreamgym.evaluate(
            result.load_policy(),
            lambda: world.adapted(gym.make(self.task.env)),
            episodes=1 if self.quick else EPISODES,
            max_episode_steps=limit and world.frame_skip.count(limit),
        )
        figures = {
            **measured.as_dict(),
            "recorded": [(each["real_steps"], each["recorded_return"]) for each in result.rounds],
            # after the figures of the evaluation, which have seconds of their own
            "seconds": sum(sum(each["seconds"].values()) for each in result.rounds),
        }
        path.write_text(json.dumps(figures, indent=1))
        return figures

    def _say(self, figures: dict[str, Any]) -> None:
        shown = ("round", "real_steps", "recorded_return", "held_out_loss", "seconds")
        print(self.name, self.seed, {name: figures[name] for name in shown}, flush=True)


def rows_of(name: str, runs: list[Run]) -> list[Row]:
    """Return the figures of all seeds of a task."""
    task, rows, returns = TASKS[name], [], []
    for run in runs:
        found = run.figures()
        returns.append(found["return_mean"])
        low, high = found["return_interval"]
        title = f"{name}, seed {run.seed}, {run.real_steps:,} real steps"
        rows += [
            Row(name=f"{title}: real return", value=returns[-1], unit="return"),
            Row(name=f"{title}: low end of its 95% interval", value=low, unit="return"),
            Row(name=f"{title}: high end of its 95% interval", value=high, unit="return"),
            Row(name=f"{title}: seconds", value=found["seconds"], unit="s"),
        ]
        recorded = [point for point in found["recorded"] if point[1] is not None]
        for part in np.array_split(recorded, min(POINTS, len(recorded))):
            where = f"{title}: recorded return up to {part[-1, 0]:.0f} steps"
            rows.append(Row(name=where, value=float(part[:, 1].mean()), unit="return"))
    title = f"{name}, {len(runs)} seeds, {runs[0].real_steps:,} real steps: mean real return"
    rows.append(at_least(title, float(np.mean(returns)), "return", task.bar))
    for who, value in (("TD-MPC2", task.published), ("SAC", task.sac)):
        if value is not None:
            title = f"{name}: published return of {who} at {task.real_steps:,} real steps"
            rows.append(Row(name=title, value=value, unit="return"))
    return rows


def arguments() -> argparse.Namespace:
    parsed = parser(__doc__.splitlines()[0])
    parsed.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parsed.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parsed.add_argument(
        "--real-steps", type=int, help="default: the task's; with more, a run goes on"
    )
    parsed.add_argument("--work", type=Path, help="folder to keep everything in")
    parsed.add_argument("--done-only", action="store_true", help="leave out what is not measured")
    return parsed.parse_args()


def main() -> None:
    chosen = arguments()
    os.environ.setdefault("MUJOCO_GL", "disabled")  # nothing is rendered
    # Products in bfloat16, where a processor has tiles for them (AMX); elsewhere nothing changes.
    torch.set_float32_matmul_precision("medium")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = chosen.work or Path(temporary)
        for name in chosen.tasks[:1] if chosen.quick else chosen.tasks:
            seeds = chosen.seeds[:1] if chosen.quick else chosen.seeds
            steps = TASKS[name].real_steps if chosen.real_steps is None else chosen.real_steps
            steps = QUICK_STEPS if chosen.quick else steps
            runs = [
                Run(name=name, seed=seed, work=work, quick=chosen.quick, real_steps=steps)
                for seed in seeds
            ]
            if chosen.done_only:
                runs = [run for run in runs if run.path.exists()]
            rows += rows_of(name, runs) if runs else []
    report(rows, chosen)


if __name__ == "__main__":
    gym.logger.min_level = gym.logger.ERROR
    main()
