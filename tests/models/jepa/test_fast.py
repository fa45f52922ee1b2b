"""The JEPA's arranged step is its plain one: any context, window, kind of observation, bfloat16."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from dreamgym.models import JEPA, JEPAConfig, imagine
from tests.small_worlds import STATISTICS

ROWS, STEPS = 6, 5
CPU = torch.device("cpu")
VECTOR = gym.spaces.Box(-3.0, 3.0, (4,), np.float32)
IMAGE = gym.spaces.Box(0, 255, (32, 32, 3), np.uint8)
LEWM = replace(
    JEPA.presets["lewm"],
    embedding=48,
    image_encoder="conv",
    image_size=64,
    width=96,
    blocks=3,
    heads=4,
    head_width=24,
    mlp=80,
)


def a_model(config: JEPAConfig, space: gym.Space = VECTOR) -> JEPA:
    torch.manual_seed(0)
    model = JEPA(space, gym.spaces.Box(-2.0, 2.0, (2,), np.float32), config)
    if space is VECTOR:
        model.set_statistics(STATISTICS)
    for name, parameter in model.predictor.named_parameters():
        # Nothing stays at zero, or at one: else much would be equal by itself.
        if "modulation" in name or "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter.data, mean=float("norm.weight" in name), std=0.3)
    for norm in (model.project_prediction.norm, model.projector.norm):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
        torch.nn.init.normal_(norm.bias.data)
    model.residual.uniform_(0.05, 0.2)
    if model.carrier is not None:
        model.probe.squared.fill_(1.0)
        model.probe.lagged.uniform_(0.2, 0.9)
    return model.eval().requires_grad_(False)


def a_dream(model: JEPA, rows: int = ROWS):
    """Start, actions and noise; rows begin with windows of every length, and of none."""
    generator = torch.Generator().manual_seed(1)
    start = {
        key: torch.randn(leaf.shape, generator=generator)
        for key, leaf in model.initial(rows).items()
    }
    context = model.config.context
    unseen = torch.arange(rows) % (context + 1)
    start["seen"] = (torch.arange(context) >= unseen.unsqueeze(1)).float()
    actions = 4 * torch.rand(rows, STEPS, 2, generator=generator) - 2
    return start, actions, torch.rand(rows, STEPS, model.noise_dim, generator=generator)


def assert_same_dream(model: JEPA, rows: int = ROWS, temperature=1.0) -> None:
    prepared = model.prepare(rows, CPU, torch.float32)
    start, actions, noise = a_dream(model, rows)
    wanted, said = imagine(model, start, actions, noise, temperature)
    got, said_arranged = imagine(prepared, start, actions, noise, temperature)
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(tuple(said_arranged), tuple(said), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("temperature", [1.0, 0.5, torch.linspace(0.5, 2.0, ROWS)])
@pytest.mark.parametrize("name", sorted({*JEPA.presets} - {"lewm"}))
def test_every_preset_on_vectors_dreams_the_same_when_arranged(name, temperature):
    assert_same_dream(a_model(JEPA.presets[name]), temperature=temperature)


@pytest.mark.parametrize("context", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("blocks", [1, 3])
def test_lewm_with_any_context_dreams_the_same_when_arranged(context, blocks):
    assert_same_dream(a_model(replace(LEWM, context=context, blocks=blocks), IMAGE))


def test_a_model_of_images_and_vectors_is_not_pulled_back_and_still_ends():
    space = gym.spaces.Dict({"eye": IMAGE, "body": VECTOR})
    assert_same_dream(a_model(replace(LEWM, probe="vectors", predicts="change"), space))


def test_more_rows_than_go_through_at_once_are_the_same():
    assert_same_dream(a_model(LEWM, IMAGE), rows=300)


def test_where_all_is_seen_no_mask_is_needed():
    model = a_model(LEWM, IMAGE)
    start, actions, noise = a_dream(model)
    start["seen"].fill_(1.0)
    got, _ = model.prepare(ROWS, CPU, torch.float32).step(start, actions[:, 0], noise[:, 0])
    wanted, _ = model.step(start, actions[:, 0], noise[:, 0])
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_a_certain_model_uses_no_noise():
    model = a_model(LEWM, IMAGE)
    model.residual.zero_()
    prepared = model.prepare(ROWS, CPU, torch.float32)
    start, actions, noise = a_dream(model)
    one, _ = prepared.step(start, actions[:, 0], noise[:, 0])
    other, _ = prepared.step(start, actions[:, 0], noise[:, 1])
    wanted, _ = model.step(start, actions[:, 0], noise[:, 0])
    assert torch.equal(one["embeddings"], other["embeddings"])
    torch.testing.assert_close(one, wanted, rtol=1e-4, atol=1e-5)


def test_bfloat16_drifts_by_little_in_a_long_dream():
    model = a_model(replace(LEWM, embedding=96, mlp=192, width=192), IMAGE)
    model.residual.zero_()
    rows = 64
    start, actions, noise = a_dream(model, rows)
    wanted, _ = imagine(model, start, actions, noise)
    got, said = imagine(model.prepare(rows, CPU, torch.bfloat16), start, actions, noise)
    assert got["embeddings"].dtype == said.reward.dtype == torch.float32
    wanted, got = wanted["embeddings"][:, :, -1], got["embeddings"][:, :, -1]
    error = (got - wanted).square().mean((0, 2)).sqrt() / wanted.std()
    assert not torch.equal(got, wanted)
    assert float(error[0]) < 0.01
    assert float(error[-1]) < 0.03
