"""What the foreign formats share: opening without trust, spaces from values, options."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import h5py
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dreamgym.data.episodes import Episode, Observations
from dreamgym.data.hdf5.guard import (
    SIGNATURE,
    get_dataset,
    get_group,
    hdf5_errors,
    open_file,
    require_stored,
)
from dreamgym.data.hdf5.schema import DatasetMetadata
from dreamgym.errors import DatasetError

Array = NDArray[Any]
Terminals = Literal["termination", "boundary"]


@dataclass(frozen=True, kw_only=True)
class ForeignOptions:
    """What the user knows and the file does not say.

    Attributes:
        terminals: What an ambiguous end flag means: `"termination"` (the task ended) or
            `"boundary"` (only the recording did: truncation).
        observation_space: In place of one guessed from the values.
        action_space: Likewise.
        env_id: Id of the environment.
        keys: Observation keys or columns to take; all where it is not given.
    """

    terminals: Terminals | None = None
    observation_space: gym.Space[Any] | None = None
    action_space: gym.Space[Any] | None = None
    env_id: str | None = None
    keys: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.terminals not in (None, "termination", "boundary"):
            raise ValueError(
                f"terminals is {self.terminals!r}; it must be 'termination' or 'boundary'"
            )


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """A foreign dataset, opened.

    Attributes:
        format: Its name.
        convention: What was found, and under which convention it is read.
        metadata: Spaces and what else is known.
        episodes: Makes an iterator of the episodes, in the file's order.
        close: Lets go of the files.
        rows: Reads some rows of one episode's observations, given its number in `episodes`, the key
            (`None` where the space is no Dict) and a slice; `None` where the layout allows only
            whole episodes. With it, what does not fit in memory can stay in the file.
    """

    format: str
    convention: str
    metadata: DatasetMetadata
    episodes: Callable[[], Iterator[Episode]]
    close: Callable[[], None]
    rows: Callable[[int, str | None, slice], Array] | None = None


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A path that was opened without knowing what it is; two of the three are `None`.

    Attributes:
        path: As given.
        hdf5: The HDF5 file.
        npz: The arrays of one npz file.
        folder: The npz files of a folder, in the order of their names.
    """

    path: Path
    hdf5: h5py.File | None = None
    npz: NpzFile | None = None
    folder: tuple[Path, ...] | None = None

    def close(self) -> None:
        """Let go of the files."""
        if self.hdf5 is not None:
            self.hdf5.close()
        if self.npz is not None:
            self.npz.close()

    def summary(self) -> str:
        """What it holds, for an error."""
        if self.hdf5 is not None:
            return f"the HDF5 keys {sorted(self.hdf5)[:12]}"
        if self.npz is not None:
            return f"the arrays {self.npz.names[:12]}"
        return f"{len(self.folder or ())} npz files"

    def has(self, *names: str) -> bool:
        """Whether all of these are there, as HDF5 keys or arrays."""
        if self.hdf5 is not None:
            return all(self.hdf5.get(name, getlink=True) is not None for name in names)
        return self.npz is not None and all(name in self.npz.names for name in names)

    def rows(self, name: str) -> Array:
        """One flat array, whole."""
        if self.hdf5 is not None:
            return read_whole(self.hdf5, name, self.path)
        if self.npz is None:
            raise DatasetError("it is a folder", path=self.path)
        return self.npz.read(name)


