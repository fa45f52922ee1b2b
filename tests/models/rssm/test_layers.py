"""The RSSM's recurrent cells against their published equations, in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from dreamgym.models.nn.dense import linear
from dreamgym.models.rssm.config import PRESETS, RSSMConfig
from dreamgym.models.rssm.modules import BlockGRUCell, GRUCell, MultiInputLayer

LATENT, ACTION, ROWS = 10, 3, 5
SMALL = RSSMConfig(deter=24, hidden=6, blocks=4)


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    widths = (SMALL.deter, LATENT, ACTION)
    return tuple(
        torch.randn(ROWS, n, generator=generator, dtype=torch.float64) * 1.5 for n in widths
    )


def randomised(module: nn.Module) -> nn.Module:
    """Return the module in float64, with no weight left at one or zero."""
    generator = torch.Generator().manual_seed(1)
    module = module.double()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return module.requires_grad_(False)


def joint_weights(layer: MultiInputLayer) -> tuple[Tensor, Tensor]:
    """Return the joint weight matrix and the bias of a layer of several inputs."""
    return torch.cat([p.weight for p in layer.products], 1), layer.products[0].bias


def layer_norm(x: Tensor, norm: nn.Module) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    spread = (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    return centred / spread * norm.weight + norm.bias


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-4).sqrt() * weight


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def dense(layers: nn.Sequential, x: Tensor) -> Tensor:
    return silu(rms_norm(x @ layers[0].weight.T + layers[0].bias, layers[1].weight))


def test_the_cell_without_norms_is_torchs_gru(inputs):
    h, z, action = inputs
    config = replace(SMALL, blocks=0, norm="none", activation="elu")
    cell = randomised(GRUCell(LATENT, ACTION, config))
    theirs = nn.GRUCell(config.hidden, config.deter).double()
    theirs.weight_ih.data, theirs.bias_ih.data = cell.gates_x.weight, cell.gates_x.bias
    theirs.weight_hh.data, theirs.bias_hh.data = cell.gates_h.weight, cell.gates_h.bias
    weight, bias = joint_weights(cell.enter)
    x = nn.functional.elu(torch.cat([z, action], -1) @ weight.T + bias)
    torch.testing.assert_close(cell(h, z, cell.prepare_actions(action)), theirs(x, h))


def test_the_cell_with_normalised_gates_is_the_gru_of_dreamer_v2(inputs):
    """One layer norm over all gates, the reset gate on the candidate, an update bias of -1."""
    h, z, action = inputs
    config = replace(SMALL, blocks=0, norm="gates", activation="elu")
    cell = randomised(GRUCell(LATENT, ACTION, config))
    weight, bias = joint_weights(cell.enter)
    x = nn.functional.elu(torch.cat([z, action], -1) @ weight.T + bias)
    joint = torch.cat([cell.gates_x.weight, cell.gates_h.weight], 1)
    gates = layer_norm(torch.cat([x, h], -1) @ joint.T + cell.gates_x.bias, cell.norm)
    reset, candidate, update = gates.chunk(3, -1)
    candidate = torch.tanh(torch.sigmoid(reset) * candidate)
    update = torch.sigmoid(update - 1)
    expected = update * candidate + (1 - update) * h
    torch.testing.assert_close(cell(h, z, cell.prepare_actions(action)), expected)


def test_the_block_gru_gives_each_block_its_part_of_h_and_all_inputs(inputs):
    """DreamerV3's recurrent model, block by block as in its code."""
    h, z, action = inputs
    cell = randomised(BlockGRUCell(LATENT, ACTION, SMALL))
    action = action * 3
    within = action / action.abs().clamp(min=1)
    x = torch.cat(
        [dense(cell.enter_h, h), dense(cell.enter_z, z), dense(cell.enter_action, within)], -1
    )
    weight, bias = joint_weights(cell.mix)
    block = SMALL.deter // SMALL.blocks
    places = [slice(k * block, (k + 1) * block) for k in range(SMALL.blocks)]
    mixed = [
        torch.cat([h[:, at], x], -1) @ torch.cat([cell.mix_h[k], weight[at].T]) + bias[at]
        for k, at in enumerate(places)
    ]
    mixed = silu(rms_norm(torch.cat(mixed, -1), cell.mix.norm.weight))
    expected = []
    for k, at in enumerate(places):
        gates = mixed[:, at] @ cell.gates[k] + cell.gates_bias[k]
        reset, candidate, update = gates.chunk(3, -1)
        candidate = torch.tanh(torch.sigmoid(reset) * candidate)
        update = torch.sigmoid(update - 1)
        expected.append(update * candidate + (1 - update) * h[:, at])
    got = cell(h, z, cell.prepare_actions(action))
    torch.testing.assert_close(got, torch.cat(expected, -1))


def test_initial_weights_have_variance_one_over_fan_in_and_are_truncated():
    torch.manual_seed(0)
    weight = linear(400, 300).weight
    assert weight.std().item() == pytest.approx(400**-0.5, rel=0.02)
    assert weight.abs().max().item() < 2.3 * 400**-0.5
    cell = BlockGRUCell(LATENT, ACTION, replace(SMALL, deter=256, hidden=64))
    block_inputs = 256 // 4 + 3 * 64
    for part in (cell.mix_h, *(product.weight for product in cell.mix.products)):
        assert part.std().item() == pytest.approx(block_inputs**-0.5, rel=0.05)


def cell_of(name: str, actions: int) -> nn.Module:
    config = PRESETS[name]
    width = config.stoch * max(1, config.classes)
    return (BlockGRUCell if config.blocks else GRUCell)(width, actions, config)


def test_the_cells_have_the_parameters_of_the_published_code():
    """Counts layer by layer from the code of the authors of Dreamer v1 to v3."""
    count = lambda name: sum(p.numel() for p in cell_of(name, 6).parameters())  # noqa: E731
    # danijar/dreamer, models.py: Dense(200) on (z, a), then Keras' GRUCell(200), two biases.
    assert count("dreamer-v1") == (36 * 200 + 200) + 3 * (200 * 200 * 2 + 2 * 200)
    # danijar/dreamerv2, common/nets.py: Dense(600), then Dense(1800) with its bias and LayerNorm.
    assert count("dreamer-v2") == (1030 * 600 + 600) + (1200 * 1800 + 1800) + 2 * 1800
    # danijar/dreamerv3, rssm.py, _core: three dense layers with RMSNorm, two block layers.
    for name, deter, hidden, z in (
        ("dreamer-v3-1m", 512, 64, 32 * 4),
        ("dreamer-v3-12m", 2048, 256, 32 * 16),
    ):
        inputs = sum(n * hidden + 2 * hidden for n in (deter, z, 6))
        mixing = deter * (deter // 8 + 3 * hidden) + 2 * deter
        assert count(name) == inputs + mixing + 3 * deter * (deter // 8) + 3 * deter
