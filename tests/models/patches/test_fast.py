"""Steps of models of patches in bfloat16."""

from __future__ import annotations

import pytest
import torch

from dreamgym._device import computes_bfloat16
from dreamgym.models.base import filter_states
from dreamgym.models.patches.fast import FastPatchModel
from tests.models.vjepa2_ac.test_model import BATCH, DROID, a_model, a_segment, no_noise
from tests.small_worlds import PRETRAINED, SPECIAL, observed_state, random_actions

pytestmark = pytest.mark.skipif(
    not computes_bfloat16("cpu"), reason="this processor does not compute bfloat16"
)


@pytest.mark.parametrize("family", PRETRAINED)
def test_products_are_in_bfloat16_and_states_are_not(family):
    model = SPECIAL[family]("box").eval().requires_grad_(False)
    state, action = observed_state(model, BATCH), random_actions(model.action_space, BATCH)
    form = model.prepare(BATCH, torch.device("cpu"), torch.bfloat16)
    assert isinstance(form, FastPatchModel)
    expected, prediction = model.step(state, action, torch.zeros(BATCH, 0))
    found, other = form.step(state, action, torch.zeros(BATCH, 0))
    assert not torch.equal(found["patches"], expected["patches"])
    for name, leaf in expected.items():
        assert found[name].dtype == leaf.dtype
        torch.testing.assert_close(found[name], leaf, atol=0.1, rtol=0.1)
    for one, two in zip(other, prediction, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, two, atol=0.1, rtol=0.1)


def test_the_encoder_is_shared_and_weights_are_copied():
    model = a_model()
    form = model.prepare(BATCH, torch.device("cpu"), torch.float32)
    assert form._arranged.senses is model.senses
    for parameter in model.predictor.parameters():
        torch.nn.init.zeros_(parameter)
    assert form._arranged.predictor.project.weight.any()


def test_poses_are_added_in_full_precision():
    model, segment = a_model(**DROID), a_segment(a_model(**DROID), 4)
    state = {k: v[:, -1] for k, v in filter_states(model, segment, no_noise(4)).items()}
    action, noise = segment.action[:, 0], torch.zeros(BATCH, 0)
    form = model.prepare(BATCH, torch.device("cpu"), torch.bfloat16)
    expected, _ = model.step(state, action, noise)
    assert torch.equal(form.step(state, action, noise)[0]["vectors"], expected["vectors"])
