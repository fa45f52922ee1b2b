"""Linear layers with weights arranged for one batch size and one processor."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_BATCH = 4
"""Below this many rows a plain product is faster than the packed one."""

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
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    if weight.device.type == "cpu" and rows >= SMALLEST_BATCH and _has_packing():
        return _packed(weight, bias, rows, dtype)
    if dtype == torch.float32:
        return lambda x: F.linear(x, weight, bias)
    low, low_bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    return lambda x: F.linear(x.to(dtype), low, low_bias).float()


def _has_packing() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(
        torch.ops.mkldnn, "_reorder_linear_weight"
    )


def _packed(weight: Tensor, bias: Tensor | None, rows: int, dtype: torch.dtype) -> Linear:
    product = torch.ops.mkldnn._linear_pointwise
    layout = torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype).contiguous(), rows)
    low_bias = None if bias is None else bias.to(dtype).contiguous()
    if dtype == torch.float32:
        return lambda x: product(x, layout, low_bias, "none", [], "")
    return lambda x: product(x.to(dtype), layout, low_bias, "none", [], "").float()
