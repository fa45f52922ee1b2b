"""A loop so small that a round takes a fraction of a second; nothing is learned in it."""

from __future__ import annotations

import pytest

from dreamgym import FitConfig, ImproveConfig
from dreamgym.models import MDNRNNConfig
from dreamgym.train import TrainConfig

MODEL = MDNRNNConfig(hidden=8, mixtures=2, trunk=8, head=8)
SMALL = {
    "first_steps": 120,
    "round_steps": 60,
    "first_policy": "random",
    "noise": 0.5,
    "dream_steps": 64,
    "evaluation_episodes": 2,
    "fit": FitConfig(model=MODEL, updates=4, evaluate_every=2, batch_size=8, starts=16),
    "train": TrainConfig(num_envs=8, n_steps=8, net_arch=(8,)),
}


@pytest.fixture
def small() -> ImproveConfig:
    return ImproveConfig(**SMALL)
