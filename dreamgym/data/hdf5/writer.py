"""Room on the disk, taken before it is needed.

HDF5 cannot survive a full disk: a write that fails leaves dirty blocks in its caches, closing the
file fails too, and then the process crashes with a segmentation fault. So the writer never lets it
come to that: it takes the room from the operating system first, where running out is an ordinary
error.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from dreamgym._files import partial_path, refuse_existing, sync
from dreamgym._interrupts import uninterrupted
from dreamgym.data.episodes import Episode
from dreamgym.data.hdf5 import schema
from dreamgym.data.hdf5.encoding import episode_columns
from dreamgym.data.hdf5.guard import (
    hdf5_errors,
    hold_writer_lock,
    open_file,
    read_superblock,
    require_stored,
)
from dreamgym.data.hdf5.reader import open_columns, read_metadata, read_table
from dreamgym.data.hdf5.schema import (
    DatasetMetadata,
    RowStore,
    alignment,
    create_layout,
    row_layout,
)
from dreamgym.errors import DatasetError

# What the next metadata blocks (chunk indices, object headers) may need beyond the rows themselves.
METADATA_BYTES = 64 << 10


_AHEAD_BYTES = 16 << 20


class Reservation:
    """Room at the end of one file that is being written.

    Args:
        descriptor: Of the open file.
        path: Of the file.
    """

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        self._path = path
        self._end = 0

    def require(self, end: int) -> None:
        """Make sure that the file can grow to `end` bytes, and to a little more.

        Raises:
            OSError: It cannot: the disk is full (ENOSPC), a quota (EDQUOT) or the largest size of a
                file (EFBIG) is reached. Nothing was written.
        """
        end += METADATA_BYTES
        if end <= self._end:
            return
        ahead = end + min(end // 4, _AHEAD_BYTES)
        try:
            self._allocate(ahead)
            self._end = ahead
        except OSError:
            self._allocate(end)
            self._end = end

    def _allocate(self, end: int) -> None:
        if hasattr(os, "posix_fallocate"):
            with _unless_unsupported():
                os.posix_fallocate(self._descriptor, self._end, end - self._end)
                return
        # macOS and Windows have no call for it that Python knows: look, at least.
        missing = end - max(self._end, os.fstat(self._descriptor).st_size)
        if shutil.disk_usage(self._path.parent).free < missing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))


@contextlib.contextmanager
def _unless_unsupported() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise


def divert(descriptor: int) -> None:
    """Let everything that is still written to `descriptor` go nowhere.

    For the writer whose disk failed in the middle of a write all the same: what HDF5 holds in its
    caches must not reach the file, which is whole up to the last committed episode.
    """
    if hasattr(os, "memfd_create"):
        nowhere = os.memfd_create("dreamgym-abandoned")
    else:
        with tempfile.TemporaryFile() as file:
            nowhere = os.dup(file.fileno())
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


Array = NDArray[Any]


# SWMR needs 1.10's file format; nothing newer, so that older libraries can read the files.
_LIBVER = ("v110", "v110")


class DatasetWriter:
    """Writes episodes to a new native dataset.

    Every `add` that returns has committed its episode: it outlives a kill. The file gets its own
    name when it is closed; until then it is `<path>.partial`. A writer that is closed without an
    episode leaves no file.

    Args:
        path: The dataset to make; must not exist. Its folder is made.
        metadata: What the dataset says about itself.

    Raises:
        DatasetError: `path` or `<path>.partial` exists, its folder cannot be made, or the disk is
            full.
    """

    def __init__(self, path: str | os.PathLike[str], metadata: DatasetMetadata) -> None:
        self.path = Path(path)
        self.metadata = metadata
        self.num_episodes = 0
        self.num_steps = 0
        self._rows = 0
        refuse_existing(self.path)
        self._file: h5py.File | None = self._create()

    @classmethod
    def extend(cls, path: str | os.PathLike[str]) -> Self:
        """Open a closed native dataset to add episodes; it is `<path>.partial` until it is closed.

        Raises:
            DatasetError: It is no whole native dataset of the present version, or `<path>.partial`
                exists.
        """
        writer = cls.__new__(cls)
        writer.path = Path(path)
        with open_file(writer.path) as file, hdf5_errors(writer.path):
            writer.metadata = read_metadata(file, writer.path)
            table = read_table(file, writer.path)
            for dataset in open_columns(file, writer.path, writer.metadata).values():
                require_stored(dataset, table.num_rows, writer.path)
                _require_growing(dataset, writer.path)
        writer.num_episodes, writer.num_steps = len(table), table.num_steps
        writer._rows = table.num_rows
        partial = writer.partial_path
        if partial.exists():
            raise DatasetError("it exists already", path=partial, remedy="recover or move it away")
        writer.path.rename(partial)
        try:
            writer._file = writer._open(partial, "r+")
            writer._begin(
                writer._file, {name: writer._file[name] for name in row_layout(writer.metadata)}
            )
        except BaseException:
            partial.rename(writer.path)
            raise
        return writer

    @property
    def partial_path(self) -> Path:
        """Where the file lies until it is closed."""
        return partial_path(self.path)

    @property
    def closed(self) -> bool:
        """Nothing more can be added."""
        return self._file is None

    def add(self, episode: Episode) -> None:
        """Commit one episode.

        Args:
            episode: At least one action long. Its values may be of other dtypes than the spaces',
                where they can be cast without losing range.

        Raises:
            DatasetError: The episode does not fit the spaces, holds NaN or an infinity, or acts
                outside the action space (`key` and `row` say where); or the disk is full. The
                episodes committed before are safe in each case.
        """
        self._require_open()
        try:
            columns = episode_columns(episode, self.metadata)
        except DatasetError as error:
            raise error.at(path=self.partial_path, episode=self.num_episodes) from error.__cause__
        self.add_columns(columns, self._header(episode))

    def add_columns(self, columns: Mapping[str, Array], header: Mapping[str, int]) -> None:
        """Commit one episode that is known to be good, as it is stored.

        Args:
            columns: Its `T + 1` rows by dataset name, see `encoding.episode_columns`.
            header: Its entries in `/episodes`; `start` and `crc` are found anew.
        """
        file = self._require_open()
        length = int(header["length"])
        line = {**header, "start": self._rows}
        line["crc"] = schema.episode_crc(line, columns.values())
        with self._disk_errors(), uninterrupted():
            self._reserve(file, length + 1)
            self._commit(file, columns, line)
            self._rows += length + 1
            self.num_episodes += 1
            self.num_steps += length

    def close(self) -> None:
        """Finish the file and give it its name. Closing twice does nothing."""
        file, self._file = self._file, None
        if file is None:
            return
        with uninterrupted():
            file.close()
            partial = self.partial_path
            if self.num_episodes == 0:
                partial.unlink()
                return
            # The room that was taken ahead and not used is given back.
            os.truncate(partial, read_superblock(partial).end_of_file)
            sync(partial)
            if self.path.exists():
                raise DatasetError(
                    f"it was made by somebody else meanwhile; the recording is whole in {partial}",
                    path=self.path,
                )
            partial.rename(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _create(self) -> h5py.File:
        partial = self.partial_path
        try:
            partial.parent.mkdir(parents=True, exist_ok=True)
            # "x" refuses to be the second of two recordings that begin at once.
            with partial.open("xb") as probe:
                Reservation(probe.fileno(), partial).require(0)
            file = self._open(partial, "w")
            Reservation(file.id.get_vfd_handle(), partial).require(0)
        except OSError as error:
            if isinstance(error, FileExistsError):  # not ours to remove
                refuse_existing(self.path)
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise DatasetError(
                f"it cannot be made ({error.strerror or error})",
                path=self.path,
                remedy="check that its folder may be written to and has room",
            ) from error
        self._begin(file, create_layout(file, self.metadata))
        return file

    def _open(self, path: Path, mode: str) -> h5py.File:
        aligned = alignment(self.metadata)
        return h5py.File(path, mode, libver=_LIBVER, locking="best-effort", **aligned)

    def _begin(self, file: h5py.File, datasets: dict[str, h5py.Dataset]) -> None:
        self._stores = {name: RowStore(dataset) for name, dataset in datasets.items()}
        descriptor = file.id.get_vfd_handle()
        self._reservation = Reservation(descriptor, self.partial_path)
        file.swmr_mode = True
        hold_writer_lock(descriptor)

    def _require_open(self) -> h5py.File:
        if self._file is None:
            raise DatasetError("it is closed; nothing can be added", path=self.path)
        return self._file

    def _header(self, episode: Episode) -> dict[str, int]:
        seed = schema.NO_SEED if episode.seed is None else int(episode.seed)
        if not -1 <= seed < 1 << 63:
            raise DatasetError(
                f"its seed {seed} is not within 0 and 2**63 - 1",
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

    def _reserve(self, file: h5py.File, rows: int) -> None:
        new_bytes = sum(
            store.new_bytes(self.num_episodes, 1)
            if name.startswith(schema.EPISODE_GROUP)
            else store.new_bytes(self._rows, rows)
            for name, store in self._stores.items()
        )
        self._reservation.require(file.id.get_filesize() + new_bytes)

    def _commit(
        self, file: h5py.File, columns: Mapping[str, Array], line: Mapping[str, int]
    ) -> None:
        for name, rows in columns.items():
            self._stores[name].append(self._rows, rows)
        file.flush()
        for column, dtype in schema.EPISODE_COLUMNS.items():
            store = self._stores[f"{schema.EPISODE_GROUP}/{column}"]
            store.append(self.num_episodes, np.array([line[column]], dtype=dtype))
        file.flush()

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._full(error) from error
        except RuntimeError as error:  # from within HDF5, which is past help now
            file, self._file = self._file, None
            if file is not None:
                divert(file.id.get_vfd_handle())
                file.close()
            raise DatasetError(
                f"writing failed ({str(error)[:200]}) after {self.num_episodes} committed episodes",
                path=self.partial_path,
                remedy=f"save them with `dreamgym recover {self.partial_path}`",
            ) from error

    def _full(self, error: OSError) -> DatasetError:
        return DatasetError(
            f"no room to write episode {self.num_episodes} ({error.strerror or error}); "
            f"{self.num_episodes} episodes ({self.num_steps:,} steps) are committed and kept",
            path=self.path,
            remedy="make room and record the rest",
        )


def _require_growing(dataset: h5py.Dataset, path: Path) -> None:
    if dataset.maxshape[0] is not None or dataset.id.get_create_plist().get_nfilters():
        raise DatasetError(
            "it was packed, and cannot grow",
            path=path,
            key=str(dataset.name),
            remedy="record to another file beside it: a folder of files is a dataset too",
        )
