"""Study: when a dream says 80%, does it happen in 80% of the cases? Families side by side.

    python examples/studies/calibration.py

An MDN-RNN, an RSSM and PETS are fitted to the same steps of CartPole. For every held-out window 19
dreams span an interval of 80% at each horizon. `calibration.png` shows how often the truth lies
inside, against the dashed line at 80%: above it a model is too cautious, below it overconfident.
The dotted lines are the same intervals, stretched by a factor for each horizon that the other half
of the held-out episodes gave: a wrong width is mended like this, a wrong shape is not.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import dreamgym
from dreamgym.metrics import REPORT_METRICS, evaluate_metrics
from dreamgym.models import MDNRNNConfig, PETSConfig, RSSMConfig

SMALL = {
    "mdn-rnn": MDNRNNConfig(hidden=8, trunk=8, head=8),
    "rssm": RSSMConfig(deter=16, hidden=16, stoch=4, classes=4, units=16, layers=1),
    "pets": PETSConfig(hidden=16, layers=1, members=3, elites=2),
}
UPDATES = {"mdn-rnn": 2000, "rssm": 1000, "pets": 2000}
LEVEL = 0.8


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/study"), help="folder of results")
    parser.add_argument("--horizon", type=int, default=30, help="steps of the longest forecast")
    parser.add_argument("--quick", action="store_true", help="run all of it, too briefly to learn")
    options = parser.parse_args(given)
    options.out.mkdir(parents=True, exist_ok=True)
    quick = options.quick
    horizon = 5 if quick else options.horizon

    data = dreamgym.record(
        "CartPole-v1",
        steps=1500 if quick else 10_000,
        out=options.out / "calibration.h5",
        overwrite=True,
    )
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.axhline(LEVEL, color="black", linestyle="--", label="nominal")
    for number, (family, model) in enumerate(SMALL.items()):
        config = dreamgym.default_config(
            family,
            updates=5 if quick else UPDATES[family],
            horizon=horizon,
            model=model if quick else None,
        )
        world = dreamgym.fit(data, family=family, seed=0, config=config)
        with dreamgym.Dataset(data) as dataset:
            _, held_out = dataset.split(config.held_out, 0)  # as the fit split it
            found = evaluate_metrics(
                world.model,
                dataset,
                held_out,
                metrics={"intervals": REPORT_METRICS["intervals"]},
                horizon=horizon,
            )["intervals"]
        column = found["levels"].index(LEVEL)
        coverage = np.array(found["coverage"])[:, column]
        axes.plot(found["horizons"], coverage, color=f"C{number}", label=family)
        again = np.array(found["recalibrated"])[:, column]
        axes.plot(found["horizons"][: len(again)], again, ":", color=f"C{number}")
        print(
            f"{family}: off by {np.abs(coverage - LEVEL).mean():.2f} on average, recalibrated by "
            f"{np.abs(again - LEVEL).mean():.2f}"
        )
    axes.set(xlabel="steps ahead", ylabel=f"truth inside {LEVEL:.0%} intervals", ylim=(0, 1.02))
    axes.legend()
    figure.savefig(options.out / "calibration.png")
    print(options.out / "calibration.png")


if __name__ == "__main__":
    main()
