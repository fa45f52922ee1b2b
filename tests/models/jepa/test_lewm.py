"""LeWM checkpoints: both versions of their names, the authors' own code as reference, refusals."""

from __future__ import annotations

import json

import gymnasium as gym
import numpy as np
import pytest
import torch

from dreamgym.errors import LeWMError
from dreamgym.models import Decodes
from dreamgym.models.jepa.lewm import LeWMStatistics, load_lewm

SIDE = 28
IMAGES = gym.spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)
BLOCKS = gym.spaces.Box(-1.0, 1.0, (5, 2), np.float32)
MEAN, STD = torch.tensor([0.1, -0.2]), torch.tensor([0.5, 0.3])
PIXEL_MEAN, PIXEL_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STATISTICS = LeWMStatistics(
    action_mean=MEAN.tolist(),
    action_std=STD.tolist(),
    pixel_mean=PIXEL_MEAN,
    pixel_std=PIXEL_STD,
)
PACKAGE = "stable_worldmodel.wm.lewm"


def a_config() -> dict:
    mlp = {
        "_target_": f"{PACKAGE}.module.MLP",
        "input_dim": 192,
        "output_dim": 192,
        "hidden_dim": 2048,
        "norm_fn": {"_target_": "torch.nn.BatchNorm1d", "_partial_": True},
    }
    return {
        "_target_": f"{PACKAGE}.LeWM",
        "encoder": {
            "_target_": "stable_pretraining.backbone.utils.vit_hf",
            "size": "tiny",
            "patch_size": 14,
            "image_size": SIDE,
            "pretrained": False,
            "use_mask_token": False,
        },
        "predictor": {
            "_target_": f"{PACKAGE}.module.Predictor",
            "num_frames": 3,
            "input_dim": 192,
            "hidden_dim": 192,
            "output_dim": 192,
            "depth": 6,
            "heads": 16,
            "mlp_dim": 2048,
            "dim_head": 64,
            "dropout": 0.1,
            "emb_dropout": 0.0,
        },
        "action_encoder": {
            "_target_": f"{PACKAGE}.module.Embedder",
            "input_dim": 10,
            "emb_dim": 192,
        },
        "projector": mlp,
        "pred_proj": mlp,
    }


def shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of a LeWM for images of 28 pixels, by its name in transformers 5."""
    table: dict[str, tuple[int, ...]] = {
        "encoder.embeddings.cls_token": (1, 1, 192),
        "encoder.embeddings.position_embeddings": (1, 5, 192),
        "encoder.embeddings.patch_embeddings.projection.weight": (192, 3, 14, 14),
        "encoder.embeddings.patch_embeddings.projection.bias": (192,),
        "predictor.pos_embedding": (1, 3, 192),
        "action_encoder.patch_embed.weight": (10, 10, 1),
        "action_encoder.patch_embed.bias": (10,),
    }
    linears = {"action_encoder.embed.0": (768, 10), "action_encoder.embed.2": (192, 768)}
    norms = {"encoder.layernorm": 192, "predictor.transformer.norm": 192}
    for k in range(12):
        for name in (
            "attention.q_proj",
            "attention.k_proj",
            "attention.v_proj",
            "attention.o_proj",
        ):
            linears[f"encoder.layers.{k}.{name}"] = (192, 192)
        linears[f"encoder.layers.{k}.mlp.fc1"] = (768, 192)
        linears[f"encoder.layers.{k}.mlp.fc2"] = (192, 768)
        norms[f"encoder.layers.{k}.layernorm_before"] = 192
        norms[f"encoder.layers.{k}.layernorm_after"] = 192
    for k in range(6):
        block = f"predictor.transformer.layers.{k}"
        table[f"{block}.attn.to_qkv.weight"] = (3072, 192)
        linears[f"{block}.attn.to_out.0"] = (192, 1024)
        linears[f"{block}.mlp.net.1"], linears[f"{block}.mlp.net.4"] = (2048, 192), (192, 2048)
        linears[f"{block}.adaLN_modulation.1"] = (1152, 192)
        norms[f"{block}.attn.norm"] = norms[f"{block}.mlp.net.0"] = 192
    for name in ("projector", "pred_proj"):
        linears[f"{name}.net.0"], linears[f"{name}.net.3"] = (2048, 192), (192, 2048)
        norms[f"{name}.net.1"] = 2048
        table[f"{name}.net.1.running_mean"] = table[f"{name}.net.1.running_var"] = (2048,)
        table[f"{name}.net.1.num_batches_tracked"] = ()
    for name, shape in linears.items():
        table |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name, width in norms.items():
        table |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    return table


def a_state_dict() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in shapes().items():
        if name.endswith("num_batches_tracked"):
            tensors[name] = torch.tensor(7)
        elif name.endswith("running_var"):
            tensors[name] = torch.rand(shape, generator=generator) + 0.5
        else:
            tensors[name] = torch.randn(shape, generator=generator) * 0.05
    return tensors


def as_transformers_4(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors by their names in transformers 4."""
    pairs = {
        "encoder.layers.": "encoder.encoder.layer.",
        "attention.q_proj": "attention.attention.query",
        "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value",
        "attention.o_proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    renamed = {}
    for name, value in tensors.items():
        if name.startswith("encoder.layers."):
            for new, old in pairs.items():
                name = name.replace(new, old)
        renamed[name] = value
    return renamed


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return a_state_dict()


@pytest.fixture
def folder(tmp_path, tensors):
    torch.save(tensors, tmp_path / "weights_epoch_3.pt")
    (tmp_path / "config.json").write_text(json.dumps(a_config()))
    return tmp_path


def load(path, statistics=STATISTICS, images=IMAGES, actions=BLOCKS):
    return load_lewm(path, images, actions, statistics)


def test_303_tensors_load_by_their_names_in_both_versions(folder, tensors, tmp_path):
    assert len(tensors) == 303
    model = load(folder)
    old = tmp_path / "old"
    old.mkdir()
    (old / "config.json").write_text(json.dumps(a_config()))
    renamed = as_transformers_4(tensors)
    assert sum(name in tensors for name in renamed) == 303 - 12 * 16
    torch.save({"state_dict": renamed}, old / "weights.pt")
    other = load(old / "weights.pt")
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    copied = {value.flatten()[0].item() for value in model.state_dict().values() if value.numel()}
    assert all(value.flatten()[0].item() in copied for value in tensors.values())


def test_it_predicts_no_reward_and_no_termination_and_has_no_decoder(folder):
    model = load(folder)
    images = torch.randint(0, 256, (2, SIDE, SIDE, 3), dtype=torch.uint8)
    state = model.observe(model.initial(2), torch.zeros(2, 5, 2), images, torch.rand(2, 192))
    _, prediction = model.step(state, torch.rand(2, 5, 2), torch.rand(2, 192))
    assert not prediction.reward.any()
    assert (prediction.termination < 1e-9).all()
    assert not isinstance(model, Decodes)
    assert not model.training


def test_older_configs_with_other_or_no_class_names_load(folder):
    config = a_config()
    config["_target_"] = "jepa.JEPA"
    config["predictor"]["_target_"] = "module.ARPredictor"
    del config["action_encoder"]["_target_"]
    (folder / "config.json").write_text(json.dumps(config))
    load(folder)


def test_missing_statistics_are_named_in_the_error(folder):
    with pytest.raises(LeWMError, match="action_mean, action_std, pixel_mean, pixel_std"):
        load(folder, None)
    some = LeWMStatistics(action_mean=[0, 0], action_std=[1, 1], pixel_mean=PIXEL_MEAN)
    with pytest.raises(LeWMError, match="does not contain pixel_std"):
        load(folder, some)


class Planted:
    """An object whose pickle calls a function."""

    def __reduce__(self):
        return (open, ("planted", "w"))


def test_anything_but_a_lewm_checkpoint_is_refused(folder, tensors, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = folder / "weights_epoch_3.pt"
    for changed, message in (
        ({k: v for k, v in tensors.items() if k != "predictor.pos_embedding"}, "1 are missing"),
        ({**tensors, "extra": torch.zeros(1)}, r"1 are unknown \(extra\)"),
        ({**tensors, "predictor.pos_embedding": torch.zeros(1, 4, 192)}, r"\(1, 4, 192\)"),
        ([1], "holds a list"),
        ({"model": Planted()}, "cannot be read as tensors"),
    ):
        torch.save(changed, weights)
        with pytest.raises(LeWMError, match=message):
            load(folder)
    assert not (tmp_path / "planted").exists()
    torch.save(tensors, weights)
    with pytest.raises(LeWMError, match="actions are 10 numbers"):
        load(folder, actions=gym.spaces.Box(-1, 1, (2,), np.float32))
    with pytest.raises(LeWMError, match="uint8 images"):
        load(folder, images=gym.spaces.Box(-1, 1, (4,), np.float32))
    torch.save(tensors, folder / "weights_2.pt")
    with pytest.raises(LeWMError, match="several weights"):
        load(folder)


@pytest.mark.parametrize(
    ("part", "field", "value", "message"),
    [
        ("predictor", "_target_", "os.system", "os.system"),
        ("predictor", "hidden_dim", 384, "hidden_dim is 384"),
        ("projector", "norm_fn", None, "BatchNorm1d"),
        ("encoder", "size", "giant", "vit_SIZE_patchN"),
        ("action_encoder", "input_dim", None, "config of a supported LeWM"),
    ],
)
def test_configs_of_other_models_are_refused(folder, part, field, value, message):
    config = a_config()
    config[part][field] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(LeWMError, match=message):
        load(folder)


def test_predictions_are_those_of_stable_worldmodel(folder, tensors):
    hydra = pytest.importorskip("hydra.utils", reason="stable-worldmodel[train] is not installed")
    pytest.importorskip(PACKAGE, reason="stable-worldmodel[train] is not installed")
    theirs = hydra.instantiate(a_config())
    names = theirs.state_dict().keys()
    theirs.load_state_dict(tensors if names == tensors.keys() else as_transformers_4(tensors))
    theirs.eval()
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (2, 3, SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)
    standard = torch.randn(2, 6, 10, generator=generator)
    floats = images.movedim(-1, -3) / 255
    channels = [torch.tensor(c).view(3, 1, 1) for c in (PIXEL_MEAN, PIXEL_STD)]
    pixels = (floats - channels[0]) / channels[1]
    model = load(folder)
    raw = standard.unflatten(-1, (5, 2)) * STD + MEAN
    for frames in (1, 3):  # a short context as at an episode's start, and a full one
        with torch.no_grad():
            info = theirs.rollout({"pixels": pixels[:, None, :frames]}, standard[:, None])
        expected = info["predicted_emb"][:, 0, frames:]
        state, before = model.initial(2), torch.zeros(2, 5, 2)
        noise = torch.rand(2, model.noise_dim)
        for t in range(frames):
            state, before = model.observe(state, before, images[:, t], noise), raw[:, t]
        for t in range(frames - 1, 6):
            state, _ = model.step(state, raw[:, t], noise)
            reference = expected[:, t - frames + 1]
            torch.testing.assert_close(model.features(state), reference, atol=1e-4, rtol=1e-4)
