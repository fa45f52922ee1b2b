"""Models of which parts are compiled: with many rows on a CPU, that is where a step's time goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]
"""From a pure function of tensors to a faster one of the same results, up to rounding."""


@runtime_checkable
class CompilesParts(Protocol):
    """An arranged model that has pure functions of its own to be compiled.

    What is left out of them may ask the device something, take rows some at a time, or write into
    memory that is there: all that a compiler of a whole step has to do without.
    """

    def compile_parts(self, compiler: Compiler | None) -> None:
        """Have what a compiler makes of these functions in their places; None puts them back."""
        ...
