"""Checks of settings and names, with messages that say what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the hint of an error message about an unknown word: the nearest known one, and all."""
    known = sorted(known)
    near = closest(word, known)
    hint = f"did you mean {near!r}? " if near else ""
    return f"{hint}known: {', '.join(known) or 'none'}"


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that is most like an unknown one; None if none is like it."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)), None)


def check_choice(name: str, value: object, allowed: Iterable[str]) -> None:
    """Check that a setting is one of some words.

    Args:
        name: name of the setting.
        value: its value.
        allowed: permitted values.

    Raises:
        ValueError: it is not; the message names the nearest.
    """
    choices = list(allowed)
    if value not in choices:
        raise ValueError(f"{name}={value!r} is not valid: {nearest(str(value), choices)}")


def check_at_least(config: Any, minimum: float, *names: str) -> None:
    """Check that settings are not below a minimum.

    Args:
        config: object with the settings.
        minimum: smallest permitted value.
        *names: names of the settings.

    Raises:
        ValueError: one is below it, or not a number.
        TypeError: one is None or a word.
    """
    for name in names:
        value = getattr(config, name)
        if not value >= minimum:
            raise ValueError(f"{name}={value}: expected a number of at least {minimum}")
