"""Dense layers with a norm and an activation, initialised as in Dreamer, and MLPs of them."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from dreamgym.models.nn.conv import ACTIVATIONS
from dreamgym.models.nn.layers import LayerNorm, Linear, RMSNorm

RMS_EPSILON, LAYER_EPSILON = 1e-4, 1e-3

TRUNCATED_STD = 0.87962566
"""Standard deviation of a standard normal distribution truncated at two."""


class LayerStyle(Protocol):
    """What a config says about every dense layer: its norm and its activation, by name."""

    @property
    def norm(self) -> str:
        """A name for `norm`."""
        ...

    @property
    def activation(self) -> str:
        """A key of `ACTIVATIONS`."""
        ...


def norm(kind: str, width: int) -> nn.Module:
    """Return the norm of a layer; "none" and "gates" (the GRU's gates only) give the identity."""
    if kind == "rms":
        return RMSNorm(width, eps=RMS_EPSILON)
    if kind == "layer":
        return LayerNorm(width, eps=LAYER_EPSILON)
    return nn.Identity()


def linear(inputs: int, outputs: int, *, bias: bool = True, fan_in: int | None = None) -> nn.Linear:
    """Return a dense layer with truncated normal weights of variance 1 / fan_in, and zero biases.

    Args:
        inputs: width of the input.
        outputs: width of the output.
        bias: whether the layer has a bias.
        fan_in: `inputs` by default.
    """
    layer = Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        truncated_normal(layer.weight, fan_in or inputs)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def dense_layers(
    inputs: int, layers: int, width: int, style: LayerStyle, *, bias: bool = True
) -> nn.Sequential:
    """Return dense layers with norm and activation each; without layers, the identity."""
    modules: list[nn.Module] = []
    for _ in range(layers):
        modules += [
            linear(inputs, width, bias=bias),
            norm(style.norm, width),
            ACTIVATIONS[style.activation](),
        ]
        inputs = width
    return nn.Sequential(*modules)


def truncated_normal(weight: Tensor, fan_in: int) -> Tensor:
    """Fill a weight in place with truncated normal numbers of variance 1 / fan_in; return it."""
    std = math.sqrt(1.0 / fan_in) / TRUNCATED_STD
    return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
