"""Study: predict pixels, or embeddings? An RSSM and a JEPA with as many updates on the same images.

    python examples/studies/pixels_or_embeddings.py

A dot swings on a circle of 48x48 pixels (three frames as channels); the true state is recorded
beside it, and no model sees it. After the fits a linear probe reads the state off each model's
features. `pixels_or_embeddings.png` shows how well it does on the observed state and up to 15 steps
into dreams, as R2 of the state: 1 is perfect, 0 knows nothing. Both have the same updates, batches
and data; the seconds that each took are printed beside.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from gymnasium.wrappers import TimeLimit
from matplotlib.figure import Figure

import dreamgym
from dreamgym.models import JEPAConfig, RSSMConfig, as_segment, filter_states, imagine

SIDE, BURN_IN, AHEAD = 48, 5, 15
MODELS = {
    "rssm": RSSMConfig(deter=64, hidden=64, stoch=8, classes=8, units=64, image_depth=8),
    "jepa": JEPAConfig(image_size=SIDE),
}


class Dot(gym.Env):
    """Pendulum-v1 seen as a dot on a circle; the observation has the state beside the image."""

    def __init__(self) -> None:
        self.inner = gym.make("Pendulum-v1").unwrapped
        self.action_space = self.inner.action_space
        image = gym.spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)
        self.observation_space = gym.spaces.Dict(image=image, state=self.inner.observation_space)

    def reset(self, *, seed=None, options=None):
        state, info = self.inner.reset(seed=seed)
        self.frames = [self.draw(state)] * 3
        return {"image": np.stack(self.frames, -1), "state": state}, info

    def step(self, action):
        state, reward, terminated, truncated, info = self.inner.step(action)
        self.frames = [*self.frames[1:], self.draw(state)]
        seen = {"image": np.stack(self.frames, -1), "state": state}
        return seen, float(reward), terminated, truncated, info

    def draw(self, state):
        y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
        square = (x - 16 * state[1]) ** 2 + (y + 16 * state[0]) ** 2
        return (255 * np.exp(-square / 12)).astype(np.uint8)


@torch.no_grad()
def features_and_states(model, data: Path, episodes, windows: int):
    """Return features (N, 1 + AHEAD, F) seen and dreamt, and true states (N, 1 + AHEAD, 3)."""
    with dreamgym.Dataset(data) as both:
        segments = both.segments(episodes, BURN_IN + AHEAD)
        batch = as_segment(segments.draw(windows, np.random.default_rng(0)), torch.device("cpu"))
    full = batch.mask.all(1)
    states = batch.observation["state"][full]
    images, actions = batch.observation["image"][full], batch.action[full]
    segment = batch._replace(observation=images, action=actions)
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(len(states), BURN_IN + AHEAD + 1, model.noise_dim, generator=generator)
    now = {key: leaf[:, BURN_IN] for key, leaf in filter_states(model, segment, noise).items()}
    dreams, _ = imagine(model, now, segment.action[:, BURN_IN:], noise[:, BURN_IN + 1 :])
    later = [{key: leaf[:, t] for key, leaf in dreams.items()} for t in range(AHEAD)]
    features = torch.stack([model.features(state) for state in [now, *later]], 1)
    return features.double().numpy(), states[:, BURN_IN:].double().numpy()


def r_squared(train, test) -> np.ndarray:
    """Return R2 (1 + AHEAD,) of a ridge probe from observed features to states."""

    def with_one(features):
        return np.concatenate([features, np.ones((*features.shape[:-1], 1))], -1)

    x, y = with_one(train[0][:, 0]), train[1][:, 0]
    weights = np.linalg.solve(x.T @ x + 1e-3 * len(x) * np.eye(x.shape[1]), x.T @ y)
    left = (with_one(test[0]) @ weights - test[1]) ** 2
    return 1 - (left.mean(0) / test[1].var(0)).mean(-1)


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/study"), help="folder of results")
    parser.add_argument("--quick", action="store_true", help="run all of it, too briefly to learn")
    options = parser.parse_args(given)
    options.out.mkdir(parents=True, exist_ok=True)
    steps, updates, windows = (400, 2, 16) if options.quick else (10_000, 1000, 512)

    data = options.out / "dot.h5"
    env = TimeLimit(Dot(), 50)
    dreamgym.record(env, steps=steps, policy="sticky:0.8", out=data, overwrite=True)
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for family, model in MODELS.items():
        config = dreamgym.default_config(
            family, model=model, updates=updates, batch_size=16, starts=64, horizon=AHEAD
        )
        started = time.perf_counter()
        with dreamgym.Dataset(data, keys=["image"]) as images:
            world = dreamgym.fit(images, family=family, seed=0, config=config)
            training, held_out = images.split(config.held_out, 0)
        seconds = time.perf_counter() - started
        train = features_and_states(world.model, data, training, windows)
        found = r_squared(train, features_and_states(world.model, data, held_out, windows))
        print(
            f"{family}: R2 {found[0]:.2f} observed, {found[AHEAD]:.2f} after {AHEAD} steps of a "
            f"dream; {seconds:.0f} s for {updates} updates"
        )
        axes.plot(found, label=family)
    axes.set(xlabel="steps of the dream", ylabel="R2 of the true state", ylim=(-0.1, 1.05))
    axes.legend()
    figure.savefig(options.out / "pixels_or_embeddings.png")
    print(options.out / "pixels_or_embeddings.png")


if __name__ == "__main__":
    main()
