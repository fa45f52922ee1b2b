"""Columns of rows, in memory or in a file, and the opened dataset that they make up.

Rows are counted as in `data.layout`: `T + 1` for an episode of `T` actions, one episode after the
other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dreamgym.data import layout
from dreamgym.data.episodes import action_excess
from dreamgym.data.metadata import DatasetMetadata
from dreamgym.errors import DatasetError

Array = NDArray[Any]
Rows = NDArray[np.int64]

_AUDIT_BYTES = 64 << 20
_MAX_LENGTH = 1 << 40


class Column(Protocol):
    """All rows of one observation key, of the actions or of the rewards."""

    def take(self, rows: Rows) -> Array:
        """Return windows of rows by index: `(B, L)` indices give `(B, L, *shape)`, a fresh array.

        Along `L` the indices rise by a constant step until they stay at an episode's last row. A
        window lies within one episode.
        """
        ...

    def read(self, start: int, stop: int) -> Array:
        """Return the rows from `start` to `stop`, `(stop - start, *shape)`."""
        ...


class MemoryColumn:
    """Rows held in memory."""

    def __init__(self, values: Array) -> None:
        self.values = values

    def take(self, rows: Rows) -> Array:
        """See `Column.take`."""
        return self.values.take(rows, axis=0)

    def read(self, start: int, stop: int) -> Array:
        """See `Column.read`."""
        return self.values[start:stop]


class SlicedColumn:
    """Rows read from an HDF5 dataset by slicing, one slice per window.

    Works for every HDF5 dataset, compressed ones as well; `hdf5.reader.PositionedColumn` is faster.
    """

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def take(self, rows: Rows) -> Array:
        """See `Column.take`."""
        windows = np.empty((*rows.shape, *self._dataset.shape[1:]), dtype=self._dataset.dtype)
        for window, indices in zip(windows, rows, strict=True):
            first, last = int(indices[0]), int(indices[-1])
            window[...] = self._dataset[first : last + 1][indices - first]
        return windows

    def read(self, start: int, stop: int) -> Array:
        """See `Column.read`."""
        values: Array = self._dataset[start:stop]
        return values


class EpisodeColumn:
    """Rows of a foreign dataset that are read episode by episode.

    Args:
        read: function of an episode index, a start and a stop that returns these rows of it.
        starts: `(E,)` first row of each episode.
        like: empty array with the shape and dtype of the rows.
    """

    def __init__(self, read: Callable[[int, int, int], Array], starts: Array, like: Array) -> None:
        self._read, self._starts, self._like = read, starts, like

    def take(self, rows: Rows) -> Array:
        """See `Column.take`."""
        windows = np.empty((*rows.shape, *self._like.shape[1:]), dtype=self._like.dtype)
        for window, indices in zip(windows, rows, strict=True):
            first = int(indices[0])
            window[...] = self.read(first, int(indices[-1]) + 1)[indices - first]
        return windows

    def read(self, start: int, stop: int) -> Array:
        """See `Column.read`."""
        parts = [self._like]
        while start < stop:
            episode = int(np.searchsorted(self._starts, start, side="right")) - 1
            first = int(self._starts[episode])
            last = int(self._starts[episode + 1]) if episode + 1 < len(self._starts) else stop
            values = self._read(episode, start - first, min(stop, last) - first)
            parts.append(values.astype(self._like.dtype, copy=False))
            start = min(stop, last)
        return np.concatenate(parts)


class JoinedColumn:
    """The rows of several columns, one after the other: the shards of a dataset.

    Args:
        columns: columns to join, at least one.
        counts: number of rows of each.
    """

    def __init__(self, columns: Sequence[Column], counts: Sequence[int]) -> None:
        self._columns = list(columns)
        self._ends = np.cumsum(counts)
        self._starts = self._ends - np.asarray(counts)

    def take(self, rows: Rows) -> Array:
        """See `Column.take`; a window lies within one episode, and so within one shard."""
        shards = np.searchsorted(self._ends, rows[:, 0], side="right")
        windows: Array | None = None
        for shard in np.unique(shards):
            chosen = shards == shard
            part = self._columns[shard].take(rows[chosen] - self._starts[shard])
            if windows is None:
                windows = np.empty((len(rows), *part.shape[1:]), dtype=part.dtype)
            windows[chosen] = part
        return self._columns[0].take(rows) if windows is None else windows

    def read(self, start: int, stop: int) -> Array:
        """See `Column.read`."""
        parts = [
            column.read(max(start - first, 0), min(stop, last) - first)
            for column, first, last in zip(
                self._columns, self._starts.tolist(), self._ends.tolist(), strict=True
            )
            if start < last and stop > first
        ]
        return np.concatenate(parts) if parts else self._columns[0].read(0, 0)


def as_model_actions(column: Column) -> Column:
    """Return the action column in the dtypes that models take: int64 for integers, else float32."""
    if not isinstance(column, MemoryColumn):
        return column
    dtype = np.float32 if column.values.dtype.kind == "f" else np.int64
    return MemoryColumn(column.values.astype(dtype, copy=False))


@dataclass(frozen=True, kw_only=True)
class EpisodeTable:
    """One entry per episode, `(E,)` each; see `layout.EPISODE_COLUMNS`.

    Attributes:
        start: first row of the episode.
        length: `T`, its number of actions.
        terminated: whether its last observation is terminal.
        truncated: whether something outside the task ended it.
        complete: whether the environment ended it; otherwise it was cut off.
        env_index: index of the environment that it came from, among several side by side.
        seed: seed of its reset; -1 if it had none.
        crc: CRC-32 of the episode, see `layout.episode_crc`.
    """

    start: Array
    length: Array
    terminated: Array
    truncated: Array
    complete: Array
    env_index: Array
    seed: Array
    crc: Array

    def __len__(self) -> int:
        return len(self.start)

    @property
    def num_rows(self) -> int:
        """Number of rows of all episodes together."""
        return int((self.start + self.length).max()) + 1 if len(self) else 0

    @property
    def num_steps(self) -> int:
        """Number of transitions in all episodes."""
        return int(self.length.sum())

    @property
    def has_action(self) -> Array:
        """`(R,)` bool, the rows that hold an action: all but the last of each episode."""
        rows = np.ones(self.num_rows, dtype=bool)
        rows[self.start + self.length] = False
        return rows

    @property
    def checksum(self) -> str:
        """SHA-256 over the CRCs of the episodes, in hexadecimal."""
        return hashlib.sha256(self.crc.astype("<u4").tobytes()).hexdigest()

    def header(self, episode: int) -> dict[str, int]:
        """Return the entries of one episode, as integers by name."""
        return {field.name: int(getattr(self, field.name)[episode]) for field in fields(self)}

    def select(self, episodes: Array) -> EpisodeTable:
        """Return the table of some of the episodes."""
        return EpisodeTable(
            **{field.name: getattr(self, field.name)[episodes] for field in fields(self)}
        )

    @classmethod
    def concatenate(cls, tables: Sequence[EpisodeTable]) -> EpisodeTable:
        """Join several tables whose `start` entries are already offset."""
        return cls(
            **{
                field.name: np.concatenate([getattr(table, field.name) for table in tables])
                for field in fields(cls)
            }
        )

    def validate(self, path: Path) -> None:
        """Raise `DatasetError` unless the episodes follow one another without gap or overlap."""
        checks = {
            "length": (self.length < 1, "an episode has at least 1 action"),
            "start": (self.start < 0, "it must not be negative"),
            "env_index": (self.env_index < 0, "it must not be negative"),
            "seed": (self.seed < layout.NO_SEED, "expected at least 0, or -1 for none"),
        }
        for name, (bad, expected) in checks.items():
            if bad.any():
                self._refuse(path, name, int(bad.argmax()), expected)
        # A sum of lengths that overflows int64 could match `start` by accident.
        if len(self) and int(self.length.max()) > _MAX_LENGTH:
            self._refuse(path, "length", int(self.length.argmax()), "expected at most 2**40")
        starts = np.concatenate([[0], np.cumsum(self.length + 1)[:-1]])[: len(self)]
        bad = self.start != starts
        if bad.any():
            episode = int(bad.argmax())
            expected = f"expected {starts[episode]}: episodes must neither overlap nor leave gaps"
            self._refuse(path, "start", episode, expected)

    def flag_problems(self) -> list[DatasetError]:
        """Return an error, without a path, for each episode whose flags are inconsistent."""
        ended = self.terminated | self.truncated
        return [
            DatasetError(
                f"complete = {bool(self.complete[episode])}, but terminated = "
                f"{bool(self.terminated[episode])} and truncated = "
                f"{bool(self.truncated[episode])}",
                key=f"/{layout.EPISODE_GROUP}/complete",
                episode=int(episode),
            )
            for episode in np.flatnonzero(ended != self.complete)
        ]

    def _refuse(self, path: Path, name: str, episode: int, expected: str) -> None:
        raise DatasetError(
            f"it is {getattr(self, name)[episode]}; {expected}",
            path=path,
            key=f"/{layout.EPISODE_GROUP}/{name}",
            episode=episode,
            remedy="the table of episodes is damaged: copy or record the dataset again",
        )


def _close_nothing() -> None:
    """Close a source that holds no file open."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """An opened dataset of any format, in the row layout of `data.layout`.

    Attributes:
        path: file or folder that it was opened from.
        metadata: spaces and origin.
        table: the episodes.
        observations: columns by observation key; `layout.SINGLE_KEY` if the space is not a Dict.
        action: rows of actions; the last row of an episode is zero.
        reward: rows of rewards, float32; the last row of an episode is zero.
        close: closes the files.
        convention: format that was detected, and the convention it is read by.
        policies: (policy, episodes) of each file, in order, where there are several.
    """

    path: Path
    metadata: DatasetMetadata
    table: EpisodeTable
    observations: dict[str, Column]
    action: Column
    reward: Column
    close: Callable[[], None] = field(default=_close_nothing)
    convention: str = "native"
    policies: tuple[tuple[str, int], ...] = ()

    @property
    def in_memory(self) -> bool:
        """Whether all columns are held in memory."""
        return len(self.memory_columns()) == len(self.columns())

    def columns(self) -> dict[str, Column]:
        """Return every column by its name in the layout, in the order of the checksum."""
        columns = {layout.observation_path(key): c for key, c in self.observations.items()}
        return columns | {layout.ACTION_KEY: self.action, layout.REWARD_KEY: self.reward}

    def memory_columns(self) -> dict[str, Column]:
        """Return the columns that are held in memory, by name."""
        columns = self.columns().items()
        return {name: column for name, column in columns if isinstance(column, MemoryColumn)}

    def row_bytes(self) -> int:
        """Return the bytes of one row over all columns."""
        boxes = self.metadata.observation_columns().values()
        shape, dtype = layout.action_layout(self.metadata.action_space)
        sizes = [int(np.prod(box.shape)) * np.dtype(box.dtype).itemsize for box in boxes]
        return sum(sizes) + int(np.prod(shape)) * dtype.itemsize + layout.REWARD_DTYPE.itemsize

    def audit(
        self,
        columns: dict[str, Column] | None = None,
        visit: Callable[[dict[str, Array]], None] | None = None,
    ) -> Iterator[DatasetError]:
        """Find every episode that must not be used for fitting, reading block by block.

        Args:
            columns: columns to read, the action among them; all by default. Checksums are verified
                only if all columns are read.
            visit: called with the rows of each block by column, so that one pass over a large
                dataset is enough for the check and for statistics.

        Yields:
            An error with key, episode and row, but without the path, for each problem: inconsistent
            flags, a wrong checksum (bit rot), NaN and infinities, actions outside their space.
        """
        yield from self.table.flag_problems()
        for first, last in self._blocks():
            yield from self._audit_block(
                first, last, self.columns() if columns is None else columns, visit
            )

    def audit_episode(self, episode: int) -> Iterator[DatasetError]:
        """Find the problems in the rows of one episode, see `audit`."""
        yield from self._audit_block(episode, episode + 1, self.columns())

    def _blocks(self) -> Iterator[tuple[int, int]]:
        """Divide the episodes into runs of about 64 MiB."""
        size = np.cumsum((self.table.length + 1) * self.row_bytes())
        first = 0
        while first < len(self.table):
            before = size[first - 1] if first else 0
            last = int(np.searchsorted(size, before + _AUDIT_BYTES, side="right"))
            last = max(last, first + 1)
            yield first, last
            first = last

    def _audit_block(
        self,
        first: int,
        last: int,
        columns: dict[str, Column],
        visit: Callable[[dict[str, Array]], None] | None = None,
    ) -> Iterator[DatasetError]:
        table = self.table.select(np.arange(first, last))
        begin, end = int(table.start[0]), table.num_rows
        rows = {name: column.read(begin, end) for name, column in columns.items()}
        if visit is not None:
            visit(rows)
        starts = table.start - begin
        if rows.keys() == self.columns().keys():
            yield from _checksum_problems(table, rows, first)
        for name, values in rows.items():
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                bad = np.asarray(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
                yield from _row_problems(bad, starts, first, f"/{name}", _describe_not_finite)
        excess = action_excess(rows[layout.ACTION_KEY], self.metadata.action_space)
        excess[starts + table.length] = 0.0  # the last row of an episode is not an action
        if (excess > 0).any():
            space = self.metadata.action_space

            def describe_outside(bad_rows: Array) -> str:
                return (
                    f"{len(bad_rows)} actions lie outside {space}, the worst by "
                    f"{excess[bad_rows].max():.6g}"
                )

            outside: Array = np.greater(excess, 0.0)
            key = f"/{layout.ACTION_KEY}"
            yield from _row_problems(outside, starts, first, key, describe_outside)


def _describe_not_finite(bad_rows: Array) -> str:
    return f"it holds NaN or an infinity (in {len(bad_rows)} rows)"


def _checksum_problems(
    table: EpisodeTable, rows: dict[str, Array], first: int
) -> Iterator[DatasetError]:
    starts = table.start - int(table.start[0])
    crcs = layout.episode_crcs(
        {name: getattr(table, name) for name in layout.EPISODE_COLUMNS}, starts, rows.values()
    )
    for episode in np.flatnonzero(crcs != table.crc).tolist():
        yield DatasetError(
            "its checksum does not fit its rows: the data have changed since they were written",
            key=f"/{layout.EPISODE_GROUP}/crc",
            episode=first + episode,
            remedy="copy the file again, or leave the episode out with on_bad='skip'",
        )


def _row_problems(
    bad: Array, starts: Array, first: int, key: str, describe: Callable[[Array], str]
) -> Iterator[DatasetError]:
    """Yield one problem for each episode that has a bad row."""
    rows = np.flatnonzero(bad)
    episodes, firsts = np.unique(np.searchsorted(starts, rows, side="right") - 1, return_index=True)
    for episode, bad_rows in zip(episodes, np.split(rows, firsts[1:]), strict=True):
        yield DatasetError(
            describe(bad_rows),
            key=key,
            episode=first + int(episode),
            row=int(bad_rows[0] - starts[episode]),
            remedy="leave the episode out with on_bad='skip', or repair the data",
        )
