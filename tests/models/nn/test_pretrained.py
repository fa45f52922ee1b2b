"""Frozen encoders: what is loaded, and from where."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dreamgym.errors import PretrainedError
from dreamgym.models.nn.pretrained import FrozenEncoder
from tests import frozen_encoders

pytestmark = pytest.mark.skipif(
    not frozen_encoders.INSTALLED, reason="transformers is not installed"
)


@pytest.mark.parametrize(("kind", "frames"), [("dinov2", 0), ("vjepa2", 2)])
def test_tokens_are_those_of_the_model_on_an_image_or_a_still_clip(kind, frames):
    from transformers import AutoModel

    encoder = FrozenEncoder(frozen_encoders.folder(kind))
    images = torch.randn(2, 3, frozen_encoders.SIDE, frozen_encoders.SIDE)
    model = AutoModel.from_pretrained(frozen_encoders.folder(kind)).eval()
    with torch.no_grad():
        if frames:
            clip = torch.stack([images] * frames, 1)
            expected = model(pixel_values_videos=clip, skip_predictor=True).last_hidden_state
        else:
            expected = model(pixel_values=images).last_hidden_state
    assert torch.equal(encoder.tokens(images), expected)
    assert (encoder.width, encoder.patch, encoder.frames) == (24, 14, frames)
    assert not list(encoder.parameters())


def test_weights_that_would_be_unpickled_are_refused(tmp_path):
    folder = Path(shutil.copytree(frozen_encoders.folder("dinov2"), tmp_path / "pickled"))
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    FrozenEncoder(str(folder))
    weights.unlink()
    with pytest.raises(PretrainedError, match="cannot be loaded"):
        FrozenEncoder(str(folder))


def test_on_the_meta_device_the_config_is_read_and_no_weights():
    with torch.device("meta"):
        encoder = FrozenEncoder(frozen_encoders.folder("vjepa2"))
    assert encoder.frozen is None
    assert (encoder.width, encoder.patch, encoder.side) == (24, 14, frozen_encoders.SIDE)
