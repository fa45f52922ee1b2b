"""The interface between foreign formats and the rest of the package.

A foreign format is one module that fulfils `Format`: `NAME`, `detect(probe)` and `read(probe,
options)`. `Probe` gives it the path and opens the containers that several formats share; a format
with a container of its own opens `probe.path` itself.
"""

from __future__ import annotations

import contextlib
import functools
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import gymnasium as gym
import h5py
import numpy as np
from numpy.typing import NDArray

from dreamgym._files import ClosingContext
from dreamgym.data.episodes import Episode
from dreamgym.data.hdf5.guard import (
    MAX_UNPACKED,
    describe_file,
    get_group,
    hdf5_errors,
    is_group,
    is_hdf5,
    open_file,
    open_regular,
    refuse_stand_in,
    require_regular,
    too_large_error,
)
from dreamgym.data.metadata import DatasetMetadata
from dreamgym.errors import DatasetError, file_errors

Array = NDArray[Any]
Terminals = Literal["termination", "boundary"]

_ZIP_SIGNATURE = b"PK\x03\x04"
_HEAD_BYTES = 64  # enough to recognise the kind of a file
_LISTED_NAMES = 12

COLUMN_ROLES = (
    *("observation", "action", "previous_action", "reward", "previous_reward"),
    *("next_observation", "terminated", "truncated", "done", "success", "episode", "time"),
)
"""What a column can be named for, in `ForeignOptions.columns` and `--columns`."""

INFO_GROUPS = frozenset({"infos", "info", "env_infos", "extras", "extra"})
"""Groups of an HDF5 file, and prefixes of keys, that hold what is not the main data."""


@dataclass(frozen=True, kw_only=True)
class ForeignOptions:
    """What the user knows about a foreign dataset and the dataset does not say.

    Attributes:
        terminals: meaning of an ambiguous end flag: `"termination"` (the task ended) or
            `"boundary"` (only the recording ended: a truncation).
        observation_space: observation space to use instead of one inferred from the values, or of a
            recorded one whose bounds are too narrow.
        action_space: action space to use instead of one inferred from the values.
        env_id: id of the environment.
        keys: observation keys or columns to read; all if `None`. A key inside a group is written
            with slashes: `"achieved_goal/kettle"`.
        ignore: keys that carry rewards, ends or next observations, judged by their names, and that
            are not to be read.
        allow_loss: whether the dataset may be fitted although all of its terminations, or all that
            distinguishes its rewards, are lost in reading. They are lost with the last transition
            of each episode where the file does not hold the observation after it.
        repeat_last: whether to keep that transition, with the last observation repeated in place of
            the one after it.
        columns: columns by what they hold, see `COLUMN_ROLES`, where their names do not say it:
            `{"observation": ("x", "y"), "action": "u"}`. `previous_action` and `previous_reward`
            are those that led to the observation of their row. `observation` is the same as `keys`.
        tasks: tasks whose episodes are read, by name; all by default.
        image_size: height and width that images are resized to; their own by default. Formats of
            named columns do so (`columnar.Table`).
    """

    terminals: Terminals | None = None
    observation_space: gym.Space[Any] | None = None
    action_space: gym.Space[Any] | None = None
    env_id: str | None = None
    keys: tuple[str, ...] | None = None
    ignore: tuple[str, ...] = ()
    allow_loss: bool = False
    repeat_last: bool = False
    columns: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    image_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        unknown = [role for role in self.columns if role not in COLUMN_ROLES]
        if unknown:
            raise ValueError(
                f"columns are named for {unknown}; expected some of {', '.join(COLUMN_ROLES)}"
            )
        observed = self.columns_for("observation")
        if observed and self.keys is not None and self.keys != observed:
            raise ValueError("keys and columns both name observations; give one of them")
        if observed:
            object.__setattr__(self, "keys", observed)
        if self.image_size is not None and min(self.image_size) < 1:
            raise ValueError(f"image_size is {self.image_size}; expected at least (1, 1)")
        if self.terminals not in (None, "termination", "boundary"):
            raise ValueError(
                f"terminals is {self.terminals!r}; it must be 'termination' or 'boundary'"
            )

    def columns_for(self, role: str) -> tuple[str, ...]:
        """Return the columns that the user named for a role; none if there are none."""
        named = self.columns.get(role, ())
        return (named,) if isinstance(named, str) else tuple(named)

    def named_values(self) -> tuple[str, ...]:
        """Return the keys and columns that the user wants to be read as numbers or images."""
        roles = [role for role in self.columns if role not in ("episode", "time")]
        return (*(self.keys or ()), *(name for role in roles for name in self.columns_for(role)))

    def require_roles(self, roles: tuple[str, ...], path: Path, name: str) -> None:
        """Raise `DatasetError` if the user named a column for what a format does not read.

        Args:
            roles: the roles that it reads.
            path: path for the error message.
            name: name of the format.
        """
        asked = [role for role in self.columns if role not in roles]
        asked += ["task"] if self.tasks else []
        asked += ["image size"] if self.image_size else []
        if asked:
            raise DatasetError(
                f"these options are not for datasets of {name}: {', '.join(asked)}", path=path
            )


