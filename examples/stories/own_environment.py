"""Bring your own environment: any `gym.Env` is recorded, dreamt and mastered.

    python examples/stories/own_environment.py

The environment is a hot-air balloon of 20 lines. It is never registered; where the real environment
is needed, a function that makes it is passed. Random burning mostly ends on the ground or above the
clouds. `own_environment.png` shows the height under the policy that learnt in dreams: real flights
and dreams of the same policy, around the height of 5 that the reward asks for.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import TimeLimit
from matplotlib.figure import Figure

import dreamgym
from dreamgym.train import TrainConfig


class Balloon(gym.Env):
    """A balloon whose burner heats the air, which lifts it; outside 0 to 10 the flight ends."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)  # height, speed, heat
    action_space = gym.spaces.Discrete(2)  # burner off or on

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.height, self.speed, self.heat = 3 + 4 * self.np_random.random(), 0.0, 1.0
        return self._observed(), {}

    def step(self, action):
        self.heat += 0.2 * float(action) - 0.1 * self.heat
        self.speed += 0.1 * (self.heat - 1) - 0.05 * self.speed + 0.01 * self.np_random.normal()
        self.height += self.speed
        ended = not 0 < self.height < 10
        return self._observed(), 1 - abs(self.height - 5) / 5 - 2 * ended, ended, False, {}

    def _observed(self):
        return np.array([self.height, self.speed, self.heat], np.float32)


def make_balloon() -> gym.Env:
    """Make a real balloon."""
    return TimeLimit(Balloon(), 200)


def heights(policy, env, flights: int, steps: int) -> np.ndarray:
    """Return the heights (steps, flights) of a policy; NaN after the end of a flight."""
    observation, _ = env.reset(seed=0)
    flying, seen = np.ones(flights, bool), []
    for _ in range(steps):
        seen.append(np.where(flying, observation[:, 0], np.nan))
        action, _ = policy.predict(observation, deterministic=True)
        observation, _, terminated, truncated, _ = env.step(action)
        flying = flying & ~(terminated | truncated)
    env.close()
    return np.array(seen)


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/story"), help="folder of results")
    parser.add_argument("--quick", action="store_true", help="run all of it, too briefly to learn")
    options = parser.parse_args(given)
    options.out.mkdir(parents=True, exist_ok=True)
    quick = options.quick

    data = dreamgym.record(
        make_balloon(),
        steps=500 if quick else 10_000,
        policy="sticky:0.8",
        out=options.out / "balloon.h5",
        overwrite=True,
    )
    config = dreamgym.FitConfig(updates=30 if quick else 2000, overwrite=True)
    world = dreamgym.fit(data, options.out / "balloon", family="mdn-rnn", seed=0, config=config)
    policy = dreamgym.train_policy(
        world,
        learner="ppo",
        seed=0,
        steps=1024 if quick else 300_000,
        config=TrainConfig(num_envs=32, n_steps=16) if quick else TrainConfig(),
    )
    result = dreamgym.transfer_policy(policy, world, env=make_balloon, episodes=3 if quick else 50)
    for name, episodes in {"policy": result.real, **result.baselines}.items():
        low, high = episodes.interval
        print(f"{name}: real return {episodes.mean:.0f}, 95% interval {low:.0f} to {high:.0f}")
    print(f"gap: {result.gap:.1f}")

    figure = Figure(figsize=(8, 3), layout="constrained")
    steps = 20 if quick else 200
    envs = {
        "real": gym.vector.SyncVectorEnv([make_balloon] * 8),
        "dreamt": dreamgym.DreamVectorEnv(
            world, 8, max_episode_steps=steps, starts="episode_starts"
        ),
    }
    for axes, (name, env) in zip(figure.subplots(1, 2, sharey=True), envs.items(), strict=True):
        axes.plot(heights(policy, env, 8, steps), color="tab:blue", alpha=0.5)
        axes.axhline(5, color="black", linestyle=":")
        axes.set(title=name, xlabel="steps", ylabel="height", ylim=(0, 10))
    figure.savefig(options.out / "own_environment.png")
    print(options.out / "own_environment.png")


if __name__ == "__main__":
    main()
