"""Conversion of foreign datasets to native ones, and packing of native ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py

from dreamgym._files import local_path, new_dataset_path, partial_path, replace_path, sync
from dreamgym.data.formats import ForeignDataset, ForeignOptions, open_foreign
from dreamgym.data.hdf5 import schema
from dreamgym.data.hdf5.guard import hdf5_errors, open_file
from dreamgym.data.hdf5.reader import open_columns, open_native, read_metadata, read_table
from dreamgym.data.hdf5.writer import DatasetWriter
from dreamgym.errors import DatasetError

# A conversion that is stopped starts again: nothing is lost with episodes that are not committed.
_COMMIT_EVERY = 4096


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """The result of `convert`.

    Attributes:
        path: the native dataset.
        format: name of the source's format.
        convention: convention that the source was read by.
        episodes: number of episodes written.
        steps: number of transitions written.
        skipped: description of each episode that was left out; only with `on_bad="skip"`.
        notes: what else is worth knowing, such as what the source does not hold and is lost.
    """

    path: Path
    format: str
    convention: str
    episodes: int
    steps: int
    skipped: list[str]
    notes: list[str]


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    options: ForeignOptions | None = None,
    on_bad: Literal["raise", "skip"] = "raise",
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Conversion:
    """Write a foreign dataset as a native one; the source is never changed.

    Args:
        source: a file or folder of a foreign format, see `dreamgym.data.formats.FORMATS`.
        out: the dataset to create.
        options: what the source does not say about itself: the meaning of its end flags, spaces,
            keys.
        on_bad: what to do with a bad episode: `"raise"`, or `"skip"` it and list it.
        overwrite: whether to replace an existing file `out`, once the new dataset is complete.
        progress: callback that receives the number of episodes done.

    Raises:
        DatasetError: the source has no known format, something in it is ambiguous, an episode is
            bad, or `out` exists and `overwrite` is False.
    """
    if on_bad not in ("raise", "skip"):
        raise ValueError(f"on_bad is {on_bad!r}; it must be 'raise' or 'skip'")
    source, out = local_path(source), local_path(out)
    target = _new_file_path(out, overwrite)
    foreign = open_foreign(source, options or ForeignOptions())
    try:
        writer = DatasetWriter(target, foreign.metadata, commit_every=_COMMIT_EVERY)
        try:
            with writer:
                skipped = _write_episodes(writer, foreign, source, on_bad, progress)
            if not writer.num_episodes:
                raise DatasetError(
                    f"none of its {len(skipped)} episodes could be used", path=source
                )
        except BaseException:
            # A failed conversion leaves nothing behind: the source still has everything.
            _remove_unfinished(target)
            raise
    finally:
        foreign.close()
    if target != out:
        replace_path(target, out)
    return Conversion(
        path=out,
        format=foreign.format,
        convention=foreign.convention,
        episodes=writer.num_episodes,
        steps=writer.num_steps,
        skipped=skipped,
        notes=[*foreign.metadata.notes, *foreign.metadata.problems],
    )


def _write_episodes(
    writer: DatasetWriter,
    foreign: ForeignDataset,
    source: str | os.PathLike[str],
    on_bad: str,
    progress: Callable[[int], None] | None,
) -> list[str]:
    """Write all episodes of a foreign dataset; return a description of each skipped one."""
    skipped = []
    for number, episode in enumerate(foreign.episodes()):
        if isinstance(episode, DatasetError):
            problem = episode.at(path=source, episode=number)
            if on_bad == "raise":
                raise problem from episode
            skipped.append(_reason(problem))
            continue
        try:
            writer.add(episode)
        except DatasetError as error:
            problem = DatasetError(
                error.problem,
                path=source,
                key=error.key,
                episode=number,
                row=error.row,
                remedy=error.remedy,
            )
            # An error with a cause comes from the disk, not from the episode.
            if on_bad == "raise" or error.__cause__ is not None:
                raise problem from error
            skipped.append(_reason(problem))
        if progress is not None:
            progress(number + 1)
    return skipped


def _reason(problem: DatasetError) -> str:
    """Return why an episode was skipped, without the advice to skip it."""
    return str(problem).removesuffix(f"; {problem.remedy}")


def _remove_unfinished(target: Path) -> None:
    """Remove what a writer left: `<target>.partial`, or `target` if it was closed."""
    partial = partial_path(target)
    (partial if partial.exists() else target).unlink(missing_ok=True)


def _new_file_path(out: Path, overwrite: bool) -> Path:
    """Return the path to write the file `out` to, see `new_dataset_path`."""
    if overwrite and out.is_dir():
        raise DatasetError("it is a folder, and the dataset is a file", path=out)
    return new_dataset_path(out, overwrite=overwrite)


def pack(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    level: int = 4,
    method: Literal["gzip", "zstd"] = "gzip",
    overwrite: bool = False,
) -> Path:
    """Write a native dataset compressed, with byte shuffling, for sharing.

    gzip is part of every HDF5 library: the file is read without a plugin. zstd is several times
    faster to write and to read, and needs `dreamgym[hdf5plugin]` on both sides. Packed files cannot
    be appended to, and drawing segments from them is slow unless they fit in memory. The checksums
    stay the same.

    Args:
        source: a closed native dataset, a file.
        out: the file to create; its folder is created too.
        level: compression level, 1 (fast) to 9 (small).
        method: `"gzip"` or `"zstd"`.
        overwrite: whether to replace an existing file `out`, once the new one is complete.

    Raises:
        DatasetError: `source` is not a complete native dataset, `out` exists and `overwrite` is
            False, `out` cannot be written, or zstd is not installed.
        ValueError: the level or the method is out of range.
    """
    if not 1 <= level <= 9:
        raise ValueError(f"level is {level}; it must be between 1 and 9")
    compression = _compression(method, level)
    source, out = local_path(source), local_path(out)
    target = _new_file_path(out, overwrite)
    open_native(source, 0).close()  # refuse a bad source before anything is written
    partial = partial_path(target)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with open_file(source) as file, h5py.File(partial, "x", libver=("v110", "v110")) as packed:
            _copy_packed(file, source, packed, compression)
        sync(partial)
        replace_path(partial, out)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise DatasetError(f"it cannot be written ({error})", path=out) from error
        raise
    return out


def _compression(method: str, level: int) -> dict[str, Any]:
    """Return h5py's arguments for a compressed dataset."""
    if method == "gzip":
        return {"compression": "gzip", "compression_opts": level}
    if method != "zstd":
        raise ValueError(f"method is {method!r}; it must be 'gzip' or 'zstd'")
    try:
        import hdf5plugin
    except ImportError:
        raise DatasetError(
            "packing with zstd needs hdf5plugin",
            remedy="pip install 'dreamgym[hdf5plugin]', or pack with gzip",
        ) from None
    return dict(hdf5plugin.Zstd(clevel=level))


def _copy_packed(
    file: h5py.File, source: Path, packed: h5py.File, compression: dict[str, Any]
) -> None:
    metadata, table = read_metadata(file, source), read_table(file, source)
    for name, value in schema.metadata_to_attributes(metadata).items():
        schema.set_attribute(packed, name, value)
    columns = open_columns(file, source, metadata)
    for name, (shape, dtype) in schema.row_layout(metadata).items():
        count = table.num_rows if name in columns else len(table)
        chunk_rows = schema.chunk_rows(shape, dtype)
        target = packed.create_dataset(
            name,
            shape=(count, *shape),
            chunks=(min(chunk_rows, count), *shape),
            dtype=dtype,
            shuffle=dtype.itemsize > 1,
            **compression,
        )
        with hdf5_errors(source, f"/{name}"):
            for first in range(0, count, chunk_rows):
                stop = min(first + chunk_rows, count)
                target[first:stop] = file[name][first:stop]
