"""Devices and their precision, thread counts, seeding, inference mode and default dtype."""

from __future__ import annotations

import functools
import os
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

_IMPORTING_PROCESS = os.getpid()
"""Process that imported this module; in its forks `os.getpid()` differs."""

_NO_CHANGE = nullcontext()


LSTM_MODE = 2
"""What oneDNN's recurrent layers in torch call an LSTM."""


def resolve_device(name: str | torch.device) -> torch.device:
    """Return the device of a name; "auto" is CUDA where available, else the CPU.

    Raises:
        ValueError: this machine or this torch has no such device.
    """
    if str(name) == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        # Tensors report "cuda:0" where "cuda" was asked for, and devices are compared.
        return torch.empty(0, device=torch.device(name)).device
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise ValueError(
            f"device={str(name)!r} cannot be used here ({str(error).splitlines()[0]}); "
            'give "auto", "cpu", or a device that torch sees'
        ) from error


@functools.cache
def computes_bfloat16(kind: str) -> bool:
    """Return whether a kind of device computes matrix products in bfloat16 natively.

    Where it does not, torch either raises (oneDNN on a processor without AVX-512) or emulates them,
    several times slower than float32. A CPU is tested by a guarded trial of the operations that
    dreamgym uses: a packed product and the fused LSTM.

    Args:
        kind: `torch.device.type`, such as "cpu".
    """
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if kind != "cpu":
        return _runs(
            lambda: (
                torch.ones(2, 2, device=kind, dtype=torch.bfloat16)
                @ torch.ones(2, 2, device=kind, dtype=torch.bfloat16)
            )
        )
    return packs_weights(torch.bfloat16) and _runs(_lstm_in_bfloat16)


@functools.cache
def packs_weights(dtype: torch.dtype) -> bool:
    """Try whether oneDNN is available and multiplies by packed weights of a dtype."""

    def trial() -> None:
        weight = torch.ones(32, 32, dtype=dtype)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, 4)
        torch.ops.mkldnn._linear_pointwise(weight[:4], packed, None, "none", [], "")

    return torch.backends.mkldnn.is_available() and _runs(trial)


@functools.cache
def packs_lstm() -> bool:
    """Try whether oneDNN is available and takes the step of an LSTM with packed weights."""

    def trial() -> None:
        weight, bias, state = torch.ones(32, 8), torch.ones(32), torch.ones(1, 4, 8)
        packed = torch.ops.mkldnn._reorder_mkldnn_rnn_layer_weight(
            weight, weight, 8, False, True, False, list(state.shape)
        )
        torch.ops.aten.mkldnn_rnn_layer(
            *(state, *packed, bias, bias, state, state),
            *(False, [], LSTM_MODE, 8, 1, True, False, False, False),
        )

    return torch.backends.mkldnn.is_available() and _runs(trial)


def product_dtype(kind: str, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to compute matrix products in: `dtype`, or float32 as a fallback.

    The fallback is for bfloat16 on a device without it. It warns once in a process.

    Args:
        kind: `torch.device.type`, such as "cpu".
        dtype: requested dtype.
    """
    if dtype != torch.bfloat16 or computes_bfloat16(kind):
        return dtype
    _warn_float32(kind)
    return torch.float32


@functools.cache
def _warn_float32(kind: str) -> None:
    needs = " (a CPU needs AVX-512 or AMX for them)" if kind == "cpu" else ""
    warnings.warn(
        f"this {kind} device has no matrix products in bfloat16{needs}: they are computed in "
        "float32, which is at least as accurate, and slower than bfloat16 on a device that has it",
        RuntimeWarning,
        stacklevel=4,
    )


def _lstm_in_bfloat16() -> None:
    x, state = torch.ones(1, 2, 8), torch.ones(1, 1, 8)
    weights = [torch.ones(32, 8), torch.ones(32, 8), torch.ones(32), torch.ones(32)]
    with torch.autocast("cpu", torch.bfloat16):
        torch.lstm(x, [state, state], weights, True, 1, 0.0, False, False, True)


def _runs(trial: Callable[[], object]) -> bool:
    """Return whether a trial runs without an error."""
    try:
        with torch.no_grad():
            trial()
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return True


def limit_threads_after_fork() -> None:
    """Use a single thread in forked children.

    The OpenMP threads of the parent do not survive a fork, and the first operation that waits for
    them would deadlock.
    """
    if os.getpid() != _IMPORTING_PROCESS and torch.get_num_threads() > 1:
        torch.set_num_threads(1)


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Use `count` threads inside torch's operations, and restore the number afterwards.

    Small products gain nothing from a second thread, and take three times as long when another
    process uses its core.

    Args:
        count: number of threads; None for torch's own choice.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators inside the block, and restore their states afterwards.

    Weight initialisation and dropout draw from them. (`torch.manual_seed` would seed every CUDA
    device.)

    Args:
        seed: seed of the block's random numbers.
        device: device whose generator is seeded, beside the CPU's.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.default_generators[device.index].manual_seed(seed)
        yield


def own_torch_modes(*, grad: bool | None = None) -> AbstractContextManager[Any]:
    """Leave inference mode inside the block, and make float32 the default dtype there.

    Tensors made in inference mode could never again take part in a step under gradients.
    `torch.inference_mode(False)` alone would also turn gradients on. Where a program has set
    another default dtype, tensors made here would not have the dtype of the model's weights.

    Args:
        grad: whether to record gradients; None for what the caller has set.
    """
    enabled = torch.is_grad_enabled()
    target = enabled if grad is None else grad
    if torch.is_inference_mode_enabled() or torch.get_default_dtype() != torch.float32:
        return _normal_modes(target)
    # Most steps need at most one change, and each change costs as much as an operation.
    return _NO_CHANGE if enabled == target else torch.set_grad_enabled(target)


@contextmanager
def _normal_modes(grad: bool) -> Iterator[None]:
    with torch.inference_mode(False), torch.set_grad_enabled(grad), float32_by_default():
        yield


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Make float32 torch's default dtype inside the block, and the CPU its default device.

    What a program has set is restored afterwards.
    """
    before = torch.get_default_dtype()
    # A device as a context intercepts every call of torch: entered only where it is needed.
    moved = torch.get_default_device().type != "cpu"
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu") if moved else nullcontext():
            yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def private_generators() -> Iterator[None]:
    """Restore the global generators of Python, NumPy and torch after the block."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
