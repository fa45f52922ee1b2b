"""Read native datasets: one file, a file that is still being written, or a folder of files.

Observations that do not fit in memory are read by position, without HDF5: an unfiltered HDF5
dataset is plain bytes in the file, contiguous or in chunks at known offsets. `preadv` takes a third
of the time of HDF5's own slices, needs no lock, and reads only the requested rows from a cold disk.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from dreamgym.data import layout
from dreamgym.data.hdf5 import schema
from dreamgym.data.hdf5.guard import (
    get_dataset,
    get_group,
    hdf5_errors,
    open_file,
    open_growing,
    read_plain_attributes,
    require_stored,
)
from dreamgym.data.metadata import DatasetMetadata
from dreamgym.data.spaces import MAX_ROW_BYTES, same_spaces
from dreamgym.data.storage import (
    Column,
    EpisodeTable,
    JoinedColumn,
    MemoryColumn,
    SlicedColumn,
    Source,
)
from dreamgym.errors import DatasetError

Array = NDArray[Any]

_MAX_RATIO = 1032
"""The most that deflate shrinks; other filters are taken to be no better."""

_HARMLESS_BYTES = 1 << 20

_SEQUENTIAL_BYTES = 8 << 20

SHARD_PATTERN = "*.h5"
PREADV_AVAILABLE = hasattr(os, "preadv")


# ---------------------------------------------------------------- datasets


def open_native(path: Path, memory: int) -> Source:
    """Open a native dataset that was closed properly.

    Args:
        path: the file.
        memory: bytes of observations to hold in memory at most; larger observations are read on
            demand. Actions and rewards are always in memory.

    Raises:
        DatasetError: the file is not a complete native dataset of a known version.
        UnsupportedSpaceError: the dataset has a space of an unknown type.
    """
    return _open_source(open_file(path), path, memory, closed=True)


def open_snapshot(path: Path, memory: int) -> Source:
    """Open what is committed so far of a dataset that is being written, or whose writer was killed.

    Args:
        path: the file, usually `<name>.partial`.
        memory: as for `open_native`.
    """
    return _open_source(open_growing(path), path, memory, closed=False)


def open_shards(folder: Path, memory: int) -> Source:
    """Open all `*.h5` files of a folder as one dataset, in the order of their names.

    Args:
        folder: a folder with at least one native file, all with the same spaces.
        memory: bytes of observations to hold in memory at most, over all files.

    Raises:
        DatasetError: there is no file, or one is damaged, unfinished, or has different spaces.
    """
    unfinished = sorted(folder.glob(f"{SHARD_PATTERN}.partial"))
    if unfinished:
        raise DatasetError(
            "it is still being written, or its writer was killed",
            path=unfinished[0],
            remedy=f"wait, or save it with `dreamgym recover {unfinished[0]}`",
        )
    paths = sorted(folder.glob(SHARD_PATTERN))
    if not paths:
        raise DatasetError(
            f"the folder has no {SHARD_PATTERN} file", path=folder, remedy="give the file itself"
        )
    sources: list[Source] = []
    try:
        for path in paths:
            sources.append(open_native(path, memory))
            memory -= sum(
                column.values.nbytes
                for column in sources[-1].observations.values()
                if isinstance(column, MemoryColumn)
            )
            _require_same_spaces(sources[0], sources[-1])
        return _join_sources(folder, sources)
    except BaseException:
        for source in sources:
            source.close()
        raise


def _open_source(file: h5py.File, path: Path, memory: int, *, closed: bool) -> Source:
    try:
        with hdf5_errors(path):
            return _make_source(file, path, memory, closed=closed)
    except BaseException:
        file.close()
        raise


def _make_source(file: h5py.File, path: Path, memory: int, *, closed: bool) -> Source:
    metadata = read_metadata(file, path)
    table = read_table(file, path)
    num_rows = table.num_rows
    datasets = open_columns(file, path, metadata)
    for dataset in datasets.values():
        require_stored(dataset, num_rows, path)
    if closed:  # while a file is being written, rows of the next episode may be there already
        _require_no_extra_rows(file, path, table)
    columns: dict[str, Column] = {}
    observations = {key: layout.observation_path(key) for key in metadata.observation_columns()}
    # Smallest first: one large camera must not push ten small sensors out of memory.
    for name in sorted(datasets, key=lambda name: _row_bytes(datasets[name])):
        size = num_rows * _row_bytes(datasets[name])
        if name not in observations.values():
            columns[name] = MemoryColumn(datasets[name][:num_rows])
        elif size <= memory:
            memory -= size
            columns[name] = MemoryColumn(datasets[name][:num_rows])
        elif _is_positioned(datasets[name]):
            columns[name] = PositionedColumn(path, datasets[name], num_rows)
        else:
            columns[name] = SlicedColumn(datasets[name])
    if not any(isinstance(column, SlicedColumn) for column in columns.values()):
        file.close()

    def close() -> None:
        file.close()
        for column in columns.values():
            if isinstance(column, PositionedColumn):
                column.close()

    return Source(
        path=path,
        metadata=metadata,
        table=table,
        observations={key: columns[name] for key, name in observations.items()},
        action=columns[layout.ACTION_KEY],
        reward=columns[layout.REWARD_KEY],
        close=close,
    )


def _require_no_extra_rows(file: h5py.File, path: Path, table: EpisodeTable) -> None:
    """Check that all columns of a closed file end with the last episode."""
    group = get_group(file, layout.EPISODE_GROUP, path)
    expected = {f"{layout.EPISODE_GROUP}/{name}": len(table) for name in group}
    row_columns = [layout.ACTION_KEY, layout.REWARD_KEY]
    row_columns += [f"{layout.OBSERVATION_GROUP}/{key}" for key in file[layout.OBSERVATION_GROUP]]
    for name, count in (expected | dict.fromkeys(row_columns, table.num_rows)).items():
        found = len(get_dataset(file, name, path))
        if found != count:
            raise DatasetError(
                f"it has {found:,} rows; expected {count:,} by the table of episodes",
                path=path,
                key=f"/{name}",
                remedy="the file is damaged: copy or download it again",
            )


def _require_same_spaces(first: Source, other: Source) -> None:
    if not same_spaces(first.metadata, other.metadata):
        raise DatasetError(
            f"its spaces differ from those of {first.path.name}",
            path=other.path,
            remedy="keep datasets of different environments in different folders",
        )


def _join_sources(folder: Path, sources: list[Source]) -> Source:
    counts = [source.table.num_rows for source in sources]
    offsets = np.cumsum([0, *counts[:-1]])
    columns = {
        name: _join_columns([source.columns()[name] for source in sources], counts)
        for name in sources[0].columns()
    }
    *observations, action, reward = columns.values()
    policies = tuple((source.metadata.policy, len(source.table)) for source in sources)
    names = " + ".join(dict.fromkeys(policy for policy, _ in policies))

    def close() -> None:
        for source in sources:
            source.close()

    return Source(
        path=folder,
        metadata=replace(sources[0].metadata, policy=names),
        table=EpisodeTable.concatenate(
            [
                replace(source.table, start=source.table.start + offset)
                for source, offset in zip(sources, offsets.tolist(), strict=True)
            ]
        ),
        observations=dict(zip(sources[0].observations, observations, strict=True)),
        action=action,
        reward=reward,
        close=close,
        policies=policies,
    )


def _join_columns(columns: list[Column], counts: list[int]) -> Column:
    in_memory = [column for column in columns if isinstance(column, MemoryColumn)]
    if len(in_memory) == len(columns):
        return MemoryColumn(np.concatenate([column.values for column in in_memory]))
    return JoinedColumn(columns, counts)


# ---------------------------------------------------------------- parts of a file


def is_native(file: h5py.File, path: Path) -> bool:
    """Return whether the root attribute `format` marks the file as native."""
    return read_plain_attributes(file, path).get("format") == schema.FORMAT.encode()


def read_metadata(file: h5py.File, path: Path) -> DatasetMetadata:
    """Read the root attributes, and check format and version.

    Raises:
        DatasetError: the file is not native, or of a newer version, or an attribute is malformed.
    """
    attributes = read_plain_attributes(file, path)
    version = attributes.get("schema_version")
    if attributes.get("format") != schema.FORMAT.encode():
        raise DatasetError(
            f"its format attribute is {attributes.get('format')!r}; expected {schema.FORMAT!r}",
            path=path,
            remedy="convert a foreign file with `dreamgym convert`",
        )
    if not isinstance(version, int) or version < 1:
        raise DatasetError(
            f"its schema_version is {version!r}; expected a positive integer", path=path
        )
    if version > schema.SCHEMA_VERSION:
        raise DatasetError(
            f"its schema version is {version}; this dreamgym reads up to {schema.SCHEMA_VERSION}",
            path=path,
            remedy="upgrade dreamgym",
        )
    # The columns of a file that grows are opened after its table, whose rows they must have.
    limit = MAX_ROW_BYTES if file.swmr_mode else min(MAX_ROW_BYTES, _row_limit(file))
    limit = max(limit, _HARMLESS_BYTES)  # the check of the columns says more
    return schema.metadata_from_attributes(attributes, limit)


def _row_limit(file: h5py.File) -> int:
    """Return how many bytes a row can have at most, by what the columns of a file store.

    A chunk holds at least one row, so an unfiltered column stores no fewer bytes than a row has.
    """
    sizes: list[int] = []

    def visit(_: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and node.ndim:
            stored = node.id.get_storage_size()
            filtered = node.id.get_create_plist().get_nfilters() > 0
            sizes.append(min(_row_bytes(node), _MAX_RATIO * stored if filtered else stored))

    with hdf5_errors(Path(file.filename)):
        for name in layout.OBSERVATION_GROUP, layout.ACTION_KEY:
            link = file.get(name, getlink=True)
            if isinstance(link, h5py.HardLink):
                node = file[name]
                visit(name, node)
                if isinstance(node, h5py.Group):
                    node.visititems(visit)
    return sum(sizes)


def read_table(file: h5py.File, path: Path) -> EpisodeTable:
    """Read the table of committed episodes; there must be at least one."""
    table = read_committed(file, path)
    if not len(table):
        raise DatasetError("it has no episode", path=path, remedy="record something first")
    return table


def read_committed(file: h5py.File, path: Path) -> EpisodeTable:
    """Read the table of committed episodes, possibly empty: those that every column has."""
    group = get_group(file, layout.EPISODE_GROUP, path)
    columns = {name: get_dataset(group, name, path) for name in layout.EPISODE_COLUMNS}
    for name, dataset in columns.items():
        expected = layout.EPISODE_COLUMNS[name]
        if dataset.ndim != 1 or dataset.dtype != expected:
            raise DatasetError(
                f"it is {dataset.dtype} with {dataset.ndim} dimensions; expected {expected} with 1",
                path=path,
                key=str(dataset.name),
            )
    # A writer may write between these lines, or may have been killed between two columns.
    committed = min(len(dataset) for dataset in columns.values())
    values: dict[str, Any] = {}
    for name, dataset in columns.items():
        require_stored(dataset, committed, path)
        values[name] = dataset[:committed]
    table = EpisodeTable(**values)
    table.validate(path)
    return table


def open_columns(file: h5py.File, path: Path, metadata: DatasetMetadata) -> dict[str, h5py.Dataset]:
    """Open the datasets of rows by name; shapes and dtypes must be those of the spaces."""
    expected = {
        layout.observation_path(key): (box.shape, np.dtype(box.dtype))
        for key, box in metadata.observation_columns().items()
    }
    expected[layout.ACTION_KEY] = layout.action_layout(metadata.action_space)
    expected[layout.REWARD_KEY] = (), layout.REWARD_DTYPE
    datasets = {}
    for name, (shape, dtype) in expected.items():
        dataset = get_dataset(file, name, path)
        if dataset.shape[1:] != tuple(shape) or dataset.ndim == 0 or dataset.dtype != dtype:
            raise DatasetError(
                f"its rows are {dataset.dtype} {dataset.shape[1:]}; the space has {dtype} "
                f"{tuple(shape)}",
                path=path,
                key=f"/{name}",
            )
        datasets[name] = dataset
    return datasets


def _row_bytes(dataset: h5py.Dataset) -> int:
    return int(np.prod(dataset.shape[1:])) * dataset.dtype.itemsize


# ---------------------------------------------------------------- rows by position


class PositionedColumn:
    """Rows of an unfiltered dataset, read by file position; threads may share it.

    Args:
        path: the file.
        dataset: an open dataset in it, checked by `guard.get_dataset` and `guard.require_stored`.
        rows: number of its rows to read at most.
    """

    def __init__(self, path: Path, dataset: h5py.Dataset, rows: int) -> None:
        self._path, self._key = path, str(dataset.name)
        self._shape, self._dtype = tuple(dataset.shape[1:]), dataset.dtype
        self._row_bytes = _row_bytes(dataset)
        self._chunk_rows, self._offsets = _chunk_offsets(dataset, rows)
        # For each chunk, the row at which its run of bytes ends; chunks are often contiguous.
        breaks = np.diff(self._offsets) != self._chunk_rows * self._row_bytes
        ends = np.append(np.flatnonzero(breaks) + 1, len(self._offsets))
        run = np.searchsorted(ends, np.arange(len(self._offsets)), side="right")
        self._run_ends = ends[run] * self._chunk_rows
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        if hasattr(os, "posix_fadvise"):
            # Read-ahead would fetch rows that a random window does not need.
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_RANDOM)

    def take(self, rows: Array) -> Array:
        """See `Column.take`."""
        windows = np.empty((*rows.shape, *self._shape), dtype=self._dtype)
        count, size = rows.shape[1], self._row_bytes
        buffer = windows.reshape(-1).view(np.uint8).data
        firsts, lasts = rows[:, 0], rows[:, -1]
        chunks, within = np.divmod(firsts, self._chunk_rows)
        offsets = self._offsets.take(chunks) + within * size
        contiguous = lasts < self._run_ends.take(chunks)  # one read is enough
        if count > 1:
            contiguous &= rows[:, 1] - firsts < 2
        ends = (np.arange(len(rows)) * count + lasts + 1 - firsts) * size
        plan = zip(offsets.tolist(), contiguous.tolist(), ends.tolist(), strict=True)
        for index, (offset, one_read, end) in enumerate(plan):
            begin = index * count * size
            if one_read:
                got = os.preadv(self._descriptor, [buffer[begin:end]], offset)
                if got != end - begin:
                    raise self._shortened_error(end - begin - got)
            else:
                self._read_runs(buffer[begin : begin + count * size], rows[index])
        # A window that reaches the end of its episode repeats the last row.
        short = np.flatnonzero(contiguous & (lasts + 1 - firsts < count))
        for index, present in zip(
            short.tolist(), (lasts + 1 - firsts)[short].tolist(), strict=True
        ):
            windows[index, present:] = windows[index, present - 1]
        return windows

    def read(self, start: int, stop: int) -> Array:
        """See `Column.read`."""
        if stop <= start:
            return np.empty((0, *self._shape), dtype=self._dtype)
        size = (stop - start) * self._row_bytes
        if size >= _SEQUENTIAL_BYTES and hasattr(os, "posix_fadvise"):
            # A pass over the file: the disk reads the next block while this one is used.
            chunk, within = divmod(stop, self._chunk_rows)
            if chunk < len(self._offsets):
                offset = int(self._offsets[chunk]) + within * self._row_bytes
                os.posix_fadvise(self._descriptor, offset, size, os.POSIX_FADV_WILLNEED)
        return self.take(np.arange(start, stop)[None])[0]

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _read_runs(self, buffer: memoryview, rows: Array) -> None:
        """Read rows that are not contiguous in the file, run by run."""
        size = self._row_bytes
        done = 0
        while done < len(rows):
            first = int(rows[done])
            chunk, within = divmod(first, self._chunk_rows)
            run = min(int(self._run_ends[chunk]) - first, len(rows) - done)
            consecutive = rows[done : done + run] == first + np.arange(run)
            run = run if consecutive.all() else int(consecutive.argmin())
            part = buffer[done * size : (done + run) * size]
            got = os.preadv(self._descriptor, [part], int(self._offsets[chunk]) + within * size)
            if got != len(part):
                raise self._shortened_error(len(part) - got)
            done += run

    def _shortened_error(self, missing: int) -> DatasetError:
        return DatasetError(
            f"it ends {missing} bytes early: the file was shortened while it was open",
            path=self._path,
            key=self._key,
        )


def _is_positioned(dataset: h5py.Dataset) -> bool:
    """Return whether a dataset can be read by position: plain bytes in the file, row after row."""
    if not PREADV_AVAILABLE or dataset.dtype.byteorder == ">":
        return False
    if dataset.file.userblock_size:
        return False  # HDF5's versions differ in whether offsets include the user block
    if dataset.chunks is None:
        return dataset.id.get_offset() is not None
    return (
        dataset.id.get_create_plist().get_nfilters() == 0
        and dataset.chunks[1:] == dataset.shape[1:]
    )


def _chunk_offsets(dataset: h5py.Dataset, rows: int) -> tuple[int, Array]:
    """Return the number of rows in a chunk, and the position of each chunk in the file."""
    if dataset.chunks is None:
        return rows, np.array([dataset.id.get_offset()])
    offsets = np.full(-(-rows // dataset.chunks[0]), -1, dtype=np.int64)

    def visit(chunk: Any) -> None:
        number = chunk.chunk_offset[0] // dataset.chunks[0]
        if number < len(offsets) and chunk.filter_mask == 0:
            offsets[number] = chunk.byte_offset

    dataset.id.chunk_iter(visit)
    end = dataset.file.id.get_filesize()
    size = dataset.chunks[0] * _row_bytes(dataset)
    if (offsets < 0).any() or int(offsets.max(initial=0)) + size > end:
        raise DatasetError("a chunk is missing, or outside the file", key=str(dataset.name))
    return dataset.chunks[0], offsets
