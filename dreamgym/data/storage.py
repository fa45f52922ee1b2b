"""Where the rows of a dataset lie: in memory, or in a file and read when asked for.

Rows are counted as the native format counts them: `T + 1` for an episode of `T` actions, one
episode after the other.
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


class Column(Protocol):
    """All rows of one key."""

    def take(self, rows: Rows) -> Array:
        """Rows by number: `(B, L)` whole numbers in, `(B, L, *shape)` out, freshly allocated.

        Along `L` the numbers rise by a constant step, until they stay at an episode's last row.
        """
        ...

    def read(self, start: int, stop: int) -> Array:
        """Rows `start` to `stop`, `(stop - start, *shape)`."""
        ...


class MemoryColumn:
    """Rows held in memory: one fancy index a call."""

    def __init__(self, values: Array) -> None:
        self.values = values

    def take(self, rows: Rows) -> Array:
        """See `Column.take`."""
        return self.values.take(rows, axis=0)

    def read(self, start: int, stop: int) -> Array:
        """See `Column.read`."""
        return self.values[start:stop]


class SlicedColumn:
    """Rows read from an HDF5 dataset, one slice a window: works everywhere, not the fastest."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def take(self, rows: Rows) -> Array:
        """See `Column.take`."""
        windows = np.empty((*rows.shape, *self._dataset.shape[1:]), dtype=self._dataset.dtype)
        for window, wanted in zip(windows, rows, strict=True):
            first, last = int(wanted[0]), int(wanted[-1])
            window[...] = self._dataset[first : last + 1][wanted - first]
        return windows

    def read(self, start: int, stop: int) -> Array:
        """See `Column.read`."""
        values: Array = self._dataset[start:stop]
        return values


class EpisodeColumn:
    """Rows that a foreign format reads episode by episode: works everywhere, not the fastest.

    Args:
        read: Gives rows `start` to `stop` of one episode.
        starts: First row of each episode.
        like: No rows, of the shape and dtype that they have.
    """

    def __init__(self, read: Callable[[int, int, int], Array], starts: Array, like: Array) -> None:
        self._read, self._starts, self._like = read, starts, like

    def take(self, rows: Rows) -> Array:
        """See `Column.take`; a window lies in one episode."""
        windows = np.empty((*rows.shape, *self._like.shape[1:]), dtype=self._like.dtype)
        for window, wanted in zip(windows, rows, strict=True):
            first = int(wanted[0])
            window[...] = self.read(first, int(wanted[-1]) + 1)[wanted - first]
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
        columns: At least one.
        counts: Rows of each.
    """

    def __init__(self, columns: Sequence[Column], counts: Sequence[int]) -> None:
        self._columns = list(columns)
        self._ends = np.cumsum(counts)
        self._starts = self._ends - np.asarray(counts)

    def take(self, rows: Rows) -> Array:
        """See `Column.take`; a window lies in one episode, and so in one shard."""
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


def for_models(column: Column) -> Column:
    """Actions as models take them: whole numbers as int64, others as float32."""
    if not isinstance(column, MemoryColumn):
        return column
    dtype = np.float32 if column.values.dtype.kind == "f" else np.int64
    return MemoryColumn(column.values.astype(dtype, copy=False))


@dataclass(frozen=True, kw_only=True)
class EpisodeTable:
    """One entry an episode, `(E,)` each; see `layout.EPISODE_COLUMNS`.

    Attributes:
        start: First row of the episode, in native rows.
        length: `T`, its number of actions.
        terminated: Its last observation is terminal.
        truncated: Something outside the task ended it.
        complete: The environment ended it; else it was cut off.
        env_index: Which of several environments it came from.
        seed: Of its reset; -1 where there was none.
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
        """Rows that the episodes need: one more than the last row of the last episode."""
        return int((self.start + self.length).max()) + 1 if len(self) else 0

    @property
    def num_steps(self) -> int:
        """Transitions in all episodes."""
        return int(self.length.sum())

    @property
    def acting(self) -> Array:
        """`(R,)` bool, the rows that an action leaves: all but the last of each episode."""
        rows = np.ones(self.num_rows, dtype=bool)
        rows[self.start + self.length] = False
        return rows

    @property
    def checksum(self) -> str:
        """SHA-256 over the CRCs of the episodes, as hexadecimal text."""
        return hashlib.sha256(self.crc.astype("<u4").tobytes()).hexdigest()

    def header(self, episode: int) -> dict[str, int]:
        """The entries of one episode, as whole numbers."""
        return {field.name: int(getattr(self, field.name)[episode]) for field in fields(self)}

    def select(self, episodes: Array) -> EpisodeTable:
        """The table of some of the episodes."""
        return EpisodeTable(
            **{field.name: getattr(self, field.name)[episodes] for field in fields(self)}
        )

    @classmethod
    def concatenate(cls, tables: Sequence[EpisodeTable]) -> EpisodeTable:
        """The episodes of several tables, whose rows already lie one after the other."""
        return cls(
            **{
                field.name: np.concatenate([getattr(table, field.name) for table in tables])
                for field in fields(cls)
            }
        )

    def validate(self, path: Path) -> None:
        """Raise `DatasetError` unless the episodes follow one another without gap or overlap."""
        columns = {
            "length": (self.length < 1, "an episode has at least 1 action"),
            "start": (self.start < 0, "it must not be negative"),
            "env_index": (self.env_index < 0, "it must not be negative"),
            "seed": (self.seed < layout.NO_SEED, "it must be at least 0, or -1 for none"),
        }
        for name, (bad, wanted) in columns.items():
            if bad.any():
                episode = int(bad.argmax())
                raise _table_error(path, name, episode, getattr(self, name)[episode], wanted)
        # A sum that overflows int64 would come out right by accident.
        if len(self) and int(self.length.max()) > 1 << 40:
            episode = int(self.length.argmax())
            raise _table_error(path, "length", episode, self.length[episode], "at most 2**40")
        expected = np.concatenate([[0], np.cumsum(self.length + 1)[:-1]])[: len(self)]
        bad = self.start != expected
        if bad.any():
            episode = int(bad.argmax())
            raise _table_error(
                path,
                "start",
                episode,
                self.start[episode],
                f"{expected[episode]} is wanted: episodes neither overlap nor leave gaps",
            )

    def flag_problems(self) -> list[DatasetError]:
        """Episodes whose flags contradict one another, as errors without a path."""
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


