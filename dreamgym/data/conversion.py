"""Foreign datasets to native ones, and native ones to compressed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py

from dreamgym._files import partial_path, refuse_existing, sync
from dreamgym.data.formats import ForeignOptions, open_foreign
from dreamgym.data.hdf5 import schema
from dreamgym.data.hdf5.guard import hdf5_errors, open_file
from dreamgym.data.hdf5.reader import open_columns, open_native, read_metadata, read_table
from dreamgym.data.hdf5.schema import metadata_to_attributes, row_layout, set_attribute
from dreamgym.data.hdf5.writer import DatasetWriter
from dreamgym.errors import DatasetError


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What `convert` did.

    Attributes:
        path: The native dataset.
        format: What the source was.
        convention: Under which convention it was read.
        episodes: Episodes written.
        steps: Transitions written.
        skipped: What was left out, and why; only with `on_bad="skip"`.
    """

    path: Path
    format: str
    convention: str
    episodes: int
    steps: int
    skipped: list[str]


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    options: ForeignOptions | None = None,
    on_bad: Literal["raise", "skip"] = "raise",
    progress: Callable[[int], None] | None = None,
) -> Conversion:
    """Write a foreign dataset as a native one; the source is never changed.

    Args:
        source: A file or folder of a known format: Minari, D4RL, robomimic, stable-worldmodel,
            OGBench, Ha & Schmidhuber, or plain npz episodes.
        out: The dataset to make; must not exist.
        options: What the source does not say: the meaning of its end flags, spaces, keys.
        on_bad: What to do with an episode that does not fit: `"raise"`, or `"skip"` and list it.
        progress: Called with the number of episodes done.

    Raises:
        DatasetError: No format fits, something is ambiguous, an episode is bad, or `out` exists.
    """
    if on_bad not in ("raise", "skip"):
        raise ValueError(f"on_bad is {on_bad!r}; it must be 'raise' or 'skip'")
    refuse_existing(Path(out))
    foreign = open_foreign(Path(source), options or ForeignOptions())
    skipped = []
    writer = DatasetWriter(out, foreign.metadata)
    try:
        with writer:
            for number, episode in enumerate(foreign.episodes()):
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
                    if on_bad == "raise" or error.__cause__ is not None:
                        raise problem from error
                    skipped.append(str(problem))
                if progress is not None:
                    progress(number + 1)
    except BaseException:
        # A conversion that failed is no dataset; the source is still there.
        Path(out).unlink(missing_ok=True)
        raise
    finally:
        foreign.close()
    if not writer.num_episodes:
        raise DatasetError(f"none of its {len(skipped)} episodes could be used", path=source)
    return Conversion(
        path=Path(out),
        format=foreign.format,
        convention=foreign.convention,
        episodes=writer.num_episodes,
        steps=writer.num_steps,
        skipped=skipped,
    )


def pack(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    level: int = 4,
    method: Literal["gzip", "zstd"] = "gzip",
) -> Path:
    """Write a native dataset compressed, with byte shuffling, for sharing.

    gzip is in every HDF5: whoever gets the file needs no plugin. zstd is several times faster to
    write and to read, and needs `dreamgym[hdf5plugin]` on both sides. Packed files cannot be
    appended to, and are slow to draw segments from unless they fit in memory; the checksums stay
    the same.

    Args:
        source: A closed native dataset: a file.
        out: The file to make; must not exist. Its folder is made.
        level: 1 (fast) to 9 (small).
        method: `"gzip"` or `"zstd"`.

    Raises:
        DatasetError: `source` is no whole native dataset, `out` exists or cannot be written, or
            zstd is not installed.
        ValueError: The level or the method is out of range.
    """
    if not 1 <= level <= 9:
        raise ValueError(f"level is {level}; it must lie between 1 and 9")
    compression = _compression(method, level)
    source, out = Path(source), Path(out)
    refuse_existing(out)
    open_native(source, 0).close()  # refuse a bad source before anything is written
    partial = partial_path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with open_file(source) as file, h5py.File(partial, "x", libver=("v110", "v110")) as packed:
            _copy_packed(file, source, packed, compression)
        sync(partial)
        partial.rename(out)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DatasetError(f"it cannot be written ({error})", path=out) from error
    return out


def _compression(method: str, level: int) -> dict[str, Any]:
    """What h5py is to be told."""
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
    for name, value in metadata_to_attributes(metadata).items():
        set_attribute(packed, name, value)
    rows = open_columns(file, source, metadata)
    for name, (shape, dtype) in row_layout(metadata).items():
        count = table.num_rows if name in rows else len(table)
        step = schema.chunk_rows(shape, dtype)
        target = packed.create_dataset(
            name,
            shape=(count, *shape),
            chunks=(min(step, count), *shape),
            dtype=dtype,
            shuffle=dtype.itemsize > 1,
            **compression,
        )
        with hdf5_errors(source, f"/{name}"):
            for first in range(0, count, step):
                target[first : first + step] = file[name][first : min(first + step, count)]
