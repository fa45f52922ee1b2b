"""stable-worldmodel (LeWM): flat columns with `ep_len` and `ep_offset` in one HDF5 file.

There are `T + 1` rows per episode. Mind the alignment: `action[t]` is taken at the observation of
row `t`, so the action of the last row is NaN; but `reward[t]` and `terminated[t]` *arrive* with the
observation of row `t`, so those of the first row are NaN. Index columns differ from file to file;
only `ep_len` and `ep_offset` are used.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from dreamgym.data.episodes import Episode
from dreamgym.data.formats.common import (
    Outline,
    make_episode,
    make_metadata,
    read_rows,
    require_keys,
)
from dreamgym.data.formats.interface import Array, ForeignDataset, ForeignOptions, Probe
from dreamgym.data.formats.keys import (
    Fields,
    find_fields,
    meaning,
    require_nothing_lost,
    resolve_ends,
)
from dreamgym.data.hdf5.guard import get_dataset, hdf5_errors, require_stored
from dreamgym.errors import DatasetError

NAME = "stable-worldmodel"
_NOT_OBSERVATIONS = frozenset(
    {"action", "ep_len", "ep_offset", "success", "seed", "timestep"}
    | {"ep_idx", "step_idx", "episode_idx", "episode_id", "id"}
)
_MAX_LENGTH = 1 << 40  # sums of offsets and lengths then stay far from overflowing int64


def detect(probe: Probe) -> bool:
    """Return whether there are flat columns `ep_len`, `ep_offset` and `action`."""
    return probe.hdf5 is not None and probe.has("ep_len", "ep_offset", "action")


def read(probe: Probe, options: ForeignOptions) -> ForeignDataset:
    """Open the dataset; its rows are read episode by episode.

    Raises:
        DatasetError: episodes overlap or have a negative length, or a column is too short.
    """
    file, path = probe.hdf5, probe.path
    if file is None:
        raise DatasetError("it is not an HDF5 file", path=path)
    lengths, offsets = read_rows(file, "ep_len", path), read_rows(file, "ep_offset", path)
    num_rows = _count_rows(lengths, offsets, probe)
    found = find_fields(probe.names, options.ignore)
    require_nothing_lost(found, path, reads=("rewards", "terminated", "truncated", "ends"))
    require_keys(options.keys, probe.names, path)
    keys = options.keys or tuple(sorted(key for key in file if _is_observation(file, key)))
    columns = {key: get_dataset(file, key, path) for key in (*keys, "action")}
    for name in (found.rewards, found.terminated, found.truncated, found.ends):
        if name is not None:
            columns[name] = get_dataset(file, name, path)
    for dataset in columns.values():
        require_stored(dataset, num_rows, path)
    if not keys:
        raise DatasetError("it has no column of observations", path=path)
    with_actions = np.flatnonzero(lengths > 1)

    def read_episode(index: int) -> Episode:
        start, stop = int(offsets[index]), int(offsets[index] + lengths[index])
        with hdf5_errors(path):
            rows = {name: dataset[start:stop] for name, dataset in columns.items()}
        observations = {key: rows[key] for key in keys}
        return make_episode(
            observations if len(keys) > 1 else rows[keys[0]],
            rows["action"][:-1],
            None if found.rewards is None else rows[found.rewards][1:],
            _read_end(found, rows, options, path),
            path,
        )

    def episodes() -> Iterator[Episode]:
        yield from map(read_episode, with_actions.tolist())

    def read_observation_rows(number: int, key: str | None, part: slice) -> Array:
        start = int(offsets[with_actions[number]])
        with hdf5_errors(path):
            values: Array = columns[key or keys[0]][start + part.start : start + part.stop]
        return values

    first = read_episode(int(with_actions[0]))
    with hdf5_errors(path):
        actions = columns["action"][:]
    outlines = [
        Outline(actions=actions[offsets[index] : offsets[index] + lengths[index] - 1])
        for index in with_actions
    ]
    flags = [name for name in (found.terminated, found.truncated, found.ends) if name is not None]
    return ForeignDataset(
        format=NAME,
        convention=f"{NAME}: observations {list(keys)}; action[t] is taken at row t, reward[t] and "
        f"end flags arrive at row t; end flags: {' and '.join(flags) or 'none'}{found.describe()}",
        metadata=make_metadata(
            options, first.observations, first.actions, path, NAME, outlines=outlines
        ),
        episodes=episodes,
        close=probe.close,
        read_rows=read_observation_rows,
    )


def _is_observation(file: h5py.File, key: str) -> bool:
    """Return whether a column holds images, or float vectors."""
    node = file.get(key, getlink=True)
    if key in _NOT_OBSERVATIONS or meaning(key) is not None or not isinstance(node, h5py.HardLink):
        return False
    dataset = file[key]
    if not isinstance(dataset, h5py.Dataset):
        return False
    is_image = dataset.dtype == np.uint8 and dataset.ndim >= 3
    return is_image or (dataset.dtype.kind == "f" and dataset.ndim >= 2)


def _count_rows(lengths: Array, offsets: Array, probe: Probe) -> int:
    """Check that no two episodes overlap, and return the number of rows that they need."""
    if lengths.shape != offsets.shape or lengths.ndim != 1 or lengths.dtype.kind not in "iu":
        raise DatasetError(
            f"ep_len is {lengths.dtype} {lengths.shape} and ep_offset {offsets.dtype} "
            f"{offsets.shape}; expected integers, one per episode",
            path=probe.path,
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
            path=probe.path,
            key="/ep_offset",
            episode=int(np.argmax(bad)),
        )
    return int(ends.max())


def _read_end(
    found: Fields, rows: dict[str, Array], options: ForeignOptions, path: Path
) -> tuple[bool, bool]:
    """Return whether the episode terminated, and whether it was truncated."""
    flags = {
        name: np.nan_to_num(rows[name].reshape(-1)[-1:].astype(np.float64))
        for name in (found.terminated, found.truncated, found.ends)
        if name is not None
    }
    if not flags:
        return options.terminals == "termination", options.terminals == "boundary"
    terminated, truncated, _ = resolve_ends(found, flags, options, path)
    return bool(terminated[0]), bool(truncated[0])
