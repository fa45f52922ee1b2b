"""Stage 2, fit: a world model learned from the recorded steps, saved as a folder.

    python examples/stages/fit.py

It reads `cartpole.h5` and writes `world/`: weights, config, start states, and a card to read.
`fit.png` shows the loss on held-out episodes, and the error of dreams under the actions of these
episodes against a forecast that repeats the last observation. Where the lines cross, dreams stop
knowing more than that.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib.figure import Figure

import dreamgym


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/cartpole"), help="folder of results")
    parser.add_argument("--quick", action="store_true", help="run all of it, too briefly to learn")
    options = parser.parse_args(given)

    updates = 40 if options.quick else 2000
    config = dreamgym.FitConfig(updates=updates, evaluate_every=updates // 8, overwrite=True)
    world = dreamgym.fit(
        options.out / "cartpole.h5", options.out / "world", family="mdn-rnn", seed=0, config=config
    )
    print(f"{options.out / 'world'}: dreams of {world.env_id}, {world.horizon} steps long")
    for sentence in world.quality["alarms"]:
        print(f"alarm: {sentence}")

    figure = Figure(figsize=(8, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    history = world.provenance["history"]
    left.plot([row["update"] for row in history], [row["held_out"] for row in history])
    left.set(xlabel="updates", ylabel="held-out loss")
    errors = world.quality["open_loop"]
    horizons = [int(steps) for steps in errors]
    for name, label in (("rmse_of_mean", "mean of dreams"), ("repeat_last", "repeat the last")):
        right.plot(horizons, [row[name] for row in errors.values()], label=label)
    right.set(xlabel="steps ahead", ylabel="error (in spreads)")
    right.legend()
    figure.savefig(options.out / "fit.png")
    print(f"{options.out / 'fit.png'}; next: dream.py")


if __name__ == "__main__":
    main()
