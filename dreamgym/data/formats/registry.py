"""The table of foreign formats, and the one detector that tells formats apart.

A format is recognised by the contents of a file or folder, never by its name.
"""

from __future__ import annotations

from pathlib import Path

from dreamgym.data.formats import (
    d4rl,
    ha_schmidhuber,
    minari,
    npz_folder,
    ogbench,
    robomimic,
    stable_worldmodel,
)
from dreamgym.data.formats.interface import ForeignDataset, ForeignOptions, Format, Probe
from dreamgym.data.hdf5.guard import hdf5_errors
from dreamgym.data.hdf5.reader import SHARD_PATTERN, is_native
from dreamgym.errors import DatasetError

# A new format is one module and one line here. Each one asks for names that no other format uses,
# so that at most one of them fits. The order is the priority only for a file that holds the names
# of two formats: formats with a more specific structure come first.
FORMATS: tuple[Format, ...] = (
    minari,  # HDF5: groups episode_<n>
    robomimic,  # HDF5: groups data/demo_<n>
    stable_worldmodel,  # HDF5: columns ep_len, ep_offset, action
    d4rl,  # HDF5 or npz: columns observations, actions, rewards, terminals
    ogbench,  # npz: the same without rewards
    ha_schmidhuber,  # npz files: obs, action
    npz_folder,  # a folder of npz files: observations, actions
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
            return candidate
    if _resembles_native(probe):
        return None
    names = ", ".join(candidate.NAME for candidate in FORMATS)
    raise DatasetError(
        f"unknown format: it is {probe.describe()}",
        path=probe.path,
        remedy=probe.remedy()
        or f"dreamgym reads native datasets (an HDF5 file, or a folder of {SHARD_PATTERN} files) "
        f"and {names}; name the keys of one row per transition observations, actions, rewards, "
        "next_observations, terminated and truncated, or write other data as a native dataset with "
        "DatasetWriter and Episode",
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
        found = detect_format(probe)
        if found is None:
            raise DatasetError(
                "it is a native dataset already", path=path, remedy="`pack` compresses it"
            )
        return found.read(probe, options)
    except BaseException:
        probe.close()
        raise


def _is_native(probe: Probe) -> bool:
    if probe.is_folder:  # shards, perhaps unfinished
        return bool(probe.files(SHARD_PATTERN) or probe.files(f"{SHARD_PATTERN}.partial"))
    return probe.hdf5 is not None and is_native(probe.hdf5, probe.path)


def _resembles_native(probe: Probe) -> bool:
    """Return whether the file has parts of a native one; the reader says what is missing."""
    file = probe.hdf5
    if file is None:
        return False
    with hdf5_errors(probe.path):
        return "format" in file.attrs or "steps" in file or "episodes" in file
