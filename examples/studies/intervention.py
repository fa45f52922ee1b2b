"""Study: can edited starts of dreams prepare a policy for what the data rarely shows?

    python examples/studies/intervention.py

The real CartPole is made harder than its data: episodes begin with the pole and the cart up to four
times as far off as usual. One policy learns in dreams from the recorded starts. The other learns in
dreams in which half of the starts are interventions: states that the world filtered from an
observation that was edited, its distance from rest scaled by up to four. Nothing else differs, and
no real step is added. `intervention.png` shows the real returns from usual and from hard starts.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from matplotlib.figure import Figure
from stable_baselines3 import PPO

import dreamgym
from dreamgym.models import Segment, filter_states
from dreamgym.train.sb3 import SB3VecEnv

TASK, SCALE = "CartPole-v1", 4.0


class Starts(gym.Wrapper):
    """The real CartPole, with starts drawn up to `bound` from rest; 0.05 is its own."""

    def __init__(self, bound: float) -> None:
        super().__init__(gym.make(TASK))
        self.bound = bound

    def reset(self, *, seed=None, options=None):
        return self.env.reset(seed=seed, options={"low": -self.bound, "high": self.bound})


@torch.no_grad()
def intervened(world, data: Path) -> dict[str, torch.Tensor]:
    """Return states, leaves (S, ...), filtered from edited first observations of episodes."""
    with dreamgym.Dataset(data) as dataset:
        first = np.stack([dataset.episode(i).observations[0] for i in range(dataset.num_episodes)])
    rng = np.random.default_rng(0)
    edited = torch.from_numpy(first * rng.uniform(1, SCALE, (len(first), 1)).astype(np.float32))
    rows = len(edited)
    nothing = Segment(
        observation=edited[:, None],
        action=torch.zeros(rows, 0, dtype=torch.int64),
        reward=torch.zeros(rows, 0),
        terminated=torch.zeros(rows, 0, dtype=torch.bool),
        mask=torch.zeros(rows, 0, dtype=torch.bool),
    )
    noise = torch.full((rows, 1, world.model.noise_dim), 0.5)
    states = filter_states(world.model, nothing, noise)
    return {key: leaf[:, 0] for key, leaf in states.items()}


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/study"), help="folder of results")
    parser.add_argument("--seeds", type=int, default=3, help="policies of each kind")
    parser.add_argument("--quick", action="store_true", help="run all of it, too briefly to learn")
    options = parser.parse_args(given)
    options.out.mkdir(parents=True, exist_ok=True)
    quick = options.quick

    data = dreamgym.record(
        TASK, steps=600 if quick else 10_000, out=options.out / "intervention.h5", overwrite=True
    )
    config = dreamgym.FitConfig(updates=10 if quick else 2000)
    world = dreamgym.fit(data, family="mdn-rnn", seed=0, config=config)
    bank = world.starts.states
    edited = intervened(world, data)
    rng = np.random.default_rng(0)
    chosen = torch.from_numpy(rng.integers(len(edited["z"]), size=len(bank["z"])))
    mixed = {key: torch.cat([leaf, edited[key][chosen]]) for key, leaf in bank.items()}

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    for kind, (name, starts) in enumerate({"recorded": bank, "intervened": mixed}.items()):
        policies = [
            train(world, starts, seed, quick) for seed in range(1 if quick else options.seeds)
        ]
        for number, bound in enumerate((0.05, 0.05 * SCALE)):
            make = partial(Starts, bound)
            means = [
                dreamgym.evaluate(policy, make, episodes=3 if quick else 100).mean
                for policy in policies
            ]
            axes.plot([2 * number + 0.5 * kind] * len(means), means, "o", color=f"C{kind}")
            print(f"{name} starts, bound {bound:g}: real returns {np.round(means, 1)}")
    axes.set_xticks([0.25, 2.25], ["usual starts", "hard starts"])
    axes.set(ylabel="real return")
    figure.savefig(options.out / "intervention.png")
    print(options.out / "intervention.png")


def train(world, starts, seed: int, quick: bool) -> PPO:
    """Train PPO in dreams from given start states."""
    num_envs = 16 if quick else 256
    dreams = SB3VecEnv(dreamgym.DreamVectorEnv(world, num_envs, starts=starts))
    settings = {"n_steps": 16 if quick else 64, "batch_size": 256 if quick else 1024}
    agent = PPO(
        "MlpPolicy", dreams, **settings, n_epochs=5, gamma=0.98, learning_rate=1e-3, seed=seed
    )
    agent.learn(256 if quick else 300_000)
    dreams.close()
    return agent


if __name__ == "__main__":
    main()
