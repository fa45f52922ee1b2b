"""Public names of a package, imported from their modules on first access."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def lazy_names(package: str, names_of: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """Return a module-level `__getattr__` (PEP 562) that imports names on first access.

    Args:
        package: full name of the package.
        names_of: public names by the submodule that defines them. The submodules can be accessed
            as attributes, too. ".dream.watch" is a module of the neighbouring package `dream`.
    """
    module_of = {name: module for module, names in names_of.items() for name in names}

    def get(name: str) -> Any:
        if name in module_of:
            return getattr(importlib.import_module(f".{module_of[name]}", package), name)
        if name in names_of:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get
