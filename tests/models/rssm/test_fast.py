"""The RSSM's fast step is its plain one: every preset, every kind of z, and bfloat16."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from dreamgym.models import RSSM, RSSMConfig, imagine
from dreamgym.models.rssm import RSSMObjective
from tests.small_worlds import STATISTICS

ROWS, STEPS = 6, 12
CPU = torch.device("cpu")
NAMES = sorted(RSSM.presets)


def narrow(config: RSSMConfig) -> RSSMConfig:
    """Return the same layers with smaller widths."""
    return replace(config, deter=64, hidden=48, units=40, stoch=min(config.stoch, 8))


def a_model(config: RSSMConfig) -> RSSM:
    torch.manual_seed(0)
    space = gym.spaces.Box(-3.0, 3.0, (4,), np.float32)
    model = RSSM(space, gym.spaces.Box(-2.0, 2.0, (2,), np.float32), config)
    model.set_statistics(STATISTICS)
    for parameter in model.parameters():
        # No weight is left at zero: outputs that are zero in both forms would prove nothing.
        torch.nn.init.trunc_normal_(parameter.data, mean=parameter.data.mean(), std=0.1)
    return model.eval().requires_grad_(False)


def a_dream(model: RSSM, rows: int = ROWS, steps: int = STEPS):
    """Return start, actions and noise of a dream that begins at a filtered state."""
    generator = torch.Generator().manual_seed(1)
    seen = torch.randn(rows, 4, generator=generator)
    noise = torch.rand(rows, steps + 1, model.noise_dim, generator=generator)
    actions = 4 * torch.rand(rows, steps, 2, generator=generator) - 2
    start = model.observe(model.initial(rows), torch.zeros(rows, 2), seen, noise[:, -1])
    return start, actions, noise[:, :-1]


def assert_same_dream(model: RSSM, fast, temperature=1.0) -> None:
    start, actions, noise = a_dream(model)
    expected, prediction = imagine(model, start, actions, noise, temperature)
    got, fast_prediction = imagine(fast, start, actions, noise, temperature)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(tuple(fast_prediction), tuple(prediction), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", [*NAMES, "default"])
def test_the_fast_form_of_every_preset_dreams_the_same(name):
    model = a_model(narrow({**RSSM.presets, "default": RSSMConfig()}[name]))
    fast = model.prepare(ROWS, CPU, torch.float32)
    assert type(fast) is not RSSM
    for temperature in (1.0, 0.5, torch.linspace(0.5, 2.0, ROWS)):
        assert_same_dream(model, fast, temperature)


@pytest.mark.parametrize("norm", ["none", "gates", "layer", "rms"])
@pytest.mark.parametrize("blocks", [0, 4])
@pytest.mark.parametrize("head_layers", [0, 2])
def test_the_fast_form_has_every_norm_cell_and_head(norm, blocks, head_layers):
    objective = RSSMObjective(rewards="two-hot", vectors="symlog", bins=15)
    config = RSSMConfig(
        norm=norm, blocks=blocks, head_layers=head_layers, prior_layers=2, objective=objective
    )
    model = a_model(narrow(config))
    assert_same_dream(model, model.prepare(ROWS, CPU, torch.float32))


def test_the_fast_step_of_many_rows_is_the_plain_one():
    model = a_model(RSSMConfig(deter=256, hidden=256, stoch=8, classes=8))
    start, actions, noise = a_dream(model, rows=64, steps=1)
    fast = model.prepare(64, CPU, torch.float32)
    got, prediction = fast.step(start, actions[:, 0], noise[:, 0])
    expected, plain_prediction = model.step(start, actions[:, 0], noise[:, 0])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tuple(prediction), tuple(plain_prediction), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "edit",
    [
        lambda z: z * 0.5,
        lambda z: z.roll(1, 1) + z,
        lambda z: torch.zeros_like(z),
        lambda z: torch.full_like(z, 1 / 8),
        lambda z: torch.cat([z[:, 8:], z[:, 8:16] * 0 + 1], 1),
        lambda z: torch.where(torch.arange(z.shape[1]) < 8, 2 / 3, z),
        lambda z: torch.randn(z.shape, generator=torch.Generator().manual_seed(3)),
    ],
)
def test_a_latent_that_is_not_one_hot_is_multiplied_as_it_is(edit):
    model = a_model(RSSMConfig(stoch=4, classes=8))
    fast = model.prepare(ROWS, CPU, torch.float32)
    start, actions, noise = a_dream(model)
    start["z"] = start["z"].clone()
    start["z"][1:] = edit(start["z"][1:])
    got, prediction = fast.step(start, actions[:, 0], noise[:, 0])
    expected, plain_prediction = model.step(start, actions[:, 0], noise[:, 0])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tuple(prediction), tuple(plain_prediction), rtol=1e-4, atol=1e-4)


def test_a_nan_in_a_latent_affects_its_own_row_only():
    model = a_model(RSSMConfig(stoch=4, classes=8))
    fast = model.prepare(ROWS, CPU, torch.float32)
    start, actions, noise = a_dream(model)
    start["z"][0] = torch.nan
    after, prediction = fast.step(start, actions[:, 0], noise[:, 0])
    assert after["z"].shape == start["z"].shape
    assert prediction.reward[1:].isfinite().all()


@pytest.mark.parametrize("name", ["dreamer-v2", "dreamer-v3-1m", "planet", "default"])
def test_products_in_bfloat16_stay_close_and_sample_alike(name):
    config = {**RSSM.presets, "default": RSSMConfig()}[name]
    model = a_model(replace(narrow(config), deter=128, hidden=128, units=96))
    rows = 256
    fast = model.prepare(rows, CPU, torch.bfloat16)
    start, actions, noise = a_dream(model, rows, steps=2)
    expected, prediction = model.step(start, actions[:, 0], noise[:, 0])
    got, low_prediction = fast.step(start, actions[:, 0], noise[:, 0])
    assert got["h"].dtype == got["z"].dtype == low_prediction.reward.dtype == torch.float32
    assert not torch.equal(got["h"], expected["h"])
    assert float((got["h"] - expected["h"]).abs().max()) < 0.03
    same = torch.isclose(got["z"], expected["z"], atol=0.05).all(-1)
    assert float(same.float().mean()) > 0.8
    assert float((low_prediction.termination - prediction.termination)[same].abs().max()) < 0.03


def test_preparing_leaves_the_plain_model_as_it_was():
    model = a_model(RSSMConfig()).requires_grad_(True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fast = model.prepare(ROWS, CPU, torch.float32)
    start, actions, noise = a_dream(model)
    fast.step(start, actions[:, 0], noise[:, 0])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
