"""Frozen encoders of the transformers library, with tiny random models."""

from __future__ import annotations

import sys
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from dreamgym.errors import PretrainedError
from dreamgym.models.jepa.config import JEPAConfig
from dreamgym.models.jepa.model import JEPA
from dreamgym.models.jepa.pretrained import PretrainedEncoder
from tests.small_worlds import ACTION_SPACES, small_model

SIDE = 28
IMAGES = gym.spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)
SMALL = JEPAConfig(embedding=8, width=16, blocks=1, heads=2, head_width=4, mlp=16, image_size=SIDE)
SIZES = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


def a_folder(path, kind: str, seed: int = 0) -> str:
    """Save a tiny random model in the hub's format, and return its path."""
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed: pip install 'dreamgym[transformers]'"
    )
    torch.manual_seed(seed)
    if kind == "dinov2":
        config = transformers.Dinov2Config(image_size=SIDE, patch_size=14, mlp_ratio=2, **SIZES)
        model = transformers.Dinov2Model(config)
    elif kind == "vjepa2":
        config = transformers.VJEPA2Config(
            crop_size=SIDE,
            patch_size=14,
            frames_per_clip=4,
            pred_hidden_size=24,
            pred_num_attention_heads=2,
            pred_num_hidden_layers=1,
            **SIZES,
        )
        model = transformers.VJEPA2Model(config)
    else:
        model = transformers.BertModel(transformers.BertConfig(vocab_size=10, **SIZES))
    model.save_pretrained(path)
    return str(path)


def a_model(name: str) -> JEPA:
    torch.manual_seed(0)
    config = replace(SMALL, image_encoder=f"transformers:{name}")
    return JEPA(IMAGES, ACTION_SPACES["box"], config).eval()


def some_images(count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize(("kind", "width"), [("dinov2", 48), ("vjepa2", 24)])
def test_images_are_encoded_row_by_row_by_frozen_weights(kind, width, tmp_path):
    model = a_model(a_folder(tmp_path / kind, kind))
    encoder = model.senses.images[0].network
    assert encoder.dim == width
    images = some_images()
    torch.testing.assert_close(model.embed(images)[:1], model.embed(images[:1]))
    assert model.embed(images).std(0).min() > 0
    model.train()
    assert not encoder.frozen.training
    assert not [n for n, p in model.named_parameters() if n.startswith("senses")]


def test_the_encoding_is_the_class_token_and_the_mean_of_all_tokens(tmp_path):
    folder = a_folder(tmp_path / "dinov2", "dinov2")
    from transformers import AutoModel

    pixels = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        tokens = AutoModel.from_pretrained(folder).eval()(pixels).last_hidden_state
    expected = torch.cat([tokens[:, 0], tokens.mean(1)], -1)
    torch.testing.assert_close(PretrainedEncoder(folder)(pixels), expected)


def test_weights_are_not_saved_and_other_weights_are_refused(tmp_path):
    folder = a_folder(tmp_path / "dinov2", "dinov2")
    assert str(a_model(folder).pretrained_weights).startswith(f"{folder} (licence")
    assert small_model("jepa").pretrained_weights is None
    saved = a_model(folder).state_dict()
    assert [key for key in saved if "network" in key] == ["senses.images.0.network.fingerprint"]
    again = a_model(folder)
    again.load_state_dict(saved)
    torch.testing.assert_close(again.state_dict(), saved)
    a_folder(tmp_path / "dinov2", "dinov2", seed=1)
    with pytest.raises(RuntimeError, match="differ from those that this model was fitted with"):
        a_model(folder).load_state_dict(saved)


def test_moving_the_model_moves_the_frozen_encoder(tmp_path):
    model = a_model(a_folder(tmp_path / "dinov2", "dinov2")).to(torch.float64)
    frozen = model.senses.images[0].network.frozen
    assert {p.dtype for p in frozen.parameters()} == {torch.float64}


def test_a_text_model_is_refused(tmp_path):
    with pytest.raises(PretrainedError, match="which takes input_ids input"):
        a_model(a_folder(tmp_path / "bert", "bert"))


def test_a_missing_model_says_what_to_do(tmp_path, monkeypatch):
    pytest.importorskip("transformers", reason="transformers is not installed")
    with pytest.raises(PretrainedError, match="pass its path as the name"):
        a_model(str(tmp_path / "nothing"))


def test_without_transformers_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(PretrainedError, match=r"pip install 'dreamgym\[transformers\]'"):
        a_model("facebook/dinov2-small")
