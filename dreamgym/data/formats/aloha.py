"""ALOHA and ACT: a folder of HDF5 files, one per episode.

`action` has one row per step, and so has every array in the group `observations`: `qpos`, `qvel`,
`images/<camera>`. Images are arrays, or rows of JPEG bytes padded to one length. There are no
rewards and no ends, and no observation after the last action; rewards and end flags beside `action`
are read under their usual names. Other recorders that write such files are read, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py

from dreamgym.data.formats.columnar import UNREADABLE, Table, open_table
from dreamgym.data.formats.common import plural, sort_by_number
from dreamgym.data.formats.encoded_rows import is_encoded, read_encoded_rows
from dreamgym.data.formats.interface import Array, ForeignDataset, ForeignOptions, Probe
from dreamgym.data.formats.keys import find_fields
from dreamgym.data.hdf5.guard import (
    get_dataset,
    get_group,
    hdf5_errors,
    is_group,
    open_file,
    require_stored,
)
from dreamgym.errors import DatasetError

NAME = "ALOHA/ACT"
_GROUP = "observations"
_MOST_OPEN = 16


def detect(probe: Probe) -> bool:
    """Return whether the file, or the first one of the folder, has actions and observations."""
    if not probe.is_folder:
        return probe.hdf5 is not None and _is_episode(probe.hdf5, probe.path, alone=True)
    paths = _paths(probe)
    return bool(paths) and _is_episode(probe.open_hdf5(paths[0]), paths[0], alone=False)


def read(probe: Probe, options: ForeignOptions) -> ForeignDataset:
    """Open the dataset; its rows are read episode by episode.

    Raises:
        DatasetError: no file can be read, or one lacks an array.
    """
    paths = _paths(probe) if probe.is_folder else [probe.path]
    files = _Files(paths)
    probe.resources.callback(files.close)
    names = files.names()
    lengths = [files.count_rows(number, names) for number in range(len(paths))]
    observed = [name for name, place in names.items() if place.startswith(f"{_GROUP}/")]
    table = Table(
        path=probe.path,
        format=NAME,
        text=f"{plural(len(paths), 'file')}, one per episode, in the order of their numbers",
        names=list(names),
        lengths=lengths,
        read=files.read,
        observations=observed,
    )
    return open_table(table, options, probe.close)


def _paths(probe: Probe) -> list[Path]:
    by_name = {path.stem: path for path in (*probe.files("*.hdf5"), *probe.files("*.h5"))}
    return [by_name[name] for name in sort_by_number(by_name)]


def _is_episode(file: h5py.File, path: Path, *, alone: bool) -> bool:
    """Return whether a file is one episode; one `alone` may hold several as flat columns."""
    with hdf5_errors(path):
        names = list(file)
    found = find_fields(names)
    if found.actions is None or not is_group(file, _GROUP, path):
        return False
    return not alone or not found.outcome_keys


class _Files:
    """The files of the episodes, of which the last few stay open.

    Args:
        paths: the files.
    """

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths
        self._open: dict[Path, h5py.File] = {}
        self._places: dict[str, str] = {}

    def close(self) -> None:
        """Close every file."""
        while self._open:
            self._open.popitem()[1].close()

    def names(self) -> dict[str, str]:
        """Return the columns of the first file that can be read, and where they are in it.

        A column of the group `observations` is named without it: `qpos`, `images/top`.
        """
        failure: DatasetError | None = None
        for path in self._paths:
            try:
                with hdf5_errors(path):
                    places = list(_arrays(self._file(path), path))
            except DatasetError as error:
                failure = failure or error
                continue
            self._places = {place.removeprefix(f"{_GROUP}/"): place for place in places}
            return self._places
        raise failure or DatasetError("it has no files")

    def count_rows(self, number: int, names: dict[str, str]) -> int:
        """Return the number of rows of an episode, `UNREADABLE` if it cannot be read."""
        actions = find_fields(names).actions
        path = self._paths[number]
        try:
            return len(get_dataset(self._file(path), actions or "action", path))
        except DatasetError:
            return UNREADABLE

    def read(self, number: int, name: str, part: slice) -> Array:
        """Read rows of a column, see `Table.read`."""
        path = self._paths[number]
        file, place = self._file(path), self._places[name]
        outer, _, last = place.rpartition("/")
        group = get_group(file, outer, path) if outer else file
        if is_encoded(group, last, path):
            return read_encoded_rows(group, last, path, part)
        dataset = get_dataset(file, place, path)
        require_stored(dataset, part.stop, path)
        with hdf5_errors(path, place):
            values: Array = dataset[part]
        return values

    def _file(self, path: Path) -> h5py.File:
        file = self._open.pop(path, None) or open_file(path)
        self._open[path] = file  # the last one is the one used last
        if len(self._open) > _MOST_OPEN:
            self._open.pop(next(iter(self._open))).close()
        return file


def _arrays(group: h5py.Group, path: Path, prefix: str = "") -> Iterator[str]:
    """Return the paths of the arrays of one row or more in a group."""
    for name in group:
        if is_group(group, name, path):
            yield from _arrays(get_group(group, name, path), path, f"{prefix}{name}/")
        elif isinstance(group.get(name, getlink=True), h5py.HardLink):
            dataset = group[name]
            if isinstance(dataset, h5py.Dataset) and dataset.ndim > 0:
                yield f"{prefix}{name}"
