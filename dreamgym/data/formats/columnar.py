"""Datasets of named columns: every column has one row for each observation of an episode.

LeRobot, Lance, Zarr, Parquet, CSV and others differ in their containers only: each one describes
itself as a `Table`, and `open_table` decides which column means what, and builds the episodes. A
column is an observation, an action, a reward or an end flag by the format's own definition, by the
usual spellings of its name (`keys.find_fields`), or because the user says so
(`ForeignOptions.columns`), who has the last word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from dreamgym.data.episodes import Episode, Observations, require_finite
from dreamgym.data.formats.common import (
    FlaggedOutline,
    first_readable,
    make_metadata,
    read_outlines,
)
from dreamgym.data.formats.interface import (
    Array,
    ForeignDataset,
    ForeignOptions,
    each_episode,
)
from dreamgym.data.formats.keys import (
    Fields,
    field_of,
    find_fields,
    require_nothing_lost,
    resolve_ends,
)
from dreamgym.data.image_decoding import resize_images
from dreamgym.errors import DatasetError

END_ROLES: tuple[str, ...] = ("terminated", "truncated", "done", "success")

JOINED_KEY = "vector"
"""Observation key of the columns of single numbers, which are joined to one vector."""

UNREADABLE = 2
"""Length that a format gives for an episode it cannot open: reading the episode reports why."""

_SAMPLE_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class Table:
    """A dataset of named columns.

    Attributes:
        path: the file or folder.
        format: name of the format.
        text: what a row holds, for the convention.
        names: every column.
        lengths: number of rows of each episode.
        read: reads rows of one column of one episode, given the episode's number, the column and a
            slice: `(N, ...)` numbers; images are uint8 `(N, H, W, C)`.
        observations: columns that are observations unless the user names some.
        roles: columns by role (`interface.COLUMN_ROLES`), as the format defines them.
        last_is_observation: whether the last row of an episode holds its last observation only,
            and no action.
        tasks: tasks of each episode; `None` if the format has none.
        handles: roles that the format itself has read: `episode`, `time`. Of such a format the
            user names the columns, and is told which ones are not read.
        texts: further columns, of text, which cannot be read.
        notes: findings about the columns that the format itself has read.
    """

    path: Path
    format: str
    text: str
    names: Sequence[str]
    lengths: Sequence[int]
    read: Callable[[int, str, slice], Array]
    observations: Sequence[str] = ()
    roles: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    last_is_observation: bool = False
    tasks: Sequence[frozenset[str]] | None = None
    handles: tuple[str, ...] = ()
    texts: Sequence[str] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Roles:
    """What the columns of a table mean.

    Attributes:
        observations: columns of observations.
        following: columns of next observations, as many as observations; none if there are none.
        actions: columns of actions, joined.
        actions_arrive: whether a row has the action that led to it, instead of the one it takes.
        rewards_arrive: whether a row has the reward of the action that led to it.
        found: the other columns.
    """

    observations: tuple[str, ...]
    following: tuple[str, ...]
    actions: tuple[str, ...]
    actions_arrive: bool
    rewards_arrive: bool
    found: Fields

    def unread(self, table: Table, options: ForeignOptions) -> list[str]:
        """Return the columns of a table that nothing is read from."""
        found = (getattr(self.found, each.name) for each in fields(self.found))
        named: list[Any] = [*options.columns.values(), *table.roles.values(), *found]
        read = {*self.observations, *self.following, *self.actions, *options.ignore}
        for each in named:
            read |= {each} if isinstance(each, str) else set(each or ())
        return [name for name in (*table.names, *table.texts) if name not in read]

    def describe(self) -> str:
        """Return which columns are read as what."""
        after = "led to its observation" if self.actions_arrive else "is taken at its observation"
        text = f"observations {list(self.observations)}; actions {list(self.actions)}: that of a "
        text += f"row {after}"
        if self.found.rewards is not None:
            which = "the action that led to it" if self.rewards_arrive else "the action taken there"
            text += f"; {self.found.rewards!r} of a row is for {which}"
        return text


def open_table(table: Table, options: ForeignOptions, close: Callable[[], None]) -> ForeignDataset:
    """Open a dataset of named columns.

    Args:
        table: the dataset.
        options: what the user knows.
        close: closes its files.

    Raises:
        DatasetError: a column that is needed does not exist or is not named, rewards or ends would
            be lost, no episode can be read, or there is no episode of the tasks asked for.
    """
    roles = find_roles(table, options)
    numbers = _episodes_of_tasks(table, options)
    reader = _Reader(table, roles, options)
    numbers = [number for number in numbers if reader.num_actions(number) > 0]
    if not numbers:
        raise DatasetError("it has no episode with an action", path=table.path)
    parts, good = read_outlines(
        len(numbers), lambda index: reader.outline(numbers[index]), table.path
    )
    outlined = zip(numbers, parts, strict=True)
    readable = [number for number, part in outlined if isinstance(part, FlaggedOutline)]
    sample = first_readable(lambda number: reader.observations(number, slice(0, 1)), readable)

    def read_episode(index: int) -> Episode:
        part = parts[index]
        if isinstance(part, DatasetError):
            raise part
        rows = reader.observations(numbers[index], slice(0, reader.num_rows(numbers[index])))
        episode = part.with_observations(rows, table.path)
        reader.require_finite(episode)
        return episode

    def read_rows(index: int, key: str | None, part: slice) -> Array:
        number = numbers[index]
        return reader.observation(number, key, part)

    metadata = make_metadata(
        options, sample, good[0].actions, table.path, table.format, outlines=good
    )
    notes = [*metadata.notes, *table.notes]
    if options.image_size is not None:
        notes.append(
            f"images are resized to {options.image_size[0]} x {options.image_size[1]}; wrap the "
            "real environment in gymnasium.wrappers.ResizeObservation"
        )
    unread = roles.unread(table, options)
    if unread and (
        table.handles or not table.observations
    ):  # else the format knows what its other columns are
        notes.append(
            f"columns that are not read: {', '.join(map(repr, unread))}; name those that are "
            "rewards, ends or episodes in columns= (--columns)"
        )
    return ForeignDataset(
        format=table.format,
        convention=f"{table.format}: {table.text}; {roles.describe()}; {good[0].meaning}"
        f"{roles.found.describe()}",
        metadata=replace(metadata, notes=tuple(notes)),
        episodes=each_episode(len(numbers), read_episode, table.path),
        close=close,
        read_rows=read_rows,
    )


# ---------------------------------------------------------------- what the columns mean


def find_roles(table: Table, options: ForeignOptions) -> Roles:
    """Decide which column means what.

    Raises:
        DatasetError: a column that the user names does not exist, there are no observations or no
            actions, or a column seems to carry rewards or ends that would not be read.
    """
    unread = sorted({"episode", "time"} & set(options.columns) - set(table.handles))
    if unread:
        raise DatasetError(
            f"{table.format} has no column to name for {', '.join(unread)}", path=table.path
        )
    named = {
        role: tuple(
            find_column(name, table.names, table.path) for name in options.columns_for(role)
        )
        for role in options.columns
        if role not in ("observation", "episode", "time")
    }
    own = {
        role: (names,) if isinstance(names, str) else names
        for role, names in table.roles.items()
        if names not in options.ignore
    }
    for role in ("action", "reward"):
        if {role, f"previous_{role}"} & named.keys():
            own.pop(role, None)
            own.pop(f"previous_{role}", None)
    chosen = own | named
    used = {name for role, names in chosen.items() for name in names}
    observations = _observation_columns(table, options, used)
    actions = chosen.get("previous_action") or chosen.get("action") or ()
    rewards = chosen.get("previous_reward") or chosen.get("reward") or ()
    single = {role: chosen[role] for role in END_ROLES if role in chosen}
    if rewards:
        single["reward"] = rewards
    for role, names in single.items():
        if len(names) != 1:
            raise DatasetError(f"expected one {role} column, got {list(names)}", path=table.path)
    others = [n for n in table.names if n not in observations and n not in actions]
    given = {field_of(role): names[0] for role, names in single.items()}
    found = find_fields(others, options.ignore, given)
    if not actions and found.actions is not None:
        actions = (found.actions,)
    if not actions or not observations:
        what = "actions" if observations else "observations"
        texts = f"; as text, which is not read, {sorted(table.texts)}" if table.texts else ""
        raise DatasetError(
            f"it is not known which columns are its {what}; it has {sorted(table.names)}{texts}",
            path=table.path,
            remedy="name them: ForeignOptions(columns={'observation': ('a', 'b'), 'action': 'c'}) "
            "or --columns 'observation=a,b action=c reward=r done=d'",
        )
    following = chosen.get("next_observation", ())
    if not following and found.next_observations is not None and len(observations) == 1:
        following = (found.next_observations,)
    if following and len(following) != len(observations):
        raise DatasetError(
            f"it has {len(following)} next observations for the observations {list(observations)}; "
            "expected as many",
            path=table.path,
        )
    require_nothing_lost(found, table.path)
    return Roles(
        observations=observations,
        following=following,
        actions=actions,
        actions_arrive="previous_action" in chosen,
        rewards_arrive="previous_reward" in chosen,
        found=found,
    )


def find_column(name: str, names: Sequence[str], path: Path) -> str:
    """Return the column that the user means: by its full name, or by its unique last part.

    So `top` is `observation.images.top`.
    """
    if name in names:
        return name
    ends = [each for each in names if each.endswith((f".{name}", f"/{name}"))]
    if len(ends) != 1:
        found = f"several: {ends}" if ends else f"only {sorted(names)}"
        raise DatasetError(f"there is no column {name!r}, {found}", path=path)
    return ends[0]


def _observation_columns(table: Table, options: ForeignOptions, used: set[str]) -> tuple[str, ...]:
    if options.keys is not None:
        return tuple(find_column(name, table.names, table.path) for name in options.keys)
    excluded = used | set(options.ignore)
    return tuple(name for name in table.observations if name not in excluded)


def _episodes_of_tasks(table: Table, options: ForeignOptions) -> list[int]:
    """Return the numbers of the episodes of the tasks that the user chose; all by default."""
    count = len(table.lengths)
    if not options.tasks:
        return list(range(count))
    known = sorted(frozenset().union(*(table.tasks or ())))
    missing = [task for task in options.tasks if task not in known]
    if missing or table.tasks is None:
        raise DatasetError(f"it has no task {missing}; it has {known or 'none'}", path=table.path)
    return [number for number in range(count) if table.tasks[number] & set(options.tasks)]


# ---------------------------------------------------------------- reading


class _Reader:
    """Reads the episodes of a table.

    Args:
        table: the dataset.
        roles: what its columns mean.
        options: what the user knows.
    """

    def __init__(self, table: Table, roles: Roles, options: ForeignOptions) -> None:
        self._table, self._roles, self._options = table, roles, options
        self._complete = table.last_is_observation or roles.actions_arrive or roles.rewards_arrive
        # The last transition of an episode, which lacks the observation after it, is ...
        self._repeats = options.repeat_last and not self._complete and not roles.following
        self._loses = not (self._complete or roles.following or self._repeats)
        self._keys: dict[str, tuple[str, ...]] = {}  # columns of each observation key
        self._as_bytes: set[str] = set()  # columns of images that are stored as floats

    def num_actions(self, number: int) -> int:
        """Return `T`, the number of actions of an episode."""
        rows = int(self._table.lengths[number])
        return rows - 1 if self._complete or self._loses else rows

    def num_rows(self, number: int) -> int:
        """Return the number of observations that are read of an episode."""
        return self.num_actions(number) + (not self._repeats)

    def outline(self, number: int) -> FlaggedOutline:
        """Read actions, rewards and end flags of an episode."""
        found, path, rows = self._roles.found, self._table.path, int(self._table.lengths[number])
        whole = slice(0, rows)
        actions = self._read_actions(number, whole)
        rewards = None
        if found.rewards is not None:
            rewards = _as_numbers(self._read(number, found.rewards, whole), found.rewards, path)
        if self._complete:
            actions = actions[1:] if self._roles.actions_arrive else actions[:-1]
            if rewards is not None:
                rewards = rewards[1:] if self._roles.rewards_arrive else rewards[:-1]
        actions = fit_actions(actions, self._options.action_space)
        last = 2 if self._table.last_is_observation else 1
        flags = {
            name: (self._read(number, name, slice(max(rows - last, 0), rows)) != 0)
            .reshape(-1)
            .any(keepdims=True)
            for name in (found.terminated, found.truncated, found.ends, found.success)
            if name is not None
        }
        if flags:
            terminated, truncated, meaning = resolve_ends(found, flags, self._options, path)
            ended = bool(terminated.any()), bool(truncated.any())
        else:
            ended = self._options.terminals == "termination", self._options.terminals == "boundary"
            meaning = "no end flags" if not any(ended) else "every episode ends (by option)"
        return FlaggedOutline(
            actions=actions,
            rewards=rewards,
            terminated=ended[0],
            truncated=ended[1],
            last_is_lost=self._loses,
            repeats_last=self._repeats,
            found=found,
            meaning=meaning,
        )

    def observations(self, number: int, part: slice) -> Observations:
        """Read observations of an episode: one array, or arrays by key."""
        keys = self._observation_keys(number)
        if list(keys) == [""]:
            return self.observation(number, None, part)
        return {key: self.observation(number, key, part) for key in keys}

    def observation(self, number: int, key: str | None, part: slice) -> Array:
        """Read observations of one key of an episode, `(N, ...)`."""
        columns = self._observation_keys(number)[key or ""]
        values = [self._read_observation(number, name, part) for name in columns]
        return values[0] if len(values) == 1 else np.stack(values, axis=1).astype(np.float32)

    def require_finite(self, episode: Episode) -> None:
        """Raise `DatasetError` that names the column if an episode holds NaN or an infinity."""
        rows = episode.observations
        for key, columns in self._keys.items():
            _require_finite(rows[key] if isinstance(rows, dict) else rows, columns)
        _require_finite(episode.actions, self._roles.actions)

    def _read_observation(self, number: int, name: str, part: slice) -> Array:
        """Read rows of a column of observations, and the one after its last row."""
        rows = int(self._table.lengths[number])
        values = self._read(number, name, slice(part.start, min(part.stop, rows)))
        if part.stop > rows:
            last = slice(rows - 1, rows)
            if self._roles.following:
                name = self._roles.following[self._roles.observations.index(name)]
            values = np.concatenate([values, self._read(number, name, last)])
        return self._as_observation(values, name)

    def _observation_keys(self, number: int) -> dict[str, tuple[str, ...]]:
        """Return the columns of each observation key; the key is empty for a single array."""
        if self._keys:
            return self._keys
        names, path = self._roles.observations, self._table.path
        rows = slice(0, min(_SAMPLE_ROWS, int(self._table.lengths[number])))
        samples = {name: self._read(number, name, rows) for name in names}
        self._as_bytes = {name for name, rows in samples.items() if _is_float_image(rows)}
        numbers = [name for name, values in samples.items() if values.ndim == 1]
        if len(numbers) > 1:
            keys = {JOINED_KEY: tuple(numbers)}
        else:
            keys = {name: (name,) for name in numbers}
        keys |= {name: (name,) for name in names if name not in numbers}
        if JOINED_KEY in names and len(numbers) > 1 and JOINED_KEY not in numbers:
            raise DatasetError(
                f"it has a column {JOINED_KEY!r} beside columns of single numbers, which would be "
                "joined under that key; choose some of them",
                path=path,
            )
        if len(keys) == 1:
            keys = {"": next(iter(keys.values()))}
        self._keys = keys
        return keys

    def _as_observation(self, values: Array, name: str) -> Array:
        if name in self._as_bytes:
            cast = values.astype(np.uint8)
            if not np.array_equal(cast, values):
                raise DatasetError(
                    "its images are floats; expected whole numbers from 0 to 255",
                    path=self._table.path,
                    key=name,
                )
            return self._resized(cast)
        if values.dtype == np.uint8 and values.ndim >= 3:
            return self._resized(values)
        if values.dtype.kind in "biu" or values.dtype == np.float16:
            values = values.astype(np.float32)
        return (
            values.reshape(-1, 1) if values.ndim == 1 and len(self._joined(name)) == 1 else values
        )

    def _resized(self, images: Array) -> Array:
        """Return images of the size that the user wants."""
        size = self._options.image_size
        is_picture = images.ndim == 4 and images.shape[-1] in (1, 3, 4)
        if size is None or not is_picture or images.shape[1:3] == size:
            return images
        return resize_images(images, size)

    def _joined(self, name: str) -> tuple[str, ...]:
        return next((columns for columns in self._keys.values() if name in columns), (name,))

    def _read_actions(self, number: int, part: slice) -> Array:
        columns = [self._read(number, name, part) for name in self._roles.actions]
        if len(columns) == 1:
            return columns[0]
        return np.concatenate([c.reshape(len(c), -1) for c in columns], axis=1)

    def _read(self, number: int, name: str, part: slice) -> Array:
        values = np.asarray(self._table.read(number, name, part))
        if values.dtype.kind not in "biuf":
            raise DatasetError(
                f"its dtype is {values.dtype}; expected numbers", path=self._table.path, key=name
            )
        if len(values) != part.stop - part.start:
            raise DatasetError(
                f"it has {len(values)} rows; expected {part.stop - part.start}",
                path=self._table.path,
                key=name,
            )
        return values


def fit_actions(actions: Array, space: Any) -> Array:
    """Return actions in the form of their space, where the file stores them in another one.

    Numbers of a Discrete or MultiDiscrete space may be stored as floats, as one row each, or (of a
    Discrete space) one-hot.

    Args:
        actions: `(T, ...)`.
        space: the space; `None` if it is not known: then floats are rows, integers numbers.
    """
    flat = actions.reshape(len(actions), -1)
    wide = isinstance(space, spaces.Discrete) and flat.shape[1] == int(space.n) > 1
    if wide and is_one_hot(flat):
        return flat.argmax(axis=1).astype(np.int64) + int(space.start)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) and actions.dtype.kind in "fb":
        whole = flat.astype(np.int64)
        if np.array_equal(whole, flat):
            flat = whole
    if space is not None and space.shape is not None:
        size = int(np.prod(space.shape, dtype=np.int64))
        return flat.reshape(len(flat), *space.shape) if flat.shape[1] == size else actions
    if actions.dtype.kind == "f":
        return flat if actions.ndim == 1 else actions
    return flat[:, 0] if flat.shape[1] == 1 else actions


def runs(values: Array) -> tuple[Array, Array]:
    """Return the first row and the number of rows of each run of equal values `(N,)`."""
    flat = values.reshape(-1)
    starts = np.flatnonzero(np.append(True, flat[1:] != flat[:-1])) if len(flat) else flat[:0]
    return starts, np.diff(np.append(starts, len(flat)))


def _require_finite(rows: Array, columns: Sequence[str]) -> None:
    """Raise `DatasetError` if rows that were joined from some columns are not finite."""
    if rows.dtype.kind != "f" or np.isfinite(rows).all():
        return
    if rows.shape[1:] == (len(columns),):
        for name, values in zip(columns, rows.T, strict=True):
            require_finite(values, name)
    require_finite(rows, ", ".join(columns))


def is_one_hot(rows: Array) -> bool:
    """Return whether each row `(N, K)` has a single one among zeros."""
    return bool(((rows == 0) | (rows == 1)).all() and (rows.sum(axis=1) == 1).all())


def _is_float_image(rows: Array) -> bool:
    """Return whether rows are images of bytes that are stored as floats, as zarr files hold."""
    if rows.dtype.kind != "f" or rows.ndim != 4 or rows.shape[-1] not in (1, 3, 4):
        return False
    whole = bool((rows == np.round(rows)).all())
    return whole and bool(rows.min() >= 0) and 1 < rows.max() <= 255


def _as_numbers(values: Array, name: str, path: Path) -> Array:
    if values.reshape(len(values), -1).shape[1] != 1:
        raise DatasetError(
            f"it has rows of shape {values.shape[1:]}; expected one number", path=path, key=name
        )
    return values.reshape(-1).astype(np.float32)