class NpzFile:
    """An npz archive, read without pickle and without trusting what its headers declare."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = np.load(path, allow_pickle=False)
            self.names: list[str] = list(self._file.files)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
            raise DatasetError(f"it is no readable npz file ({error})", path=path) from error

    def read(self, name: str) -> Array:
        """One array.

        Raises:
            DatasetError: It is missing, damaged, or holds objects, which only pickle could read.
        """
        try:
            values: Array = self._file[name]
        except KeyError:
            raise DatasetError("it is missing", path=self.path, key=name) from None
        except (ValueError, OSError, EOFError, MemoryError, zipfile.BadZipFile) as error:
            raise DatasetError(f"it cannot be read ({error})", path=self.path, key=name) from error
        if values.dtype.kind not in "biuf":
            raise DatasetError(f"its dtype is {values.dtype}", path=self.path, key=name)
        return values

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def open_any(path: Path) -> Opened:
    """Open a file by its first bytes, or a folder by what is in it."""
    if path.is_dir():
        for inner in (path / "main_data.hdf5", path / "data" / "main_data.hdf5"):
            if inner.exists():
                return Opened(path=inner, hdf5=open_file(inner))
        files = tuple(sorted(path.glob("*.npz")))
        if not files:
            raise DatasetError("it is a folder without any npz file", path=path)
        return Opened(path=path, folder=files)
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(4)
        if head == b"PK\x03\x04" and head != SIGNATURE[:4]:
            return Opened(path=path, npz=NpzFile(path))
    return Opened(path=path, hdf5=open_file(path))


def read_whole(parent: h5py.Group, name: str, path: Path, part: slice = slice(None)) -> Array:
    """A dataset of numbers, whole or in part, every row of it stored."""
    dataset = get_dataset(parent, name, path)
    if dataset.ndim == 0:
        raise DatasetError("it is a single value; rows are wanted", path=path, key=dataset.name)
    require_stored(dataset, len(dataset), path)
    with hdf5_errors(path, str(dataset.name)):
        values: Array = dataset[part]
    return values


def group_rows(parent: h5py.Group, name: str, path: Path) -> Observations:
    """A dataset, or a group of datasets by key (`/` joins the keys of deeper groups)."""
    if isinstance(parent.get(name), h5py.Group):
        group, rows = get_group(parent, name, path), {}
        for key in group:
            inner = group_rows(group, key, path)
            if isinstance(inner, dict):
                rows.update({f"{key}/{deep}": values for deep, values in inner.items()})
            else:
                rows[key] = inner
        return rows
    return read_whole(parent, name, path)


def numbered(names: Any) -> list[str]:
    """Names that end in numbers, by number: `demo_2` before `demo_10`."""

    def number(name: str) -> tuple[int, str]:
        digits = name.rsplit("_", 1)[-1]
        return (int(digits), name) if digits.isdigit() else (1 << 62, name)

    return sorted(names, key=number)


def guess_observation_space(rows: Observations) -> gym.Space[Any]:
    """The widest space that holds such rows; images (uint8) are 0 to 255."""
    if isinstance(rows, dict):
        return spaces.Dict([(key, _box(values)) for key, values in rows.items()])
    return _box(rows)


def guess_action_space(actions: Array, path: Path) -> gym.Space[Any]:
    """Box without bounds for floats; for whole numbers the user must say."""
    if actions.dtype.kind == "f":
        return spaces.Box(-np.inf, np.inf, actions.shape[1:], _float(actions.dtype))
    raise DatasetError(
        f"its actions are whole numbers ({actions.dtype}), and it does not say how many there are",
        path=path,
        remedy="say it, for instance action_space=Discrete(4)",
    )


def _box(values: Array) -> spaces.Box:
    if values.dtype == np.uint8 and values.ndim >= 3:
        return spaces.Box(0, 255, values.shape[1:], np.uint8)
    if values.dtype.kind in "iu":
        info = np.iinfo(values.dtype)
        return spaces.Box(info.min, info.max, values.shape[1:], values.dtype.type)
    return spaces.Box(-np.inf, np.inf, values.shape[1:], _float(values.dtype))


def _float(dtype: np.dtype[Any]) -> Any:
    return np.float64 if dtype == np.float64 else np.float32


def make_metadata(
    options: ForeignOptions, rows: Observations, actions: Array, path: Path, name: str
) -> DatasetMetadata:
    """Metadata of a format that says nothing about spaces."""
    return DatasetMetadata(
        observation_space=options.observation_space or guess_observation_space(rows),
        action_space=options.action_space or guess_action_space(actions, path),
        env_id=options.env_id,
        policy=f"unknown ({name})",
    )


def require_word(options: ForeignOptions, path: Path, what: str) -> Terminals:
    """What the user says about ambiguous end flags; an error that asks where he says nothing."""
    if options.terminals is None:
        raise DatasetError(
            f"{what}: it does not say whether an end is a termination or only a boundary",
            path=path,
            remedy="say terminals='termination' or terminals='boundary'",
        )
    return options.terminals


def make_episode(
    observations: Observations, actions: Array, rewards: Array | None, ended: tuple[bool, bool]
) -> Episode:
    """An episode from rows as they come: `T + 1` observations, `T` actions and rewards.

    Args:
        observations: `(T + 1, ...)`, or a dict of such.
        actions: `(T, ...)`.
        rewards: `(T,)`, zeros where there are none.
        ended: Terminated, truncated.
    """
    if actions.dtype.kind == "f" and actions.dtype.itemsize < 4:
        actions = actions.astype(np.float32)
    if rewards is None:
        rewards = np.zeros(len(actions), dtype=np.float32)
    terminated, truncated = ended
    return Episode(
        observations=observations,
        actions=actions,
        rewards=rewards.reshape(len(actions)),
        terminated=terminated,
        truncated=truncated,
        complete=terminated or truncated,
    )


def slice_rows(rows: Observations, start: int, stop: int) -> Observations:
    """Rows of an array, or of every array of a dict."""
    if isinstance(rows, dict):
        return {key: values[start:stop] for key, values in rows.items()}
    return rows[start:stop]
