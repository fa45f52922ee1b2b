"""What every format gives the reader: spaces, a table of episodes, and columns of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dreamgym.data import schema
from dreamgym.data.checks import action_excess
from dreamgym.data.columns import Column, MemoryColumn
from dreamgym.data.errors import DatasetError
from dreamgym.data.schema import DatasetMetadata
from dreamgym.data.table import EpisodeTable

Array = NDArray[Any]
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
        observations: Columns by observation key; `schema.SINGLE_KEY` where the space is no Dict.
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
        columns = {schema.observation_path(key): c for key, c in self.observations.items()}
        return columns | {schema.ACTION_KEY: self.action, schema.REWARD_KEY: self.reward}

    def row_bytes(self) -> int:
        """Bytes of one row over all columns."""
        boxes = self.metadata.observation_boxes().values()
        shape, dtype = schema.action_layout(self.metadata.action_space)
        sizes = [int(np.prod(box.shape)) * np.dtype(box.dtype).itemsize for box in boxes]
        return sum(sizes) + int(np.prod(shape)) * dtype.itemsize + schema.REWARD_DTYPE.itemsize

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
        excess = action_excess(rows[schema.ACTION_KEY], self.metadata.action_space)
        excess[starts + table.length] = 0.0  # the zero rows, which are no actions
        if (excess > 0).any():
            space = self.metadata.action_space

            def outside(which: Array) -> str:
                return (
                    f"{len(which)} actions lie outside {space}, the worst by "
                    f"{excess[which].max():.6g}"
                )

            beyond: Array = np.greater(excess, 0.0)
            yield from _row_problems(beyond, starts, first, f"/{schema.ACTION_KEY}", outside)


def _not_finite(rows: Array) -> str:
    return f"it holds NaN or an infinity (in {len(rows)} rows)"


def _checksum_problems(
    table: EpisodeTable, rows: dict[str, Array], first: int
) -> Iterator[DatasetError]:
    begin = int(table.start[0])
    for episode in range(len(table)):
        start = int(table.start[episode]) - begin
        stop = start + int(table.length[episode]) + 1
        crc = schema.episode_crc(table.header(episode), (v[start:stop] for v in rows.values()))
        if crc != table.crc[episode]:
            yield DatasetError(
                "its checksum does not fit its rows: the data have changed since they were written",
                key=f"/{schema.EPISODE_GROUP}/crc",
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
