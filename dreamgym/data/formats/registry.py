"""The table of foreign formats, and the one detector that tells formats apart.

A format is recognised by the contents of a file or folder, never by its name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import h5py

from dreamgym.data.episodes import Episode
from dreamgym.data.formats import (
    aloha,
    d3rlpy,
    d4rl,
    dreamer,
    flat_columns,
    ha_schmidhuber,
    lance,
    lerobot,
    logs,
    minari,
    npz_folder,
    ogbench,
    rlds,
    robomimic,
    ros,
    stable_worldmodel,
    zarr_buffer,
)
from dreamgym.data.formats.interface import (
    Array,
    ForeignDataset,
    ForeignOptions,
    Format,
    Probe,
    reading_errors,
)
from dreamgym.data.hdf5.guard import hdf5_errors
from dreamgym.data.hdf5.reader import SHARD_PATTERN, is_native
from dreamgym.errors import DatasetError

# A new format is one module and one line here. Each one asks for names that no other format uses,
# so that at most one of them fits. The order is the priority only for a file that holds the names
# of two formats: formats with a more specific structure come first.
FORMATS: tuple[Format, ...] = (
    minari,  # HDF5: groups episode_<n>
    robomimic,  # HDF5: groups data/demo_<n>
    stable_worldmodel,  # HDF5, or a folder of npz files: columns ep_len, ep_offset, action
    lance,  # a folder: _versions
    d3rlpy,  # HDF5: num_episodes, actions_0
    d4rl,  # HDF5 or npz: columns observations, actions, rewards, terminals
    ogbench,  # npz: the same without rewards
    ha_schmidhuber,  # npz files: obs, action
    aloha,  # a folder of HDF5 files: action, group observations
    zarr_buffer,  # Zarr: meta/episode_ends
    lerobot,  # a folder: meta/info.json
    rlds,  # a folder: features.json with steps
    dreamer,  # a folder of npz files: is_first, action
    npz_folder,  # a folder of npz files: observations, actions
    flat_columns,  # HDF5 or npz: arrays of as many rows
    ros,  # MCAP or ROS bag, or a folder of them
    logs,  # Parquet or text, or a folder of such files
)


# What marks the folder of a dataset, and its parts that are easily taken for the whole.
_PARTS: tuple[tuple[Format, str, tuple[str, ...]], ...] = (
    (lerobot, "meta/info.json", ("meta", "data", "videos")),
    (lance, "_versions", ("_versions", "_transactions", "data")),
    (zarr_buffer, "meta/episode_ends", ("meta", "data")),
    (minari, "main_data.hdf5", ("metadata.json",)),
    (rlds, "features.json", ("features.json", "dataset_info.json")),
)
_MOST_LEVELS = 4  # of folders around a file that are looked at
_MOST_TRIED = 8  # folders in a folder

_LINES = (
    "with DatasetWriter(path, DatasetMetadata(observation_space=..., action_space=...)) as writer: "
    "writer.add(Episode(observations=..., actions=..., rewards=..., terminated=..., truncated=..., "
    "complete=...)) for each episode"
)


def detect_format(probe: Probe) -> Format | None:
    """Find out which format a file or folder has.

    Args:
        probe: the file or folder.

    Returns:
        The foreign format, or `None` if it is a native dataset, also a damaged one.

    Raises:
        DatasetError: the format is unknown (the message names what was found and what can be
            read), or the file is damaged.
    """
    if _is_native(probe):
        return None
    for candidate in FORMATS:
        if candidate.detect(probe):
            if candidate is logs:
                _refuse_part(probe.path)
            return candidate
    if _resembles_native(probe):
        return None
    _refuse_part(probe.path)
    _refuse_folder_of_datasets(probe)
    names = ", ".join(candidate.NAME for candidate in FORMATS)
    raise DatasetError(
        f"unknown format: it is {probe.describe()}",
        path=probe.path,
        remedy=probe.remedy()
        or f"dreamgym reads native datasets (an HDF5 file, or a folder of {SHARD_PATTERN} files) "
        f"and {names}; name the keys of one row per transition observations, actions, rewards, "
        f"next_observations, terminated and truncated, or write a native dataset: {_LINES} (an "
        "example is under 'A format that is not read' in docs/data.md)",
    )


def open_foreign(path: Path, options: ForeignOptions) -> ForeignDataset:
    """Open a foreign dataset.

    Args:
        path: a file or a folder.
        options: what the user knows and the dataset does not say.

    Raises:
        DatasetError: the dataset is native, of an unknown format, damaged, or ambiguous.
    """
    probe = Probe(path)
    try:
        dataset = read_foreign(probe, options)
        if dataset is None:
            raise DatasetError(
                "it is a native dataset already", path=path, remedy="`pack` compresses it"
            )
        return dataset
    except BaseException:
        probe.close()
        raise


def read_foreign(probe: Probe, options: ForeignOptions) -> ForeignDataset | None:
    """Detect the format of a file or folder and open it.

    Every call into a format goes through here, so that whatever a damaged file makes a library
    raise becomes a `DatasetError`: now, and when episodes or rows are read later.

    Args:
        probe: the file or folder; the dataset closes it.
        options: what the user knows and the dataset does not say.

    Returns:
        The dataset; `None` if it is a native one.

    Raises:
        DatasetError: the format is unknown, or the dataset is damaged or ambiguous.
        UnsupportedSpaceError: the dataset has a space that this version does not support.
    """
    with reading_errors(probe.path):
        found = detect_format(probe)
        if found is None:
            return None
        dataset = found.read(probe, options)
    episodes, read_rows = dataset.episodes, dataset.read_rows

    def guarded_episodes() -> Iterator[Episode | DatasetError]:
        iterator = episodes()
        while True:
            with reading_errors(probe.path):
                episode = next(iterator, None)
            if episode is None:
                return
            yield episode

    def guarded_rows(number: int, key: str | None, part: slice) -> Array:
        with reading_errors(probe.path):
            return read_rows(number, key, part)  # type: ignore[misc]

    return replace(
        dataset,
        episodes=guarded_episodes,
        read_rows=None if read_rows is None else guarded_rows,
    )


def _refuse_part(path: Path) -> None:
    """Raise `DatasetError` for a file or folder inside a dataset that is a folder."""
    for folder in list(path.absolute().parents)[:_MOST_LEVELS]:
        part = path.absolute().relative_to(folder).parts[0]
        for candidate, mark, parts in _PARTS:
            if part in parts and (folder / mark).exists():
                raise DatasetError(
                    f"it is a part of a {candidate.NAME} dataset",
                    path=path,
                    remedy=f"give the folder {folder}",
                )


def _refuse_folder_of_datasets(probe: Probe) -> None:
    """Raise `DatasetError` for a folder with a dataset in one of its folders."""
    if probe.is_folder:
        for folder in sorted(path for path in probe.path.iterdir() if path.is_dir())[:_MOST_TRIED]:
            name = _format_name(folder)
            if name is not None:
                raise DatasetError(
                    f"it is a folder of folders, and {folder.name!r} is a {name} dataset",
                    path=probe.path,
                    remedy=f"give {folder}",
                )


def _format_name(folder: Path) -> str | None:
    with contextlib.suppress(DatasetError), Probe(folder) as probe, reading_errors(folder):
        return next((each.NAME for each in FORMATS if each.detect(probe)), None)
    return None


def _is_native(probe: Probe) -> bool:
    if probe.is_folder:  # shards, perhaps unfinished
        if probe.files(f"{SHARD_PATTERN}.partial"):
            return True
        shards = probe.files(SHARD_PATTERN)
        try:
            return bool(shards) and _has_native_parts(probe.open_hdf5(shards[0]), shards[0])
        except DatasetError:
            return True  # whose reader says what is wrong
    return probe.hdf5 is not None and is_native(probe.hdf5, probe.path)


def _resembles_native(probe: Probe) -> bool:
    """Return whether the file has parts of a native one; the reader says what is missing."""
    return probe.hdf5 is not None and _has_native_parts(probe.hdf5, probe.path)


def _has_native_parts(file: h5py.File, path: Path) -> bool:
    with hdf5_errors(path):
        return "format" in file.attrs or "steps" in file or "episodes" in file
