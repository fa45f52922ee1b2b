"""The RSSM's arranged step is its plain one: every preset, every kind of z, and bfloat16."""

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
    """The same layers, and fewer numbers in each."""
    return replace(config, deter=64, hidden=48, units=40, stoch=min(config.stoch, 8))


def a_model(config: RSSMConfig) -> RSSM:
    torch.manual_seed(0)
    space = gym.spaces.Box(-3.0, 3.0, (4,), np.float32)
    model = RSSM(space, gym.spaces.Box(-2.0, 2.0, (2,), np.float32), config)
    model.set_statistics(STATISTICS)
    for parameter in model.parameters():
        # Nothing stays at zero, not even the rewards' outputs: else much would be equal by itself.
        torch.nn.init.trunc_normal_(parameter.data, mean=parameter.data.mean(), std=0.1)
    return model.eval().requires_grad_(False)


def a_dream(model: RSSM, rows: int = ROWS, steps: int = STEPS):
    """Start, actions and noise of a dream from what the model has seen itself."""
    generator = torch.Generator().manual_seed(1)
    seen = torch.randn(rows, 4, generator=generator)
    noise = torch.rand(rows, steps + 1, model.noise_dim, generator=generator)
    actions = 4 * torch.rand(rows, steps, 2, generator=generator) - 2
    start = model.observe(model.initial(rows), torch.zeros(rows, 2), seen, noise[:, -1])
    return start, actions, noise[:, :-1]


def assert_same_dream(model: RSSM, prepared, temperature=1.0) -> None:
    start, actions, noise = a_dream(model)
    wanted, said = imagine(model, start, actions, noise, temperature)
    got, said_arranged = imagine(prepared, start, actions, noise, temperature)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(tuple(said_arranged), tuple(said), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", [*NAMES, "default"])
def test_every_preset_dreams_the_same_when_arranged(name):
    model = a_model(narrow({**RSSM.presets, "default": RSSMConfig()}[name]))
    prepared = model.prepare(ROWS, CPU, torch.float32)
    assert type(prepared) is not RSSM
    for temperature in (1.0, 0.5, torch.linspace(0.5, 2.0, ROWS)):
        assert_same_dream(model, prepared, temperature)


@pytest.mark.parametrize("norm", ["none", "gates", "layer", "rms"])
@pytest.mark.parametrize("blocks", [0, 4])
@pytest.mark.parametrize("head_layers", [0, 2])
def test_every_norm_cell_and_head_is_arranged(norm, blocks, head_layers):
    objective = RSSMObjective(rewards="two-hot", vectors="symlog", bins=15)
    config = RSSMConfig(
        norm=norm, blocks=blocks, head_layers=head_layers, prior_layers=2, objective=objective
    )
    model = a_model(narrow(config))
    assert_same_dream(model, model.prepare(ROWS, CPU, torch.float32))


def test_packed_products_of_many_rows_are_the_same():
    model = a_model(RSSMConfig(deter=256, hidden=256, stoch=8, classes=8))
    start, actions, noise = a_dream(model, rows=64, steps=1)
    prepared = model.prepare(64, CPU, torch.float32)
    got, said = prepared.step(start, actions[:, 0], noise[:, 0])
    wanted, said_plainly = model.step(start, actions[:, 0], noise[:, 0])
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tuple(said), tuple(said_plainly), rtol=1e-4, atol=1e-4)


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
def test_a_latent_that_was_edited_counts_as_it_is(edit):
    model = a_model(RSSMConfig(stoch=4, classes=8))
    prepared = model.prepare(ROWS, CPU, torch.float32)
    start, actions, noise = a_dream(model)
    start["z"] = start["z"].clone()
    start["z"][1:] = edit(start["z"][1:])
    got, said = prepared.step(start, actions[:, 0], noise[:, 0])
    wanted, said_plainly = model.step(start, actions[:, 0], noise[:, 0])
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tuple(said), tuple(said_plainly), rtol=1e-4, atol=1e-4)


def test_a_latent_that_is_no_number_stops_nothing():
    model = a_model(RSSMConfig(stoch=4, classes=8))
    prepared = model.prepare(ROWS, CPU, torch.float32)
    start, actions, noise = a_dream(model)
    start["z"][0] = torch.nan
    after, said = prepared.step(start, actions[:, 0], noise[:, 0])
    assert after["z"].shape == start["z"].shape
    assert said.reward[1:].isfinite().all()


@pytest.mark.parametrize("name", ["dreamer-v2", "dreamer-v3-1m", "planet", "default"])
def test_bfloat16_stays_near_and_samples_alike(name):
    config = {**RSSM.presets, "default": RSSMConfig()}[name]
    model = a_model(replace(narrow(config), deter=128, hidden=128, units=96))
    rows = 256
    prepared = model.prepare(rows, CPU, torch.bfloat16)
    start, actions, noise = a_dream(model, rows, steps=2)
    wanted, said = model.step(start, actions[:, 0], noise[:, 0])
    got, said_low = prepared.step(start, actions[:, 0], noise[:, 0])
    assert got["h"].dtype == got["z"].dtype == said_low.reward.dtype == torch.float32
    assert not torch.equal(got["h"], wanted["h"])
    assert float((got["h"] - wanted["h"]).abs().max()) < 0.03
    same = torch.isclose(got["z"], wanted["z"], atol=0.05).all(-1)
    assert float(same.float().mean()) > 0.8
    assert float((said_low.termination - said.termination)[same].abs().max()) < 0.03


def test_preparing_leaves_the_plain_model_as_it_was():
    model = a_model(RSSMConfig()).requires_grad_(True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    prepared = model.prepare(ROWS, CPU, torch.float32)
    start, actions, noise = a_dream(model)
    prepared.step(start, actions[:, 0], noise[:, 0])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
