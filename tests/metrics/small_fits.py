"""A small stochastic environment, and models fitted to it in seconds."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import torch

import dreamgym
from dreamgym.data import Dataset
from dreamgym.models import WorldModel
from dreamgym.models.base import as_segment
from dreamgym.models.statistics import measure_statistics

STEPS, LIMIT = 4000, 40
HAZARD = 0.06


class Swing(gym.Env):
    """A linear pendulum, pushed left or right; every step may terminate by chance."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.normal(size=2)
        self.age = 0
        return self.state.astype(np.float32), {}

    def step(self, action):
        angle, speed = self.state
        speed = 0.98 * speed + 0.5 * (2 * action - 1) - 0.4 * angle
        self.state = np.array([angle + 0.4 * speed, speed])
        self.age += 1
        ended = bool(self.np_random.random() < HAZARD)
        seen = self.state.astype(np.float32)
        return seen, -float(angle**2), ended, self.age >= LIMIT, {}


def record_swing(folder: Path) -> Path:
    """Record a dataset of random actions."""
    return dreamgym.record(Swing(), steps=STEPS, out=folder / "swing.h5", seed=0)


def fitted(model: WorldModel, dataset: Dataset, updates: int = 250) -> WorldModel:
    """Fit the model to the training episodes and put it into eval mode."""
    training, _ = dataset.split(0.2, 0)
    episodes = [dataset.episode(int(i)) for i in training]
    model.set_statistics(measure_statistics((e.observations, e.rewards) for e in episodes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    sampler, rng = dataset.segments(training, 8), np.random.default_rng(0)
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - update / updates)
        segment = as_segment(sampler.draw(64, rng), torch.device("cpu"))
        noise = torch.from_numpy(rng.random((64, 9, model.noise_dim), dtype=np.float32))
        loss, _ = model.loss(segment, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_update()
    return model.eval().requires_grad_(False)
