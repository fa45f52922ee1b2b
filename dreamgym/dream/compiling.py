"""A compiled step: PyTorch's compiler fuses what an arranged step still does one by one.

What it has compiled stays in PyTorch's own cache on disk (`TORCHINDUCTOR_CACHE_DIR`, else a folder
of the user's under the system's temporary one), so that the next process finds it there.
"""

from __future__ import annotations

import sys
import time
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from dreamgym.dream.capture import Step
from dreamgym.dream.state import Dreams, Outcome

FEW = 64
"""Rows up to which a step costs as many calls as it has."""


def compiled(step: Step, dreams: Dreams, action: Tensor) -> Step:
    """The same step, compiled whole; how long that took is said once on stderr.

    Args:
        step: what to compile; it must ask the device nothing.
        dreams: where rows stand, as in every later call.
        action: (N, ...) as in every later call.

    Raises:
        RuntimeError: there is no compiler here, or it cannot compile this step.
    """
    begun = time.perf_counter()
    # In few rows C++ launches the kernels, and not Python one by one; in many, where that is no
    # gain, a compiler of C++ takes minutes over it. Elsewhere a captured graph launches them.
    launched = action.device.type == "cpu" and len(dreams.env) <= FEW
    options: dict[str, Any] = {"cpp_wrapper": launched}
    fast: Step = torch.compile(_of_its_own(step), fullgraph=True, dynamic=False, options=options)
    fast(dreams, action)
    sys.stderr.write(
        f"dreamgym: compiled the step of {len(dreams.env)} dreams in "
        f"{time.perf_counter() - begun:.1f} s; later processes find it in PyTorch's cache, and "
        "compile=False does without\n"
    )
    return fast


def _of_its_own(step: Step) -> Step:
    """The step in a function with code of its own.

    The compiler keeps what it compiled by code, and refuses to compile the same code for a ninth
    engine.
    """

    def run(dreams: Dreams, action: Tensor) -> tuple[Dreams, Outcome]:
        return step(dreams, action)

    code = run.__code__.replace()
    return FunctionType(code, run.__globals__, run.__name__, None, run.__closure__)
