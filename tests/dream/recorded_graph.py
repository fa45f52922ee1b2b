"""A stand-in for CUDA graphs on machines without a GPU: recorded operations on static memory.

Every operation is recorded with its input and output tensors. A replay runs the operations again on
the same memory, without Python's control flow. What CUDA forbids in a capture raises here, too.
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

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict, list[Tensor]]] = []

    def record(self, work: Callable[[], None]) -> None:
        for _ in range(WARM_UPS):
            work()
        with self, NoHostNumbers():
            work()

    @torch.no_grad()
    def replay(self) -> None:
        for function, args, kwargs, outs in self.calls:
            if function._schema.is_mutable:
                function(*args, **kwargs)
                continue
            outputs = _tensors(function(*args, **kwargs))
            for out, new in zip(outs, outputs, strict=True):
                out.copy_(new)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        refuse(function, args)
        result = function(*args, **kwargs)
        inputs = {_address(tensor) for tensor in _tensors((args, kwargs))}
        outs = _tensors(result)
        is_view = any(_address(out) in inputs for out in outs)
        if function._schema.is_mutable or not is_view:
            self.calls.append((function, args, kwargs, outs))
        return result


class NoHostNumbers(TorchFunctionMode):
    """Refuses tensors made from Python numbers: copying them to a device is a host sync."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        from_host = function in (torch.tensor, torch.as_tensor) and not isinstance(args[0], Tensor)
        if from_host:
            raise RuntimeError(f"operation not permitted: numbers {args[0]} are from the host")
        return function(*args, **(kwargs or {}))


def refuse(function, args) -> None:
    """Raise as CUDA does in a capture, where an operation would be a host sync."""
    by_mask = function.overloadpacket in (aten.index, aten.index_put, aten.index_put_) and any(
        index is not None and index.dtype == torch.bool for index in args[1]
    )
    if by_mask or function.overloadpacket in FORBIDDEN:
        raise RuntimeError(f"operation not permitted when stream is capturing: {function}")


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _address(tensor: Tensor) -> int:
    """Return the address of a tensor's memory; packed weights have none, and share none."""
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else id(tensor)
