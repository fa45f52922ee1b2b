"""Opening native files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dreamgym.data import schema
from dreamgym.data.columns import Column, MemoryColumn, SlicedColumn
from dreamgym.data.errors import DatasetError
from dreamgym.data.guard import (
    get_dataset,
    get_group,
    hdf5_errors,
    open_file,
    open_growing,
    plain_attributes,
    require_stored,
)
from dreamgym.data.positioned import PositionedColumn, readable_by_position
from dreamgym.data.schema import DatasetMetadata
from dreamgym.data.source import Source
from dreamgym.data.table import EpisodeTable

_Settle = Callable[[h5py.File, Path, EpisodeTable], None]


def open_native(path: Path, memory: int) -> Source:
    """Open a closed native dataset.

    Args:
        path: The file.
        memory: Bytes of observations to hold in memory at most; larger ones are read when asked
            for. Actions and rewards are always held.

    Raises:
        DatasetError: It is no whole native dataset of a version that this dreamgym knows.
        UnsupportedSpaceError: It has a space of a type that this dreamgym does not know.
    """
    return _closing_on_error(open_file(path), path, memory, _require_settled)


def open_snapshot(path: Path, memory: int) -> Source:
    """Open what is committed so far of a dataset that is being written, or whose writer was killed.

    Args:
        path: The file, usually `<name>.partial`.
        memory: As for `open_native`.
    """
    return _closing_on_error(open_growing(path), path, memory, _leave_unsettled)


def is_native(file: h5py.File, path: Path) -> bool:
    """Whether the root attribute says that it is a native file."""
    return plain_attributes(file, path).get("format") == schema.FORMAT.encode()


def _closing_on_error(file: h5py.File, path: Path, memory: int, settle: _Settle) -> Source:
    try:
        with hdf5_errors(path):
            return _open(file, path, memory, settle)
    except BaseException:
        file.close()
        raise


def _require_settled(file: h5py.File, path: Path, table: EpisodeTable) -> None:
    """In a closed file, nothing lies beyond the last episode: all columns end together."""
    group = get_group(file, schema.EPISODE_GROUP, path)
    wanted = {f"{schema.EPISODE_GROUP}/{name}": len(table) for name in group}
    rows = [schema.ACTION_KEY, schema.REWARD_KEY]
    rows += [f"{schema.OBSERVATION_GROUP}/{key}" for key in file[schema.OBSERVATION_GROUP]]
    for name, count in (wanted | dict.fromkeys(rows, table.num_rows)).items():
        found = len(get_dataset(file, name, path))
        if found != count:
            raise DatasetError(
                f"it has {found:,} rows; the table of episodes wants {count:,}",
                path=path,
                key=f"/{name}",
                remedy="the file is damaged: copy or download it again",
            )


def _leave_unsettled(file: h5py.File, path: Path, table: EpisodeTable) -> None:
    """In a file that is being written, an episode may be half there."""


def _open(file: h5py.File, path: Path, memory: int, settle: _Settle) -> Source:
    metadata = read_metadata(file, path)
    table = read_table(file, path)
    rows = table.num_rows
    datasets = open_columns(file, path, metadata)
    for dataset in datasets.values():
        require_stored(dataset, rows, path)
    settle(file, path, table)
    columns: dict[str, Column] = {}
    observations = {key: schema.observation_path(key) for key in metadata.observation_boxes()}
    # The smallest first: one large camera must not push ten small sensors out of memory.
    for name in sorted(datasets, key=lambda name: _row_bytes(datasets[name])):
        size = rows * _row_bytes(datasets[name])
        if name not in observations.values():
            columns[name] = MemoryColumn(datasets[name][:rows])
        elif size <= memory:
            memory -= size
            columns[name] = MemoryColumn(datasets[name][:rows])
        elif readable_by_position(datasets[name]):
            columns[name] = PositionedColumn(path, datasets[name], rows)
        else:
            columns[name] = SlicedColumn(datasets[name])
    if not any(isinstance(column, SlicedColumn) for column in columns.values()):
        file.close()
    return Source(
        path=path,
        metadata=metadata,
        table=table,
        observations={key: columns[name] for key, name in observations.items()},
        action=columns[schema.ACTION_KEY],
        reward=columns[schema.REWARD_KEY],
        close=lambda: _close(file, columns),
    )


def _close(file: h5py.File, columns: dict[str, Column]) -> None:
    file.close()
    for column in columns.values():
        if isinstance(column, PositionedColumn):
            column.close()


def read_metadata(file: h5py.File, path: Path) -> DatasetMetadata:
    """The root attributes, checked for format and version."""
    attributes = plain_attributes(file, path)
    version = attributes.get("schema_version")
    if attributes.get("format") != schema.FORMAT.encode():
        raise DatasetError(
            f"its format attribute is {attributes.get('format')!r}; {schema.FORMAT!r} is wanted",
            path=path,
            remedy="convert a foreign file with `dreamgym convert`",
        )
    if not isinstance(version, int) or version < 1:
        raise DatasetError(f"its schema_version is {version!r}", path=path)
    if version > schema.SCHEMA_VERSION:
        raise DatasetError(
            f"its schema version is {version}; this dreamgym reads up to {schema.SCHEMA_VERSION}",
            path=path,
            remedy="upgrade dreamgym",
        )
    return DatasetMetadata.from_attributes(attributes)


def read_table(file: h5py.File, path: Path) -> EpisodeTable:
    """The committed episodes, at least one: those that every column of the table has."""
    table = read_committed(file, path)
    if not len(table):
        raise DatasetError("it holds no episode", path=path, remedy="record something first")
    return table


def read_committed(file: h5py.File, path: Path) -> EpisodeTable:
    """The committed episodes, perhaps none."""
    group = get_group(file, schema.EPISODE_GROUP, path)
    columns = {name: get_dataset(group, name, path) for name in schema.EPISODE_COLUMNS}
    for name, dataset in columns.items():
        wanted = schema.EPISODE_COLUMNS[name]
        if dataset.ndim != 1 or dataset.dtype != wanted:
            raise DatasetError(
                f"it is {dataset.dtype} of {dataset.ndim} dimensions; {wanted} of 1 is wanted",
                path=path,
                key=str(dataset.name),
            )
    # A writer may be at work between two of these lines, or have been killed between two columns.
    committed = min(len(dataset) for dataset in columns.values())
    values: dict[str, Any] = {}
    for name, dataset in columns.items():
        require_stored(dataset, committed, path)
        values[name] = dataset[:committed]
    table = EpisodeTable(**values)
    table.validate(path)
    return table


def open_columns(file: h5py.File, path: Path, metadata: DatasetMetadata) -> dict[str, h5py.Dataset]:
    """The datasets of rows, their shapes and dtypes as the spaces say."""
    wanted = {
        schema.observation_path(key): (box.shape, np.dtype(box.dtype))
        for key, box in metadata.observation_boxes().items()
    }
    wanted[schema.ACTION_KEY] = schema.action_layout(metadata.action_space)
    wanted[schema.REWARD_KEY] = (), schema.REWARD_DTYPE
    datasets = {}
    for name, (shape, dtype) in wanted.items():
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
