"""A channel that never changed in the data: it keeps its value, and no dream ends because of it."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from dreamgym.models import Decodes, ModelSpec
from dreamgym.models.statistics import measure_statistics
from dreamgym.models.wrappers import EnsembleConfig

ROWS, STEPS, VALUE = 8, 3, 0.1
FAMILIES = ["mdn-rnn", "rssm", "jepa", "pets", "storm", "tdmpc2", "twister", "dreamer4"]
SPECS = {
    **{family: ModelSpec(family=family) for family in FAMILIES},
    **{
        f"ensemble of {family}": ModelSpec(
            family="ensemble",
            config=EnsembleConfig(member=ModelSpec(family=family), members=2, elites=2),
        )
        for family in FAMILIES
    },
}


@pytest.mark.parametrize("prepared", [False, True], ids=["plain", "prepared"])
@pytest.mark.parametrize("name", SPECS)
@torch.no_grad()
def test_a_constant_channel_keeps_its_value_and_ends_no_dream(name: str, prepared: bool) -> None:
    torch.manual_seed(0)
    space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    model = SPECS[name].build(space, gym.spaces.Discrete(2)).eval()
    # Ranges so wide beside the spread that an untrained model does not leave them in a few steps.
    seen = np.random.default_rng(0).normal(size=(200, 10, 3))
    seen[:2, :, 0] = [[-1e6], [1e6]]
    seen[:, :, 1] = VALUE
    seen[:, :, 2] = 0.0  # changes between episodes only
    seen[:2, :, 2] = [[-1e6], [1e6]]
    model.set_statistics(measure_statistics([(episode, np.zeros(9)) for episode in seen]))
    if prepared:
        model = model.prepare(ROWS, torch.device("cpu"), torch.float32)
    noise = torch.rand(STEPS + 1, ROWS, model.noise_dim)
    action = torch.zeros(ROWS, dtype=torch.int64)
    state = model.observe(model.initial(ROWS), action, torch.from_numpy(seen[-ROWS:, 0]), noise[-1])
    for t in range(STEPS):
        state, prediction = model.step(state, action, noise[t])
        assert (prediction.termination < 1).all()
        assert isinstance(model, Decodes)
        assert (model.decode(state)[:, 1] == np.float32(VALUE)).all()
        assert prediction.uncertainty.isfinite().all()
