"""robomimic: `data/demo_N/{obs/<key>, next_obs/<key>, actions, rewards, dones}` in one HDF5 file.

A demonstration has `T` rows of observations and of actions. Without `next_obs`, its last action has
no outcome and is left out. The meaning of `dones` depends on how the file was made (`done_mode`),
which the file does not say; there are no truncations.
"""

from __future__ import annotations

from pathlib import Path

import h5py

from dreamgym.data.episodes import Episode, Observations
from dreamgym.data.formats.common import (
    FlaggedOutline,
    append_row,
    first_readable,
    make_metadata,
    read_observations,
    read_outlines,
    read_rows,
    require_as_many,
    select_keys,
    sort_by_number,
)
from dreamgym.data.formats.interface import (
    Array,
    ForeignDataset,
    ForeignOptions,
    Probe,
    each_episode,
    list_names,
)
from dreamgym.data.formats.keys import (
    find_named_fields,
    require_agreement,
    require_nothing_lost,
    resolve_ends,
)
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
        DatasetError: rows differ in number, the end flags are ambiguous, or only some
            demonstrations have rewards.
    """
    if probe.hdf5 is None:
        raise DatasetError("it is not an HDF5 file", path=probe.path)
    data, path = get_group(probe.hdf5, "data", probe.path), probe.path
    names = sort_by_number(_demo_names(data, probe))

    def read_part(number: int) -> FlaggedOutline:
        return _read_part(get_group(data, names[number], path), probe, options)

    parts, good = read_outlines(len(names), read_part, path)
    for name, part in zip(names, parts, strict=True):
        unlike = isinstance(part, FlaggedOutline) and part.rewards is None
        if unlike and any(other.rewards is not None for other in good):
            raise DatasetError(
                "it has no rewards, unlike other demonstrations; expected rewards in all or in "
                "none",
                path=path,
                key=f"/data/{name}",
            )

    def read_episode(number: int) -> Episode:
        part = parts[number]
        if isinstance(part, DatasetError):
            raise part
        return _read_episode(data, names[number], part, probe, options)

    first = first_readable(read_episode, range(len(names)))

    return ForeignDataset(
        format=NAME,
        convention=f"{NAME}: {len(names)} demonstrations, {good[0].meaning}, "
        f"the splits under mask/ are not used{good[0].found.describe()}",
        metadata=make_metadata(
            options,
            first.observations,
            first.actions,
            path,
            NAME,
            outlines=good,
        ),
        episodes=each_episode(len(names), read_episode, path),
        close=probe.close,
    )


def _demo_names(data: h5py.Group, probe: Probe) -> list[str]:
    with hdf5_errors(probe.path, "/data"):
        return [name for name in data if name.startswith("demo_")]


def _read_part(demo: h5py.Group, probe: Probe, options: ForeignOptions) -> FlaggedOutline:
    """Read actions, rewards and end flags of one demonstration."""
    path = probe.path
    found = find_named_fields(list_names(demo, path), options, path, NAME)
    require_nothing_lost(found, path)
    require_agreement(found, lambda key: read_rows(demo, key, path), path)
    actions = read_rows(demo, "actions", path)
    flags = {
        name: read_rows(demo, name, path)[-1:]
        for name in (found.terminated, found.truncated, found.ends)
        if name is not None
    }
    terminated, truncated, meaning = resolve_ends(
        found, flags, options, path, f"{found.ends} depend on done_mode"
    )
    return FlaggedOutline(
        actions=actions,
        rewards=None if found.rewards is None else read_rows(demo, found.rewards, path),
        terminated=bool(terminated.any()),
        last_is_lost=found.next_observations is None and not options.repeat_last,
        repeats_last=found.next_observations is None and options.repeat_last,
        found=found,
        truncated=bool(truncated.any()),
        meaning=meaning,
    )


def _read_episode(
    data: h5py.Group, name: str, part: FlaggedOutline, probe: Probe, options: ForeignOptions
) -> Episode:
    path, found = probe.path, part.found
    demo = get_group(data, name, path)
    observations: Observations = _read_rows(demo, "obs", path, options)
    count = len(part.actions)
    require_as_many(observations, count, path, f"/data/{name}/obs")
    if found.next_observations is not None:
        key = f"/data/{name}/{found.next_observations}"
        following = _read_rows(demo, found.next_observations, path, options)
        observations = append_row(observations, following, path, key)
        require_as_many(following, count, path, key)
    return part.with_observations(observations, path)


def _read_rows(
    demo: h5py.Group, name: str, path: Path, options: ForeignOptions
) -> dict[str, Array]:
    rows = read_observations(demo, name, path)
    if not isinstance(rows, dict):
        raise DatasetError("expected a group of observation keys", path=path, key=name)
    chosen = select_keys(rows, options.keys or sorted(rows), path)
    return chosen if isinstance(chosen, dict) else {name: chosen}
