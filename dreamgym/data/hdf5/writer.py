"""Write native datasets so that neither a kill nor a full disk loses a committed episode.

HDF5 does not survive a full disk: a failed write leaves dirty blocks in its caches, closing the
file fails too, and then the process crashes with a segmentation fault. So the writer reserves disk
space from the operating system before it writes (`DiskReservation`); there, a full disk is an
ordinary error.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from dreamgym._files import ClosingContext, local_path, partial_path, refuse_existing, sync
from dreamgym._interrupts import uninterrupted
from dreamgym.data import layout
from dreamgym.data.bounds import outside_message
from dreamgym.data.episodes import Episode
from dreamgym.data.hdf5.guard import (
    hdf5_errors,
    hold_writer_lock,
    open_file,
    read_superblock,
    require_stored,
)
from dreamgym.data.hdf5.reader import open_columns, read_metadata, read_table
from dreamgym.data.hdf5.schema import (
    chunk_rows,
    episode_columns,
    metadata_to_attributes,
    row_layout,
    set_attribute,
)
from dreamgym.data.metadata import DatasetMetadata
from dreamgym.errors import DatasetError

Array = NDArray[Any]

# SWMR needs the file format of HDF5 1.10; nothing newer, so that older libraries can read the file.
_LIBVER = ("v110", "v110")

_PAGE_BYTES = 4096

# Space that the next metadata blocks (chunk indices, object headers) may need beyond the rows.
_METADATA_BYTES = 64 << 10

# Episodes that wait for a commit are committed at this size at the latest.
_PENDING_BYTES = 16 << 20

# Space reserved at once at most, beyond what is needed now.
_RESERVE_BYTES = 16 << 20


class DatasetWriter(ClosingContext):
    """Write episodes to a new native dataset.

    By default, every `add` that returns has committed its episode: the episode survives a kill of
    the process. A commit takes milliseconds, which many short episodes can share. Until the writer
    is closed, the file is `<path>.partial`. A writer that is closed without an episode leaves no
    file.

    Args:
        path: the dataset to write; it must not exist. Its folder is created.
        metadata: what the dataset records about its origin.
        commit_every: number of episodes that one commit writes; they are committed earlier where
            they reach 16 MiB. A kill loses the episodes since the last commit, and no others.

    Attributes:
        num_episodes: episodes added so far.
        num_steps: transitions in them.

    Raises:
        DatasetError: `path` or `<path>.partial` exists, its folder cannot be created, or the disk
            is full.
        ValueError: `commit_every` is below 1.
    """

    _warned = False

    def __init__(
        self, path: str | os.PathLike[str], metadata: DatasetMetadata, *, commit_every: int = 1
    ) -> None:
        self.path = local_path(path)
        self.metadata = metadata
        self._set_counts(0, 0, 0, commit_every)
        refuse_existing(self.path)
        self._file: h5py.File | None = self._create()

    @classmethod
    def extend(cls, path: str | os.PathLike[str], *, commit_every: int = 1) -> Self:
        """Open a closed native dataset to add episodes.

        It is renamed to `<path>.partial` until the writer is closed.

        Args:
            path: the dataset.
            commit_every: number of episodes that one commit writes, as for a new dataset.

        Raises:
            DatasetError: the file is not a complete native dataset of the current version, it is
                packed, or `<path>.partial` exists.
        """
        writer = cls.__new__(cls)
        writer.path = local_path(path)
        with open_file(writer.path) as file, hdf5_errors(writer.path):
            writer.metadata = read_metadata(file, writer.path)
            table = read_table(file, writer.path)
            for dataset in open_columns(file, writer.path, writer.metadata).values():
                require_stored(dataset, table.num_rows, writer.path)
                _require_extendable(dataset, writer.path)
        writer._set_counts(len(table), table.num_steps, table.num_rows, commit_every)
        partial = writer.partial_path
        if partial.exists():
            raise DatasetError("it exists already", path=partial, remedy="recover or move it away")
        writer.path.rename(partial)
        try:
            writer._file = writer._open(partial, "r+")
            names = row_layout(writer.metadata)
            writer._start(writer._file, {name: writer._file[name] for name in names})
        except BaseException:
            partial.rename(writer.path)
            raise
        return writer

    def _set_counts(self, episodes: int, steps: int, rows: int, commit_every: int) -> None:
        if commit_every < 1:
            raise ValueError(f"commit_every is {commit_every}; a commit has at least 1 episode")
        self._commit_every = commit_every
        self.num_episodes, self.num_steps, self._num_rows = episodes, steps, rows
        self._committed = episodes, steps, rows
        # Rows by column, and entry in `/episodes`, of each episode that is not yet committed.
        self._pending: list[tuple[Mapping[str, Array], Mapping[str, int]]] = []
        self._pending_bytes = 0

    @property
    def partial_path(self) -> Path:
        """Path of the file until the writer is closed."""
        return partial_path(self.path)

    @property
    def closed(self) -> bool:
        """Whether the writer is closed, so that nothing can be added."""
        return self._file is None

    def add(self, episode: Episode) -> None:
        """Add one episode, and commit it if it is the last of `commit_every`.

        Args:
            episode: an episode of at least one action. Its dtypes may differ from those of the
                spaces, if the values can be cast without losing range.

        Raises:
            DatasetError: the episode does not fit the spaces, has NaN or an infinity, or an action
                outside the action space (`key` and `row` locate it); or the disk is full. Episodes
                committed before are safe in each case.
        """
        self._require_open()
        try:
            columns = episode_columns(episode, self.metadata)
        except DatasetError as error:
            raise error.at(path=self.partial_path, episode=self.num_episodes) from error.__cause__
        self.add_columns(columns, self._make_header(episode))

    def add_columns(self, columns: Mapping[str, Array], header: Mapping[str, int]) -> None:
        """Add one episode whose stored rows are known to be good.

        Args:
            columns: the `T + 1` rows by dataset name, see `schema.episode_columns`.
            header: the entries in `/episodes`; `start` and `crc` are computed here.
        """
        self._require_open()
        self._warn_outside(columns)
        length = int(header["length"])
        entry = {**header, "start": self._num_rows}
        entry["crc"] = layout.episode_crc(entry, columns.values())
        if self._commit_every > 1:  # the caller may write to its arrays before they are stored
            columns = {name: rows.copy() for name, rows in columns.items()}
        with uninterrupted():
            self._pending.append((columns, entry))
            self._pending_bytes += sum(rows.nbytes for rows in columns.values())
            self._num_rows += length + 1
            self.num_episodes += 1
            self.num_steps += length
            if len(self._pending) >= self._commit_every or self._pending_bytes >= _PENDING_BYTES:
                self.commit()

    def commit(self) -> None:
        """Commit all episodes that were added.

        Raises:
            DatasetError: the disk is full. What was committed before is safe; the episodes since
                then are dropped.
        """
        file, pending = self._require_open(), self._pending
        if not pending:
            return
        added = self.num_episodes, self.num_steps, self._num_rows
        self.num_episodes, self.num_steps, self._num_rows = self._committed
        self._pending, self._pending_bytes = [], 0
        with self._disk_errors(), uninterrupted():
            self._reserve(file, added[2] - self._num_rows, len(pending))
            self._write(file, pending)
            self.num_episodes, self.num_steps, self._num_rows = self._committed = added

    def _warn_outside(self, columns: Mapping[str, Array]) -> None:
        """Warn once if observations lie outside their space."""
        if self._warned:
            return
        for key, box in self.metadata.observation_columns().items():
            message = outside_message(columns[layout.observation_path(key)], box, key)
            if message is not None:
                self._warned = True
                warnings.warn(f"{self.path}: {message}", UserWarning, stacklevel=4)

    def close(self) -> None:
        """Commit what is left, finish the file and rename it to `path`; twice has no effect.

        Raises:
            DatasetError: the disk is full, and episodes that were not committed are lost; or
                another file has appeared at `path`, and the recording stays at `<path>.partial`.
        """
        if self._file is None:
            return
        try:
            self.commit()
        finally:
            self._finish()

    def _finish(self) -> None:
        file, self._file = self._file, None
        if file is None:
            return
        with uninterrupted():
            file.close()
            partial = self.partial_path
            if self.num_episodes == 0:
                partial.unlink()
                return
            # Release the space that was reserved and not used.
            os.truncate(partial, read_superblock(partial).end_of_file)
            sync(partial)
            if self.path.exists():
                raise DatasetError(
                    "another file has appeared here while recording; the complete recording is "
                    f"in {partial}",
                    path=self.path,
                )
            partial.rename(self.path)

    def _create(self) -> h5py.File:
        partial = self.partial_path
        try:
            partial.parent.mkdir(parents=True, exist_ok=True)
            # "x" fails if another recording to the same path starts at the same time.
            with partial.open("xb") as probe:
                DiskReservation(probe.fileno(), partial).require(0)
            file = self._open(partial, "w")
            DiskReservation(file.id.get_vfd_handle(), partial).require(0)
        except OSError as error:
            if isinstance(error, FileExistsError):  # another writer's file: do not remove it
                refuse_existing(self.path)
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise DatasetError(
                f"it cannot be created ({error.strerror or error})",
                path=self.path,
                remedy="check that its folder is writable and has room",
            ) from error
        self._start(file, _create_datasets(file, self.metadata))
        return file

    def _open(self, path: Path, mode: str) -> h5py.File:
        aligned = _alignment(self.metadata)
        return h5py.File(path, mode, libver=_LIBVER, locking="best-effort", **aligned)

    def _start(self, file: h5py.File, datasets: dict[str, h5py.Dataset]) -> None:
        """Prepare to append to `datasets`, and let readers in (SWMR)."""
        self._appenders = {name: RowAppender(dataset) for name, dataset in datasets.items()}
        descriptor = file.id.get_vfd_handle()
        self._reservation = DiskReservation(descriptor, self.partial_path)
        file.swmr_mode = True
        hold_writer_lock(descriptor)

    def _require_open(self) -> h5py.File:
        if self._file is None:
            raise DatasetError("the writer is closed; nothing can be added", path=self.path)
        return self._file

    def _make_header(self, episode: Episode) -> dict[str, int]:
        seed = layout.NO_SEED if episode.seed is None else int(episode.seed)
        if not -1 <= seed < 1 << 63:
            raise DatasetError(
                f"its seed {seed} is not between 0 and 2**63 - 1",
                path=self.partial_path,
                episode=self.num_episodes,
            )
        return {
            "length": episode.length,
            "terminated": int(episode.terminated),
            "truncated": int(episode.truncated),
            "complete": int(episode.complete),
            "env_index": int(episode.env_index),
            "seed": seed,
        }

    def _reserve(self, file: h5py.File, rows: int, episodes: int) -> None:
        new_bytes = sum(
            appender.new_bytes(self.num_episodes, episodes)
            if name.startswith(layout.EPISODE_GROUP)
            else appender.new_bytes(self._num_rows, rows)
            for name, appender in self._appenders.items()
        )
        self._reservation.require(file.id.get_filesize() + new_bytes)

    def _write(
        self, file: h5py.File, pending: list[tuple[Mapping[str, Array], Mapping[str, int]]]
    ) -> None:
        """Write the rows, then the entries in `/episodes` that make them count."""
        for name in pending[0][0]:
            parts = [columns[name] for columns, _ in pending]
            rows = parts[0] if len(parts) == 1 else np.concatenate(parts)
            self._appenders[name].append(self._num_rows, rows)
        file.flush()
        for column, dtype in layout.EPISODE_COLUMNS.items():
            appender = self._appenders[f"{layout.EPISODE_GROUP}/{column}"]
            entries = np.array([entry[column] for _, entry in pending], dtype=dtype)
            appender.append(self.num_episodes, entries)
        file.flush()

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._disk_full_error(error) from error
        except RuntimeError as error:  # raised inside HDF5: the file cannot be written any more
            file, self._file = self._file, None
            if file is not None:
                _discard_writes(file.id.get_vfd_handle())
                file.close()
            raise DatasetError(
                f"writing failed ({str(error)[:200]}) after {self.num_episodes} committed episodes",
                path=self.partial_path,
                remedy=f"save them with `dreamgym recover {self.partial_path}`",
            ) from error

    def _disk_full_error(self, error: OSError) -> DatasetError:
        return DatasetError(
            f"no room to write episode {self.num_episodes} ({error.strerror or error}); "
            f"{self.num_episodes} episodes ({self.num_steps:,} steps) are committed and kept",
            path=self.path,
            remedy="make room and record the rest",
        )


class RowAppender:
    """Append rows to one dataset through HDF5's low-level calls.

    h5py's slice assignment takes twice the time of everything else together, and reading shapes and
    chunks from its datasets half as much again.
    """

    def __init__(self, dataset: h5py.Dataset) -> None:
        self._id = dataset.id
        self._row_shape = tuple(dataset.shape[1:])
        self._row_origin = (0,) * len(self._row_shape)
        self._chunk_rows = int(dataset.chunks[0])
        self._chunk_bytes = math.prod(dataset.chunks) * dataset.dtype.itemsize

    def append(self, start: int, rows: Array) -> None:
        """Write `rows` from row `start` onwards; the dataset grows if necessary."""
        stop = start + len(rows)
        if self._id.shape[0] < stop:
            self._id.set_extent((stop, *self._row_shape))
        selection = self._id.get_space()
        selection.select_hyperslab((start, *self._row_origin), rows.shape)
        rows = np.ascontiguousarray(rows)
        self._id.write(h5py.h5s.create_simple(rows.shape), selection, rows)

    def new_bytes(self, start: int, count: int) -> int:
        """Return how many bytes the file may grow by when `count` rows are appended at `start`."""
        chunks = -(-(start + count) // self._chunk_rows) - -(-start // self._chunk_rows)
        return chunks * (self._chunk_bytes + _PAGE_BYTES)


class DiskReservation:
    """Disk space reserved at the end of one file that is being written.

    Args:
        descriptor: file descriptor of the open file.
        path: path of the file.
    """

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        self._path = path
        self._end = 0

    def require(self, end: int) -> None:
        """Reserve space for the file to grow to `end` bytes, and a little more.

        Raises:
            OSError: the disk is full (ENOSPC), or a quota (EDQUOT) or the largest size of a file
                (EFBIG) is reached. Nothing was written.
        """
        end += _METADATA_BYTES
        if end <= self._end:
            return
        ahead = end + min(end // 4, _RESERVE_BYTES)
        try:
            self._allocate(ahead)
            self._end = ahead
        except OSError:
            self._allocate(end)
            self._end = end

    def _allocate(self, end: int) -> None:
        if hasattr(os, "posix_fallocate"):
            with _ignore_unsupported():
                os.posix_fallocate(self._descriptor, self._end, end - self._end)
                return
        # Python has no call for it on macOS and Windows: at least check the free space.
        missing = end - max(self._end, os.fstat(self._descriptor).st_size)
        if shutil.disk_usage(self._path.parent).free < missing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))


@contextlib.contextmanager
def _ignore_unsupported() -> Iterator[None]:
    """Suppress errors that say that the file system does not support the call."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise


