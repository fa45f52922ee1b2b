"""Logs: CSV and Parquet files with one row per step, of which the user names the columns.

Episodes are told apart by a column of episode numbers, else by the end flags, else by the files. An
image column holds PNG or JPEG files, or their paths relative to the log. If every episode ends with
a row without an action, that row is its last observation; otherwise the observation after the last
action is not in the log.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dreamgym.data.formats.arrow_columns import (
    is_image_type,
    is_number_type,
    is_text_type,
    pyarrow,
    read_parquet,
    read_schema,
    to_images,
    to_numbers,
)
from dreamgym.data.formats.columnar import UNREADABLE, Table, open_table
from dreamgym.data.formats.common import plural, sort_by_number
from dreamgym.data.formats.image_files import SUFFIXES, find_file, read_file
from dreamgym.data.formats.interface import Array, ForeignDataset, ForeignOptions, Probe
from dreamgym.data.formats.log_rows import (
    describe_split,
    ends_without_action,
    episode_column,
    flag_columns,
    named_column,
    require_order,
    split_by_ends,
    split_by_numbers,
    usual_actions,
    usual_observations,
)
from dreamgym.data.hdf5.guard import open_regular
from dreamgym.errors import DatasetError

NAME = "CSV or Parquet log"
_PARQUET = b"PAR1"
_PATTERNS = ("*.parquet", "*.csv", "*.tsv")
_SNIFFED_BYTES = 1 << 16


def detect(probe: Probe) -> bool:
    """Return whether it is a Parquet file, a text of columns, or a folder of such files."""
    if probe.is_folder:
        return bool(_paths(probe)) and not (probe.path / "meta").exists()  # as LeRobot has
    return probe.head.startswith(_PARQUET) or _delimiter(probe.path) is not None


def read(probe: Probe, options: ForeignOptions) -> ForeignDataset:
    """Open the log.

    Raises:
        DatasetError: it is damaged, its columns are not known, or an episode is scattered.
        ModuleNotFoundError: pyarrow is not installed.
    """
    paths = _paths(probe) if probe.is_folder else [probe.path]
    files = _Files(paths, probe.path if probe.is_folder else probe.path.parent)
    kinds = files.kinds()
    episode = episode_column(options, list(kinds), probe.path)
    names = [name for name, kind in kinds.items() if kind != "text" and name != episode]
    flags = flag_columns(options, names, probe.path)
    rows = files.episodes(episode, flags)
    time = named_column("time", options, list(kinds), probe.path)
    if time is not None:
        names.remove(time)
        for number, each in enumerate(rows):
            times = files.read(each, time, slice(0, each.count))
            require_order(times, probe.path, time, number)
    actions = usual_actions(names)
    action = named_column("action", options, names, probe.path) or next(iter(actions), None)

    def read_last_action(number: int) -> Array:
        each = rows[number]
        return files.read(each, str(action), slice(each.count - 1, each.count))

    table = Table(
        handles=("episode", "time"),
        path=probe.path,
        format=NAME,
        text=f"{plural(len(rows), 'episode')} in {plural(len(paths), 'file')}, "
        f"by {describe_split(episode, flags)}",
        names=names,
        lengths=[each.count for each in rows],
        read=lambda number, name, part: files.read(rows[number], name, part),
        observations=usual_observations(names),
        roles={"action": actions} if actions else {},
        last_is_observation=action is not None and ends_without_action(len(rows), read_last_action),
    )
    return open_table(table, options, probe.close)


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """Where an episode is: its file, its first row and its number of rows."""

    file: int
    start: int
    count: int


class _Files:
    """The files of a log.

    Args:
        paths: the files.
        root: the folder that they are in.
    """

    def __init__(self, paths: list[Path], root: Path) -> None:
        self._paths, self._root = paths, root
        self._text = functools.lru_cache(maxsize=8)(_read_csv)
        self._column = functools.lru_cache(maxsize=64)(self._read_column)

    def kinds(self) -> dict[str, str]:
        """Return the columns of the first file: those of numbers, images and other text."""
        path = self._paths[0]
        schema = read_schema(path) if _is_parquet(path) else self._text(path).schema
        kinds = {}
        for field in schema:
            if is_number_type(field.type):
                kinds[field.name] = "number"
            elif is_image_type(field.type) or self._holds_files(path, field):
                kinds[field.name] = "image"
            else:
                kinds[field.name] = "text"
        return kinds

    def episodes(self, column: str | None, flags: Sequence[str]) -> list[_Rows]:
        """Return where the episodes are.

        Args:
            column: column of episode numbers or names; `None` if there is none.
            flags: columns of end flags, which end an episode where there is no such column.

        Raises:
            DatasetError: the rows of an episode are not together.
        """
        found: list[_Rows] = []
        for number, path in enumerate(self._paths):
            try:
                starts, counts = self._split(path, column, flags)
            except DatasetError:
                if len(self._paths) == 1:
                    raise
                starts, counts = np.zeros(1, int), np.full(1, UNREADABLE)
            found += [
                _Rows(file=number, start=int(start), count=int(count))
                for start, count in zip(starts, counts, strict=True)
            ]
        return found

    def _split(self, path: Path, column: str | None, flags: Sequence[str]) -> tuple[Array, Array]:
        if column is not None:
            values = np.asarray(self._column(path, column).to_pylist())
            return split_by_numbers(values, path, column)
        if flags:
            columns = [to_numbers(self._column(path, name), path, name) for name in flags]
            return split_by_ends(np.any([values != 0 for values in columns], axis=0))
        return np.zeros(1, int), np.array([self._count(path)])

    def _count(self, path: Path) -> int:
        if _is_parquet(path):
            return int(pyarrow("pyarrow.parquet").read_metadata(path).num_rows)
        return int(self._text(path).num_rows)

    def read(self, rows: _Rows, name: str, part: slice) -> Array:
        """Read rows of a column of an episode, see `Table.read`."""
        path = self._paths[rows.file]
        values = self._column(path, name).slice(rows.start + part.start, part.stop - part.start)
        if is_image_type(values.type) or is_text_type(values.type):
            return to_images(values, path, name, lambda file: self._read_image(path, file))
        return to_numbers(values, path, name)

    def _read_column(self, path: Path, name: str) -> Any:
        if _is_parquet(path):
            return read_parquet(path, [name]).column(0)
        table = self._text(path)
        if name not in table.schema.names:
            raise DatasetError(f"it has no such column; it has {table.schema.names}", path=path,
                               key=name)  # fmt: skip
        return table.column(name)

    def _holds_files(self, path: Path, field: Any) -> bool:
        """Return whether a column of text holds the names of image files."""
        if not is_text_type(field.type):
            return False
        first = self._column(path, field.name).slice(0, 1).to_pylist()
        return bool(first) and str(first[0]).lower().endswith(SUFFIXES)

    def _read_image(self, path: Path, name: str) -> bytes:
        folder = path.parent if (path.parent / name).exists() else self._root
        return read_file(find_file(folder, name))


def _paths(probe: Probe) -> list[Path]:
    """Return the files of a folder, all of one kind, in the order of their numbers."""
    for pattern in _PATTERNS:
        found = probe.files(pattern) or probe.files(f"*/{pattern}")
        if found:
            by_name = {str(path.with_suffix("")): path for path in found}
            return [by_name[name] for name in sort_by_number(by_name)]
    return []


def _is_parquet(path: Path) -> bool:
    with open_regular(path) as file:
        return file.read(len(_PARQUET)) == _PARQUET


def _delimiter(path: Path) -> str | None:
    """Return the delimiter of a text file with a header; `None` if it is not one."""
    with open_regular(path) as file:
        head = file.read(_SNIFFED_BYTES)
    try:
        lines = head.decode(
            "utf-8-sig", errors="strict" if len(head) < _SNIFFED_BYTES else "ignore"
        )
    except UnicodeDecodeError:
        return None
    first, *others = [line for line in lines.splitlines() if line.strip()][:2] or [""]
    if not others or first.lstrip().startswith(("{", "[", "<")):
        return None
    for delimiter in (",", "\t", ";"):
        count = first.count(delimiter)
        if count and others[0].count(delimiter) == count:
            return delimiter
    return None


def _read_csv(path: Path) -> Any:
    """Return a CSV file as an Arrow table.

    Raises:
        DatasetError: it has no header, or its rows differ in their number of columns.
    """
    delimiter = _delimiter(path)
    if delimiter is None:
        raise DatasetError(
            "it is not a table: expected a line of column names, and as many values in each line",
            path=path,
        )
    csv = pyarrow("pyarrow.csv")
    try:
        return csv.read_csv(path, parse_options=csv.ParseOptions(delimiter=delimiter))
    except (pyarrow().ArrowException, OSError) as error:
        raise DatasetError(f"it cannot be read ({error})", path=path) from error
