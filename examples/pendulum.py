"""Solve Pendulum in the dream with any learner of the table, and measure it in reality.

    python examples/pendulum.py --learner ppo
    python examples/pendulum.py --learner skrl --seeds 3
    python examples/pendulum.py --algo TQC

It trains in the world that ships, saves each policy, reads it again, and runs 100 real episodes.
`pendulum.png` shows the returns in the dream while it learns, and the real ones at the end.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import dreamgym
from dreamgym.train import LEARNERS, find_learner, load_policy, train_policy

WORLD, TASK = "Pendulum-MDNRNN-v0", "Pendulum-v1"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--learner", choices=LEARNERS, help="by default the first with the algorithm"
    )
    parser.add_argument("--algo", help="by default the learner's first algorithm")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="dream steps; by default the learner's own")
    parser.add_argument("--episodes", type=int, default=100, help="real episodes")
    parser.add_argument("--out", type=Path, default=Path("out/pendulum"), help="folder of results")
    parser.add_argument("--quick", action="store_true", help="run all of it, too briefly to learn")
    options = parser.parse_args(arguments)
    if options.quick:
        options.seeds, options.steps, options.episodes = 1, 16, 2
    options.out.mkdir(parents=True, exist_ok=True)
    learner = find_learner(options.algo, options.learner)
    algo = options.algo or learner.algorithms[0]
    figure = Figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    means = []
    for seed in range(options.seeds):
        path = learner.policy_path(options.out / f"{learner.name}-{algo}-{seed}")
        policy = train_policy(
            WORLD, learner=learner.name, algo=algo, seed=seed, steps=options.steps, out=path
        )
        result = dreamgym.evaluate(load_policy(path), TASK, episodes=options.episodes)
        low, high = result.interval
        print(f"seed {seed}: real return {result.mean:.0f}, 95% interval {low:.0f} to {high:.0f}")
        means.append(result.mean)
        left.plot(*np.reshape(policy.curve, (-1, 2)).T, label=f"seed {seed}")
        right.errorbar(seed, result.mean, [[result.mean - low], [high - result.mean]], fmt="o")
    print(f"{algo} ({learner.name}): {np.mean(means):.0f} over {options.seeds} seeds")
    left.set(xlabel="dream steps", ylabel="return in the dream")
    left.legend()
    right.set(xlabel="seed", ylabel="real return", xticks=range(options.seeds))
    figure.savefig(options.out / "pendulum.png")


if __name__ == "__main__":
    main()
