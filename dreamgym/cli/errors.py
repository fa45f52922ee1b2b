"""Error messages of the command line."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dreamgym._extras import EXTRA_OF, missing_extra
from dreamgym.train import registry

_REMEDIES = {
    errno.ENOSPC: "free some space or write elsewhere",
    errno.EDQUOT: "free some space or write elsewhere",
    errno.EACCES: "choose a path that you may read and write",
    errno.EROFS: "choose a path that can be written",
    errno.ENOENT: "check the path",
    errno.EISDIR: "give a file, not a folder",
    errno.ENOTDIR: "give a folder, not a file",
}


class Interrupted(Exception):
    """Ctrl-C during long work; the message says what was kept and how to continue."""


@contextmanager
def keeping(describe_kept: Callable[[], str], *, own: bool = True) -> Iterator[None]:
    """Turn Ctrl-C inside the block into `Interrupted`.

    Args:
        describe_kept: called at Ctrl-C; returns one line on what is left on disk and how to
            continue.
        own: whether a `KeyboardInterrupt` with a message of its own takes precedence; not where the
            message is that of a part of the work.

    Raises:
        Interrupted: at Ctrl-C.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        raise Interrupted((own and str(stop)) or describe_kept()) from None


def explain(error: Exception) -> str:
    """Return one line on an error: the library's message, or that it is a defect.

    Errors of the kinds below are raised with a message for the user; others are unexpected.
    """
    line = " ".join(str(error).split())
    if isinstance(error, ImportError) and "pip install" not in line:
        extras = {**EXTRA_OF, **registry.extras()}
        line = missing_extra(error.name or "", extras=extras) or line
    if isinstance(error, OSError) and error.errno is not None:
        return _explain_os_error(error)
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
        f"unexpected {type(error).__name__}: {line or 'no message'}. This is a defect in dreamgym: "
        "run the same command with --debug and report what it prints"
    )


def _explain_os_error(error: OSError) -> str:
    reason = (error.strerror or str(error)).rstrip(".")
    where = f": {error.filename}" if error.filename else ""
    remedy = _REMEDIES.get(error.errno or 0)
    return f"{reason}{where}" + (f"; {remedy}" if remedy else "")
