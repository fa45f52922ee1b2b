"""Published weights of DIAMOND, by files with the same names and shapes and random numbers."""

from __future__ import annotations

import pickle
import re

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dreamgym.errors import PretrainedError
from dreamgym.models import DIAMOND, DIAMONDConfig
from dreamgym.models.diamond import load_diamond
from tests.small_worlds import random_observations

SPACE = gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)
ACTIONS = gym.spaces.Discrete(3)
SMALL = DIAMONDConfig(
    image_size=8,
    channels=(8, 8),
    blocks=2,
    condition=16,
    reward_channels=(8, 8),
    reward_condition=8,
    hidden=8,
    objective=DIAMOND.presets["diamond"].objective,
)


def published(model: DIAMOND) -> dict[str, Tensor]:
    """Return a small model's tensors under their published names, written out by kind of layer."""

    def block(ours: str, theirs: str) -> dict[str, str]:
        names = {
            f"{ours}.project": f"{theirs}.proj",
            f"{ours}.attention.norm": f"{theirs}.attn.norm.norm",
        }
        names |= {f"{ours}.attention.joint": f"{theirs}.attn.qkv_proj"}
        names |= {f"{ours}.attention.out": f"{theirs}.attn.out_proj"}
        parts = ("norm1.linear", "conv1", "norm2.linear", "conv2")
        return names | {f"{ours}.{part}": f"{theirs}.{part}" for part in parts}

    inner, other = "denoiser.inner_model", "rew_end_model"
    layers = {
        "denoiser.condition.0": f"{inner}.cond_proj.0",
        "denoiser.condition.2": f"{inner}.cond_proj.2",
        "denoiser.inwards": f"{inner}.conv_in",
        "denoiser.norm": f"{inner}.norm_out.norm",
        "denoiser.outwards": f"{inner}.conv_out",
        "denoiser.unet.shrink.1": f"{inner}.unet.downsamples.1.conv",
        "denoiser.unet.grow.1.conv": f"{inner}.unet.upsamples.1.conv",
        "outcomes.inwards": f"{other}.encoder.conv_in",
        "outcomes.shrink.1": f"{other}.encoder.downsamples.1.conv",
        "outcomes.trunk.0": f"{other}.head.0",
    }
    for level in range(2):
        for k in range(3):
            unet, ours = f"{inner}.unet", "denoiser.unet"
            layers |= block(f"{ours}.down.{level}.{k}", f"{unet}.d_blocks.{level}.resblocks.{k}")
            layers |= block(f"{ours}.up.{level}.{k}", f"{unet}.u_blocks.{level}.resblocks.{k}")
        layers |= block(
            f"denoiser.unet.middle.{level}", f"{inner}.unet.mid_blocks.resblocks.{level}"
        )
        layers |= block(f"outcomes.levels.{level}.0", f"{other}.encoder.blocks.{level}.resblocks.0")
        layers |= block(f"outcomes.middle.{level}", f"{other}.encoder.blocks.2.resblocks.{level}")
    own = model.state_dict()
    found = {
        f"{theirs}.{leaf}": own[f"{ours}.{leaf}"]
        for ours, theirs in layers.items()
        for leaf in ("weight", "bias")
        if f"{ours}.{leaf}" in own
    }
    half = own["outcomes.lstm.bias"] / 2
    last = [own["outcomes.reward.net.0.weight"], own["outcomes.termination.weight"]]
    return found | {
        f"{inner}.noise_emb.weight": own["denoiser.noise.weight"][None],
        f"{inner}.act_emb.0.weight": own["denoiser.action.weight"].T.contiguous(),
        f"{other}.act_emb.weight": own["outcomes.action.weight"].T.contiguous(),
        f"{other}.lstm.weight_ih_l0": own["outcomes.lstm.weight_ih"],
        f"{other}.lstm.weight_hh_l0": own["outcomes.lstm.weight_hh"],
        f"{other}.lstm.bias_ih_l0": half,
        f"{other}.lstm.bias_hh_l0": half.clone(),
        f"{other}.head.2.weight": torch.cat(last),
        "actor_critic.actor_linear.bias": torch.zeros(3),
    }


@pytest.fixture
def fitted() -> DIAMOND:
    torch.manual_seed(0)
    model = DIAMOND(SPACE, ACTIONS, SMALL).eval().requires_grad_(False)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model


def dreamt(model: DIAMOND) -> list[Tensor]:
    noise = torch.rand(2, 2, model.noise_dim, generator=torch.Generator().manual_seed(0))
    action = torch.tensor([0, 2])
    state = model.observe(model.initial(2), action, random_observations(SPACE, 2), noise[0])
    following, prediction = model.step(state, action, noise[1])
    return [*following.values(), *prediction]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_loaded_weights_dream_as_those_that_were_saved(fitted, suffix, tmp_path):
    path, tensors = tmp_path / f"agent{suffix}", published(fitted)
    if suffix == ".pt":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    before = torch.get_rng_state()
    loaded = load_diamond(path, SPACE, ACTIONS, SMALL)
    assert torch.equal(before, torch.get_rng_state())
    for one, two in zip(dreamt(loaded), dreamt(fitted), strict=True):
        assert torch.equal(one, two)


def without(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: leaf for key, leaf in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: without("rew_end_model.head.0.bias", t), "1 are missing.*head.0.bias"),
        (lambda t: t | {"denoiser.other": torch.zeros(1)}, "1 are unknown.*denoiser.other"),
        (
            lambda t: t | {"rew_end_model.act_emb.weight": torch.zeros(9, 8)},
            re.escape("act_emb.weight is (9, 8), expected (3, 8)") + ".*number of actions",
        ),
        (lambda t: t | {"rew_end_model.head.0.bias": 1.0}, "head.0.bias is float"),
        (lambda t: list(t.values()), "holds a list"),
    ],
    ids=["missing", "unknown", "shape", "number", "list"],
)
def test_files_that_do_not_fit_are_refused(fitted, change, words, tmp_path):
    torch.save(change(published(fitted)), tmp_path / "agent.pt")
    with pytest.raises(PretrainedError, match=words):
        load_diamond(tmp_path / "agent.pt", SPACE, ACTIONS, SMALL)


class Attack:
    def __reduce__(self):
        return print, ("executed",)


def test_nothing_in_a_file_is_executed(tmp_path, capsys):
    (tmp_path / "agent.pt").write_bytes(pickle.dumps({"a": Attack()}, protocol=2))
    torch.save({"a": Attack()}, tmp_path / "other.pt")
    (tmp_path / "agent.safetensors").write_bytes(b"nothing")
    for name in ("agent.pt", "other.pt", "agent.safetensors", "absent.pt"):
        with pytest.raises(PretrainedError, match=name):
            load_diamond(tmp_path / name, SPACE, ACTIONS, SMALL)
    assert not capsys.readouterr().out


def test_continuous_actions_are_refused(tmp_path):
    with pytest.raises(TypeError, match="Discrete actions"):
        load_diamond(tmp_path / "agent.pt", SPACE, gym.spaces.Box(-1, 1, (2,)), SMALL)


def test_a_file_that_is_no_checkpoint_is_not_recommended_for_execution(tmp_path):
    path = tmp_path / "Breakout.pt"
    path.write_bytes(b"garbage")
    with pytest.raises(PretrainedError, match="damaged, or holds more than tensors") as caught:
        load_diamond(path, SPACE, ACTIONS, SMALL)
    assert "weights_only" not in str(caught.value)
