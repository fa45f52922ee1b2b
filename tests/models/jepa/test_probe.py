"""The probe: decoding embeddings, and the residual that a state carries."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from dreamgym.models import filter_states
from dreamgym.models.jepa.loss import longest_context
from dreamgym.models.jepa.modules import ObservationCodec, Probe
from dreamgym.models.observations import get_part
from tests.models.jepa.test_model import (
    BATCH,
    IMAGE,
    LENGTH,
    SMALL,
    VECTOR,
    a_model,
    a_segment,
    noise_for,
)

BOTH = gym.spaces.Dict({"image": IMAGE, "numbers": gym.spaces.Box(-3.0, 3.0, (2,), np.float32)})


@pytest.mark.parametrize("space", [VECTOR, BOTH])
def test_observed_vectors_are_decoded_exactly(space):
    model, segment = a_model(replace(SMALL, probe="all"), space), a_segment(space)
    states = filter_states(model, segment, noise_for(model, segment))
    key = "" if space is VECTOR else "numbers"
    for t in range(segment.mask.shape[1] + 1):
        state = {name: leaf[:, t] for name, leaf in states.items()}
        seen = get_part(segment.observation, key)[:, t]
        decoded = get_part(model.decode(state), key)
        torch.testing.assert_close(decoded, seen.clamp(-3, 3), rtol=1e-5, atol=1e-5)


def test_the_residual_decays_by_its_ar1_coefficient_and_is_added_when_decoding():
    model = a_model()
    model.probe.squared.copy_(torch.tensor([1.0, 2.0, 4.0, 0.0]))
    model.probe.lagged.copy_(torch.tensor([0.5, 2.5, -1.0, 0.0]))
    torch.testing.assert_close(model.probe.residual_ar1, torch.tensor([0.5, 1.0, 0.0, 0.0]))
    segment = a_segment()
    states = filter_states(model, segment, noise_for(model, segment))
    state = {name: leaf[:, -1] for name, leaf in states.items()}
    noise = torch.rand(BATCH, model.noise_dim)
    after, _ = model.step(state, segment.action[:, -1], noise)
    torch.testing.assert_close(after["unread"], state["unread"] * model.probe.residual_ar1)
    standard = model.probe.vectors(model.features(after)) + after["unread"]
    expected = standard * model.senses.vectors[0].std + model.senses.vectors[0].mean
    torch.testing.assert_close(model.decode(after), expected.clamp(-3, 3))


def test_the_ar1_coefficient_is_recovered_from_residuals_and_padding_is_ignored():
    probe = Probe(ObservationCodec(VECTOR, SMALL), SMALL)
    generator = torch.Generator().manual_seed(0)
    coefficient = torch.tensor([0.0, 0.3, 0.7, 0.95])
    for update in range(200):
        before = torch.randn(8, 16, 4, generator=generator)
        fresh = torch.randn(before.shape, generator=generator)
        after = coefficient * before + (1 - coefficient.square()).sqrt() * fresh
        mask = torch.rand(8, 16, generator=generator) < 0.7
        for residuals in (before, after):
            residuals[~mask] = 1e3
        probe.update_residual_moments(before, after, mask, torch.tensor(1 / (update + 1)))
    torch.testing.assert_close(probe.residual_ar1, coefficient, atol=0.02, rtol=0)


def test_the_loss_in_training_mode_updates_the_residual_moments():
    model, segment = a_model().train(), a_segment()
    mask = torch.arange(LENGTH) < torch.tensor([2, 7, 4, 1, 5, 3]).unsqueeze(1)
    segment = segment._replace(mask=mask)
    model.loss(segment, noise_for(model, segment))
    with torch.no_grad():
        standard = model.senses.standardise(segment.observation)
        # Still in training mode: batch norm uses the same batch, and gives the same values.
        encoding = model.encode_segment(segment)
        predicted = longest_context(model.predict_windows(encoding))
        residuals = standard - model.probe.vectors(encoding.embeddings)
        predicted_residuals = standard[:, 1:] - model.probe.vectors(predicted)
    squares, products = torch.zeros(4), torch.zeros(4)
    for row, length in enumerate(mask.sum(1).tolist()):
        for t in range(length):
            squares += residuals[row, t].square()
            products += residuals[row, t] * predicted_residuals[row, t]
    torch.testing.assert_close(model.probe.squared, squares / mask.sum())
    torch.testing.assert_close(model.probe.lagged, products / mask.sum())
    model.eval().loss(segment, noise_for(model, segment))
    torch.testing.assert_close(model.probe.squared, squares / mask.sum())


@pytest.mark.parametrize(("space", "probe"), [(IMAGE, "all"), (IMAGE, "none"), (BOTH, "vectors")])
def test_without_decoded_vectors_a_state_has_no_residual(space, probe):
    model = a_model(replace(SMALL, probe=probe), space)
    assert "unread" not in model.initial(BATCH)
    assert not [name for name in model.state_dict() if "lagged" in name or "squared" in name]
