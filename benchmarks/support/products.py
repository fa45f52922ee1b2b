"""Speed of matrix products on this core, which limits the speed of a step.

The gain that a step can have over plain PyTorch depends on the processor: what the plain step
spends on all but products, and how far PyTorch's ordinary product lies under the core's best.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dreamgym.models.nn.packed import packed_product

SIZE = 1024
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def product_calls() -> dict[str, Callable[[], Tensor]]:
    """Return square products in each precision: by the fastest path, and by PyTorch's default."""
    weight, x = torch.randn(2, SIZE, SIZE)
    calls: dict[str, Callable[[], Tensor]] = {"F.linear": lambda: F.linear(x, weight)}
    for name, dtype in DTYPES.items():
        product, given = packed_product(weight, None, SIZE, dtype), x.to(dtype)
        calls[name] = lambda product=product, given=given: product(given)  # type: ignore[misc]
    return calls


def gflops(seconds: float) -> float:
    """Return the GFLOP/s of one of `product_calls` that takes `seconds`."""
    return 2 * SIZE**3 / seconds / 1e9


def work_of(step: Callable[[], Any]) -> int:
    """Return the floating-point operations in the products of one call."""
    counter = FlopCounterMode(display=False, custom_mapping=_WORK)
    with counter:
        step()
    return counter.get_total_flops()


def _packed_work(x: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    rows = 1
    for size in x[:-1]:
        rows *= size
    return 2 * rows * int(x[-1]) * int(out_shape[-1])


def _lstm_work(x: Any, *arguments: Any, **__: Any) -> int:
    rows, inputs, hidden = int(x[-2]), int(x[-1]), int(arguments[_HIDDEN_STATE][-1])
    return 2 * rows * (inputs + hidden) * 4 * hidden


_HIDDEN_STATE = 4
"""Place of h among the arguments after x."""

_WORK = {
    torch.ops.mkldnn._linear_pointwise: _packed_work,
    torch.ops.aten.mkldnn_rnn_layer: _lstm_work,
}
"""Operations of the products that PyTorch's counter does not know, from the shapes of arguments."""
