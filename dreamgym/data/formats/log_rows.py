"""What logs of any container have in common: which columns are what, where episodes end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dreamgym.data.formats.columnar import END_ROLES, find_column, runs
from dreamgym.data.formats.common import plural
from dreamgym.data.formats.interface import Array, ForeignOptions
from dreamgym.data.formats.keys import field_of, find_fields, normalise
from dreamgym.errors import DatasetError

_EPISODES = (
    *("episode", "episode_id", "episode_index", "episode_idx", "episode_number", "ep"),
    *("traj", "traj_id", "trajectory", "trajectory_id", "run", "run_id"),
)
_TIMES = ("t", "time", "timestamp", "timestep", "time_step", "step")
_TELL_APART = "name the column that tells episodes apart (--columns episode=NAME)"
_NEAR_START = 0.1  # of its range: a time that goes back to less restarts
_LONG_STEP = 1.5  # times the median: more than the jitter of a clock
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


def describe_split(episode: str | None, flags: Sequence[str], restarts: str | None = None) -> str:
    """Return how episodes are told apart, for the convention.

    Args:
        episode: the column that does so.
        flags: columns of end flags.
        restarts: column of times, if the log is cut where they restart.
    """
    if episode is not None:
        return f"column {episode!r}"
    text = f"end flags {list(flags)}" if flags else "file"
    return text if restarts is None else f"{text} and restarts of {restarts!r}"


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


@dataclass(frozen=True, kw_only=True)
class Clock:
    """The column of a log that holds the time of each row.

    Attributes:
        column: its name.
        named: whether the user named it; else it has a usual name, and what is odd about it is only
            noted where the log may still be what it seems.
        apart: whether something else tells all episodes apart: a column, a file, a group.
        path: path for error messages.
    """

    column: str
    named: bool
    apart: bool
    path: Path

    def inspect(self, count: int, read: Callable[[int], Array]) -> tuple[list[Array], list[str]]:
        """Look for episodes that are not told apart, rows out of order and missing rows.

        Args:
            count: number of episodes.
            read: returns the times of an episode, `(N,)`.

        Returns:
            The rows of each episode at which another one begins, and notes.

        Raises:
            DatasetError: the time restarts, and the user did not name it to cut the log there; or
                the user named it, and it goes back or stands still.
        """
        series = [self._times(number, read) for number in range(count)]
        with np.errstate(invalid="ignore"):  # infinities
            back = [np.flatnonzero(np.diff(times) < 0) + 1 for times in series]
        notes = []
        if any(map(len, back)):
            restarts = all(map(_restarts, series, back))
            if restarts and not self.apart and self.named:
                return back, self._gaps(series)
            notes = self._report_order(back, restarts)
        return [np.empty(0, np.int64)] * count, [*notes, *self._gaps(series)]

    def _times(self, number: int, read: Callable[[int], Array]) -> Array:
        try:
            times = read(number)
        except DatasetError:
            if self.named and not self.apart:
                raise
            return np.empty(0)  # reading the episode reports why
        return times.reshape(len(times), -1)[:, :1].reshape(-1).astype(np.float64)

    def _report_order(self, back: list[Array], restarts: bool) -> list[str]:
        """Raise or return what is to be said about times that go back.

        Args:
            back: rows of each episode whose time is before that of the row before.
            restarts: whether it goes back to its beginning every time.
        """
        first = next(number for number, rows in enumerate(back) if len(rows))
        remedy = "sort the log by it"
        if not self.apart:
            remedy = f"{_TELL_APART}; or, if they are one episode, {remedy}"
        problem = "it goes back"
        if restarts and not self.apart:
            times = sum(map(len, back))
            problem = f"it restarts {plural(times, 'time')}: these are several episodes"
            remedy = (
                f"{_TELL_APART}, or cut the log where it restarts (--columns time={self.column})"
            )
        elif not self.named:
            row = int(back[first][0])
            return [f"{self.column!r} goes back, first in episode {first}, row {row}; {remedy}"]
        raise DatasetError(
            problem,
            path=self.path,
            key=self.column,
            episode=first,
            row=int(back[first][0]),
            remedy=remedy,
        )

    def _gaps(self, series: list[Array]) -> list[str]:
        """Return notes on steps that are zero, or much longer than most."""
        with np.errstate(invalid="ignore"):  # infinities
            steps = np.concatenate([np.diff(times) for times in series] or [np.empty(0)])
        still = int((steps == 0).sum())
        if not self.apart and 2 * still > len(steps):
            problem = f"{still:,} of {len(steps):,} rows have the time of the row before"
            remedy = f"if rows of several episodes are mixed, {_TELL_APART}, and sort by it first"
            if self.named:
                raise DatasetError(problem, path=self.path, key=self.column, remedy=remedy)
            return [f"{self.column!r}: {problem}; {remedy}"]
        steps = steps[steps > 0]
        long = steps[steps > _LONG_STEP * np.median(steps)] if len(steps) else steps
        if not len(long):
            return []
        return [
            f"the steps of {self.column!r} are uneven: {len(long):,} of {len(steps):,} are longer "
            f"than {_LONG_STEP:g} times the median of {np.median(steps):.4g}, up to "
            f"{long.max():.4g}. Where samples are missing, one dream step mixes several durations"
        ]


def _restarts(times: Array, back: Array) -> bool:
    """Return whether times `(N,)` return to their beginning at each of some rows."""
    if not len(back):
        return True
    first = times[0]
    return bool((times[back] <= first + _NEAR_START * (np.nanmax(times) - first)).all())


def find_clock(
    options: ForeignOptions, names: Sequence[str], numbers: Sequence[str], apart: bool, path: Path
) -> Clock | None:
    """Return the column of times: a named one, or one of a usual name; `None` if there is none.

    Args:
        options: what the user knows.
        names: every column.
        numbers: those of numbers.
        apart: see `Clock`.
        path: path for error messages.
    """
    named = named_column("time", options, names, path)
    known = {normalise(name): name for name in numbers}
    column = named or next((known[name] for name in _TIMES if name in known), None)
    if column is None:
        return None
    return Clock(column=column, named=named is not None, apart=apart, path=path)


def cut_rows(starts: Array, counts: Array, rows: Sequence[Array]) -> tuple[Array, Array]:
    """Return first rows and numbers of rows of episodes that are cut.

    Args:
        starts: `(E,)` first row of each episode.
        counts: `(E,)` number of its rows.
        rows: rows of each episode, counted within it, at which another one begins.
    """
    if not any(map(len, rows)):
        return starts, counts
    bounds = [
        np.concatenate([[0], cuts, [count]]) for cuts, count in zip(rows, counts, strict=True)
    ]
    begins = [start + each[:-1] for start, each in zip(starts, bounds, strict=True)]
    return np.concatenate(begins), np.concatenate([np.diff(each) for each in bounds])
