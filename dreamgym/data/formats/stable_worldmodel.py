"""stable-worldmodel, LeWM: flat columns with `ep_len` and `ep_offset` in one HDF5 file.

`T + 1` rows an episode. Its alignment is a trap: `action[t]` leaves the observation of row `t`, so
that the last row's action is NaN; but `reward[t]` and `terminated[t]` *arrive* with the observation
of row `t`, so that the first row's are NaN. The columns of indices differ from file to file; only
`ep_len` and `ep_offset` are used.
"""

from __future__ import annotations

from collections.abc import Iterator

import h5py
import numpy as np

from dreamgym.data.episodes import Episode
from dreamgym.data.formats.common import (
    Array,
    Foreign,
    ForeignOptions,
    Opened,
    make_episode,
    make_metadata,
    read_whole,
)
from dreamgym.data.hdf5.guard import get_dataset, hdf5_errors, require_stored
from dreamgym.errors import DatasetError

NAME = "stable-worldmodel"
_NOT_OBSERVED = frozenset(
    {"action", "reward", "terminated", "truncated", "ep_len", "ep_offset", "done", "success"}
    | {"ep_idx", "step_idx", "episode_idx", "episode_id", "id", "seed", "timestep"}
)


def detect(opened: Opened) -> bool:
    """Flat columns with `ep_len`, `ep_offset` and `action`."""
    return opened.hdf5 is not None and opened.has("ep_len", "ep_offset", "action")


def read(opened: Opened, options: ForeignOptions) -> Foreign:
    """Open it; observations are read episode by episode.

    Raises:
        DatasetError: Overlapping or negative episodes, or a column too short.
    """
    file, path = opened.hdf5, opened.path
    if file is None:
        raise DatasetError("it is no HDF5 file", path=path)
    lengths, offsets = read_whole(file, "ep_len", path), read_whole(file, "ep_offset", path)
    rows = _require_apart(lengths, offsets, opened)
    keys = options.keys or tuple(sorted(key for key in file if _observed(file, key)))
    columns = {key: get_dataset(file, key, path) for key in (*keys, "action")}
    for name in ("reward", "terminated", "truncated"):
        if name in file:
            columns[name] = get_dataset(file, name, path)
    for dataset in columns.values():
        require_stored(dataset, rows, path)
    if not keys:
        raise DatasetError("it has no column of observations", path=path)

    def episode(index: int) -> Episode:
        start, stop = int(offsets[index]), int(offsets[index] + lengths[index])
        with hdf5_errors(path):
            part = {name: dataset[start:stop] for name, dataset in columns.items()}
        observations = {key: part[key] for key in keys}
        return make_episode(
            observations if len(keys) > 1 else part[keys[0]],
            part["action"][:-1],
            part["reward"][1:] if "reward" in part else None,
            _ended(part, options),
        )

    def episodes() -> Iterator[Episode]:
        yield from map(episode, whole.tolist())

    whole = np.flatnonzero(lengths > 1)

    def some_rows(number: int, key: str | None, part: slice) -> Array:
        start = int(offsets[whole[number]])
        with hdf5_errors(path):
            values: Array = columns[key or keys[0]][start + part.start : start + part.stop]
        return values

    first = episode(int(whole[0]))
    flags = "terminated and truncated" if "truncated" in columns else "no truncated column"
    flags += "" if "reward" in columns else "; rewards are zero"
    return Foreign(
        format=NAME,
        convention=f"{NAME}: observations {list(keys)}; action[t] leaves row t, reward[t] and "
        f"terminated[t] arrive at row t; {flags}",
        metadata=make_metadata(options, first.observations, first.actions, path, NAME),
        episodes=episodes,
        close=opened.close,
        rows=some_rows,
    )


def _observed(file: h5py.File, key: str) -> bool:
    node = file.get(key, getlink=True)
    if key in _NOT_OBSERVED or not isinstance(node, h5py.HardLink):
        return False
    dataset = file[key]
    if not isinstance(dataset, h5py.Dataset):
        return False
    image = dataset.dtype == np.uint8 and dataset.ndim >= 3
    return image or (dataset.dtype.kind == "f" and dataset.ndim >= 2)


def _require_apart(lengths: Array, offsets: Array, opened: Opened) -> int:
    if lengths.shape != offsets.shape or lengths.ndim != 1 or lengths.dtype.kind not in "iu":
        raise DatasetError("ep_len and ep_offset do not fit each other", path=opened.path)
    lengths, offsets = lengths.astype(np.int64), offsets.astype(np.int64)
    order = np.argsort(offsets, kind="stable")
    ends = (offsets + lengths)[order]
    bad = (lengths < 1) | (offsets < 0) | (lengths > 1 << 40)
    if len(order) > 1:
        bad[order[1:]] |= offsets[order][1:] < ends[:-1]
    if bad.any() or not (lengths > 1).any():
        raise DatasetError(
            "it is empty, negative, or overlaps another",
            path=opened.path,
            key="/ep_offset",
            episode=int(np.argmax(bad)),
        )
    return int(ends.max())


def _ended(part: dict[str, Array], options: ForeignOptions) -> tuple[bool, bool]:
    def last(name: str) -> bool:
        value = part[name].reshape(-1)[-1] if name in part else False
        return bool(value) and not np.isnan(float(value))

    if "terminated" not in part and "truncated" not in part:
        return options.terminals == "termination", options.terminals == "boundary"
    return last("terminated"), last("truncated")
