"""Atomic files and folders: written under a temporary name, synced to disk, renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from dreamgym.errors import DatasetError, DiskFullError, DreamgymError

_VARIABLE = re.compile(r"(?:^|[/\\])\$\{?(\w+)")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")  # two letters at least: C:/ is a drive

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class ClosingContext(ABC):
    """A context manager that closes itself, for classes that hold files open."""

    @abstractmethod
    def close(self) -> None:
        """Close what is open; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def local_path(path: str | os.PathLike[str], error: type[DreamgymError] = DatasetError) -> Path:
    """Return the path of a local file or folder that a user named.

    `~` is expanded, and so are environment variables such as `$SCRATCH` unless the path exists.

    Every public function that takes a path from the user calls it first.

    Args:
        path: what the user named.
        error: error to raise.

    Raises:
        DreamgymError: it is a URL, or `~name` or `$NAME` is unknown; of the type `error`.
    """
    text = os.fspath(path)
    url = _URL.match(text)
    if url:
        raise error(
            f"{text!r} is a URL ({url[1]}://), and dreamgym reads and writes local files only; "
            "download what is to be read, write to a local path and upload it, or mount the store"
        )
    if "$" in text and not os.path.lexists(text):
        text = os.path.expandvars(text)
        unknown = _VARIABLE.search(text)
        if unknown:
            raise error(
                f"{text!r}: there is no environment variable {unknown[1]!r}; set it, or write the "
                "path without it"
            )
    if not text.startswith("~"):
        return Path(text)
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise error(
            f"{text!r}: there is no such user's home folder; write './{text}' for a file of that "
            "name"
        ) from None


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -------------------------------------------------------------------- atomic files and folders


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to `path` if the block succeeds.

    Raises:
        DiskFullError: the disk is full; `path` is unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with _disk_full_errors(path):
            yield temporary
            sync(temporary)
            _set_default_mode(temporary)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; rename it to `path` if the block succeeds.

    Args:
        path: the folder to create.
        replace: whether an existing `path` may be replaced; it is, once the new one is complete.

    Raises:
        FileExistsError: `path` exists, and `replace` is False.
        DiskFullError: the disk is full; `path` is unchanged.
    """
    path = Path(path)
    require_new(path, overwrite=replace)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        with _disk_full_errors(path):
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    sync(file)
                    _set_default_mode(file)
            temporary.chmod(0o777 & ~_umask())
            replace_path(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_new(path: Path, *, overwrite: bool) -> None:
    """Raise `FileExistsError` if `path` exists and may not be overwritten."""
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} exists already; give another path, or overwrite=True (--overwrite)"
        )


def replace_path(new: Path, path: Path) -> None:
    """Rename the file or folder `new` to `path`, and delete what was there.

    A file replaces a file atomically. A folder is replaced in two renames, since no system call
    does it in one; if the second fails, the old content is put back.
    """
    if not path.exists() or (new.is_file() and path.is_file()):
        os.replace(new, path)
        return
    backup = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
    old = backup / path.name
    try:
        os.rename(path, old)
        try:
            os.rename(new, path)
        except BaseException:  # Ctrl-C included
            os.rename(old, path)
            raise
    except BaseException:
        backup.rmdir()
        raise
    shutil.rmtree(backup)


def sync(path: Path) -> None:
    """Flush a file to disk, so that a rename never gives its name to older content."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _set_default_mode(path: Path) -> None:
    """Give a file the user's default permissions: temporary files are private to their owner."""
    path.chmod(0o666 & ~_umask())


@contextmanager
def _disk_full_errors(path: Path) -> Iterator[None]:
    """Turn every error that means "no space left" into a `DiskFullError`."""
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        # safetensors reports a full disk as an error of its own, in words only.
        message = f"{error}".lower()
        full = isinstance(error, OSError) and error.errno in NO_SPACE
        if full or "no space left" in message or "file too large" in message:
            raise DiskFullError(
                f"no space left to write {path} ({error}); free some space or give another path. "
                "Existing files are unchanged"
            ) from error
        raise


# ------------------------------------------------------------------ datasets while being written


def partial_path(path: Path) -> Path:
    """Return the path of a dataset while it is being written."""
    return path.with_name(path.name + ".partial")


def new_dataset_path(path: Path, *, overwrite: bool = False) -> Path:
    """Return the path to write a new dataset to: `path`, or a path beside it if `path` exists.

    In the second case the caller replaces `path` with `replace_path` when the new one is complete.

    Args:
        path: the dataset to create, a file or a folder.
        overwrite: whether an existing `path` may be replaced.

    Raises:
        DatasetError: `path` exists and `overwrite` is False, or another recording is writing it.
    """
    if not (overwrite and path.exists()):
        refuse_existing(path)
        return path
    _refuse_partial(path)
    new = path.with_name(path.name + ".new")
    refuse_existing(new)
    return new


def refuse_existing(path: Path) -> None:
    """Raise `DatasetError` if `path` exists, or a recording that was to become it."""
    if path.exists():
        raise DatasetError(
            "it exists already",
            path=path,
            remedy="give another path, or overwrite=True (--overwrite)",
        )
    _refuse_partial(path)


def _refuse_partial(path: Path) -> None:
    partial = partial_path(path)
    if partial.exists():
        raise DatasetError(
            "another recording is writing it, or was killed while it did",
            path=partial,
            remedy=f"wait for it, or save its episodes with `dreamgym recover {partial}`",
        )


def refuse_unfinished(path: Path) -> None:
    """Raise `DatasetError` if `path` does not exist, but a recording that was to become it does."""
    if path.exists():
        return
    partial = partial_path(path)
    if partial.exists():
        raise DatasetError(
            f"it is still being written, or its writer was killed; its file is {partial}",
            path=path,
            remedy="read the committed episodes with Dataset.snapshot, or save them with "
            f"`dreamgym recover {partial}`",
        )


def json_text(value: Any) -> str:
    """Return figures as JSON; one that is not finite, which JSON does not know, becomes null.

    Args:
        value: JSON-plain values; NumPy's numbers become plain ones.
    """
    return json.dumps(_finite(value), indent=2, allow_nan=False, default=float) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value
