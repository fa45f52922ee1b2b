"""Published weights of V-JEPA 2-AC, by files with the same names and shapes and random numbers."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dreamgym.errors import PretrainedError
from dreamgym.models import VJEPA2AC, VJEPA2ACConfig
from dreamgym.models.vjepa2_ac import load_vjepa2_ac
from tests import frozen_encoders
from tests.models.vjepa2_ac.test_model import BATCH, DROID, MOVES, POSES
from tests.small_worlds import random_actions, random_observations, vjepa2_config

pytestmark = pytest.mark.skipif(
    not frozen_encoders.INSTALLED, reason="transformers is not installed"
)


def small() -> VJEPA2ACConfig:
    return vjepa2_config(extrinsics=True, decoder=False, **DROID)


@pytest.fixture
def fitted() -> VJEPA2AC:
    torch.manual_seed(0)
    model = VJEPA2AC(POSES, MOVES, small()).eval().requires_grad_(False)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def published(model: VJEPA2AC) -> dict[str, Tensor]:
    """Return the predictor's tensors under their published names, written out by layer."""
    layers = {
        "predictor_embed": "embed",
        "action_encoder": "embed_action",
        "state_encoder": "embed_vectors",
        "extrinsics_encoder": "embed_extrinsics",
        "predictor_blocks.0.norm1": "blocks.0.norm_attention",
        "predictor_blocks.0.attn.qkv": "blocks.0.attention.joint",
        "predictor_blocks.0.attn.proj": "blocks.0.attention.out",
        "predictor_blocks.0.norm2": "blocks.0.norm_mlp",
        "predictor_blocks.0.mlp.fc1": "blocks.0.mlp.0",
        "predictor_blocks.0.mlp.fc2": "blocks.0.mlp.2",
        "predictor_norm": "norm",
        "predictor_proj": "project",
    }
    own = model.predictor.state_dict()
    return {
        f"{theirs}.{leaf}": own[f"{ours}.{leaf}"]
        for theirs, ours in layers.items()
        for leaf in ("weight", "bias")
    }


def dreamt(model: VJEPA2AC) -> Tensor:
    observation = random_observations(POSES, BATCH)
    action, noise = random_actions(MOVES, BATCH), torch.zeros(BATCH, 0)
    state = model.observe(model.initial(BATCH), action, observation, noise)
    for _ in range(2):
        state, _ = model.step(state, action, noise)
    return model.newest(state)["patches"]


@pytest.mark.parametrize("kind", ["checkpoint", "predictor", "safetensors"])
def test_loaded_weights_dream_as_those_that_were_saved(fitted, kind, tmp_path):
    tensors = published(fitted)
    if kind == "safetensors":
        path = tmp_path / "predictor.safetensors"
        save_file(tensors, path)
    else:
        path = tmp_path / "vjepa2-ac-vitg.pt"
        wrapped = {f"module.backbone.{name}": leaf for name, leaf in tensors.items()}
        checkpoint = {"predictor": wrapped, "encoder": {"a": torch.ones(1)}, "epoch": 315}
        torch.save(checkpoint if kind == "checkpoint" else wrapped, path)
    before = torch.get_rng_state()
    loaded = load_vjepa2_ac(path, POSES, MOVES, small())
    assert torch.equal(before, torch.get_rng_state())
    torch.testing.assert_close(dreamt(loaded), dreamt(fitted))


def test_without_heads_rewards_are_zero_and_dreams_go_on(fitted, tmp_path):
    save_file(published(fitted), tmp_path / "p.safetensors")
    model = load_vjepa2_ac(tmp_path / "p.safetensors", POSES, MOVES, small())
    _, prediction = model.step(
        model.initial(BATCH), random_actions(MOVES, BATCH), torch.zeros(BATCH, 0)
    )
    assert (prediction.reward == 0).all()
    assert (prediction.termination < 1e-9).all()


def without(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: leaf for key, leaf in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: without("predictor_norm.bias", t), "1 are missing.*predictor_norm.bias"),
        (lambda t: t | {"mask_tokens": torch.zeros(1)}, "1 are unknown.*mask_tokens"),
        (
            lambda t: t | {"action_encoder.weight": torch.zeros(24, 6)},
            r"action_encoder.weight is \(24, 6\), expected \(24, 7\)",
        ),
        (lambda t: t | {"predictor_norm.bias": 1.0}, "predictor_norm.bias is float"),
        (lambda t: {"predictor": 3}, "holds a int as predictor"),
        (lambda t: [], "holds a list"),
    ],
    ids=["missing", "unknown", "shape", "number", "no predictor", "list"],
)
def test_files_that_do_not_fit_are_refused(fitted, change, words, tmp_path):
    torch.save(change(published(fitted)), tmp_path / "p.pt")
    with pytest.raises(PretrainedError, match=words):
        load_vjepa2_ac(tmp_path / "p.pt", POSES, MOVES, small())


class Attack:
    def __reduce__(self):
        return print, ("executed",)


def test_nothing_in_a_file_is_executed(tmp_path, capsys):
    (tmp_path / "a.pt").write_bytes(pickle.dumps({"predictor": Attack()}, protocol=2))
    torch.save({"predictor": Attack()}, tmp_path / "b.pt")
    (tmp_path / "c.safetensors").write_bytes(b"nothing")
    for name in ("a.pt", "b.pt", "c.safetensors", "absent.pt"):
        with pytest.raises(PretrainedError, match=name):
            load_vjepa2_ac(tmp_path / name, POSES, MOVES, small())
    assert "executed" not in capsys.readouterr().out
