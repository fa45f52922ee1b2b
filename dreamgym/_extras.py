"""Optional dependencies: which extra installs them, and one error where one is missing."""

from __future__ import annotations

import importlib
from types import ModuleType

EXTRA_OF = {
    "hdf5plugin": "hdf5plugin",
    "matplotlib": "plot",
    "pygame": "classic-control",
    "stable_baselines3": "sb3",
    "tensorboard": "tensorboard",
    "transformers": "transformers",
    "vizdoom": "doom",
}
"""Extra of `pip install 'dreamgym[extra]'` by the module that it installs."""


def missing_extra(module: str, user: str = "this") -> str | None:
    """Return the error message for a module that is not installed; None where no extra has it.

    Args:
        module: Full name of the module; only its first part counts.
        user: What needs it.
    """
    package = module.split(".")[0]
    if package not in EXTRA_OF:
        return None
    return f"{user} needs {package}, an extra: pip install 'dreamgym[{EXTRA_OF[package]}]'"


def import_extra(module: str, user: str) -> ModuleType:
    """Import a module of an extra.

    Args:
        module: Full name of the module.
        user: What needs it, for the message.

    Raises:
        ModuleNotFoundError: It is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        message = missing_extra(error.name or module, user)
        if message is None:
            raise
        raise ModuleNotFoundError(message, name=error.name) from None
