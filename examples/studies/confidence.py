"""Study: how far can a dream return be believed? Confidence by horizon, from several worlds.

    python examples/studies/confidence.py

Five worlds are fitted to the same random steps of CartPole with different seeds. A controller of
one line, which balances the real pole, runs in all of them. Each world predicts a return up to
each horizon; where the worlds differ, none of them knows. `confidence.png` shows the predictions
beside the real return, and their spread beside the true error: a spread that grows with the error
is a confidence that can be read off without the real environment. An error that all worlds share,
it cannot show.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gymnasium as gym
import numpy as np
from matplotlib.figure import Figure

import dreamgym

TASK, EPISODES = "CartPole-v1", 64


def balance(observation: np.ndarray) -> np.ndarray:
    """Push (N,) to the side to which the pole (N, 4) falls."""
    return (observation[:, 2] + 0.5 * observation[:, 3] > 0).astype(np.int64)


def returns_by_horizon(env, horizon: int) -> np.ndarray:
    """Return the mean return of first episodes up to each step, (horizon,)."""
    observation, _ = env.reset(seed=0)
    running, collected = np.ones(env.num_envs, bool), []
    for _ in range(horizon):
        observation, reward, terminated, truncated, _ = env.step(balance(observation))
        collected.append((reward * running).mean())
        running = running & ~(terminated | truncated)
    env.close()
    return np.cumsum(collected)


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/study"), help="folder of results")
    parser.add_argument("--worlds", type=int, default=5, help="worlds to fit")
    parser.add_argument("--quick", action="store_true", help="run all of it, too briefly to learn")
    options = parser.parse_args(given)
    options.out.mkdir(parents=True, exist_ok=True)
    quick = options.quick
    horizon, worlds = (10, 2) if quick else (200, options.worlds)

    data = dreamgym.record(
        TASK, steps=600 if quick else 5000, out=options.out / "confidence.h5", overwrite=True
    )
    config = dreamgym.FitConfig(updates=10 if quick else 1000, horizon=horizon, starts=64)
    predicted = []
    for seed in range(worlds):
        world = dreamgym.fit(data, family="mdn-rnn", seed=seed, config=config)
        dreams = dreamgym.DreamVectorEnv(
            world, EPISODES, starts="episode_starts", autoreset_mode="SameStep"
        )
        predicted.append(returns_by_horizon(dreams, horizon))
    real = returns_by_horizon(gym.make_vec(TASK, EPISODES, vectorization_mode="sync"), horizon)
    error = np.abs(np.mean(predicted, 0) - real)
    spread = np.std(predicted, 0)

    steps = np.arange(1, horizon + 1)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(steps, np.transpose(predicted), color="tab:blue", alpha=0.5)
    left.plot(steps, real, color="black", linestyle="--", label="real")
    left.set(xlabel="horizon (steps)", ylabel="return up to it")
    left.legend()
    right.plot(steps, error, color="black", label="error of the mean prediction")
    right.plot(steps, spread, color="tab:blue", label="spread between worlds")
    right.set(xlabel="horizon (steps)", ylabel="return")
    right.legend()
    figure.savefig(options.out / "confidence.png")
    for k in sorted({horizon // 4, horizon // 2, horizon}):
        print(
            f"up to {k} steps: predicted {np.mean(predicted, 0)[k - 1]:.1f} +- {spread[k - 1]:.1f} "
            f"(between worlds), real {real[k - 1]:.1f}"
        )
    print(options.out / "confidence.png")


if __name__ == "__main__":
    main()