def _discard_writes(descriptor: int) -> None:
    """Discard everything that is still written to `descriptor`.

    For a disk that fails during a write in spite of the reservation: HDF5's caches must not reach
    the file, which is complete up to the last committed episode.
    """
    if hasattr(os, "memfd_create"):
        nowhere = os.memfd_create("dreamgym-abandoned")
    else:
        with tempfile.TemporaryFile() as file:
            nowhere = os.dup(file.fileno())
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def _create_datasets(file: h5py.File, metadata: DatasetMetadata) -> dict[str, h5py.Dataset]:
    """Create the attributes and empty datasets of a new file; return the datasets by name."""
    for name, value in metadata_to_attributes(metadata).items():
        set_attribute(file, name, value)
    return {
        name: file.create_dataset(
            name,
            shape=(0, *shape),
            maxshape=(None, *shape),
            chunks=(chunk_rows(shape, dtype), *shape),
            dtype=dtype,
        )
        for name, (shape, dtype) in row_layout(metadata).items()
    }


def _alignment(metadata: DatasetMetadata) -> dict[str, int]:
    """Return the arguments of `h5py.File` that align chunks to pages.

    Reading by position is then a tenth faster. Chunks that do not fill whole pages are not aligned:
    they are better left without gaps, one after the other.
    """
    sizes = [
        chunk_rows(shape, dtype) * math.prod(shape) * dtype.itemsize
        for shape, dtype in row_layout(metadata).values()
    ]
    if max(sizes) % _PAGE_BYTES:
        return {}
    return {"alignment_threshold": max(sizes), "alignment_interval": _PAGE_BYTES}


def _require_extendable(dataset: h5py.Dataset, path: Path) -> None:
    if dataset.maxshape[0] is not None or dataset.id.get_create_plist().get_nfilters():
        raise DatasetError(
            "it was packed, and cannot grow",
            path=path,
            key=str(dataset.name),
            remedy="record to another file beside it: a folder of files is a dataset too",
        )
