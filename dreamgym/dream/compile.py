"""The fastest way to step an engine on its device: eager, compiled, captured, or the last two.

Compiled code stays in PyTorch's own cache on disk (`TORCHINDUCTOR_CACHE_DIR`, by default a folder
of the user's in the system's temporary one), where the next process finds it.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor

from dreamgym.dream import capture
from dreamgym.dream.capture import CapturedStep, Step
from dreamgym.dream.engine import Engine
from dreamgym.dream.state import Dreams, Outcome
from dreamgym.models.host_sync import forbid_host_sync

T = TypeVar("T")

INPUT_GUARDS = ("TENSOR_MATCH", "DUPLICATE_INPUT")
"""Dynamo's names of the guards on an input: its dtype, shape and strides, and its aliases."""

SETTINGS_GUARD = "GLOBAL_STATE"
"""Dynamo's name of the guard on torch's own settings, such as grad mode and threads."""

ARGUMENTS = "arguments"
"""Dynamo's name of the inputs: the parameter of `run` in `_with_own_code`."""

CPP_WRAPPER_ROWS = 64
"""Rows up to which step time is dominated by per-call overhead."""


class Stepper:
    """Steps an engine in the fastest way that its device has and its options allow.

    The way is chosen and prepared at the first step. Where compiling or capturing fails, one
    warning says why, and steps are taken without it: slower, with equal results. Steps under
    gradients are always eager.

    Args:
        engine: engine to step; its option `compile` says what to try.

    Attributes:
        execution: "eager", "compiled", "captured" or "compiled and captured".
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.execution = "eager"
        self._fast: Step | None = None
        self._captured: CapturedStep | None = None

    def step(self, dreams: Dreams, action: Tensor) -> tuple[Dreams, Outcome]:
        """Take a step; see `Engine.step`. The next step may overwrite the returned dreams."""
        if torch.is_grad_enabled():
            return self.engine.step(self.owned(dreams), action)
        if self._fast is None:
            self._fast = self._prepare(dreams, action)
        return self._fast(dreams, action)

    def owned(self, dreams: Dreams) -> Dreams:
        """Return the same dreams in memory that no later step overwrites."""
        return dreams if self._captured is None else self._captured.owned(dreams)

    def _prepare(self, dreams: Dreams, action: Tensor) -> Step:
        """Return the fastest step; the dreams are not changed by trying it."""
        option, device = self.engine.options.compile, self.engine.device
        step: Step = self.engine.step
        if self.engine.plain.foreign_step:
            if option is True:
                _try("compiled", _refuse)
            return step
        succeeded: list[str] = []
        if option is True:
            compiled_step = _try("compiled", lambda: compiled(self.engine, dreams, action))
            if compiled_step is not None:
                step = compiled_step
                succeeded.append("compiled")
        if option is not False and device.type in capture.GRAPHS:
            self._captured = _try("captured", lambda: _captured(step, device, dreams, action))
            if self._captured is not None:
                step = self._captured
                succeeded.append("captured")
        self.execution = " and ".join(succeeded) or "eager"
        return step


def compiled(engine: Engine, dreams: Dreams, action: Tensor) -> Step:
    """Compile the step of an engine; print once on stderr how long that took.

    Args:
        engine: engine whose step is compiled.
        dreams: dreams like those of every later call.
        action: (N, ...) actions like those of every later call.

    Raises:
        Exception: whatever the compiler raises where it cannot compile this step, or is missing.
    """
    started = time.perf_counter()
    # With few rows, kernels are launched from C++ and not one by one from Python. With many rows
    # that gains nothing, and a C++ compiler takes minutes for it. On a GPU, a captured graph
    # launches them.
    cpp_wrapper = engine.device.type == "cpu" and engine.num_envs <= CPP_WRAPPER_ROWS
    options = {"cpp_wrapper": cpp_wrapper, **_guard_inputs_only()}
    step = _with_own_code(engine.step)
    fast = torch.compile(step, fullgraph=True, dynamic=False, options=options)
    with forbid_host_sync():
        fast(dreams, action)
    sys.stderr.write(
        f"dreamgym: compiled the step of {engine.num_envs} dreams in "
        f"{time.perf_counter() - started:.1f} s; later processes find it in PyTorch's cache; "
        "compile=False turns compiling off\n"
    )
    return fast


def _guard_inputs_only() -> dict[str, Any]:
    """Return compiler options that check only the inputs before each call.

    An engine does not change once it is made. Checking all of it, as the compiler does by default,
    takes a fifth of the step of one dream.
    """
    if not hasattr(torch.compiler, "keep_tensor_guards_unsafe"):  # torch without guard filters
        return {}

    def keep(guards: Sequence[Any]) -> list[bool]:
        on_inputs = [
            ARGUMENTS in guard.name and guard.guard_type in INPUT_GUARDS for guard in guards
        ]
        if not any(on_inputs):  # this torch names its guards otherwise: keep all of them
            return [True] * len(guards)
        return [
            on_input or guard.guard_type == SETTINGS_GUARD
            for on_input, guard in zip(on_inputs, guards, strict=True)
        ]

    return {"guard_filter_fn": keep}


def _with_own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function in a new function with its own code object.

    Dynamo counts recompilations by code object, and would refuse to compile `Engine.step` for a
    ninth engine.
    """

    def run(*arguments: Any) -> Any:
        return function(*arguments)

    code = run.__code__.replace()
    return FunctionType(code, run.__globals__, run.__name__, None, run.__closure__)


def _refuse() -> None:
    """Raise the reason why the step of a foreign library is not compiled.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError("its model syncs with the host in every step")


def _captured(step: Step, device: torch.device, dreams: Dreams, action: Tensor) -> CapturedStep:
    graph = capture.GRAPHS[device.type](device)
    with forbid_host_sync():
        return CapturedStep(step, graph, dreams, action)


def _try(what: str, make: Callable[[], T]) -> T | None:
    """Return what `make` returns; where it raises, warn and return None."""
    try:
        return make()
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "no reason given")
        warnings.warn(
            f"the step of this dream cannot be {what} here ({type(error).__name__}: {reason}); "
            "steps are taken without it: slower, with equal results; pass compile=False to avoid "
            "this warning",
            RuntimeWarning,
            stacklevel=6,
        )
        return None
