"""Packed products as one opaque operation, which is how PyTorch's compiler can call them.

The compiler takes packed weights neither as inputs nor into its cache on disk. So what it compiles
is given the number of a packed weight, as a tensor, and this operation looks the weight up: nothing
in compiled code depends on the process that it was compiled in.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym._device import packs_weights

_LAYOUTS: weakref.WeakValueDictionary[int, PackedWeight] = weakref.WeakValueDictionary()


_NUMBERS = itertools.count()


_LIBRARY = torch.library.Library("dreamgym", "DEF")

_LIBRARY.define("packed_linear(Tensor x, Tensor number, int width) -> Tensor")


class PackedWeight:
    """A weight laid out for one number of rows, and its bias.

    Args:
        weight: (out, in) in the dtype of the product.
        bias: (out,) likewise, or None.
        rows: of inputs.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int) -> None:
        self.layout = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        self.bias, self.width, self.dtype = bias, len(weight), weight.dtype
        self.number = torch.tensor(next(_NUMBERS))
        _LAYOUTS[int(self.number)] = self

    def __call__(self, x: Tensor) -> Tensor:
        """The product with (rows, in) of any precision, (rows, out) of the weight's."""
        x = x.to(self.dtype)
        if torch.compiler.is_compiling():
            product: Tensor = torch.ops.dreamgym.packed_linear(x, self.number, self.width)
            return product
        return self.multiply(x)

    def multiply(self, x: Tensor) -> Tensor:
        """The product in one precision."""
        given: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.layout, self.bias, "none", [], ""
        )
        return given


def _multiply(x: Tensor, number: Tensor, width: int) -> Tensor:
    return _LAYOUTS[int(number)].multiply(x)


def _shaped(x: Tensor, number: Tensor, width: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], width)


_LIBRARY.impl("packed_linear", _multiply, "CPU")

torch.library.register_fake("dreamgym::packed_linear", _shaped, lib=_LIBRARY)


SMALLEST_WORK = 2**19

"""Below this many multiplications a plain product in float32 is faster than the packed one."""


PLAIN_ROWS = 2

"""Up to so many rows a plain product in float32 is faster, whatever the work."""


COLUMN_ROWS, COLUMN_WIDTH = 8, 32

"""Up to so many rows, and from so many outputs on, a weight is better read column by column."""


SMALLEST_WEIGHT = 2**13

"""A matrix of fewer numbers gains nothing from a lower precision: its product stays float32."""


Linear = Callable[[Tensor], Tensor]


def packed_linear(weight: Tensor, bias: Tensor | None, rows: int, dtype: torch.dtype) -> Linear:
    """A linear layer as a function from (rows, in) float32 to (rows, out) float32.

    On processors without Intel's matrix library, oneDNN's product is two to three times faster than
    the one that `F.linear` takes; weights are laid out for it once.

    Args:
        weight: (out, in).
        bias: (out,) or None.
        rows: of every later input; it may be called with others, more slowly.
        dtype: of the product; sums, inputs and outputs stay float32.
    """
    if dtype == torch.float32 or weight.numel() < SMALLEST_WEIGHT:
        return packed_product(weight, bias, rows, torch.float32)
    product = packed_product(weight, bias, rows, dtype)
    return lambda x: product(x).float()


def packed_product(weight: Tensor, bias: Tensor | None, rows: int, dtype: torch.dtype) -> Linear:
    """A linear layer as a function from (rows, in) of any precision to (rows, out) of `dtype`.

    For layers one behind the other, between which nothing needs float32; see `packed_linear`.
    """
    weight = weight.detach().to(dtype).contiguous()
    bias = None if bias is None else bias.detach().to(dtype).contiguous()
    # In a lower precision the packed product is always the faster one.
    pays = dtype != torch.float32 or (rows > PLAIN_ROWS and rows * weight.numel() >= SMALLEST_WORK)
    if weight.device.type == "cpu" and pays and packs_weights(dtype):
        return PackedWeight(weight, bias, rows)
    if dtype != torch.float32:
        return lambda x: F.linear(x.to(dtype), weight, bias)
    if weight.device.type == "cpu" and rows <= COLUMN_ROWS and len(weight) >= COLUMN_WIDTH:
        return _column_product(weight, bias)
    return lambda x: F.linear(x, weight, bias)


def _column_product(weight: Tensor, bias: Tensor | None) -> Linear:
    """A product in float32 with the weight laid out column by column.

    With few rows, reading the weight is what a product takes, and a CPU reads one that is larger
    than its cache up to twice as fast like this.
    """
    columns = weight.t().contiguous()
    weight = columns.t()

    def product(x: Tensor) -> Tensor:
        if bias is not None and x.ndim == 2:
            return torch.addmm(bias, x, columns)
        return F.linear(x, weight, bias)

    return product


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


def model_device(model: nn.Module) -> torch.device:
    """Device of a model's parameters."""
    return next(model.parameters()).device
