"""Swing up Pendulum by planning: nothing is trained, the world that ships is searched.

    python examples/stories/plan_pendulum.py

Three planners act in the same real episodes: at each step they search the world for the torques
with the highest predicted return, take the first, and search again. A policy that was trained in
the same world gets about -150, random torques about -1200. `plan_pendulum.png` shows the reward of
each step: zero where the rod stands upright at rest.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gymnasium as gym
import numpy as np
from matplotlib.figure import Figure

from dreamgym.train.planners import CEMConfig, ICEMConfig, MPPIConfig, PlannedPolicy

WORLD, TASK = "Pendulum-MDNRNN-v0", "Pendulum-v1"

PLANNERS = {
    "CEM": CEMConfig(horizon=25, candidates=100, iterations=4, elites=10),
    "iCEM": ICEMConfig(horizon=25),
    "MPPI": MPPIConfig(horizon=25, candidates=100, iterations=4, elites=20),
}


def rewards(policy: PlannedPolicy, episodes: int, steps: int) -> np.ndarray:
    """Return the rewards (steps, episodes) of real episodes side by side; none ends before 200."""
    envs = gym.make_vec(TASK, episodes, vectorization_mode="sync")
    seeds, rows = [100 + row for row in range(episodes)], list(range(episodes))
    observations, _ = envs.reset(seed=seeds)
    policy.reset(rows, seeds)
    collected = []
    for _ in range(steps):
        observations, reward, _, _, _ = envs.step(np.stack(policy.act(observations, rows)))
        collected.append(reward)
    envs.close()
    return np.array(collected)


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/story"), help="folder of results")
    parser.add_argument("--episodes", type=int, default=3, help="real episodes of each planner")
    parser.add_argument("--quick", action="store_true", help="run all of it, ten steps each")
    options = parser.parse_args(given)
    options.out.mkdir(parents=True, exist_ok=True)
    episodes, steps = (1, 10) if options.quick else (options.episodes, 200)

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    for name, config in PLANNERS.items():
        policy = PlannedPolicy(WORLD, config)
        runs = rewards(policy, episodes, steps)
        print(f"{name}: real returns {', '.join(f'{total:.0f}' for total in runs.sum(0))}")
        axes.plot(runs.mean(1), label=name)
    axes.set(xlabel="real steps", ylabel="reward")
    axes.legend()
    figure.savefig(options.out / "plan_pendulum.png")
    print(options.out / "plan_pendulum.png")


if __name__ == "__main__":
    main()
