"""robomimic: `data/demo_N/{obs/<key>, next_obs/<key>, actions, rewards, dones}` in one HDF5 file.

A demonstration has `T` rows of observations and of actions. Without `next_obs`, its last action has
no outcome and is left out. The meaning of `dones` depends on how the file was made (`done_mode`),
which the file does not say; there are no truncations.
"""

from __future__ import annotations

from collections.abc import Iterator

import h5py
import numpy as np

from dreamgym.data.episodes import Episode, Observations
from dreamgym.data.formats.common import (
    make_episode,
    make_metadata,
    read_observations,
    read_rows,
    require_terminals,
    sort_by_number,
)
from dreamgym.data.formats.interface import Array, ForeignDataset, ForeignOptions, Probe
from dreamgym.data.hdf5.guard import get_group, hdf5_errors, is_group
from dreamgym.errors import DatasetError

NAME = "robomimic"


def detect(probe: Probe) -> bool:
    """Return whether there is a group `data` of groups `demo_N`."""
    if probe.hdf5 is None or not is_group(probe.hdf5, "data", probe.path):
        return False
    return bool(_demo_names(get_group(probe.hdf5, "data", probe.path), probe))


def read(probe: Probe, options: ForeignOptions) -> ForeignDataset:
    """Open the dataset. If a demonstration is done, `options.terminals` must say what that means.

    Raises:
        DatasetError: Rows differ in number, or the end flags are ambiguous.
    """
    if probe.hdf5 is None:
        raise DatasetError("it is not an HDF5 file", path=probe.path)
    data = get_group(probe.hdf5, "data", probe.path)
    names = sort_by_number(_demo_names(data, probe))
    first = _read_episode(data, names[0], probe, options)

    def episodes() -> Iterator[Episode]:
        for name in names:
            episode = _read_episode(data, name, probe, options)
            if episode.length:
                yield episode

    return ForeignDataset(
        format=NAME,
        convention=f"{NAME}: {len(names)} demonstrations, done means {options.terminals}, "
        "the splits under mask/ are not used",
        metadata=make_metadata(options, first.observations, first.actions, probe.path, NAME),
        episodes=episodes,
        close=probe.close,
    )


def _demo_names(data: h5py.Group, probe: Probe) -> list[str]:
    with hdf5_errors(probe.path, "/data"):
        return [name for name in data if name.startswith("demo_")]


def _read_episode(data: h5py.Group, name: str, probe: Probe, options: ForeignOptions) -> Episode:
    path = probe.path
    demo = get_group(data, name, path)
    observations = _select_keys(read_observations(demo, "obs", path), options, probe)
    actions = read_rows(demo, "actions", path)
    rewards = read_rows(demo, "rewards", path) if "rewards" in demo else None
    wrong = {key: len(rows) for key, rows in observations.items() if len(rows) != len(actions)}
    if wrong:
        raise DatasetError(
            f"it has {len(actions)} actions, but these numbers of observations: {wrong}; expected "
            "as many",
            path=path,
            key=f"/data/{name}/obs",
        )
    if "next_obs" in demo:
        following = _select_keys(read_observations(demo, "next_obs", path), options, probe)
        if following.keys() != observations.keys():
            raise DatasetError(
                f"it has the keys {sorted(following)}; expected {sorted(observations)}, as obs has",
                path=path,
                key=f"/data/{name}/next_obs",
            )
        observations = {
            key: np.concatenate([rows, following[key][-1:]]) for key, rows in observations.items()
        }
        return make_episode(observations, actions, rewards, _read_end(demo, probe, options), path)
    if rewards is not None:
        rewards = rewards[:-1]
    return make_episode(observations, actions[:-1], rewards, (False, False), path)


def _select_keys(rows: Observations, options: ForeignOptions, probe: Probe) -> dict[str, Array]:
    if not isinstance(rows, dict):
        raise DatasetError("expected a group of observation keys", path=probe.path, key="obs")
    missing = [key for key in options.keys or () if key not in rows]
    if missing:
        raise DatasetError(
            f"it has no observations {missing}; it has {sorted(rows)}", path=probe.path
        )
    return {key: rows[key] for key in options.keys or sorted(rows)}


def _read_end(demo: h5py.Group, probe: Probe, options: ForeignOptions) -> tuple[bool, bool]:
    """Return whether the episode terminated, and whether it was truncated."""
    if "dones" not in demo:
        return False, False
    dones = read_rows(demo, "dones", probe.path)
    if not len(dones) or not dones[-1]:
        return False, False
    meaning = require_terminals(options, probe.path, "dones depend on done_mode")
    return meaning == "termination", meaning == "boundary"