@dataclass(frozen=True, kw_only=True)
class ForeignDataset:
    """An open foreign dataset.

    Attributes:
        format: name of its format.
        convention: what was found, and the convention by which it is read; shown by `check`.
        metadata: spaces, and what else is known.
        episodes: returns a new iterator over the episodes, in the order of the file. For an episode
            that cannot be read it yields the error (`each_episode` does so), and goes on.
        close: closes the files.
        read_rows: reads a slice of one episode's observations, given the episode's number in
            `episodes` and the observation key (`None` if the space is not a Dict). It lets
            observations that do not fit in memory stay in the file; `None` if the format can only
            read whole episodes.
    """

    format: str
    convention: str
    metadata: DatasetMetadata
    episodes: Callable[[], Iterator[Episode | DatasetError]]
    close: Callable[[], None]
    read_rows: Callable[[int, str | None, slice], Array] | None = None


class Format(Protocol):
    """A foreign format. Each one is a module of this package, listed in `registry.FORMATS`."""

    NAME: str

    def detect(self, probe: Probe) -> bool:
        """Return whether a file or folder has this format, judged by its contents alone."""
        ...

    def read(self, probe: Probe, options: ForeignOptions) -> ForeignDataset:
        """Open the dataset at `probe.path`.

        Raises:
            DatasetError: the dataset is damaged, or is ambiguous and `options` do not resolve it.
        """
        ...


@contextlib.contextmanager
def reading_errors(path: Path) -> Iterator[None]:
    """Turn whatever the content of a dataset makes a library raise into a `DatasetError`."""
    remedy = "the file is damaged, or not what its format expects: copy or download it again"
    try:
        with file_errors(lambda text: DatasetError(text, path=path, remedy=remedy)):
            yield
    except DatasetError as error:
        found = error.at(path=path)
        refuse_stand_in(Path(str(found.path)))
        raise found from error.__cause__


def each_episode(
    count: int, read: Callable[[int], Episode], path: Path
) -> Callable[[], Iterator[Episode | DatasetError]]:
    """Return `ForeignDataset.episodes` for a function that reads one episode by its number.

    Episodes without an action are left out.

    Args:
        count: number of episodes.
        read: returns an episode, or raises what reading its rows raises.
        path: path for error messages.
    """

    def episodes() -> Iterator[Episode | DatasetError]:
        for number in range(count):
            try:
                with reading_errors(path):
                    episode = read(number)
            except DatasetError as error:
                yield error
                continue
            if episode.length:
                yield episode

    return episodes


