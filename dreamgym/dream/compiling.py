"""A compiled step: PyTorch's compiler fuses what an arranged step still does one by one.

With few rows, where a step costs as many calls as it has, and on a GPU the whole step is compiled.
With many rows on a CPU only those parts of the model are that say they can be: the rest of a step
is quicker as it is written, for it may ask which rows have ended.

What it has compiled stays in PyTorch's own cache on disk (`TORCHINDUCTOR_CACHE_DIR`, else a folder
of the user's under the system's temporary one), so that the next process finds it there.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from dreamgym.dream.capture import Step
from dreamgym.dream.engine import Engine
from dreamgym.dream.state import Dreams
from dreamgym.models import CompilesParts, without_asking

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
    if engine.device.type == "cpu" and not launched and isinstance(engine.model, CompilesParts):
        fast = _in_parts(engine, engine.model, dreams, action)
    else:
        # In few rows C++ launches the kernels, and not Python one by one; in many, where that is no
        # gain, a compiler of C++ takes minutes over it. Elsewhere a captured graph launches them.
        fast = _compiled(engine.step, {"cpp_wrapper": launched, **_looking_only(_at_tensors)})
        with without_asking():
            fast(dreams, action)
    sys.stderr.write(
        f"dreamgym: compiled the step of {engine.num_envs} dreams in "
        f"{time.perf_counter() - begun:.1f} s; later processes find it in PyTorch's cache, and "
        "compile=False does without\n"
    )
    return fast


def _looking_only(at: Callable[[Any], bool]) -> Options:
    """Has what is compiled look at some things only before each call.

    An engine does not change once it is made; to look through all of it, as the compiler's code
    otherwise does, takes a fifth of a step of one dream.

    Args:
        at: whether to look at what a guard of the compiler's watches.
    """
    if not hasattr(torch.compiler, "keep_tensor_guards_unsafe"):  # an older torch
        return {}

    def chosen(guards: Sequence[Any]) -> list[bool]:
        looked = [at(guard) for guard in guards]
        if not any(looked):  # it names them otherwise: then it looks at everything
            return [True] * len(looked)
        return [
            now or guard.guard_type == SETTINGS for now, guard in zip(looked, guards, strict=True)
        ]

    return {"guard_filter_fn": chosen}


def _at_inputs(guard: Any) -> bool:
    """What the function is given."""
    return GIVEN in guard.name


def _at_tensors(guard: Any) -> bool:
    """The same of a step, which is given tensors in always the same places."""
    return _at_inputs(guard) and guard.guard_type in GUARDS_OF_TENSORS


def _in_parts(engine: Engine, model: CompilesParts, dreams: Dreams, action: Tensor) -> Step:
    """The step as it is written, with parts of its model compiled."""
    parts: list[_Part] = []

    def compiler(function: Compute) -> _Part:
        parts.append(_Part(function))
        return parts[-1]

    model.compile_parts(compiler)
    try:
        engine.step(dreams, action)
    except Exception:
        model.compile_parts(None)
        raise
    for part in parts:
        part.is_late = True
    return engine.step


class _Part:
    """A function that is compiled when it is called, and once more for inputs of another kind.

    Args:
        function: what to compile.

    Attributes:
        is_late: whether an error in compiling comes too late to be the caller's: then a warning
            says so, and the function is called as it is written from then on.
    """

    def __init__(self, function: Compute) -> None:
        self.function, self.is_late = function, False
        self._fast: Compute | None = _compiled(function, _looking_only(_at_inputs))

    def __call__(self, *arguments: Any) -> Any:
        if self._fast is None:
            return self.function(*arguments)
        try:
            return self._fast(*arguments)
        except Exception as error:
            if not self.is_late:
                raise
            given = self.function(*arguments)  # which raises what is not the compiler's own
            self._fast = None
            warnings.warn(
                f"a part of this dream's step could not be compiled again ({type(error).__name__});"
                " it is called as it is written, which is slower",
                RuntimeWarning,
                stacklevel=2,
            )
            return given


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
