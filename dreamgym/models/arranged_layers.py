"""Layers one behind the other, arranged for inference with a fixed number of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.models.packed import SMALLEST_WEIGHT, Linear, packed_linear, packed_product

Layer = Callable[[Tensor], Tensor]


class Packing(NamedTuple):
    """What weights are arranged for.

    Attributes:
        rows: of every step.
        dtype: of the matrix products; everything between them is float32.
        device: where they run.
    """

    rows: int
    dtype: torch.dtype
    device: torch.device

    def linear(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """A product with weight (out, in) and bias (out,); see `packed_linear`."""
        return packed_linear(weight, bias, self.rows, self.dtype)

    def product(self, weight: Tensor, bias: Tensor | None) -> Linear:
        """The same, whose output stays in the dtype of the product; see `packed_product`."""
        narrow = weight.numel() < SMALLEST_WEIGHT
        return packed_product(weight, bias, self.rows, torch.float32 if narrow else self.dtype)

    def chain(self, layers: Iterable[nn.Module]) -> Layer:
        """Layers one behind the other, as `nn.Sequential` runs them."""
        steps = [self._layer(layer) for layer in layers if not isinstance(layer, nn.Identity)]

        def run(x: Tensor) -> Tensor:
            for step in steps:
                x = step(x)
            return x

        return run

    def _layer(self, layer: nn.Module) -> Layer:
        if isinstance(layer, nn.Linear):
            return self.linear(layer.weight, layer.bias)
        if isinstance(layer, nn.LayerNorm):
            return layer_norm(layer.weight, layer.bias, layer.eps)
        if isinstance(layer, nn.RMSNorm):
            return rms_norm(layer)
        return layer  # activations have no weights


def layer_norm(weight: Tensor, bias: Tensor, eps: float) -> Layer:
    """Normalisation over the last dimension."""
    shape, weight, bias = weight.shape, weight.detach(), bias.detach()
    return lambda x: F.layer_norm(x, shape, weight, bias, eps)


def rms_norm(norm: nn.RMSNorm) -> Layer:
    """`nn.RMSNorm` with one temporary tensor less."""
    weight, eps = norm.weight.detach(), norm.eps
    share = 1.0 / weight.numel()

    def run(x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return (x * torch.rsqrt(length.square() * share + eps)).mul_(weight)

    return run
