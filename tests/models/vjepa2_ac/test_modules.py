"""The predictor of V-JEPA 2-AC, against what is published about it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from dreamgym.models import VJEPA2AC, VJEPA2ACConfig
from dreamgym.models.vjepa2_ac.modules import Predictor, Rotary, droid_pose

GRID, FRAMES, PATCH = 2, 3, 5
SMALL = VJEPA2ACConfig(context=FRAMES, blocks=2, heads=2, width=40)


def test_the_published_predictor_has_the_published_parameters():
    with torch.device("meta"):
        predictor = Predictor(1408, 16, 7, 7, VJEPA2AC.presets["vjepa2-ac"])
    assert sum(p.numel() for p in predictor.parameters()) == 305_220_992


@pytest.mark.parametrize(("head", "part"), [(20, 6), (64, 20), (8, 2)])
def test_positions_rotate_a_third_each_by_time_height_and_width(head, part):
    """Written out by number: the frequencies of a third are listed twice, pairs are neighbours."""
    rotary = Rotary(head, GRID, 2, FRAMES)
    tokens = FRAMES * (2 + GRID * GRID)
    x = torch.randn(1, 1, tokens, head, dtype=torch.float64)
    rotated = rotary.double()(x)[0, 0]
    for token in range(tokens):
        time, within = divmod(token, 2 + GRID * GRID)
        row, column = divmod(within - 2, GRID) if within >= 2 else (0, 0)
        for k in range(head):
            section, place = divmod(k, part)
            if section > 2:
                assert rotated[token, k] == x[0, 0, token, k]
                continue
            frequency = 10000.0 ** -((place % (part // 2)) / (part // 2))
            angle = (time, row, column)[section] * frequency
            partner = x[0, 0, token, k ^ 1] * (-1 if k % 2 == 0 else 1)
            expected = x[0, 0, token, k] * math.cos(angle) + partner * math.sin(angle)
            assert float(rotated[token, k]) == pytest.approx(float(expected), abs=1e-6)


def test_tokens_see_their_own_frame_and_those_before_it():
    torch.manual_seed(0)
    predictor = Predictor(PATCH, GRID, 2, 3, SMALL).eval()
    inputs = [torch.randn(1, FRAMES, n) for n in (GRID * GRID * PATCH, 2, 3)]
    shape = (1, FRAMES, GRID * GRID, PATCH)
    output = predictor(inputs[0].view(shape), *inputs[1:])
    assert output.shape == shape
    for k in range(3):
        changed = [leaf.clone() for leaf in inputs]
        changed[k][:, 1] += 1.0
        other = predictor(changed[0].view(shape), *changed[1:])
        difference = (other - output).abs().amax(-1)[0]
        assert (difference[0] == 0).all()
        assert (difference[1:] > 1e-3).all()
    part = predictor(inputs[0].view(shape)[:, :2], *(leaf[:, :2] for leaf in inputs[1:]))
    torch.testing.assert_close(part, output[:, :2])


def test_the_encoder_of_extrinsics_is_there_and_frozen():
    predictor = Predictor(PATCH, GRID, 7, 7, VJEPA2ACConfig(extrinsics=True))
    assert predictor.embed_extrinsics.weight.shape == (256, 6)
    assert not predictor.embed_extrinsics.weight.requires_grad


def test_poses_are_added_and_turned():
    rng = np.random.default_rng(0)
    pose, action = rng.uniform(-1, 1, (2, 20, 7))
    pose[:, 6] = rng.uniform(0, 1, 20)
    turned = Rotation.from_euler("xyz", action[:, 3:6]) * Rotation.from_euler("xyz", pose[:, 3:6])
    found = droid_pose(torch.from_numpy(pose), torch.from_numpy(action)).numpy()
    np.testing.assert_allclose(found[:, :3], pose[:, :3] + action[:, :3])
    np.testing.assert_allclose(found[:, 3:6], turned.as_euler("xyz"), atol=1e-12)
    np.testing.assert_allclose(found[:, 6], np.clip(pose[:, 6] + action[:, 6], 0, 1))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"width": 30, "heads": 4}, "not divisible"),
        ({"width": 16, "heads": 4}, "at least 6"),
        ({"pose": "droid"}, "units='raw'"),
        ({"units": "symlog"}, "units='symlog' is not valid"),
        ({"context": 1}, "context=1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        VJEPA2ACConfig(**settings)
