"""Learning of vectors by each family: open-loop errors, and policies trained in dreams only.

For every task, family and seed: record mixed data, fit, compare open-loop forecasts of held-out
episodes with repeating the last observation at each of 50 horizons, train PPO in the dream, and
measure it over 100 real episodes. What is made lies in `--work` and is used again, so that a run
that was stopped goes on; `--picture` draws the forecasts.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from support.mixed_data import Disturbed, record_mixed
from support.pictures import draw_forecasts
from support.reporting import Row, at_least, below, parser, report

import dreamgym
from dreamgym.data import Dataset
from dreamgym.metrics import OpenLoopErrors, open_loop_errors
from dreamgym.models import JEPAConfig, MDNRNNConfig
from dreamgym.models.jepa import JEPAObjective
from dreamgym.train import TrainConfig

FAMILIES = ("mdn-rnn", "rssm", "jepa", "pets")
HORIZONS = range(1, 51)
SAMPLES = 64
"""Dreams of the same actions, whose mean is the forecast."""
QUICK_FIT, QUICK_TRAINING = {"updates": 40, "evaluate_every": 40}, 4096


@dataclass(frozen=True, kw_only=True)
class Task:
    """One environment, the amount of data, and the return that a policy should reach.

    Attributes:
        bar: real return that a dream-trained policy should reach.
        steps: number of real steps to record.
        fit: settings of all fits that differ from the defaults.
        families: further settings by family, including those of the model.
        trained: families in whose dreams PPO is trained; for the others only errors are measured.
        training: settings of PPO that differ from the defaults.
        training_steps: PPO's steps in the dream.
        again: real steps that the first policy records, also with disturbed actions; the world is
            then fitted to all data, and a second policy trained. 0 for one round.
    """

    bar: float
    steps: int
    fit: Mapping[str, Any] = field(default_factory=dict)
    families: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    trained: tuple[str, ...] = FAMILIES
    training: Mapping[str, Any] = field(default_factory=dict)
    training_steps: int = 400_000
    again: int = 0


TASKS = {
    "CartPole-v1": Task(bar=475.0, steps=20_000),
    "Pendulum-v1": Task(bar=-200.0, steps=20_000, training={"gamma": 0.95}),
    "LunarLander-v3": Task(
        bar=100.0,
        steps=100_000,
        fit={"updates": 4000, "horizon": 600},
        # A lander counts as landed after half a second of rest: 25 steps, to be remembered.
        families={
            "mdn-rnn": {
                "model": MDNRNNConfig(hidden=128, trunk=128, head=128),
                "segment_length": 64,
                "batch_size": 32,
            },
            # Contact forces are not predictable, so embeddings contain them only with these losses.
            "jepa": {
                "model": JEPAConfig(objective=JEPAObjective(sigreg=0.1, inverse=1.0, rollout=12))
            },
        },
        trained=("mdn-rnn",),
        training_steps=1_500_000,
        # Its first policy hovers over the pad, where no controller that was recorded ever stayed.
        again=30_000,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One task, family and seed, and the folder of its results."""

    env_id: str
    family: str
    seed: int
    work: Path
    quick: bool

    @property
    def task(self) -> Task:
        """The task of this run."""
        return TASKS[self.env_id]

    @property
    def folder(self) -> Path:
        """Folder of this family's results."""
        return self.work / f"{self.env_id}-{self.seed}" / self.family

    @property
    def rounds(self) -> int:
        """Number of rounds of recording, fitting and training."""
        return 2 if self.task.again and self.family in self.task.trained else 1

    def data(self, number: int) -> Path:
        """Return the dataset of a round: a file that all families share, or a folder of two."""
        first = self.folder.parent / "data.h5"
        if not first.exists():
            first.parent.mkdir(parents=True, exist_ok=True)
            record_mixed(self.env_id, 2000 if self.quick else self.task.steps, first, self.seed)
        if number == 1:
            return first
        both = self.folder / "data"
        if not both.exists():
            policy = self.policy(1)
            making = self.folder / "data.partial"
            making.mkdir(parents=True)
            shutil.copy(first, making / "1.h5")
            with gym.make(self.env_id) as env:

                def dreamt(env: gym.Env[Any, Any], seen: NDArray[Any]) -> Any:
                    return np.asarray(policy.predict(seen)[0], env.action_space.dtype)[()]

                dreamgym.record(
                    env,
                    steps=self.task.again,
                    out=making / "2.h5",
                    policy=Disturbed(dreamt, env),
                    seed=self.seed + 1000,
                )
            making.rename(both)
        return both

    def world(self, number: int) -> dreamgym.World:
        """Return the world of a round, loaded from the folder if it is there."""
        out = self.folder / f"world-{number}"
        if out.exists():
            return dreamgym.load(out)
        own = self.task.families.get(self.family, {})
        settings = {**self.task.fit, **own, **(QUICK_FIT if self.quick else {})}
        config = dreamgym.default_config(self.family, **settings)
        data = self.data(number)
        return dreamgym.fit(data, out, family=self.family, seed=self.seed, config=config)

    def policy(self, number: int) -> dreamgym.train.TrainedPolicy:
        """Return the policy that PPO learns in the dreams of a round's world."""
        path = self.folder / f"policy-{number}.zip"
        if not path.exists():
            policy = dreamgym.train_policy(
                self.world(number),
                seed=self.seed,
                steps=QUICK_TRAINING if self.quick else self.task.training_steps,
                config=TrainConfig(**self.task.training),
            )
            policy.save(path)
        return dreamgym.train.load_policy(path)

    def forecasts(self) -> OpenLoopErrors:
        """Return the errors on the held-out episodes of the last fit."""
        world = self.world(self.rounds)
        with Dataset(self.data(self.rounds)) as data:
            fitted = world.provenance["fit"]
            _, held_out = data.split(fitted["held_out"], fitted["seed"])
            return open_loop_errors(world.model, data, held_out, horizons=HORIZONS, samples=SAMPLES)

    def transferred(self, number: int) -> dict[str, Any]:
        """Return the real return of a round's policy."""
        result = self.folder / f"transfer-{number}.json"
        if not result.exists():
            policy, world = self.policy(number), self.world(number)
            moved = dreamgym.transfer_policy(
                policy, world, episodes=10 if self.quick else 100, baselines=False
            )
            result.write_text(json.dumps(moved.as_dict()))
        return json.loads(result.read_text())


