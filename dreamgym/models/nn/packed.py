"""Linear layers with packed weights, several times as fast as `F.linear` on many CPUs.

oneDNN multiplies by weights that were laid out for it beforehand. Inductor accepts packed weights
neither as graph inputs nor in its disk cache. Compiled code therefore calls one custom operator
with the number of a packed weight, as a tensor, and the operator looks the weight up: compiled code
does not depend on the process that compiled it.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym._device import LSTM_MODE, packs_lstm, packs_weights
from dreamgym.models.nn.layers import LSTM, lstm_cell

Layer = Callable[[Tensor], Tensor]
"""A function from (rows, in) to (rows, out)."""

Cell = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""A function from x, h and c, (rows, ...) each, to the next h and c."""

SMALLEST_WORK = 2**19
"""Multiplications below which a plain float32 product is faster than a packed one."""

PLAIN_ROWS = 2
"""Rows up to which a plain float32 product is always faster."""

COLUMN_ROWS, COLUMN_WIDTH = 8, 32
"""Up to so many rows, and with at least so many outputs, a column-major weight is faster."""

LSTM_ROWS = 1024
"""Rows that an LSTM takes at a time: its workspace is then memory that glibc reuses."""

SMALLEST_WEIGHT = 2**13
"""Numbers in a weight below which lower precision gains nothing; the product stays float32."""

EXACT = "none"
"""What oneDNN's GELU in torch calls the form with erf, which is not an approximation."""

_PACKED: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
"""Every packed layer in use, by the number under which compiled code looks it up."""

_NUMBERS = itertools.count()


def _register(packed: Any) -> Tensor:
    """Give a packed layer its number, () int64."""
    number = next(_NUMBERS)
    _PACKED[number] = packed
    return torch.tensor(number)


