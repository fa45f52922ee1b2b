"""stable-worldmodel (LeWM): columns with the lengths of the episodes beside them.

There are `T + 1` rows per episode. Mind the alignment: `action[t]` is taken at the observation of
row `t`, so the action of the last row is NaN; but `reward[t]` and `terminated[t]` *arrive* with the
observation of row `t`, so those of the first row are NaN. Index columns differ from file to file;
only `ep_len` and `ep_offset` are used.

This module reads one HDF5 file, or a folder of npz columns with JPEG files or videos; `lance` reads
the third form. All of them are read as the same table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np

from dreamgym.data.formats.columnar import Table, open_table
from dreamgym.data.formats.common import plural, read_rows
from dreamgym.data.formats.image_files import read_image_files
from dreamgym.data.formats.interface import Array, ForeignDataset, ForeignOptions, NpzFile, Probe
from dreamgym.data.formats.keys import find_fields, meaning
from dreamgym.data.formats.video_files import VideoFolder
from dreamgym.data.hdf5.guard import get_dataset, hdf5_errors, require_stored
from dreamgym.errors import DatasetError

NAME = "stable-worldmodel"
_NOT_OBSERVATIONS = frozenset(
    {"action", "ep_len", "ep_offset", "success", "seed", "timestep"}
    | {"ep_idx", "step_idx", "episode_idx", "episode_id", "id"}
)
_MAX_LENGTH = 1 << 40  # sums of offsets and lengths then stay far from overflowing int64
_ARRAY = "arr_0"  # NumPy's name of an unnamed array


def detect(probe: Probe) -> bool:
    """Return whether there are columns `ep_len`, `ep_offset` and `action`."""
    if probe.is_folder:
        files = {path.stem for path in probe.files("*.npz")}
        return {"ep_len", "ep_offset", "action"} <= files
    return probe.hdf5 is not None and probe.has("ep_len", "ep_offset", "action")


def read(probe: Probe, options: ForeignOptions) -> ForeignDataset:
    """Open the dataset; its rows are read episode by episode.

    Raises:
        DatasetError: episodes overlap or have a negative length, or a column is too short.
    """
    return (_read_folder if probe.is_folder else _read_file)(probe, options)


def open_worldmodel(
    table: Table, options: ForeignOptions, close: Callable[[], None]
) -> ForeignDataset:
    """Open a table of stable-worldmodel: rewards and end flags arrive with the observation.

    Args:
        table: its columns; all of those in `observations` that are not something else by their
            names are observations.
        options: what the user knows.
        close: closes the files.
    """
    rewards = find_fields(table.names, options.ignore).rewards
    return open_table(
        replace(
            table,
            format=NAME,
            observations=[
                name
                for name in sorted(table.observations)
                if name not in _NOT_OBSERVATIONS and meaning(name) is None
            ],
            roles={"action": "action"} | ({} if rewards is None else {"previous_reward": rewards}),
            last_is_observation=True,
        ),
        options,
        close,
    )


def _read_file(probe: Probe, options: ForeignOptions) -> ForeignDataset:
    file, path = probe.hdf5, probe.path
    if file is None:
        raise DatasetError("it is not an HDF5 file", path=path)
    lengths, offsets = read_rows(file, "ep_len", path), read_rows(file, "ep_offset", path)
    num_rows = _count_rows(lengths, offsets, path)
    columns: dict[str, h5py.Dataset] = {}

    def read_column(number: int, name: str, part: slice) -> Array:
        if name not in columns:
            dataset = get_dataset(file, name, path)
            require_stored(dataset, num_rows, path)
            columns[name] = dataset
        start = int(offsets[number])
        with hdf5_errors(path):
            values: Array = columns[name][start + part.start : start + part.stop]
        return values

    table = Table(
        path=path,
        format=NAME,
        text=f"{plural(len(lengths), 'episode')} of ep_len rows",
        names=probe.names,
        lengths=lengths.tolist(),
        read=read_column,
        observations=[key for key in file if _is_observation(file, key)],
    )
    return open_worldmodel(table, options, probe.close)


def _is_observation(file: h5py.File, key: str) -> bool:
    """Return whether a column holds images, or float vectors."""
    if not isinstance(file.get(key, getlink=True), h5py.HardLink):
        return False
    dataset = file[key]
    if not isinstance(dataset, h5py.Dataset):
        return False
    is_image = dataset.dtype == np.uint8 and dataset.ndim >= 3
    return is_image or (dataset.dtype.kind == "f" and dataset.ndim >= 2)


def _read_folder(probe: Probe, options: ForeignOptions) -> ForeignDataset:
    """Open a folder with one npz file a column of numbers, and one folder a column of images.

    Images are `<column>/ep_<i>_step_<t>.jpeg`, videos `<column>/ep_<i>.mp4`.
    """
    root = probe.path
    arrays = {path.stem: path for path in probe.files("*.npz")}
    lengths, offsets = (_read_array(arrays[name]) for name in ("ep_len", "ep_offset"))
    num_rows = _count_rows(lengths, offsets, root)
    pictures = sorted(path.name for path in root.iterdir() if path.is_dir())
    videos = VideoFolder()
    probe.resources.callback(videos.close)
    loaded: dict[str, Array] = {}

    def load(name: str) -> Array:
        if name not in loaded:
            loaded[name] = _read_array(arrays[name])
            if len(loaded[name]) < num_rows:
                raise DatasetError(
                    f"it has {len(loaded[name])} rows; expected {num_rows}", path=arrays[name]
                )
        return loaded[name]

    def read_column(number: int, name: str, part: slice) -> Array:
        if name in arrays:
            start = int(offsets[number])
            return load(name)[start + part.start : start + part.stop]
        video = root / name / f"ep_{number}.mp4"
        if video.exists():
            return videos.read(video, part.start, part.stop)
        names = [f"{name}/ep_{number}_step_{step}" for step in range(part.start, part.stop)]
        return read_image_files(root, names, (".jpeg", ".jpg", ".png"))

    columns = [name for name in arrays if name not in ("ep_len", "ep_offset")]
    with_rows = [name for name in columns if name not in _NOT_OBSERVATIONS]
    observed = [name for name in with_rows if load(name).dtype.kind == "f" and load(name).ndim > 1]
    table = Table(
        path=root,
        format=NAME,
        text=f"a folder of {plural(len(lengths), 'episode')} of ep_len rows",
        names=[*columns, *pictures],
        lengths=lengths.tolist(),
        read=read_column,
        observations=[*observed, *pictures],
    )
    return open_worldmodel(table, options, probe.close)


def _read_array(path: Path) -> Array:
    with NpzFile(path) as file:
        return file.read_rows(_ARRAY)


def _count_rows(lengths: Array, offsets: Array, path: Path) -> int:
    """Check that no two episodes overlap, and return the number of rows that they need."""
    if lengths.shape != offsets.shape or lengths.ndim != 1 or lengths.dtype.kind not in "iu":
        raise DatasetError(
            f"ep_len is {lengths.dtype} {lengths.shape} and ep_offset {offsets.dtype} "
            f"{offsets.shape}; expected integers, one per episode",
            path=path,
        )
    lengths, offsets = lengths.astype(np.int64), offsets.astype(np.int64)
    order = np.argsort(offsets, kind="stable")
    ends = (offsets + lengths)[order]
    bad = (lengths < 1) | (offsets < 0) | (lengths > _MAX_LENGTH)
    if len(order) > 1:
        bad[order[1:]] |= offsets[order][1:] < ends[:-1]
    if bad.any() or not (lengths > 1).any():
        raise DatasetError(
            "it is empty, has a negative offset, or overlaps another episode",
            path=path,
            key="/ep_offset",
            episode=int(np.argmax(bad)),
        )
    return int(ends.max())