def rows_of(run: Run) -> tuple[list[Row], OpenLoopErrors]:
    """Return the figures of one run, and its errors for the plot."""
    began = time.perf_counter()
    world, errors = run.world(run.rounds), run.forecasts()
    name = f"{run.env_id}, {run.family}, seed {run.seed}"
    against_last = errors.mean / errors.repeat_last
    worst = int(np.argmax(against_last))
    rows = [
        below(
            f"{name}: error against repeat-last, worst of 50 horizons ({errors.horizons[worst]})",
            float(against_last[worst]),
            "ratio",
            1.0,
        ),
        Row(name=f"{name}: fit", value=world.provenance["seconds"], unit="s"),
    ]
    for k in (1, 5, 15, 50):
        at = list(errors.horizons).index(k)
        for what, value in (
            ("forecast", errors.mean),
            ("one dream", errors.sampled),
            ("repeat-last", errors.repeat_last),
        ):
            rows.append(Row(name=f"{name}: {what} at {k}", value=float(value[at]), unit="spreads"))
    if run.family in run.task.trained:
        if run.rounds > 1:
            first = run.transferred(1)["real_return_mean"]
            rows.append(Row(name=f"{name}: real return, first round", value=first, unit="return"))
        rows += rows_of_policy(name, run.transferred(run.rounds), run.task.bar)
    print(f"{name}: {time.perf_counter() - began:.0f} s")
    return rows, errors


def rows_of_policy(name: str, moved: dict[str, Any], bar: float) -> list[Row]:
    """Return the figures of a policy that was trained in dreams."""
    low, high = moved["real_return_interval"]
    dreamt = moved["dream_return_mean"]
    return [
        at_least(f"{name}: real return", moved["real_return_mean"], "return", bar),
        Row(name=f"{name}: low end of its 95% interval", value=low, unit="return"),
        Row(name=f"{name}: high end of its 95% interval", value=high, unit="return"),
        Row(name=f"{name}: dream return of the same policy", value=dreamt, unit="return"),
    ]


def arguments() -> argparse.Namespace:
    parsed = parser(__doc__.splitlines()[0])
    parsed.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parsed.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    parsed.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parsed.add_argument("--work", type=Path, help="folder to keep everything in")
    parsed.add_argument("--picture", type=Path, metavar="FILE", help="draw the forecasts as PNG")
    return parsed.parse_args()


def main() -> None:
    chosen = arguments()
    rows: list[Row] = []
    drawn: dict[str, dict[str, list[OpenLoopErrors]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = chosen.work or Path(temporary)
        for env_id in chosen.tasks[:1] if chosen.quick else chosen.tasks:
            for seed in chosen.seeds[:1] if chosen.quick else chosen.seeds:
                for family in chosen.families:
                    run = Run(
                        env_id=env_id, family=family, seed=seed, work=work, quick=chosen.quick
                    )
                    found, errors = rows_of(run)
                    rows += found
                    drawn.setdefault(env_id, {}).setdefault(family, []).append(errors)
    if chosen.picture is not None:
        draw_forecasts(drawn, chosen.picture)
    report(rows, chosen)


if __name__ == "__main__":
    gym.logger.min_level = gym.logger.ERROR
    main()
