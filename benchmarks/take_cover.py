"""Survival in VizDoom's Take Cover of policies that were trained only in dreams of pixels.

It runs `examples/take_cover.py` and reads its figures; `--out FOLDER` keeps what that makes, so
that a run that was stopped goes on, and one that was finished is measured again.
`--controller WORLD` measures something else: a linear controller that CMA-ES evolved in the dream
of that world, as the paper's, beside PPO in the same dream.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from support.reporting import Row, at_least, below, parser, report

SCRIPT = Path(__file__).parents[1] / "examples" / "take_cover.py"
TEMPERATURE = 1.15
LEARNERS = {
    "PPO": (
        "ppo.zip",
        3_000_000,
        {"num_envs": 256, "gamma": 0.99, "learning_rate": 3e-4, "learner": {"ent_coef": 0.005}},
    ),
    "CMA-ES": ("controller.cma", 150 * 64 * 16 * 200, {}),  # 150 generations, 64 x 16 rollouts
}
"""File, dream steps and settings of the policies that `--controller` compares."""
TICS, MINUTES, FRAMES = 1000.0, 90.0, 100_000
"""The bars: mean survival, the time of all fits together on two cores, and what is recorded."""
JUDGED = "chosen"
"""The policy that the bar is for: the best in some episodes, measured in others."""


def rows_of(result: dict) -> list[Row]:
    """Return every policy's survival with its 95% interval, in the real game and in the dream."""
    rows = []
    for name, figures in result["policies"].items():
        prefix = "real_" if "real_return_mean" in figures else ""
        low, high = figures[f"{prefix}return_interval"]
        mean, episodes = figures[f"{prefix}return_mean"], figures["episodes"]
        label = f"{name}, {episodes} episodes, 95% interval {low:.0f} to {high:.0f}"
        rows.append(at_least(label, mean, "tics", TICS) if JUDGED in name else _plain(label, mean))
        if "dream_return_mean" in figures:
            dreamt = figures["dream_return_mean"]
            rows.append(_plain(f"{name}, in the dream", dreamt))
    return rows


def compare_controller(folder: Path, out: Path, *, quick: bool) -> list[Row]:
    """Return the survival of PPO and of an evolved controller, trained in the dream of a world."""
    sys.path.insert(0, str(SCRIPT.parent))
    import take_cover  # noqa: F401 - registers the game

    import dreamgym
    from dreamgym.cli.output import progress_bar
    from dreamgym.train import TrainConfig, load_policy

    world, rows = dreamgym.load(folder), []
    for algo, (file, full, settings) in LEARNERS.items():
        path = out / file
        if not path.exists():
            config = TrainConfig(temperature=TEMPERATURE, view="latent", **settings)
            steps = 20_000 if quick else full
            with progress_bar(algo) as bar:
                dreamgym.train_policy(
                    world,
                    algo=algo,
                    steps=steps,
                    out=path,
                    config=config,
                    progress=bar,
                    resume=True,
                )
        policy = load_policy(path, world=world)
        found = dreamgym.transfer_policy(
            policy, world, episodes=2 if quick else 100, baselines=False
        ).as_dict()
        low, high = found["real_return_interval"]
        name = f"{algo} in one dream, {found['episodes']} episodes"
        rows.append(
            _plain(f"{name}, 95% interval {low:.0f} to {high:.0f}", found["real_return_mean"])
        )
        rows.append(_plain(f"{name}, in the dream", found["dream_return_mean"]))
    return rows


def _plain(name: str, value: float) -> Row:
    return Row(name=name, value=value, unit="tics")


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--out", type=Path, help="folder to keep everything in")
    options.add_argument("--seed", default="0")
    options.add_argument("--controller", type=Path, metavar="WORLD", help="compare in this world")
    arguments = options.parse_args()
    if arguments.controller is not None:
        with tempfile.TemporaryDirectory() as temporary:
            out = arguments.out or Path(temporary)
            report(compare_controller(arguments.controller, out, quick=arguments.quick), arguments)
        return
    with tempfile.TemporaryDirectory() as temporary:
        out = arguments.out or Path(temporary)
        command = [sys.executable, str(SCRIPT), "--out", str(out), "--seed", arguments.seed]
        subprocess.run(command + ["--short"] * arguments.quick, check=True)
        result = json.loads((out / "take-cover.json").read_text())
    rows = rows_of(result)
    count = result["frames"]
    frames = Row(
        name="frames recorded",
        value=count,
        unit="frames",
        bar=f"<= {FRAMES}",
        holds=count <= FRAMES,
    )
    if not arguments.quick:
        rows.append(below("fitting, all rounds", result["fit_seconds"] / 60, "minutes", MINUTES))
    report([*rows, frames], arguments)


if __name__ == "__main__":
    main()
