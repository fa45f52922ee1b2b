"""The table of episodes: where each one lies, and how it ended."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dreamgym.data import schema
from dreamgym.data.errors import DatasetError

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class EpisodeTable:
    """One entry an episode, `(E,)` each; see `schema.EPISODE_COLUMNS`.

    Attributes:
        start: First row of the episode, in native rows.
        length: `T`, its number of actions.
        terminated: Its last observation is terminal.
        truncated: Something outside the task ended it.
        complete: The environment ended it; else it was cut off.
        env_index: Which of several environments it came from.
        seed: Of its reset; -1 where there was none.
        crc: CRC-32 of the episode, see `schema.episode_crc`.
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
            "seed": (self.seed < schema.NO_SEED, "it must be at least 0, or -1 for none"),
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
                key=f"/{schema.EPISODE_GROUP}/complete",
                episode=int(episode),
            )
            for episode in np.flatnonzero(ended != self.complete)
        ]


def _table_error(path: Path, name: str, episode: int, value: Any, wanted: str) -> DatasetError:
    return DatasetError(
        f"it is {value}; {wanted}",
        path=path,
        key=f"/{schema.EPISODE_GROUP}/{name}",
        episode=episode,
        remedy="the table of episodes is damaged: copy or record the dataset again",
    )
