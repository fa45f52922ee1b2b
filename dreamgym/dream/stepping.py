"""Which way an engine's step is taken: as it is written, compiled, or as a captured graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from dreamgym.dream import capture
from dreamgym.dream.capture import CapturedStep, Graph, Step
from dreamgym.dream.compiling import compiled
from dreamgym.dream.engine import Engine
from dreamgym.dream.state import Dreams, Outcome
from dreamgym.models import without_asking

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
    with without_asking():
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
