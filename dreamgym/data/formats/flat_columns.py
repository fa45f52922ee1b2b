"""Columns of any names in one HDF5 file or npz archive, of which the user names the columns.

In an HDF5 file they may be in groups (`robot/joints`), or each episode may have a group of its own
(`trial_0/joints`). All columns that are used have one row per step. Without such groups, episodes
are told apart by a column of their numbers, else by the end flags; the column that is named for
`episode` may also hold the lengths of the episodes, or the row after the last one of each. Files
whose observations and actions have usual names are read as D4RL.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np

from dreamgym.data.formats.columnar import Table, open_table
from dreamgym.data.formats.common import array_names, plural, read_rows, sort_by_number
from dreamgym.data.formats.common import read_column as read_whole
from dreamgym.data.formats.episode_columns import EpisodeArrays, episode_groups, open_episodes
from dreamgym.data.formats.interface import Array, ForeignDataset, ForeignOptions, Probe
from dreamgym.data.formats.keys import find_fields
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
from dreamgym.data.hdf5.guard import get_dataset
from dreamgym.errors import DatasetError

NAME = "flat columns"
_NATIVE = frozenset({"steps/action", "steps/reward", "episodes/start", "episodes/length"})
_ROBOMIMIC = "data/demo_"
# Keys of formats that have columns in the root, too.
_OTHERS = frozenset({"ep_len", "num_episodes", "is_first"})


def detect(probe: Probe) -> bool:
    """Return whether there are several arrays of as many rows, without usual names for both.

    In an HDF5 file, groups of arrays that are episodes will do as well.
    """
    if probe.is_folder or set(probe.names) & _OTHERS:
        return False
    found = find_fields(probe.names)
    if None not in (found.observations, found.actions):
        return False
    names = _names(probe)
    if _NATIVE & set(names) or any(name.startswith(_ROBOMIMIC) for name in names):
        return False
    if episode_groups(names):
        return True
    lengths = [length for length in _lengths(probe).values() if length > 1]
    return len(lengths) > len(set(lengths))


def read(probe: Probe, options: ForeignOptions) -> ForeignDataset:
    """Open the dataset; rows of an HDF5 file are read episode by episode.

    Raises:
        DatasetError: its columns are not named or differ in length, or an episode is scattered.
    """
    groups = episode_groups(_names(probe)) if probe.hdf5 is not None else {}
    if groups and not set(options.named_values()) & set(_names(probe)):
        return _open_groups(groups, probe, options)
    path, lengths = probe.path, _lengths(probe)
    episode = episode_column(options, list(lengths), path)
    names = [name for name in lengths if name != episode]
    actions = usual_actions(names)
    action = named_column("action", options, names, path) or next(iter(actions), None)
    action = action or named_column("previous_action", options, names, path)
    count = lengths[action] if action is not None else max(lengths.values())
    for name in set(options.named_values()) & set(names):
        if lengths[name] != count:
            raise DatasetError(
                f"it has {lengths[name]} rows; expected {count}, as {action!r} has",
                path=path,
                key=name,
            )
    names = [name for name in names if lengths[name] == count]
    flags = flag_columns(options, names, path)
    starts, counts = _split(probe, episode, flags, count)
    read_part = _reader(probe)

    def read_column(number: int, name: str, part: slice) -> Array:
        start = int(starts[number])
        return read_part(name, slice(start + part.start, start + part.stop))

    clock = find_clock(options, names, names, episode is not None, path)
    restarts: str | None = None
    notes: list[str] = []
    if clock is not None:
        time = clock.column
        cuts, notes = clock.inspect(
            len(counts), lambda number: read_column(number, time, slice(0, int(counts[number])))
        )
        restarts = time if any(map(len, cuts)) else None
        starts, counts = cut_rows(starts, counts, cuts)
        if clock.named:
            names.remove(time)

    def read_last_action(number: int) -> Array:
        rows = int(counts[number])
        return read_column(number, str(action), slice(rows - 1, rows))

    table = Table(
        handles=("episode", "time"),
        path=path,
        format=NAME,
        text=f"{plural(len(counts), 'episode')}, by {describe_split(episode, flags, restarts)}",
        names=names,
        notes=notes,
        lengths=counts.tolist(),
        read=read_column,
        observations=usual_observations(names),
        roles={"action": actions} if actions else {},
        last_is_observation=action is not None
        and ends_without_action(len(counts), read_last_action),
    )
    return open_table(table, options, probe.close)


def _lengths(probe: Probe) -> dict[str, int]:
    """Return the number of rows of each array of numbers."""
    lengths = {}
    for name in _names(probe):
        with contextlib.suppress(DatasetError):  # text, or a single value
            lengths[name] = _count_rows(probe, name)
    return lengths


def _names(probe: Probe) -> list[str]:
    """Return the arrays of an npz archive, or of an HDF5 file and its groups."""
    return list(probe.names) if probe.hdf5 is None else array_names(probe.hdf5, probe.path)


def _count_rows(probe: Probe, name: str) -> int:
    """Return the number of rows of an array of numbers, without reading it.

    Raises:
        DatasetError: it is missing, or something else.
    """
    if probe.npz is not None:
        return probe.npz.count_rows(name)
    if probe.hdf5 is None:
        raise DatasetError("expected an HDF5 or npz file", path=probe.path, key=name)
    dataset = get_dataset(probe.hdf5, name, probe.path)
    if not dataset.ndim:
        raise DatasetError("it is a single value; expected rows", path=probe.path, key=name)
    return len(dataset)


def _open_groups(
    groups: dict[str, list[str]], probe: Probe, options: ForeignOptions
) -> ForeignDataset:
    """Open the episodes of an HDF5 file in which each one has a group."""
    places, read_part = sort_by_number(groups), _reader(probe)
    holders = {name: place for place in reversed(places) for name in groups[place]}
    names = []
    for name, place in holders.items():
        with contextlib.suppress(DatasetError):  # text, or a single value
            _count_rows(probe, f"{place}/{name}")
            names.append(name)
    arrays = EpisodeArrays(
        format=NAME,
        text=f"{plural(len(places), 'episode')}, by groups ({places[0]!r}, ...)",
        names=names,
        places=places,
        count_rows=lambda number, name: _count_rows(probe, f"{places[number]}/{name}"),
        read=lambda number, name, part: read_part(f"{places[number]}/{name}", part),
    )
    return open_episodes(arrays, options, probe)


def _reader(probe: Probe) -> Callable[[str, slice], Array]:
    """Return a function that reads rows of a column."""
    if probe.hdf5 is not None:
        file = probe.hdf5
        return lambda name, part: read_rows(file, name, probe.path, part)
    whole: dict[str, Array] = {}

    def read_part(name: str, part: slice) -> Array:
        if name not in whole:
            whole[name] = read_whole(probe, name)
        return whole[name][part]

    return read_part


def _split(probe: Probe, episode: str | None, flags: list[str], count: int) -> tuple[Array, Array]:
    """Return the first row and the number of rows of each episode."""
    if episode is None:
        if not flags:
            return np.zeros(1, np.int64), np.array([count])
        ends = [read_whole(probe, name).reshape(-1) != 0 for name in flags]
        return split_by_ends(np.any(ends, axis=0))
    values = read_whole(probe, episode).reshape(-1)
    if len(values) == count:
        return split_by_numbers(values, probe.path, episode)
    lengths = values.astype(np.int64) if values.sum() == count else np.diff(values, prepend=0)
    if (lengths < 1).any() or lengths.sum() != count:
        raise DatasetError(
            f"it has {len(values)} values for {count} rows; expected a number for each row, or the "
            "lengths or the ends of the episodes",
            path=probe.path,
            key=episode,
        )
    stops = np.cumsum(lengths.astype(np.int64))
    return stops - lengths.astype(np.int64), lengths.astype(np.int64)
