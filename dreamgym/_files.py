"""Files that are whole or not there: written aside, flushed to the disk, renamed."""

from __future__ import annotations

import difflib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dreamgym.errors import DatasetError, DiskFullError

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def nearest(word: str, known: Iterable[str]) -> str:
    """What to suggest for a misspelt word: the nearest of `known`, and all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(known) or 'none'}"


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a path beside `path` to write a file to; rename it to `path` when the block succeeds.

    Raises:
        DiskFullError: the disk is full; `path` is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with _naming_full_disk(path):
            yield temporary
            _flush(temporary)
            _set_default_mode(temporary)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Give a folder beside `path` to fill; rename it to `path` when the block succeeds.

    Args:
        path: the folder to make.
        replace: what stands at `path` gives way, after the new folder is whole.

    Raises:
        FileExistsError: `path` exists and may not be replaced.
        DiskFullError: the disk is full; `path` is as it was.
    """
    path = Path(path)
    if path.exists() and not replace:
        raise FileExistsError(f"{path} exists already; give another path or overwrite=True")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        with _naming_full_disk(path):
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _flush(file)
                    _set_default_mode(file)
            temporary.chmod(0o777 & ~_umask())
            _swap(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _swap(new: Path, path: Path) -> None:
    """Put `new` at `path`; what stood there is put back if that fails."""
    if not path.exists():
        os.rename(new, path)
        return
    old = new.with_suffix(".old")
    os.rename(path, old)
    try:
        os.rename(new, path)
    except BaseException:  # Ctrl-C as well: what stood there stands there again
        os.rename(old, path)
        raise
    if old.is_dir():
        shutil.rmtree(old)
    else:
        old.unlink()


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _set_default_mode(path: Path) -> None:
    """Temporary files are private to their owner; what stays gets the user's own default."""
    path.chmod(0o666 & ~_umask())


@contextmanager
def _naming_full_disk(path: Path) -> Iterator[None]:
    """Turn every way of saying "no space" (safetensors has one of its own) into one error."""
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        said = f"{error}".lower()
        full = isinstance(error, OSError) and error.errno in NO_SPACE
        if full or "no space left" in said or "file too large" in said:
            raise DiskFullError(
                f"no space left to write {path} ({error}); free some space or give another path. "
                "Nothing that was there before has changed"
            ) from error
        raise


def partial_path(path: Path) -> Path:
    """Where a dataset lies while it is being written."""
    return path.with_name(path.name + ".partial")


def refuse_existing(path: Path) -> None:
    """Raise `DatasetError` where `path`, or a recording that was to become it, already exists."""
    if path.exists():
        raise DatasetError(
            "it exists already", path=path, remedy="choose another name, or move it away"
        )
    partial = partial_path(path)
    if partial.exists():
        raise DatasetError(
            "another recording is writing it, or was killed while it did",
            path=partial,
            remedy=f"wait for it, or save its episodes with `dreamgym recover {partial}`",
        )


def refuse_unfinished(path: Path) -> None:
    """Raise `DatasetError` where `path` is not there, but a recording that was to become it is."""
    partial = partial_path(path)
    if not path.exists() and partial.exists():
        raise DatasetError(
            f"it is still being written, or its writer was killed; it lies in {partial}",
            path=path,
            remedy="read what is there with Dataset.snapshot, or save it with "
            f"`dreamgym recover {partial}`",
        )


def sync(path: Path) -> None:
    """Force a file onto the disk, so that its new name never stands for an older content."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
