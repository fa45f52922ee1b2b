"""Packed products as one opaque operation, which is how PyTorch's compiler can call them.

The compiler takes packed weights neither as inputs nor into its cache on disk. So what it compiles
is given the number of a packed weight, as a tensor, and this operation looks the weight up: nothing
in compiled code depends on the process that it was compiled in.
"""

from __future__ import annotations

import itertools
import weakref

import torch
from torch import Tensor

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
