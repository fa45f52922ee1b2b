"""The fast form of a JEPA computes the same step as the plain one, in float32 and bfloat16."""

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
        # No weight stays at zero or one, where errors would not show.
        if "modulation" in name or "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter.data, mean=float("norm.weight" in name), std=0.3)
    for norm in (model.project_prediction.norm, model.projector.norm):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
        torch.nn.init.normal_(norm.bias.data)
    model.residual.uniform_(0.05, 0.2)
    if model.residual_probe is not None:
        model.probe.squared.fill_(1.0)
        model.probe.lagged.uniform_(0.2, 0.9)
    return model.eval().requires_grad_(False)


def a_dream(model: JEPA, rows: int = ROWS):
    """Start, actions and noise; the rows' windows hold from zero to all frames."""
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
    expected = imagine(model, start, actions, noise, temperature)
    states, prediction = imagine(prepared, start, actions, noise, temperature)
    torch.testing.assert_close(states, expected[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(tuple(prediction), tuple(expected[1]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("temperature", [1.0, 0.5, torch.linspace(0.5, 2.0, ROWS)])
@pytest.mark.parametrize("name", sorted({*JEPA.presets} - {"lewm"}))
def test_every_small_preset_on_vectors_dreams_the_same(name, temperature):
    assert_same_dream(a_model(JEPA.presets[name]), temperature=temperature)


@pytest.mark.parametrize("context", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("blocks", [1, 3])
def test_lewm_with_any_context_and_depth_dreams_the_same(context, blocks):
    assert_same_dream(a_model(replace(LEWM, context=context, blocks=blocks), IMAGE))


def test_a_model_of_images_and_vectors_dreams_the_same():
    space = gym.spaces.Dict({"eye": IMAGE, "body": VECTOR})
    assert_same_dream(a_model(replace(LEWM, probe="vectors", predicts="change"), space))


def test_more_rows_than_one_chunk_dream_the_same():
    assert_same_dream(a_model(LEWM, IMAGE), rows=300)


def test_full_windows_step_the_same():
    model = a_model(LEWM, IMAGE)
    start, actions, noise = a_dream(model)
    start["seen"].fill_(1.0)
    fast, _ = model.prepare(ROWS, CPU, torch.float32).step(start, actions[:, 0], noise[:, 0])
    expected, _ = model.step(start, actions[:, 0], noise[:, 0])
    torch.testing.assert_close(fast, expected, rtol=1e-4, atol=1e-5)


def test_a_deterministic_model_uses_no_noise():
    model = a_model(LEWM, IMAGE)
    model.residual.zero_()
    prepared = model.prepare(ROWS, CPU, torch.float32)
    start, actions, noise = a_dream(model)
    one, _ = prepared.step(start, actions[:, 0], noise[:, 0])
    other, _ = prepared.step(start, actions[:, 0], noise[:, 1])
    expected, _ = model.step(start, actions[:, 0], noise[:, 0])
    assert torch.equal(one["embeddings"], other["embeddings"])
    torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-5)


def test_bfloat16_stays_close_to_float32_over_a_dream():
    model = a_model(replace(LEWM, embedding=96, mlp=192, width=192), IMAGE)
    model.residual.zero_()
    rows = 64
    start, actions, noise = a_dream(model, rows)
    plain, _ = imagine(model, start, actions, noise)
    fast, prediction = imagine(model.prepare(rows, CPU, torch.bfloat16), start, actions, noise)
    assert fast["embeddings"].dtype == prediction.reward.dtype == torch.float32
    plain, fast = plain["embeddings"][:, :, -1], fast["embeddings"][:, :, -1]
    error = (fast - plain).square().mean((0, 2)).sqrt() / plain.std()
    assert not torch.equal(fast, plain)
    assert float(error[0]) < 0.01
    assert float(error[-1]) < 0.03