class PackedWeight:
    """A weight packed for one number of input rows, and its bias.

    Args:
        weight: (out, in) in the dtype of the product.
        bias: (out,) in the same dtype, or None.
        rows: input rows to pack for.
        gelu: whether the operation applies GELU to its outputs, before they leave the registers.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, rows: int, *, gelu: bool = False
    ) -> None:
        self.activation = "gelu" if gelu else "none"
        self.layout = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        self.bias, self.width, self.dtype = bias, len(weight), weight.dtype
        self.number = _register(self)

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply (rows, in) of any dtype; returns (rows, out) in the weight's dtype."""
        x = x.to(self.dtype)
        if torch.compiler.is_compiling():
            product: Tensor = torch.ops.dreamgym.packed_linear(x, self.number, self.width)
            return product
        return self.multiply(x)

    def multiply(self, x: Tensor) -> Tensor:
        """Multiply (rows, in) in the weight's dtype."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.layout, self.bias, self.activation, [], EXACT
        )
        return product


class PackedLSTM:
    """The step of an LSTM as one oneDNN operation: two packed products, and the cell in cache.

    Args:
        lstm: the LSTM whose weights are copied.
        rows: rows to pack for.
    """

    def __init__(self, lstm: LSTM, rows: int) -> None:
        weights = lstm.weight_ih.detach(), lstm.weight_hh.detach()
        self.inputs, self.hidden = weights[0].shape[1], weights[1].shape[1]
        self.rows = min(rows, LSTM_ROWS)
        self.weights = torch.ops.mkldnn._reorder_mkldnn_rnn_layer_weight(
            *weights, self.hidden, False, True, False, [1, self.rows, self.inputs]
        )
        self.biases = lstm.bias.detach().clone(), torch.zeros_like(lstm.bias)
        self.number = _register(self)

    def __call__(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next h and c; see `LSTM.step`."""
        if torch.compiler.is_compiling():
            h, c = torch.ops.dreamgym.packed_lstm(x, h, c, self.number)
            return h, c
        return self.step(x, h, c)

    def step(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next h and c, computed for at most `rows` rows at a time."""
        if len(x) <= self.rows:
            return self._step(x, h, c)
        parts = zip(*(leaf.split(self.rows) for leaf in (x, h, c)), strict=True)
        stepped = zip(*(self._step(*part) for part in parts), strict=True)
        h, c = map(torch.cat, stepped)
        return h, c

    def _step(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        # One time step of a layer that is not reversed, bidirectional or in training.
        _, h, c, _ = torch.ops.aten.mkldnn_rnn_layer(
            *(x.unsqueeze(0), *self.weights, *self.biases, h.unsqueeze(0), c.unsqueeze(0)),
            *(False, [], LSTM_MODE, self.hidden, 1, True, False, False, False),
        )
        return h.squeeze(0), c.squeeze(0)


# The custom operators that compiled code calls instead of oneDNN's.
_LIBRARY = torch.library.Library("dreamgym", "DEF")
_LIBRARY.define("packed_linear(Tensor x, Tensor number, int width) -> Tensor")
_LIBRARY.define("packed_lstm(Tensor x, Tensor h, Tensor c, Tensor number) -> (Tensor, Tensor)")


def _multiply(x: Tensor, number: Tensor, width: int) -> Tensor:
    return _PACKED[int(number)].multiply(x)


def _shaped(x: Tensor, number: Tensor, width: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], width)


def _step_lstm(x: Tensor, h: Tensor, c: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
    return _PACKED[int(number)].step(x, h, c)


def _stepped(x: Tensor, h: Tensor, c: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(h), torch.empty_like(c)


_LIBRARY.impl("packed_linear", _multiply, "CPU")
torch.library.register_fake("dreamgym::packed_linear", _shaped, lib=_LIBRARY)
_LIBRARY.impl("packed_lstm", _step_lstm, "CPU")
torch.library.register_fake("dreamgym::packed_lstm", _stepped, lib=_LIBRARY)


def packed_linear(weight: Tensor, bias: Tensor | None, rows: int, dtype: torch.dtype) -> Layer:
    """Return a linear layer as a function from (rows, in) to (rows, out) float32.

    Its inputs are float32 or of `dtype`.

    On processors where torch does not use Intel's matrix library, oneDNN's packed product is two to
    three times as fast as `F.linear`. Weights are packed once.

    Args:
        weight: (out, in).
        bias: (out,) or None.
        rows: rows of every later input; other numbers work, more slowly.
        dtype: dtype of the product; sums and outputs stay float32.
    """
    if dtype == torch.float32:
        return packed_product(weight, bias, rows, dtype)
    if weight.numel() < SMALLEST_WEIGHT:
        exact = packed_product(weight, bias, rows, torch.float32)
        return lambda x: exact(x.float())
    product = packed_product(weight, bias, rows, dtype)
    return lambda x: product(x).float()


def packed_product(
    weight: Tensor, bias: Tensor | None, rows: int, dtype: torch.dtype, *, gelu: bool = False
) -> Layer:
    """Return a linear layer as a function from (rows, in) of any dtype to (rows, out) of `dtype`.

    For consecutive layers between which nothing needs float32; see `packed_linear`.

    Args:
        weight: (out, in).
        bias: (out,) or None.
        rows: rows of every later input; other numbers work, more slowly.
        dtype: dtype of the product and of its outputs.
        gelu: whether GELU is applied to the outputs. oneDNN does so inside the product.
    """
    weight = weight.detach().to(dtype).contiguous()
    bias = None if bias is None else bias.detach().to(dtype).contiguous()
    # In lower precision the packed product is always faster.
    pays = dtype != torch.float32 or _packing_pays(rows, weight.numel())
    if weight.device.type == "cpu" and pays and packs_weights(dtype):
        return PackedWeight(weight, bias, rows, gelu=gelu)
    if gelu:
        product = packed_product(weight, bias, rows, dtype)
        return lambda x: F.gelu(product(x))
    if dtype != torch.float32:
        return lambda x: F.linear(x.to(dtype), weight, bias)
    if weight.device.type == "cpu" and rows <= COLUMN_ROWS and len(weight) >= COLUMN_WIDTH:
        return _column_product(weight, bias)
    return lambda x: F.linear(x, weight, bias)


def packed_lstm(lstm: LSTM, rows: int, dtype: torch.dtype) -> Cell:
    """Return the step of an LSTM as a function of x, h and c; see `LSTM.step`.

    Args:
        lstm: the LSTM whose weights are copied.
        rows: rows of every later input; other numbers work, more slowly.
        dtype: dtype of the products; inputs and outputs are float32.
    """
    weights = lstm.weight_ih.detach(), lstm.weight_hh.detach()
    joint = torch.cat(weights, 1)
    pays = dtype == torch.float32 and _packing_pays(rows, joint.numel())
    if joint.device.type == "cpu" and pays and packs_lstm():
        return PackedLSTM(lstm, rows)
    gates = packed_linear(joint, lstm.bias, rows, dtype)

    def step(x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        # A compiler fuses the cell better without in-place operations on slices.
        inplace = not torch.compiler.is_compiling()
        return lstm_cell(gates(torch.cat([x, h], -1)), c, inplace=inplace)

    return step


def _packing_pays(rows: int, size: int) -> bool:
    """Return whether a packed float32 product with a weight of `size` numbers is faster."""
    return rows > PLAIN_ROWS and rows * size >= SMALLEST_WORK


def _column_product(weight: Tensor, bias: Tensor | None) -> Layer:
    """Return a float32 product with a column-major copy of the weight.

    With few rows the product is limited by reading the weight, and a weight larger than the CPU's
    cache is read up to twice as fast in this layout.
    """
    columns = weight.t().contiguous()
    weight = columns.t()

    def product(x: Tensor) -> Tensor:
        if bias is not None and x.ndim == 2:
            return torch.addmm(bias, x, columns)
        return F.linear(x, weight, bias)

    return product


class Packing(NamedTuple):
    """The use that weights are packed for.

    Attributes:
        rows: rows of every step.
        dtype: dtype of the matrix products; everything between them is float32.
        device: device of the products.
    """

    rows: int
    dtype: torch.dtype
    device: torch.device

    def linear(self, weight: Tensor, bias: Tensor | None) -> Layer:
        """Return a linear layer with float32 outputs; see `packed_linear`."""
        return packed_linear(weight, bias, self.rows, self.dtype)

    def product(self, weight: Tensor, bias: Tensor | None, *, gelu: bool = False) -> Layer:
        """Return a linear layer with outputs in the dtype of the product; see `packed_product`."""
        dtype = torch.float32 if weight.numel() < SMALLEST_WEIGHT else self.dtype
        return packed_product(weight, bias, self.rows, dtype, gelu=gelu)

    def lstm(self, lstm: LSTM) -> Cell:
        """Return the step of an LSTM; see `packed_lstm`."""
        return packed_lstm(lstm, self.rows, self.dtype)

    def chain(self, layers: Iterable[nn.Module]) -> Layer:
        """Return consecutive layers as one function, like `nn.Sequential`."""
        kept = [layer for layer in layers if not isinstance(layer, nn.Identity)]
        steps = [self._layer(layer) for layer in kept]
        for place, layer in enumerate(kept):
            if place and isinstance(layer, nn.SiLU):  # its input is the output of a step
                steps[place] = partial(F.silu, inplace=True)

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
    """Return a layer norm over the last dimension as a function."""
    shape, weight, bias = weight.shape, weight.detach(), bias.detach()
    return lambda x: F.layer_norm(x, shape, weight, bias, eps)


def rms_norm(norm: nn.RMSNorm) -> Layer:
    """Return an `nn.RMSNorm` as a function that allocates one tensor less."""
    weight, eps = norm.weight.detach(), norm.eps
    inverse_width = 1.0 / weight.numel()

    def run(x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return (x * torch.rsqrt(length.square() * inverse_width + eps)).mul_(weight)

    return run
