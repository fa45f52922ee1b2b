"""Logs: CSV and Parquet files with one row per step, of which the user names the columns.

Episodes are told apart by a column of episode numbers, else by the end flags, else by the files. An
image column holds PNG or JPEG files, or their paths relative to the log. If every episode ends with
a row without an action, that row is its last observation; otherwise the observation after the last
action is not in the log.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    cut_rows,
    describe_split,
    ends_without_action,
    episode_column,
    find_clock,
    flag_columns,
    named_column,
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
_COMMA = re.compile(r'"?[-+]?[0-9]+,[0-9]+([eE][-+]?[0-9]+)?"?')
_POINT = re.compile(r'"?[-+]?[0-9]*\.[0-9]+([eE][-+]?[0-9]+)?"?')


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
    texts = [name for name, kind in kinds.items() if kind == "text" and name != episode]
    files.require_numbers([name for name in texts if name in options.named_values()])
    names = [name for name in kinds if name not in (*texts, episode)]
    flags = flag_columns(options, names, probe.path)
    rows = files.episodes(episode, flags)
    numbers = [name for name in names if kinds[name] == "number"]
    clock = find_clock(options, list(kinds), numbers, episode is not None, probe.path)
    restarts: str | None = None
    notes: list[str] = []
    if clock is not None:
        time = clock.column
        cuts, notes = clock.inspect(
            len(rows), lambda number: files.read(rows[number], time, slice(0, rows[number].count))
        )
        restarts = time if any(map(len, cuts)) else None
        rows = [part for each, at in zip(rows, cuts, strict=True) for part in each.cut(at)]
        if clock.named:
            names.remove(time)
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
        f"by {describe_split(episode, flags, restarts)}",
        names=names,
        texts=texts,
        notes=notes,
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

    def cut(self, rows: Array) -> list[_Rows]:
        """Return its parts, cut at some rows."""
        starts, counts = cut_rows(np.array([self.start]), np.array([self.count]), [rows])
        return [
            replace(self, start=int(start), count=int(count))
            for start, count in zip(starts, counts, strict=True)
        ]


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

    def require_numbers(self, texts: Sequence[str]) -> None:
        """Raise `DatasetError` for the first of some columns of text that are to be numbers."""
        for name in texts:
            values = self._column(self._paths[0], name).to_pylist()
            row = next((row for row, value in enumerate(values) if not _is_number(value)), 0)
            found = f" ({str(values[row])[:40]!r})" if values else ""
            raise DatasetError(
                f"it holds text{found}; expected numbers",
                path=self._paths[0],
                key=name,
                row=row,
                remedy="write numbers with a decimal point, and nothing where one is missing",
            )

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
    first, *others = _first_lines(path)[:2] or [""]
    if not others or first.lstrip().startswith(("{", "[", "<")):
        return None
    for delimiter in (",", "\t", ";"):
        count = first.count(delimiter)
        if count and others[0].count(delimiter) == count:
            return delimiter
    return None


def _first_lines(path: Path) -> list[str]:
    """Return the first lines that are not empty; none if it is not a text file."""
    with open_regular(path) as file:
        head = file.read(_SNIFFED_BYTES)
    try:
        text = head.decode("utf-8-sig", errors="strict" if len(head) < _SNIFFED_BYTES else "ignore")
    except UnicodeDecodeError:
        return []
    return [line for line in text.splitlines() if line.strip()]


def _decimal_point(path: Path, delimiter: str) -> str:
    """Return a comma if the first numbers have decimal commas, and none has a decimal point."""
    values = [value for line in _first_lines(path)[1:] for value in line.split(delimiter)]
    if delimiter == "," or any(map(_POINT.fullmatch, values)):
        return "."
    return "," if any(map(_COMMA.fullmatch, values)) else "."


def _is_number(text: Any) -> bool:
    try:
        float(text)
    except (TypeError, ValueError):
        return False
    return True


def _require_header(names: list[str], path: Path) -> None:
    """Raise `DatasetError` if the first line is numbers, other than those of the columns."""
    if all(map(_is_number, names)) and names != [str(number) for number in range(len(names))]:
        raise DatasetError(
            f"its first line is all numbers ({', '.join(names[:3])}, ...): the file seems to have "
            "no header",
            path=path,
            remedy="write a line of column names before it",
        )


def _read_csv(path: Path) -> Any:
    """Return a CSV file as an Arrow table; decimal commas are read where they separate no columns.

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
        table = csv.read_csv(
            path,
            parse_options=csv.ParseOptions(delimiter=delimiter),
            convert_options=csv.ConvertOptions(decimal_point=_decimal_point(path, delimiter)),
        )
    except (pyarrow().ArrowException, OSError) as error:
        raise DatasetError(f"it cannot be read ({error})", path=path) from error
    _require_header(table.schema.names, path)
    return table
