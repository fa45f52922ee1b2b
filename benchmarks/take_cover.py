"""Survival in VizDoom's Take Cover of policies that were trained only in dreams of pixels.

It runs the rounds of `examples/stories/take_cover.py`, and then trains one policy for each
temperature and seed in dreams of the last world, each measured in 100 real games. `--out FOLDER`
keeps what that makes, so that a run that was stopped goes on. `--controller WORLD` measures
something else: a linear controller that CMA-ES evolved in the dream of that world, as the paper's,
beside PPO in the same dream.
"""

from __future__ import annotations

import argparse
import runpy
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from support.reporting import Row, at_least, parser, report

import dreamgym
from dreamgym.cli.output import progress_bar
from dreamgym.train import TrainConfig, load_policy

STORY = Path(__file__).parents[1] / "examples" / "stories" / "take_cover.py"
TICS = 1300.0
"""The bar: mean survival at the temperature of the rounds, set before policies were measured."""
CONTROLLER = {
    "PPO": ("ppo.zip", 3_000_000),
    "CMA-ES": ("controller.cma", 150 * 64 * 16 * 200),  # 150 generations, 64 x 16 rollouts
}
"""File and dream steps of the policies that `--controller` compares."""


def by_temperature(given: argparse.Namespace, out: Path) -> list[Row]:
    """Return the tics that policies survive, by the temperature of the dreams they learned in."""
    story, quick = runpy.run_path(str(STORY)), given.quick
    world = story["improve"](out / "rounds", quick=quick)
    random = dreamgym.evaluate("random", story["TASK"], episodes=2 if quick else 100)
    rows = [_tics(_label("random", random.interval), random.mean)]
    temperatures = given.temperatures or story["TEMPERATURES"]
    for temperature in temperatures[: 1 if quick else None]:
        every = []
        for seed in given.seeds[: 1 if quick else None]:
            name = f"temperature {temperature:g}, seed {seed}"
            suffix = f"-{seed}" if seed else ""  # the story's own policies have seed 0
            path = out / f"policy-{temperature:g}{suffix}.zip"
            found = story["measure"](world, path, temperature, seed=seed, quick=quick)
            rows.append(_tics(_label(name, found.real.interval), found.real.mean))
            rows.append(_tics(f"{name}, in the dream", found.dream.mean))
            every.append(found.real.mean)
        if len(every) > 1:
            what = f"temperature {temperature:g}, mean of {len(every)} seeds"
            bar = TICS if temperature == story["OWN"] else None
            rows.append(at_least(what, float(np.mean(every)), "tics", bar))
    return rows


def with_controller(given: argparse.Namespace, out: Path) -> list[Row]:
    """Return the survival of PPO and of an evolved controller, trained in dreams of one world."""
    story, world, rows = runpy.run_path(str(STORY)), dreamgym.load(given.controller), []
    for algo, (file, full) in CONTROLLER.items():
        config = story["TRAIN"] if algo == "PPO" else TrainConfig(view="latent")
        path, episodes = out / file, 2 if given.quick else 100
        if not path.exists():
            with progress_bar(algo) as bar:
                dreamgym.train_policy(
                    world,
                    algo=algo,
                    steps=20_000 if given.quick else full,
                    out=path,
                    config=replace(config, temperature=story["OWN"]),
                    progress=bar,
                    resume=True,
                )
        policy = load_policy(path, world=world)
        found = dreamgym.transfer_policy(policy, world, episodes=episodes, baselines=False)
        rows.append(_tics(_label(f"{algo} in one dream", found.real.interval), found.real.mean))
        rows.append(_tics(f"{algo} in one dream, in the dream", found.dream.mean))
    return rows


def _label(name: str, interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{name}, 95% interval {low:.0f} to {high:.0f}"


def _tics(name: str, value: float) -> Row:
    return Row(name=name, value=value, unit="tics")


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--out", type=Path, help="folder to keep everything in")
    options.add_argument("--temperatures", type=float, nargs="+", help="default: the story's")
    options.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    options.add_argument("--controller", type=Path, metavar="WORLD", help="compare in this world")
    given = options.parse_args()
    measure = by_temperature if given.controller is None else with_controller
    with tempfile.TemporaryDirectory() as temporary:
        report(measure(given, given.out or Path(temporary)), given)


if __name__ == "__main__":
    main()
