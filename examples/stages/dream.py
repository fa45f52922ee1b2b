"""Stage 3, dream: the world is a Gymnasium environment that runs many copies at once.

    python examples/stages/dream.py

Any code for vector environments steps it. `dream.png` shows the pole angle of 64 dreams under
random actions from different starts, each up to its end: most poles fall within 50 steps, as they
do in the real environment. The script prints how many dream steps a second it takes.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
from matplotlib.figure import Figure

import dreamgym  # noqa: F401 - registers the ids


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/cartpole"), help="folder of results")
    parser.add_argument("--quick", action="store_true", help="run all of it, too briefly to learn")
    options = parser.parse_args(given)

    dreams = gym.make_vec(
        "dreamgym/World-v0", world=str(options.out / "world"), num_envs=64, starts="episode_starts"
    )
    dreams.action_space.seed(0)
    observation, _ = dreams.reset(seed=0)
    running, angles = np.ones(64, bool), [observation[:, 2]]
    started = time.perf_counter()
    steps = 20 if options.quick else 100
    for _ in range(steps):
        observation, _, terminated, truncated, _ = dreams.step(dreams.action_space.sample())
        running = running & ~(terminated | truncated)
        angles.append(np.where(running, observation[:, 2], np.nan))
    seconds = time.perf_counter() - started
    dreams.close()
    print(f"{64 * steps / seconds:,.0f} dream steps a second")

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(np.array(angles), color="tab:blue", alpha=0.3)
    axes.set(xlabel="steps of the dream", ylabel="pole angle (rad)")
    figure.savefig(options.out / "dream.png")
    print(f"{options.out / 'dream.png'}; next: train.py")


if __name__ == "__main__":
    main()
