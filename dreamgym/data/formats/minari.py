"""Minari: episodes in HDF5 (`main_data.hdf5`), Arrow or Parquet files, `metadata.json` beside them.

There are `T + 1` observations per episode. `minari_spaces` says how nested Dicts, Tuples and
observations of numbers are read. Images may be stored as JPEG, one row of bytes each, which Pillow
decodes (JPEG is lossy: such images are not exactly what was recorded).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import gymnasium as gym
import h5py
from gymnasium import spaces

from dreamgym.data.episodes import Episode, Observations
from dreamgym.data.formats.arrow_columns import is_image_type, pyarrow, to_images, to_numbers
from dreamgym.data.formats.common import (
    Outline,
    given_observation_space,
    infer_action_space,
    infer_observation_space,
    make_episode,
    read_rows,
    require_keys,
    sort_by_number,
)
from dreamgym.data.formats.encoded_rows import is_encoded, read_encoded_rows
from dreamgym.data.formats.interface import (
    Array,
    ForeignDataset,
    ForeignOptions,
    Probe,
    each_episode,
    list_names,
)
from dreamgym.data.formats.keys import Fields, find_fields
from dreamgym.data.formats.minari_spaces import (
    Leaf,
    action_space,
    join_actions,
    observation_box,
    observation_note,
    observation_rows,
    parse_space,
)
from dreamgym.data.hdf5.guard import get_group, hdf5_errors, is_group, open_regular
from dreamgym.data.metadata import DatasetMetadata, check_env_spec, spec_of_id
from dreamgym.errors import DatasetError

NAME = "Minari"
_DATA_FILES = ("main_data.hdf5", "data/main_data.hdf5")
_ARROW_PATTERNS = ("*.arrow", "*.parquet")
_MISSING = "it is missing"


def detect(probe: Probe) -> bool:
    """Return whether the root holds groups `episode_N` with actions, or folders of Arrow files."""
    path = _data_path(probe)
    if path is None:
        return _arrow_root(probe) is not None
    file = probe.open_hdf5(path)
    return is_group(file, "episode_0", path) and "actions" in get_group(file, "episode_0", path)


def read(probe: Probe, options: ForeignOptions) -> ForeignDataset:
    """Open the dataset; spaces and environment come from `metadata.json` if it is there.

    Raises:
        DatasetError: an episode has not `T + 1` observations, or an image cannot be decoded.
        ModuleNotFoundError: its files are Arrow or Parquet, and pyarrow is not installed.
    """
    options.require_roles(("observation",), probe.path, NAME)
    storage = _open_storage(probe)
    info = _read_metadata_json(storage.path)
    reader = _Reader(storage, info, options)
    env_id, env_spec = _environment(info, options)

    def read_observation_rows(number: int, key: str | None, part: slice) -> Array:
        return reader.read_leaf(number, key or "", part)

    source = "metadata.json" if info else "the values (there is no metadata.json)"
    return ForeignDataset(
        format=NAME,
        convention=f"{NAME}: {storage.count} episodes of T + 1 observations in {storage.kind}, "
        f"spaces from {source}{storage.fields(options).describe()}",
        metadata=DatasetMetadata(
            observation_space=given_observation_space(options, probe.path)
            or reader.observation_space,
            action_space=reader.action_space,
            env_spec=env_spec,
            env_id=env_id,
            policy=str(info.get("algorithm_name", f"unknown ({NAME})")),
            notes=tuple(reader.notes),
        ),
        episodes=each_episode(storage.count, reader.read_episode, probe.path),
        close=probe.close,
        read_rows=read_observation_rows,
    )


class _Reader:
    """Reads the episodes of a storage in the spaces that dreamgym models.

    Args:
        storage: the files.
        info: contents of `metadata.json`.
        options: what the user knows.
    """

    def __init__(self, storage: _Storage, info: dict[str, Any], options: ForeignOptions) -> None:
        self._storage, path = storage, storage.path
        self._leaves = {leaf.key: leaf for leaf in _described(info, "observation_space", path)}
        self._leaves = self._leaves or _first_readable(storage, "observations")
        if options.keys is not None:
            named = None if list(self._leaves) == [""] else list(self._leaves)
            require_keys(options.keys, named, path)
            self._leaves = {key: self._leaves[key] for key in options.keys}
        self.notes = observation_note(list(self._leaves.values()))
        self._actions = _described(info, "action_space", path)
        if not self._actions:
            self._actions = list(_first_readable(storage, "actions").values())
        self.action_space, notes = self._find_action_space(options)
        self.notes += notes
        self.observation_space = self._find_observation_space()

    def read_leaf(self, number: int, key: str, part: slice) -> Array:
        """Read rows of a part of the observations of an episode."""
        leaf = self._leaves[key]
        return observation_rows(leaf, self._storage.read(number, "observations", leaf.place, part))

    def read_episode(self, number: int) -> Episode:
        """Read an episode."""
        actions = self._read_actions(number)
        length, place = len(actions), self._storage.place(number)
        rows = {
            name: self._storage.read(number, name, (), slice(0, length))
            for name in ("rewards", "terminations", "truncations")
        }
        observations: dict[str, Array] = {}
        for key in self._leaves:
            observations[key] = self.read_leaf(number, key, slice(None))
            if len(observations[key]) != length + 1:
                raise DatasetError(
                    f"it has {len(observations[key])} observations for {length} actions; expected "
                    "T + 1",
                    path=self._storage.path,
                    key=f"{place}/observations",
                )
        terminated, truncated = (
            bool(rows[name][-1]) if length else False for name in ("terminations", "truncations")
        )
        seen: Observations = observations[""] if list(observations) == [""] else observations
        ended = (terminated, truncated)
        return make_episode(seen, actions, rows["rewards"], ended, self._storage.path)

    def _read_actions(self, number: int) -> Array:
        count = self._storage.count_actions(number, self._actions[0].place)
        values = [
            self._storage.read(number, "actions", leaf.place, slice(0, count))
            for leaf in self._actions
        ]
        return join_actions(self._actions, values, self.action_space)

    def _find_action_space(self, options: ForeignOptions) -> tuple[gym.Space[Any], list[str]]:
        if all(leaf.space is not None for leaf in self._actions):
            joined, notes = action_space(self._actions)
            return options.action_space or joined, notes
        self.action_space = options.action_space or spaces.Discrete(1)  # read as they are stored
        if options.action_space is not None:
            return options.action_space, []
        outlines = []
        for number in range(self._storage.count):
            try:
                outlines.append(Outline(actions=self._read_actions(number)))
            except DatasetError:
                continue  # reading the episode reports why
        found, note = infer_action_space(outlines, self._storage.path)
        return found, [note]

    def _find_observation_space(self) -> gym.Space[Any]:
        if all(leaf.space is not None for leaf in self._leaves.values()):
            boxes = {key: observation_box(leaf) for key, leaf in self._leaves.items()}
            return boxes[""] if list(boxes) == [""] else spaces.Dict(list(boxes.items()))
        for number in range(self._storage.count):
            try:
                rows = {key: self.read_leaf(number, key, slice(0, 1)) for key in self._leaves}
            except DatasetError:
                if number == self._storage.count - 1:
                    raise
                continue
            break
        return infer_observation_space(rows[""] if list(rows) == [""] else rows)


def _described(info: dict[str, Any], name: str, path: Path) -> list[Leaf]:
    """Return the parts of a space of `metadata.json`; none if it is not there."""
    text = info.get(name)
    if not isinstance(text, str):
        return []
    try:
        return parse_space(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"metadata.json: {name}: {error}", path=path) from error


def _first_readable(storage: _Storage, name: str) -> dict[str, Leaf]:
    """Return the parts of the observations or actions of the first episode that can be read."""
    failure: DatasetError | None = None
    for number in range(storage.count):
        try:
            places = list(storage.places(number, name))
        except DatasetError as error:
            failure = failure or error
            continue
        if places:
            leaves = [Leaf(place=place) for place in places]
            return {leaf.key: leaf for leaf in leaves}
        failure = failure or DatasetError(
            f"it has no {name}", path=storage.path, key=f"{storage.place(number)}/{name}"
        )
    raise failure or DatasetError("it has no episodes", path=storage.path)


# ---------------------------------------------------------------- files


class _Storage(Protocol):
    """The files of a dataset."""

    path: Path
    kind: str
    count: int

    def place(self, number: int) -> str:
        """Return where an episode is, for error messages."""
        ...

    def places(self, number: int, name: str) -> Iterator[tuple[str | int, ...]]:
        """Return the places of the arrays of the observations or actions of an episode."""
        ...

    def count_actions(self, number: int, place: tuple[str | int, ...]) -> int:
        """Return the number of actions of an episode."""
        ...

    def read(self, number: int, name: str, place: tuple[str | int, ...], part: slice) -> Array:
        """Read rows of an array of an episode."""
        ...

    def fields(self, options: ForeignOptions) -> Fields:
        """Return what the keys of the first episode mean."""
        ...


def _open_storage(probe: Probe) -> _Storage:
    path = _data_path(probe)
    if path is not None:
        return _Hdf5Storage(probe.open_hdf5(path), path)
    root = _arrow_root(probe)
    if root is None:
        raise DatasetError(f"it has none of the files {_DATA_FILES}", path=probe.path)
    return _ArrowStorage(root)


def _data_path(probe: Probe) -> Path | None:
    """Return the HDF5 file: `probe.path` itself, or the one in a Minari folder."""
    if not probe.is_folder:
        return None if probe.hdf5 is None else probe.path
    inside = (probe.path / name for name in _DATA_FILES)
    return next((path for path in inside if path.is_file()), None)


def _arrow_root(probe: Probe) -> Path | None:
    """Return the folder of the folders of the episodes, which are named by their numbers."""
    if not probe.is_folder:
        return None
    for root in (probe.path, probe.path / "data"):
        if (root / "metadata.json").is_file() and _arrow_file(root / "0") is not None:
            return root
    return None


def _arrow_file(folder: Path) -> Path | None:
    return next((p for pattern in _ARROW_PATTERNS for p in sorted(folder.glob(pattern))), None)


class _Hdf5Storage:
    """Groups `episode_N` of an HDF5 file."""

    kind = "HDF5"

    def __init__(self, file: h5py.File, path: Path) -> None:
        self._file, self.path = file, path
        with hdf5_errors(path):
            names = (name for name in file if name.startswith("episode_"))
            self._names = sort_by_number(names)
        self.count = len(self._names)

    def place(self, number: int) -> str:
        return f"/{self._names[number]}"

    def places(self, number: int, name: str) -> Iterator[tuple[str | int, ...]]:
        group = get_group(self._file, self._names[number], self.path)
        if not is_group(group, name, self.path):
            yield ()
        else:
            yield from _group_places(get_group(group, name, self.path), self.path)

    def count_actions(self, number: int, place: tuple[str | int, ...]) -> int:
        return len(self.read(number, "actions", place, slice(None)))

    def read(self, number: int, name: str, place: tuple[str | int, ...], part: slice) -> Array:
        group = get_group(self._file, self._names[number], self.path)
        *outer, last = name, *(f"_index_{p}" if isinstance(p, int) else p for p in place)
        for inner in outer:
            group = get_group(group, inner, self.path)
        if is_group(group, last, self.path):
            raise DatasetError(f"it has no {name}", path=self.path, key=f"{group.name}/{last}")
        if is_encoded(group, last, self.path):
            return read_encoded_rows(group, last, self.path, part)
        return read_rows(group, last, self.path, part)

    def fields(self, options: ForeignOptions) -> Fields:
        group = get_group(self._file, self._names[0], self.path)
        return find_fields(list_names(group, self.path), options.ignore)


def _group_places(group: h5py.Group, path: Path) -> Iterator[tuple[str | int, ...]]:
    """Return the places of the arrays in a group; a Tuple is a group of `_index_N`."""
    with hdf5_errors(path):
        names = list(group)
    for name in names:
        number = name.removeprefix("_index_")
        key = int(number) if number != name and number.isdigit() else name
        if is_group(group, name, path):
            for inner in _group_places(get_group(group, name, path), path):
                yield (key, *inner)
        else:
            yield (key,)


class _ArrowStorage:
    """Folders of one Arrow or Parquet file each, of `T + 1` rows; the last action is padding."""

    kind = "Arrow"

    def __init__(self, root: Path) -> None:
        self.path = root
        numbers = sorted(int(p.name) for p in root.iterdir() if p.is_dir() and p.name.isdigit())
        self._folders = [root / str(number) for number in numbers]
        self.count = len(self._folders)
        self._table = functools.lru_cache(maxsize=2)(_read_table)

    def place(self, number: int) -> str:
        return self._folders[number].name

    def places(self, number: int, name: str) -> Iterator[tuple[str | int, ...]]:
        yield from _struct_places(self._column(number, name).type)

    def count_actions(self, number: int, place: tuple[str | int, ...]) -> int:
        return max(len(self._column(number, "actions")) - 1, 0)

    def read(self, number: int, name: str, place: tuple[str | int, ...], part: slice) -> Array:
        column = self._column(number, name)
        for inner in map(str, place):
            if not pyarrow().types.is_struct(column.type) or column.type.get_field_index(inner) < 0:
                raise DatasetError(_MISSING, path=self._folders[number], key=f"{name}/{inner}")
            column = column.field(inner)
        column, key = column[part], "/".join((name, *map(str, place)))
        if is_image_type(column.type):
            return to_images(column, self._folders[number], key)
        return to_numbers(column, self._folders[number], key)

    def fields(self, options: ForeignOptions) -> Fields:
        return find_fields(self._table(self._folders[0]).schema.names, options.ignore)

    def _column(self, number: int, name: str) -> Any:
        table = self._table(self._folders[number])
        if name not in table.schema.names:
            raise DatasetError(_MISSING, path=self._folders[number], key=name)
        column = table.column(name).combine_chunks()
        return column.chunk(0) if isinstance(column, pyarrow().ChunkedArray) else column


def _read_table(folder: Path) -> Any:
    path = _arrow_file(folder)
    if path is None:
        raise DatasetError("it holds no Arrow or Parquet file", path=folder)
    pa = pyarrow()
    try:
        if path.suffix == ".parquet":
            return pyarrow("pyarrow.parquet").read_table(path, partitioning=None)
        with open_regular(path) as file:
            return pyarrow("pyarrow.ipc").open_file(file).read_all()
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"it cannot be read ({error})", path=path) from error


def _struct_places(kind: Any) -> Iterator[tuple[str | int, ...]]:
    if not pyarrow().types.is_struct(kind):
        yield ()
        return
    for index in range(kind.num_fields):
        for inner in _struct_places(kind.field(index).type):
            yield (kind.field(index).name, *inner)


# ---------------------------------------------------------------- metadata.json


def _read_metadata_json(path: Path) -> dict[str, Any]:
    """Return the contents of `metadata.json` beside the data; empty if there is none."""
    metadata_path = path / "metadata.json" if path.is_dir() else path.with_name("metadata.json")
    if not metadata_path.is_file():
        return {}
    try:
        info = json.loads(metadata_path.read_text())
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"it is not valid JSON ({error})", path=metadata_path) from error
    return info if isinstance(info, dict) else {}


def _environment(info: dict[str, Any], options: ForeignOptions) -> tuple[str | None, str | None]:
    """Return id and spec of the environment, `None` each where they are not known.

    Raises:
        DatasetError: the spec is not one.
    """
    if options.env_id is not None:
        return options.env_id, spec_of_id(options.env_id)
    text = info.get("env_spec")
    if not isinstance(text, str):
        return None, None
    try:
        spec = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"metadata.json: env_spec: it is not valid JSON ({error})") from error
    check_env_spec(spec, "metadata.json: env_spec")
    return str(spec["id"]), text
