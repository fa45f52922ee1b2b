"""Linear layers with weights arranged for one batch size and one processor."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamgym.models.packed_call import PackedWeight

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
    if weight.device.type == "cpu" and pays and _has_packing():
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


def _has_packing() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(
        torch.ops.mkldnn, "_reorder_linear_weight"
    )
