"""What stands in for CUDA graphs where there is no GPU: recorded operations on fixed memory.

Every operation is recorded with the memory of what it takes and gives, and a replay runs them again
there, whatever Python would do now. What a capture forbids is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
FORBIDDEN = {
    aten._local_scalar_dense,
    aten.equal,
    aten.is_nonzero,
    aten.masked_select,
    aten.nonzero,
    aten.unique_consecutive,
    aten._unique2,
}
WARM_UPS = 2


class RecordedGraph(TorchDispatchMode):
    """Records and replays; see `dreamgym.dream.capture.Graph`."""

    made = 0

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict, list[Tensor]]] = []
        self.replays = 0
        type(self).made += 1

    def record(self, work: Callable[[], None]) -> None:
        for _ in range(WARM_UPS):
            work()
        with self, NoNumbersOfTheHost():
            work()

    def replay(self) -> None:
        self.replays += 1
        for function, args, kwargs, outs in self.calls:
            if function._schema.is_mutable:
                function(*args, **kwargs)
                continue
            again = _tensors(function(*args, **kwargs))
            for out, new in zip(outs, again, strict=True):
                out.copy_(new)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        refuse(function, args)
        given = function(*args, **kwargs)
        taken = {_place(tensor) for tensor in _tensors((args, kwargs))}
        outs = _tensors(given)
        is_view = any(_place(out) in taken for out in outs)
        if function._schema.is_mutable or not is_view:
            self.calls.append((function, args, kwargs, outs))
        return given


class NoNumbersOfTheHost(TorchFunctionMode):
    """Refuses tensors made of Python's numbers: to a device they go by a copy, which waits."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        made = function in (torch.tensor, torch.as_tensor) and not isinstance(args[0], Tensor)
        if made:
            raise RuntimeError(f"operation not permitted: numbers {args[0]} are from the host")
        return function(*args, **(kwargs or {}))


def refuse(function, args) -> None:
    """Raise as CUDA does where an operation would wait for the device, or for the host."""
    masks = function.overloadpacket in (aten.index, aten.index_put, aten.index_put_) and any(
        index is not None and index.dtype == torch.bool for index in args[1]
    )
    if masks or function.overloadpacket in FORBIDDEN:
        raise RuntimeError(f"operation not permitted when stream is capturing: {function}")


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _place(tensor: Tensor) -> int:
    """Where a tensor's memory begins; packed weights do not tell, and nothing else lies in them."""
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else id(tensor)