def _table_error(path: Path, name: str, episode: int, value: Any, wanted: str) -> DatasetError:
    return DatasetError(
        f"it is {value}; {wanted}",
        path=path,
        key=f"/{layout.EPISODE_GROUP}/{name}",
        episode=episode,
        remedy="the table of episodes is damaged: copy or record the dataset again",
    )


_AUDIT_BYTES = 64 << 20


def _nothing() -> None:
    """A source that holds nothing open."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """An opened dataset of whatever format, its rows counted as the native format counts them.

    Attributes:
        path: Where it came from.
        metadata: What it says about itself.
        table: Its episodes.
        observations: Columns by observation key; `layout.SINGLE_KEY` where the space is no Dict.
        action: Rows of actions; the last row of an episode is zero.
        reward: Rows of rewards, float32; likewise.
        close: Lets go of the files.
        convention: What was found, and how it is read.
    """

    path: Path
    metadata: DatasetMetadata
    table: EpisodeTable
    observations: dict[str, Column]
    action: Column
    reward: Column
    close: Callable[[], None] = field(default=_nothing)
    convention: str = "native"

    def columns(self) -> dict[str, Column]:
        """Every column by its name on disk, in the order of the checksum."""
        columns = {layout.observation_path(key): c for key, c in self.observations.items()}
        return columns | {layout.ACTION_KEY: self.action, layout.REWARD_KEY: self.reward}

    def row_bytes(self) -> int:
        """Bytes of one row over all columns."""
        boxes = self.metadata.observation_boxes().values()
        shape, dtype = layout.action_layout(self.metadata.action_space)
        sizes = [int(np.prod(box.shape)) * np.dtype(box.dtype).itemsize for box in boxes]
        return sum(sizes) + int(np.prod(shape)) * dtype.itemsize + layout.REWARD_DTYPE.itemsize

    def held(self) -> dict[str, Column]:
        """The columns that are in memory, by name."""
        columns = self.columns().items()
        return {name: column for name, column in columns if isinstance(column, MemoryColumn)}

    @property
    def in_memory(self) -> bool:
        """All columns are."""
        return len(self.held()) == len(self.columns())

    def audit_episode(self, episode: int) -> Iterator[DatasetError]:
        """What is wrong with the rows of one episode, see `audit`."""
        yield from self._audit_block(episode, episode + 1, self.columns())

    def audit(self, columns: dict[str, Column] | None = None) -> Iterator[DatasetError]:
        """Every episode that must not be fitted from, read block by block.

        Args:
            columns: The columns to look at, action among them; all of them where it is not given.
                Checksums can only be verified with all.

        Yields:
            What is wrong, with key, episode and row, but without the path: flags that contradict
            one another, a checksum that does not fit (bit rot), NaN and infinities, actions outside
            their space.
        """
        yield from self.table.flag_problems()
        for first, last in self._blocks():
            yield from self._audit_block(
                first, last, self.columns() if columns is None else columns
            )

    def _blocks(self) -> Iterator[tuple[int, int]]:
        """Runs of episodes of about 64 MiB."""
        size = np.cumsum((self.table.length + 1) * self.row_bytes())
        first = 0
        while first < len(self.table):
            before = size[first - 1] if first else 0
            last = int(np.searchsorted(size, before + _AUDIT_BYTES, side="right"))
            last = max(last, first + 1)
            yield first, last
            first = last

    def _audit_block(
        self, first: int, last: int, columns: dict[str, Column]
    ) -> Iterator[DatasetError]:
        table = self.table.select(np.arange(first, last))
        begin, end = int(table.start[0]), table.num_rows
        rows = {name: column.read(begin, end) for name, column in columns.items()}
        starts = table.start - begin
        if rows.keys() == self.columns().keys():
            yield from _checksum_problems(table, rows, first)
        for name, values in rows.items():
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                bad = np.asarray(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
                yield from _row_problems(bad, starts, first, f"/{name}", _not_finite)
        excess = action_excess(rows[layout.ACTION_KEY], self.metadata.action_space)
        excess[starts + table.length] = 0.0  # the zero rows, which are no actions
        if (excess > 0).any():
            space = self.metadata.action_space

            def outside(which: Array) -> str:
                return (
                    f"{len(which)} actions lie outside {space}, the worst by "
                    f"{excess[which].max():.6g}"
                )

            beyond: Array = np.greater(excess, 0.0)
            yield from _row_problems(beyond, starts, first, f"/{layout.ACTION_KEY}", outside)


def _not_finite(rows: Array) -> str:
    return f"it holds NaN or an infinity (in {len(rows)} rows)"


def _checksum_problems(
    table: EpisodeTable, rows: dict[str, Array], first: int
) -> Iterator[DatasetError]:
    begin = int(table.start[0])
    for episode in range(len(table)):
        start = int(table.start[episode]) - begin
        stop = start + int(table.length[episode]) + 1
        crc = layout.episode_crc(table.header(episode), (v[start:stop] for v in rows.values()))
        if crc != table.crc[episode]:
            yield DatasetError(
                "its checksum does not fit its rows: the data have changed since they were written",
                key=f"/{layout.EPISODE_GROUP}/crc",
                episode=first + episode,
                remedy="copy the file again, or leave the episode out with on_bad='skip'",
            )


def _row_problems(
    bad: Array, starts: Array, first: int, key: str, describe: Callable[[Array], str]
) -> Iterator[DatasetError]:
    """One problem for each episode that has a bad row."""
    rows = np.flatnonzero(bad)
    episodes = np.searchsorted(starts, rows, side="right") - 1
    for episode in np.unique(episodes):
        which = rows[episodes == episode]
        yield DatasetError(
            describe(which),
            key=key,
            episode=first + int(episode),
            row=int(which[0] - starts[episode]),
            remedy="leave the episode out with on_bad='skip', or mend the data",
        )