class Probe(ClosingContext):
    """A file or folder of unknown format.

    Containers are opened on first use, once for all formats, and stay open until `close`.

    Args:
        path: the file or folder; files that are not regular (pipes, devices) are refused.

    Raises:
        DatasetError: there is no such file, or it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_folder = path.is_dir()
        # Closed with the probe; a format adds what it opens itself.
        self.resources = contextlib.ExitStack()
        self._hdf5_files: dict[Path, h5py.File] = {}
        self._head = b""
        if not self.is_folder:
            with open_regular(path) as file:
                self._head = file.read(_HEAD_BYTES)

    def close(self) -> None:
        """Close every file that was opened through this probe."""
        self.resources.close()

    @functools.cached_property
    def hdf5(self) -> h5py.File | None:
        """The HDF5 file at `path`, open for reading; `None` if there is none.

        Raises:
            DatasetError: it is an HDF5 file, and damaged, or a writer has it open.
        """
        if self.is_folder or self._head.startswith(_ZIP_SIGNATURE) or not is_hdf5(self.path):
            return None
        return self.open_hdf5(self.path)

    @functools.cached_property
    def npz(self) -> NpzFile | None:
        """The npz archive at `path`, open for reading; `None` if there is none.

        Raises:
            DatasetError: it is a zip archive that NumPy cannot read.
        """
        if not self._head.startswith(_ZIP_SIGNATURE):
            return None
        return self.resources.enter_context(NpzFile(self.path))

    def open_hdf5(self, path: Path) -> h5py.File:
        """Open an HDF5 file, for instance one inside the folder, once; `close` closes it."""
        if path not in self._hdf5_files:
            self._hdf5_files[path] = self.resources.enter_context(open_file(path))
        return self._hdf5_files[path]

    @property
    def head(self) -> bytes:
        """The first bytes of the file; none if it is a folder."""
        return self._head

    def files(self, pattern: str) -> tuple[Path, ...]:
        """Return the folder's files that match a pattern, sorted by name; none if it is a file."""
        return tuple(sorted(self.path.glob(pattern))) if self.is_folder else ()

    def has(self, *names: str) -> bool:
        """Return whether the HDF5 file or npz archive has all of these keys in its root."""
        file = self.hdf5
        if file is not None:
            with hdf5_errors(self.path):
                return all(file.get(name, getlink=True) is not None for name in names)
        return self.npz is not None and all(name in self.npz.names for name in names)

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The keys of the HDF5 file or npz archive; those of a group `infos` as `infos/key`."""
        if self.hdf5 is not None:
            return list_names(self.hdf5, self.path)
        return () if self.npz is None else tuple(self.npz.names)

    def describe(self) -> str:
        """Return what the file or folder contains, for an error message."""
        if self.is_folder:
            return _describe_folder(self.path)
        if self.hdf5 is not None:
            return f"an HDF5 file with the keys {sorted(self.hdf5)[:_LISTED_NAMES]}"
        if self.npz is not None:
            return f"an npz archive with the arrays {self.npz.names[:_LISTED_NAMES]}"
        return describe_file(self._head)[0]

    def remedy(self) -> str | None:
        """Return what to do about a file of a well-known kind that is not a dataset."""
        if self.is_folder or self.hdf5 is not None or self.npz is not None:
            return None
        return describe_file(self._head)[1]


def list_names(group: h5py.Group, path: Path) -> tuple[str, ...]:
    """Return the keys of a group, and those of its groups of infos as `infos/key`."""
    with hdf5_errors(path):
        names = list(group)
        for name in set(names) & INFO_GROUPS:
            if is_group(group, name, path):
                names += [f"{name}/{key}" for key in get_group(group, name, path)]
    return tuple(names)


class NpzFile(ClosingContext):
    """An npz archive, read without pickle and without trusting the sizes in its headers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.resources = contextlib.ExitStack()  # the file, and members that are open
        require_regular(path)
        try:
            # Of a damaged archive, NumPy would leave the file open.
            stream = self.resources.enter_context(path.open("rb"))
            self._file = np.load(stream, allow_pickle=False)
            self.names: list[str] = list(self._file.files)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
            self.resources.close()
            raise DatasetError(f"it is not a readable npz file ({error})", path=path) from error

    def close(self) -> None:
        """Close the archive."""
        self._file.close()
        self.resources.close()

    def read(self, name: str) -> Array:
        """Read one array of numbers.

        Raises:
            DatasetError: the array is missing or damaged, or holds objects, which only pickle could
                read.
        """
        self._require_plausible_size(name)
        try:
            values: Array = self._file[name]
        except KeyError:
            raise DatasetError("it is missing", path=self.path, key=name) from None
        except (ValueError, OSError, EOFError, MemoryError, zipfile.BadZipFile) as error:
            raise DatasetError(f"it cannot be read ({error})", path=self.path, key=name) from error
        if values.dtype.kind not in "biuf":
            raise DatasetError(
                f"its dtype is {values.dtype}; expected numbers", path=self.path, key=name
            )
        return values

    def _require_plausible_size(self, name: str) -> None:
        """Refuse to unpack far more bytes at once than are stored."""
        if f"{name}.npy" in self._file.zip.namelist():
            info = self._file.zip.getinfo(f"{name}.npy")
            if info.file_size > max(MAX_UNPACKED, 4 * info.compress_size):
                raise too_large_error(info.file_size, self.path, name)

    def read_header(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]] | None:
        """Return shape and dtype of an array of numbers with rows in C's order; else `None`."""
        try:
            with self._file.zip.open(f"{name}.npy") as file:
                shape, fortran, dtype = _read_header(file)
        except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile):
            return None
        numbers = dtype.kind in "biuf" and all(size >= 0 for size in shape)
        return (shape, dtype) if shape and numbers and not fortran else None

    def open_data(self, name: str) -> Any:
        """Open an array at its first byte after the header."""
        file = self.resources.enter_context(self._file.zip.open(f"{name}.npy"))
        _read_header(file)
        return file

    def count_rows(self, name: str) -> int:
        """Return the number of rows of one array, from its header alone.

        Raises:
            DatasetError: the array is missing, damaged, or a single value.
        """
        try:
            with self._file.zip.open(f"{name}.npy") as file:
                shape = _read_header(file)[0]
        except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile):
            return len(self.read_rows(name))  # which says what is wrong
        if not shape:
            raise DatasetError("it is a single value; expected rows", path=self.path, key=name)
        return int(shape[0])

    def read_rows(self, name: str) -> Array:
        """Read one array of at least one dimension.

        Raises:
            DatasetError: as for `read`, or the array is a single value.
        """
        values = self.read(name)
        if values.ndim == 0:
            raise DatasetError(
                "it is a single value; expected rows",
                path=self.path,
                key=name,
                remedy="if the file is one of several episodes, give its folder",
            )
        return values


def _read_header(file: Any) -> Any:
    """Return shape, order (whether Fortran's) and dtype of an npy file, which is then at its data.

    Raises:
        ValueError: it is not an npy file.
    """
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


def _describe_folder(path: Path) -> str:
    entries = sorted(path.iterdir())
    if not entries:
        return "an empty folder"
    counts = Counter(entry.suffix or "no suffix" for entry in entries if not entry.is_dir())
    parts = [f"{count} of {suffix}" for suffix, count in counts.most_common(_LISTED_NAMES)]
    folders = [entry.name for entry in entries if entry.is_dir()]
    text = f"a folder with {sum(counts.values())} files"
    text += f" ({', '.join(parts)})" if parts else ""
    return text + (f" and the folders {folders[:_LISTED_NAMES]}" if folders else "")
