"""Stage 6, report: how far this dream can be trusted, and for what.

    python examples/stages/report.py

It compares the two trained policies in dream and reality, and measures forecasts, rewards, ends and
intervals on the held-out episodes. The page `report.html` opens in any browser; its verdict comes
first, with the evidence for each sentence. `report.png` is one figure of it: the error of each
number of the observation, by steps ahead.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib.figure import Figure

from dreamgym.trust import RankingConfig, report


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/cartpole"), help="folder of results")
    parser.add_argument("--quick", action="store_true", help="run all of it, too briefly to learn")
    options = parser.parse_args(given)

    made = report(
        options.out / "world",
        options.out / "cartpole.h5",
        None
        if options.quick
        else [options.out / "policy-sb3.zip", options.out / "policy-ppo.safetensors"],
        ranking=False if options.quick else RankingConfig(episodes=20),
    )
    print(made)
    for topic, sentence in made.advice.items():
        print(f"{topic}: {sentence}")
    made.save(options.out / "report.html")

    errors = made.figures["channels"]
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    for index, name in enumerate(errors["names"]):
        axes.plot(errors["horizons"], [row[index] for row in errors["mean"]], label=name)
    axes.set(xlabel="steps ahead", ylabel="error (in spreads)")
    axes.legend()
    figure.savefig(options.out / "report.png")
    print(f"{options.out / 'report.html'} and {options.out / 'report.png'}")


if __name__ == "__main__":
    main()
