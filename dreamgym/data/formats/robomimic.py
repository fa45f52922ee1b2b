"""robomimic: `data/demo_N/{obs/<key>, next_obs/<key>, actions, rewards, dones}`.

`T` rows of observations and of actions. Without `next_obs`, the last action of a demonstration
leads nowhere and is left out. What `dones` means depends on how the file was made (`done_mode`),
which it does not say; there are no truncations.
"""

from __future__ import annotations

from collections.abc import Iterator

import h5py
import numpy as np

from dreamgym.data.episodes import Episode, Observations
from dreamgym.data.formats.common import (
    Array,
    Foreign,
    ForeignOptions,
    Opened,
    group_rows,
    make_episode,
    make_metadata,
    numbered,
    read_whole,
    require_word,
)
from dreamgym.data.hdf5.guard import get_group
from dreamgym.errors import DatasetError

NAME = "robomimic"


def detect(opened: Opened) -> bool:
    """A group `data` of groups `demo_N`."""
    if opened.hdf5 is None or not opened.has("data"):
        return False
    data = get_group(opened.hdf5, "data", opened.path)
    return any(name.startswith("demo_") for name in data)


def read(opened: Opened, options: ForeignOptions) -> Foreign:
    """Open it; where a demonstration is done, the user must say what that means.

    Raises:
        DatasetError: Rows of different lengths, or an ambiguity.
    """
    if opened.hdf5 is None:
        raise DatasetError("it is no HDF5 file", path=opened.path)
    data = get_group(opened.hdf5, "data", opened.path)
    demos = numbered(name for name in data if name.startswith("demo_"))
    first = _read_one(data, demos[0], opened, options)

    def episodes() -> Iterator[Episode]:
        for demo in demos:
            episode = _read_one(data, demo, opened, options)
            if episode.length:
                yield episode

    return Foreign(
        format=NAME,
        convention=f"{NAME}: {len(demos)} demonstrations, done means {options.terminals}, "
        "splits under mask/ are not used",
        metadata=make_metadata(options, first.observations, first.actions, opened.path, NAME),
        episodes=episodes,
        close=opened.close,
    )


def _read_one(data: h5py.Group, name: str, opened: Opened, options: ForeignOptions) -> Episode:
    path = opened.path
    demo = get_group(data, name, path)
    observations = _chosen(group_rows(demo, "obs", path), options, opened)
    actions = read_whole(demo, "actions", path)
    rewards = read_whole(demo, "rewards", path) if "rewards" in demo else None
    wrong = {key: len(rows) for key, rows in observations.items() if len(rows) != len(actions)}
    if wrong:
        raise DatasetError(
            f"{len(actions)} actions, but observations of {wrong} rows: neither T nor T + 1",
            path=path,
            key=f"/data/{name}/obs",
        )
    if "next_obs" in demo:
        following = _chosen(group_rows(demo, "next_obs", path), options, opened)
        observations = {
            key: np.concatenate([rows, following[key][-1:]]) for key, rows in observations.items()
        }
        return make_episode(observations, actions, rewards, _ended(demo, opened, options))
    kept = None if rewards is None else rewards[:-1]
    return make_episode(observations, actions[:-1], kept, (False, False))


def _chosen(rows: Observations, options: ForeignOptions, opened: Opened) -> dict[str, Array]:
    if not isinstance(rows, dict):
        raise DatasetError("obs is no group", path=opened.path)
    missing = [key for key in options.keys or () if key not in rows]
    if missing:
        raise DatasetError(
            f"it has no observations {missing}; it has {sorted(rows)}", path=opened.path
        )
    return {key: rows[key] for key in options.keys or sorted(rows)}


def _ended(demo: h5py.Group, opened: Opened, options: ForeignOptions) -> tuple[bool, bool]:
    if "dones" not in demo or not read_whole(demo, "dones", opened.path)[-1]:
        return False, False
    terminated = require_word(options, opened.path, "dones depend on done_mode") == "termination"
    return terminated, not terminated
