"""Episodes of named columns that have arrays of their own: groups of an HDF5 file, or npz files.

All columns have one row per step. If every observation has one row more than the actions, its last
row is the observation after the last action.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from numpy import concatenate

from dreamgym.data.formats.columnar import UNREADABLE, Table, find_column, open_table
from dreamgym.data.formats.common import first_readable
from dreamgym.data.formats.interface import Array, ForeignDataset, ForeignOptions, Probe
from dreamgym.data.formats.keys import find_fields
from dreamgym.data.formats.log_rows import (
    find_clock,
    named_column,
    usual_actions,
    usual_observations,
)
from dreamgym.errors import DatasetError


@dataclass(frozen=True, kw_only=True)
class EpisodeArrays:
    """The arrays of some episodes.

    Attributes:
        format: name of the format.
        text: where the episodes are, for the convention.
        names: every column.
        places: name of each episode, for error messages.
        count_rows: returns the number of rows of a column of an episode, given its number.
        read: reads rows of a column of an episode.
    """

    format: str
    text: str
    names: Sequence[str]
    places: Sequence[str]
    count_rows: Callable[[int, str], int]
    read: Callable[[int, str, slice], Array]


def open_episodes(arrays: EpisodeArrays, options: ForeignOptions, probe: Probe) -> ForeignDataset:
    """Open episodes of named columns.

    Raises:
        DatasetError: it is not known which columns are observations or actions, or no episode can
            be read.
    """
    path, names, numbers = probe.path, list(arrays.names), range(len(arrays.places))
    count_rows = functools.lru_cache(maxsize=1 << 16)(arrays.count_rows)
    actions = usual_actions(names)
    action = named_column("action", options, names, path)
    action = action or named_column("previous_action", options, names, path)
    action = action or next(iter(actions), find_fields(names).actions)
    observed = usual_observations(names)
    if options.keys is not None:
        observed = [find_column(name, names, path) for name in options.keys]

    def count_more(number: int) -> set[int]:
        """Return how many rows more than the actions the observations of an episode have."""
        return {count_rows(number, name) - count_rows(number, str(action)) for name in observed}

    has_last = action is not None and first_readable(count_more, numbers) == {1}

    def length(number: int) -> int:
        try:
            return count_rows(number, str(action)) + has_last
        except DatasetError:
            return UNREADABLE

    lengths = [length(number) for number in numbers]

    def read_column(number: int, name: str, part: slice) -> Array:
        count = count_rows(number, name)
        missing = lengths[number] - count
        if missing and not (has_last and missing == 1 and name not in observed):
            raise DatasetError(
                f"it has {count} rows; expected {lengths[number]}, as {action!r} has "
                f"{lengths[number] - has_last}",
                path=path,
                key=f"{arrays.places[number]}/{name}",
            )
        values = arrays.read(number, name, slice(part.start, min(part.stop, count)))
        return concatenate([values, values[-1:]]) if part.stop > count else values

    clock = find_clock(options, names, names, apart=True, path=path)
    notes: list[str] = []
    if clock is not None:
        time = clock.column
        notes = clock.inspect(
            len(lengths), lambda number: read_column(number, time, slice(0, lengths[number]))
        )[1]
        if clock.named:
            names.remove(time)
    table = Table(
        handles=("time",),
        path=path,
        format=arrays.format,
        text=arrays.text,
        names=names,
        lengths=lengths,
        read=read_column,
        observations=observed,
        roles={"action": actions} if actions else {},
        last_is_observation=has_last,
        notes=notes,
    )
    return open_table(table, options, probe.close)


def episode_groups(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the groups of an HDF5 file that are episodes, and the columns of each.

    Their names end in a number (`trial_0`, `data/7`), all are in the same group, and several of
    them have at least two columns of the same names.

    Args:
        names: paths of the arrays of the file.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for name in names:
        *groups, last = name.split("/")
        level = next((i for i, group in enumerate(groups) if group[-1:].isdigit()), None)
        if level is not None:
            inside = found.setdefault("/".join(groups[:level]), {})
            place = "/".join(groups[: level + 1])
            inside.setdefault(place, []).append("/".join([*groups[level + 1 :], last]))
    episodes = max(found.values(), key=len, default={})
    shared = Counter(column for columns in episodes.values() for column in columns)
    return episodes if sum(count > 1 for count in shared.values()) > 1 else {}
