"""What logs of any container have in common: which columns are what, where episodes end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dreamgym.data.formats.columnar import END_ROLES, find_column, runs
from dreamgym.data.formats.interface import Array, ForeignOptions
from dreamgym.data.formats.keys import field_of, find_fields, normalise
from dreamgym.errors import DatasetError

_EPISODES = (
    *("episode", "episode_id", "episode_index", "episode_idx", "episode_number", "ep"),
    *("traj", "traj_id", "trajectory", "trajectory_id", "run", "run_id"),
)
# Beginnings of the names of columns that are observations, or actions, where none is named.
_OBSERVATION_PARTS = frozenset({"observation", "observations", "obs", "state", "states"})
_ACTION_PARTS = frozenset({"action", "actions", "act"})


def named_column(
    role: str, options: ForeignOptions, names: Sequence[str], path: Path
) -> str | None:
    """Return the column that the user named for a role; `None` if there is none."""
    named = options.columns_for(role)
    return find_column(named[0], names, path) if named else None


def episode_column(options: ForeignOptions, names: Sequence[str], path: Path) -> str | None:
    """Return the column that tells episodes apart: a named one, or one of a usual name."""
    known = {normalise(name): name for name in names}
    usual = next((known[name] for name in _EPISODES if name in known), None)
    return named_column("episode", options, names, path) or usual


def flag_columns(options: ForeignOptions, names: Sequence[str], path: Path) -> list[str]:
    """Return the columns that say where episodes end."""
    given = {
        field_of(role): column
        for role in END_ROLES
        if (column := named_column(role, options, names, path)) is not None
    }
    found = find_fields(names, options.ignore, given)
    return [name for name in (found.terminated, found.truncated, found.ends) if name is not None]


def usual_observations(names: Sequence[str]) -> list[str]:
    """Return the columns that are observations by the beginning of their names."""
    return [name for name in names if _first_part(name) in _OBSERVATION_PARTS]


def usual_actions(names: Sequence[str]) -> tuple[str, ...]:
    """Return the columns that are actions by the beginning of their names."""
    return tuple(name for name in names if _first_part(name) in _ACTION_PARTS)


def _first_part(name: str) -> str:
    return normalise(name).replace("/", "_").split("_")[0]


def split_by_numbers(numbers: Array, path: Path, column: str) -> tuple[Array, Array]:
    """Return the first row and the number of rows of each episode, from their numbers or names.

    Args:
        numbers: `(N,)`, the same in all rows of an episode.
        path: path for error messages.
        column: name of the column, for error messages.

    Raises:
        DatasetError: the rows of an episode are not together.
    """
    _, codes = np.unique(numbers, return_inverse=True)
    starts, counts = runs(codes)
    if len(np.unique(codes)) != len(starts):
        raise DatasetError(
            "the rows of an episode are not together",
            path=path,
            key=column,
            remedy="sort the log by it",
        )
    return starts, counts


def split_by_ends(ends: Array) -> tuple[Array, Array]:
    """Return the first row and the number of rows of each episode, from the flags of their ends.

    Args:
        ends: `(N,)` bool.
    """
    stops = np.flatnonzero(ends) + 1
    if not len(stops) or stops[-1] != len(ends):
        stops = np.append(stops, len(ends))
    starts = np.concatenate([[0], stops[:-1]]).astype(np.int64)
    return starts, stops - starts


def describe_split(episode: str | None, flags: Sequence[str]) -> str:
    """Return how episodes are told apart, for the convention."""
    if episode is not None:
        return f"column {episode!r}"
    return f"end flags {list(flags)}" if flags else "file"


def ends_without_action(count: int, read_last: Callable[[int], Array]) -> bool:
    """Return whether the last row of every episode has no action (NaN).

    Args:
        count: number of episodes.
        read_last: returns the action of the last row of an episode.
    """
    for number in range(count):
        try:
            last = read_last(number)
        except DatasetError:
            return False
        if last.dtype.kind != "f" or not np.isnan(last).all():
            return False
    return True


def require_order(times: Array, path: Path, column: str, episode: int) -> None:
    """Raise `DatasetError` if the time of an episode goes back."""
    back = np.flatnonzero(np.diff(times.reshape(-1)) < 0)
    if len(back):
        raise DatasetError(
            "it goes back",
            path=path,
            key=column,
            episode=episode,
            row=int(back[0]) + 1,
            remedy="sort the log by it",
        )
