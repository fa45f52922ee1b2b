"""A stand-in for a GPU: tensors of the device "meta" that have data, in the host's memory.

It refuses what CUDA refuses: an operation on tensors of the host and of the device together, and
NumPy's reading of the device's tensors; and what Apple's GPUs refuse: float64. Numbers are those of
a CPU. Not covered are graphs, generators of the device, mixed precision, and other threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch._dynamo  # which the modes import, and which must not see what is patched below
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

NAME = "meta"
aten = torch.ops.aten
COPIES = {aten._to_copy, aten.copy_, aten._has_compatible_shallow_copy_type}
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
JOINS = {aten.cat, aten.stack}
READS = {aten._local_scalar_dense, aten.item, aten.equal, aten.is_nonzero}
FROM_NUMBERS = {torch.tensor, torch.as_tensor, torch.asarray}


class OnDevice(torch.Tensor):
    """A tensor of the device.

    Attributes:
        host: its data.
        made: number of tensors of the device since the block began.
        has_float64: whether the device has float64.
    """

    host: torch.Tensor
    made = 0
    has_float64 = False

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> OnDevice:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=NAME,
        )
        tensor.host = host
        OnDevice.made += 1
        return tensor

    # A module can move only to tensors that are wrappers and say so by these two.
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["host"], None

    @staticmethod
    def __tensor_unflatten__(inner, meta, size, stride) -> OnDevice:
        return OnDevice(inner["host"])

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert a tensor of the device to numpy")

    __array__ = numpy

    def tolist(self) -> Any:
        return self.host.tolist()


@contextmanager
def stand_in_device(*, float64: bool = False) -> Iterator[str]:
    """Give the device inside the block, by its name for `device=`.

    Args:
        float64: whether it has float64. Loading a policy needs it, which tries shapes on "meta".
    """
    OnDevice.made = 0
    cast, enabled, dtype = torch.autocast, torch.is_autocast_enabled, torch.get_autocast_dtype

    def autocast(device_type: str, *args: Any, **kwargs: Any) -> torch.autocast:
        return cast(_known(device_type), *args, **kwargs)

    with (
        mock.patch.object(OnDevice, "has_float64", float64),
        mock.patch("torch.Generator", _Generator),
        mock.patch("torch.autocast", autocast),
        mock.patch("torch.is_autocast_enabled", lambda kind: enabled(_known(kind))),
        mock.patch("torch.get_autocast_dtype", lambda kind: dtype(_known(kind))),
        _Makes(),
        _Converts(),
    ):
        yield NAME


class _Generator(torch.Generator):
    """One of the host: torch makes none of the device."""

    def __new__(cls, device: torch.device | str = "cpu") -> _Generator:
        return super().__new__(cls, _known(device))


def _known(device: torch.device | str) -> str:
    """Return a device that generators and autocast know."""
    return "cpu" if torch.device(device).type == NAME else str(device)


class _Makes(TorchDispatchMode):
    """Sees the operations that have no tensor of the device among their inputs."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


class _Converts(TorchFunctionMode):
    """Sees conversions of Python's numbers, which torch makes below the level of operations."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is torch.Tensor.new_tensor and isinstance(args[0], OnDevice):
            kwargs = {"dtype": args[0].dtype, "device": NAME, **kwargs}
            function, args = torch.tensor, args[1:]
        if function in FROM_NUMBERS and not isinstance(args[0], torch.Tensor):
            device = kwargs.pop("device", None)
            made = function(*args, **kwargs)
            return made if device is None else made.to(device)
        return function(*args, **kwargs)


def _run(function, args, kwargs):
    """Run an operation on the host, and say whether its result is on the device."""
    kind = function.overloadpacket
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    on_device = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    moved = kwargs.get("device")
    result_on_device = bool(on_device) if moved is None else torch.device(moved).type == NAME
    if on_device and kind not in COPIES:
        # As on CUDA, numbers of the host may take part, and so may its indices.
        checked = [args[0], *args[2:3]] if kind in INDEXED else tensors
        written = args[:1] if function._schema.name.endswith("_") else ()
        wrong = [
            leaf
            for leaf in checked
            if not isinstance(leaf, OnDevice)
            and (leaf.dim() or kind in JOINS or any(leaf is each for each in written))
        ]
        if wrong:
            shapes = [tuple(leaf.shape) for leaf in tensors]
            raise RuntimeError(f"{function}: tensors of the host and of the device, {shapes}")
    here = {**kwargs, "device": "cpu"} if moved is not None else kwargs
    hosts, named = tree_map(
        lambda leaf: leaf.host if isinstance(leaf, OnDevice) else leaf, (args, here)
    )
    result = function(*hosts, **named)
    if kind in READS or not result_on_device:
        return result
    if kind is aten.copy_:
        return args[0]
    wrapped = tree_map(
        lambda leaf: OnDevice(leaf) if isinstance(leaf, torch.Tensor) else leaf, result
    )
    made = [leaf for leaf in tree_leaves(wrapped) if isinstance(leaf, OnDevice)]
    if not OnDevice.has_float64 and any(tensor.dtype == torch.float64 for tensor in made):
        raise TypeError(f"{function}: the device has no float64")
    returned = function._schema.returns
    if on_device and returned and all(each.alias_info is not None for each in returned):
        return return_and_correct_aliasing(function, args, kwargs, wrapped)
    return wrapped
