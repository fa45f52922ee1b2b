"""A compiled step: PyTorch's compiler fuses what an arranged step still does one by one.

What it has compiled stays in PyTorch's own cache on disk (`TORCHINDUCTOR_CACHE_DIR`, else a folder
of the user's under the system's temporary one), so that the next process finds it there.
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
from dreamgym.dream.capture import CapturedStep, Graph, Step
from dreamgym.dream.engine import Engine
from dreamgym.dream.state import Dreams, Outcome
from dreamgym.models.host_sync import forbid_host_sync

Compute = Callable[..., Any]


Options = dict[str, Any]


GUARDS_OF_TENSORS = ("TENSOR_MATCH", "DUPLICATE_INPUT")

"""The compiler's names for: what kind of tensor it is, and which are one."""


SETTINGS = "GLOBAL_STATE"

"""And for torch's own, such as the number of threads."""


GIVEN = "arguments"

"""Its name for what it is given: that of the parameter in `_of_its_own`."""


FEW = 64

"""Rows up to which a step costs as many calls as it has."""


def compiled(engine: Engine, dreams: Dreams, action: Tensor) -> Step:
    """The engine's step, compiled; how long that took is said once on stderr.

    Args:
        engine: whose step, or whose model's parts.
        dreams: where rows stand, as in every later call.
        action: (N, ...) as in every later call.

    Raises:
        RuntimeError: there is no compiler here, or it cannot compile this step.
    """
    begun = time.perf_counter()
    launched = engine.device.type == "cpu" and engine.num_envs <= FEW
    # In few rows C++ launches the kernels, and not Python one by one; in many, where that is no
    # gain, a compiler of C++ takes minutes over it. Elsewhere a captured graph launches them.
    fast = _compiled(engine.step, {"cpp_wrapper": launched, **_input_guards_only()})
    with forbid_host_sync():
        fast(dreams, action)
    sys.stderr.write(
        f"dreamgym: compiled the step of {engine.num_envs} dreams in "
        f"{time.perf_counter() - begun:.1f} s; later processes find it in PyTorch's cache, and "
        "compile=False does without\n"
    )
    return fast


def _input_guards_only() -> Options:
    """Compiler options that check only the inputs before each call.

    An engine does not change once it is made; checking all of it, as the compiler does by default,
    takes a fifth of a step of one dream.
    """
    if not hasattr(torch.compiler, "keep_tensor_guards_unsafe"):  # an older torch
        return {}

    def chosen(guards: Sequence[Any]) -> list[bool]:
        inputs = [GIVEN in guard.name and guard.guard_type in GUARDS_OF_TENSORS for guard in guards]
        if not any(inputs):  # this torch names its guards otherwise: keep all of them
            return [True] * len(guards)
        return [
            kept or guard.guard_type == SETTINGS for kept, guard in zip(inputs, guards, strict=True)
        ]

    return {"guard_filter_fn": chosen}


def _compiled(function: Compute, options: Options) -> Compute:
    own = _of_its_own(function)
    return torch.compile(own, fullgraph=True, dynamic=False, options=options)


def _of_its_own(function: Compute) -> Compute:
    """The function in one with code of its own.

    The compiler keeps what it compiled by code, and refuses to compile the same code for a ninth
    engine.
    """

    def run(*arguments: Any) -> Any:
        return function(*arguments)

    code = run.__code__.replace()
    return FunctionType(code, run.__globals__, run.__name__, None, run.__closure__)


T = TypeVar("T")


class Stepper:
    """Steps an engine in the fastest way that its device has and its options allow.

    The way is made ready at the first step. Where it cannot be had, a warning says why, and the
    step is taken as it is written: slower, and with the same result. Under gradients it always is.

    Args:
        engine: whose option `compile` says what is asked for.

    Attributes:
        way: how steps are taken: "eager", "compiled", "captured" or "compiled and captured".
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.way = "eager"
        self._fast: Step | None = None
        self._captured: CapturedStep | None = None

    def step(self, dreams: Dreams, action: Tensor) -> tuple[Dreams, Outcome]:
        """See `Engine.step`; the dreams that it gives may be overwritten by the next step."""
        if torch.is_grad_enabled():
            return self.engine.step(self.owned(dreams), action)
        if self._fast is None:
            self._fast = self._prepare(dreams, action)
        return self._fast(dreams, action)

    def owned(self, dreams: Dreams) -> Dreams:
        """The same dreams in memory that no later step overwrites."""
        return dreams if self._captured is None else self._captured.owned(dreams)

    def _prepare(self, dreams: Dreams, action: Tensor) -> Step:
        """The fastest way to step; the dreams are not moved by looking for it."""
        wanted, device = self.engine.options.compile, self.engine.device
        step: Step = self.engine.step
        made: list[str] = []
        if wanted is True:
            compiled_step = _tried("compiled", lambda: compiled(self.engine, dreams, action))
            if compiled_step is not None:
                step = compiled_step
                made.append("compiled")
        if wanted is not False and device.type in capture.GRAPHS:
            graph = capture.GRAPHS[device.type](device)
            self._captured = _tried("captured", lambda: _captured(step, graph, dreams, action))
            if self._captured is not None:
                step = self._captured
                made.append("captured")
        self.way = " and ".join(made) or "eager"
        return step


def _captured(step: Step, graph: Graph, dreams: Dreams, action: Tensor) -> CapturedStep:
    with forbid_host_sync():
        return CapturedStep(step, graph, dreams, action)


def _tried(what: str, make: Callable[[], T]) -> T | None:
    """What is made, or None and a warning."""
    try:
        return make()
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "no reason given")
        warnings.warn(
            f"the step of this dream cannot be {what} here ({type(error).__name__}: {reason}); it "
            "is taken as it is written, which is slower; compile=False asks for no more",
            RuntimeWarning,
            stacklevel=6,
        )
        return None
