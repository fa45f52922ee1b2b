"""What the command line says when it cannot go on."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EXTRAS = {
    "stable_baselines3": "sb3",
    "matplotlib": "plot",
    "tensorboard": "tensorboard",
    "pygame": "classic-control",
}


class Interrupted(Exception):
    """Ctrl-C during long work; the message says what was kept and how to go on."""


@contextmanager
def keeping(kept: Callable[[], str]) -> Iterator[None]:
    """Turn Ctrl-C inside the block into `Interrupted`.

    Args:
        kept: called at Ctrl-C; one line on what is left on disk and how to go on. Work that knows
            better raises a `KeyboardInterrupt` with a message of its own, which is used instead.

    Raises:
        Interrupted: at Ctrl-C.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        raise Interrupted(str(stop) or kept()) from None


def explain(error: Exception) -> str:
    """One line on an error: the library's own words where it has them, else that it is a defect.

    Errors of the kinds below are raised with a message for the user; no other was foreseen.
    """
    line = " ".join(str(error).split())
    missing = (error.name or "").split(".")[0] if isinstance(error, ImportError) else ""
    if missing in EXTRAS:
        return f"this needs {missing}, an extra: pip install 'dreamgym[{EXTRAS[missing]}]'"
    if isinstance(error, OSError) and error.errno is not None:
        return _system(error)
    if (
        isinstance(
            error, ValueError | TypeError | OSError | ImportError | RuntimeError | MemoryError
        )
        and line
    ):
        return line
    if type(error).__module__.split(".")[0] == "gymnasium" and line:
        return line
    return (
        f"unforeseen {type(error).__name__}: {line or 'no message'}. This is a defect in dreamgym: "
        "run the same command with --debug and report what it prints"
    )


def _system(error: OSError) -> str:
    reason = (error.strerror or str(error)).rstrip(".")
    where = f": {error.filename}" if error.filename else ""
    todo = {
        errno.ENOSPC: "free some space or write elsewhere",
        errno.EDQUOT: "free some space or write elsewhere",
        errno.EACCES: "choose a path that you may read and write",
        errno.EROFS: "choose a path that can be written",
        errno.ENOENT: "check the path",
        errno.EISDIR: "give a file, not a folder",
        errno.ENOTDIR: "give a folder, not a file",
    }.get(error.errno or 0)
    return f"{reason}{where}" + (f"; {todo}" if todo else "")
