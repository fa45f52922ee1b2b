"""Layers and recurrent cells of the RSSM."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dreamgym.models.exact import LayerNorm, Linear, RMSNorm
from dreamgym.models.rssm_config import RSSMConfig
from dreamgym.models.vision import ACTIVATIONS

RMS_EPSILON, LAYER_EPSILON = 1e-4, 1e-3
TRUNCATION = 0.87962566
"""Standard deviation of a standard normal that is cut off at two."""


def norm(kind: str, width: int) -> nn.Module:
    """The norm of a layer of this width; "none" and "gates" leave it as it is."""
    if kind == "rms":
        return RMSNorm(width, eps=RMS_EPSILON)
    if kind == "layer":
        return LayerNorm(width, eps=LAYER_EPSILON)
    return nn.Identity()


def linear(inputs: int, outputs: int, *, bias: bool = True, fan_in: int | None = None) -> nn.Linear:
    """A dense layer with weights of variance 1 / fan_in, normal but for their tails; biases zero.

    Args:
        inputs: width of the input.
        outputs: width of the output.
        bias: whether there is one.
        fan_in: None is `inputs`.
    """
    layer = Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        _truncated_normal(layer.weight, fan_in or inputs)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class Joined(nn.Module):
    """A layer of several inputs side by side, whose products may be taken at different times.

    What depends on the data alone is multiplied for a whole segment at once, the rest step by step.

    Args:
        inputs: widths of the inputs.
        width: of the output.
        config: norm and activation.
        fan_in: inputs that meet in one output; None is all of these.
    """

    def __init__(
        self,
        inputs: tuple[int, ...],
        width: int,
        config: RSSMConfig,
        fan_in: int | None = None,
    ) -> None:
        super().__init__()
        fan_in = fan_in or sum(inputs)
        # A matrix each: a slice of a common one would get a gradient of the whole one's size.
        self.products = nn.ModuleList(
            linear(size, width, bias=not index, fan_in=fan_in) for index, size in enumerate(inputs)
        )
        self.norm = norm(config.norm, width)
        self.act = ACTIVATIONS[config.activation]()

    def part(self, index: int, x: Tensor) -> Tensor:
        """The product (..., width) with one input (..., inputs[index]); the first has the bias."""
        return self.products[index](x)

    def finish(self, products: Tensor) -> Tensor:
        """The output (..., width) of the sum of all products."""
        return self.act(self.norm(products))


def mlp(inputs: int, layers: int, width: int, config: RSSMConfig) -> nn.Sequential:
    """Dense layers, each with norm and activation; with none, what comes in goes out."""
    made: list[nn.Module] = []
    for _ in range(layers):
        made += [
            linear(inputs, width),
            norm(config.norm, width),
            ACTIVATIONS[config.activation](),
        ]
        inputs = width
    return nn.Sequential(*made)


class GRUCell(nn.Module):
    """z and action through a layer into one GRU.

    Plain (PlaNet, Dreamer v1), or with its gates normalised and an update gate that begins nearly
    shut (DreamerV2, arXiv 2010.02193).

    Args:
        latent: width of z.
        action: width of the encoded action.
        config: sizes.
    """

    def __init__(self, latent: int, action: int, config: RSSMConfig) -> None:
        super().__init__()
        deter, hidden = config.deter, config.hidden
        self.enter = Joined((latent, action), hidden, config)
        self.plain = config.norm == "none"
        self.gates_x = linear(hidden, 3 * deter, fan_in=hidden + deter)
        self.gates_h = linear(deter, 3 * deter, bias=self.plain, fan_in=hidden + deter)
        self.norm = norm("none" if self.plain else "layer", 3 * deter)

    def prepare_actions(self, action: Tensor) -> Tensor:
        """What an encoded action (..., action) adds to a step; for many steps at once."""
        return self.enter.part(1, action)

    def forward(self, h: Tensor, z: Tensor, prepared: Tensor) -> Tensor:
        """One step.

        Args:
            h: (B, deter).
            z: (B, latent).
            prepared: (B, ...) of `prepare_actions`.
        """
        x = self.enter.finish(self.enter.part(0, z) + prepared)
        if self.plain:
            return self._plain(self.gates_x(x), self.gates_h(h), h)
        reset, candidate, update = self.norm(self.gates_x(x) + self.gates_h(h)).chunk(3, -1)
        return _gated(h, reset, candidate, update)

    def _plain(self, from_x: Tensor, from_h: Tensor, h: Tensor) -> Tensor:
        """Cho et al. (2014), with the reset applied to the product with h, as Keras and cuDNN."""
        reset_x, update_x, candidate_x = from_x.to(h.dtype).chunk(3, -1)
        reset_h, update_h, candidate_h = from_h.to(h.dtype).chunk(3, -1)
        reset, update = (reset_x + reset_h).sigmoid(), (update_x + update_h).sigmoid()
        return torch.lerp((candidate_x + reset * candidate_h).tanh(), h, update)


class BlockGRUCell(nn.Module):
    """The block-diagonal GRU of DreamerV3: h in blocks that see each other through one layer only.

    Args:
        latent: width of z.
        action: width of the encoded action.
        config: sizes.
    """

    def __init__(self, latent: int, action: int, config: RSSMConfig) -> None:
        super().__init__()
        deter, hidden, self.blocks = config.deter, config.hidden, config.blocks
        block = deter // config.blocks
        self.enter_h = mlp(deter, 1, hidden, config)
        self.enter_z = mlp(latent, 1, hidden, config)
        self.enter_action = mlp(action, 1, hidden, config)
        # The published layer gives every block its own part of h and all of the three inputs; here
        # its weights for the inputs stand apart, as one dense matrix for all blocks.
        fan_in = block + 3 * hidden
        self.mix_h = _blocks(config.blocks, block, block, fan_in)
        self.mix = Joined((hidden, hidden, hidden), deter, config, fan_in)
        self.gates = _blocks(config.blocks, block, 3 * block, block)
        self.gates_bias = nn.Parameter(torch.zeros(config.blocks, 1, 3 * block))

    def prepare_actions(self, action: Tensor) -> Tensor:
        """What an encoded action (..., action) adds to a step; for many steps at once."""
        within = action / action.detach().abs().clamp(min=1.0)
        return self.mix.part(2, self.enter_action(within))

    def forward(self, h: Tensor, z: Tensor, prepared: Tensor) -> Tensor:
        """One step.

        Args:
            h: (B, deter).
            z: (B, latent).
            prepared: (B, ...) of `prepare_actions`.
        """
        inputs = self.mix.part(0, self.enter_h(h)) + self.mix.part(1, self.enter_z(z)) + prepared
        own = torch.bmm(self._cut(h), self.mix_h)
        mixed = self.mix.finish(inputs + self._join(own))
        gates = torch.baddbmm(self.gates_bias, self._cut(mixed), self.gates)
        return self._join(_gated(self._cut(h), *gates.to(h.dtype).chunk(3, -1)))

    def _cut(self, x: Tensor) -> Tensor:
        """(B, deter) as (blocks, B, deter / blocks)."""
        return x.unflatten(-1, (self.blocks, -1)).transpose(0, 1)

    def _join(self, x: Tensor) -> Tensor:
        """The reverse of `_cut`."""
        return x.transpose(0, 1).flatten(1)


def _gated(h: Tensor, reset: Tensor, candidate: Tensor, update: Tensor) -> Tensor:
    """The GRU of DreamerV2 and V3: the reset gates the whole candidate, the update begins shut."""
    candidate = torch.tanh(torch.sigmoid(reset) * candidate)
    return torch.lerp(h, candidate, torch.sigmoid(update - 1.0))


def _blocks(blocks: int, inputs: int, outputs: int, fan_in: int) -> nn.Parameter:
    """Weights (blocks, inputs, outputs) of a block-diagonal layer."""
    weight = torch.empty(blocks, inputs, outputs)
    return nn.Parameter(_truncated_normal(weight, fan_in))


def _truncated_normal(weight: Tensor, fan_in: int) -> Tensor:
    std = math.sqrt(1.0 / fan_in) / TRUNCATION
    return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
