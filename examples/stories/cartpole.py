"""Solve CartPole from 10,000 random steps, without one real step while learning.

    python examples/stories/cartpole.py

Random actions keep the pole up for about 22 steps. A world model learns from them, PPO of
Stable-Baselines3 learns in its dreams alone, and the real CartPole is only met for the final exam:
100 episodes for each of three seeds, of at most 500 steps each. `cartpole.png` shows the return in
the dream while it learns, and the real returns beside random actions.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib.figure import Figure

import dreamgym
from dreamgym.train import TrainConfig

TASK = "CartPole-v1"


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/story"), help="folder of results")
    parser.add_argument("--seeds", type=int, default=3, help="data, worlds and policies to make")
    parser.add_argument("--quick", action="store_true", help="run all of it, too briefly to learn")
    options = parser.parse_args(given)
    options.out.mkdir(parents=True, exist_ok=True)
    quick = options.quick
    real_steps, updates, dream_steps = (500, 30, 1024) if quick else (10_000, 2000, 300_000)
    train = TrainConfig(num_envs=32, n_steps=16) if quick else TrainConfig()

    episodes = 3 if quick else 100
    results = {"random": dreamgym.evaluate("random", TASK, episodes=episodes)}
    figure = Figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for seed in range(1 if quick else options.seeds):
        data = dreamgym.record(
            TASK, steps=real_steps, seed=seed, out=options.out / f"data-{seed}.h5", overwrite=True
        )
        config = dreamgym.FitConfig(updates=updates, overwrite=True)
        world = dreamgym.fit(
            data, options.out / f"world-{seed}", family="mdn-rnn", seed=seed, config=config
        )
        policy = dreamgym.train_policy(world, seed=seed, steps=dream_steps, config=train)
        results[f"seed {seed}"] = dreamgym.evaluate(policy, TASK, episodes=episodes)
        left.plot(*zip(*policy.curve, strict=True), label=f"seed {seed}")
    for row, (name, result) in enumerate(results.items()):
        low, high = result.interval
        print(f"{name}: real return {result.mean:.0f}, 95% interval {low:.0f} to {high:.0f}")
        right.errorbar(row, result.mean, yerr=[[result.mean - low], [high - result.mean]], fmt="o")
    left.set(xlabel="dream steps", ylabel="return in the dream")
    left.legend()
    right.set_xticks(range(len(results)), list(results))
    right.set(ylabel="real return", ylim=(0, 520))
    figure.savefig(options.out / "cartpole.png")
    print(options.out / "cartpole.png")


if __name__ == "__main__":
    main()
