"""Stage 1, record: random actions in the real CartPole, the only real steps of all stages.

    python examples/stages/record.py

It writes `cartpole.h5`, and prints what the data holds and what it cannot teach. `record.png` shows
how long random episodes last, and which pole angles they reach: a dream is only as wide as this.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import dreamgym


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/cartpole"), help="folder of results")
    parser.add_argument("--quick", action="store_true", help="run all of it, too briefly to learn")
    options = parser.parse_args(given)
    options.out.mkdir(parents=True, exist_ok=True)
    data = options.out / "cartpole.h5"

    steps = 600 if options.quick else 10_000
    dreamgym.record("CartPole-v1", steps=steps, seed=0, out=data, overwrite=True)
    print(dreamgym.check(data))

    with dreamgym.Dataset(data) as dataset:
        episodes = [dataset.episode(index) for index in range(dataset.num_episodes)]
    figure = Figure(figsize=(8, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.hist([episode.length for episode in episodes], bins=30)
    left.set(xlabel="steps of an episode", ylabel="episodes")
    angles = np.concatenate([episode.observations[:, 2] for episode in episodes])
    right.hist(angles, bins=50)
    right.set(xlabel="pole angle (rad)", ylabel="observations")
    figure.savefig(options.out / "record.png")
    print(f"{data} and {options.out / 'record.png'}; next: fit.py")


if __name__ == "__main__":
    main()
