"""D4RL: flat columns in the root of one HDF5 file or npz archive.

`observations`, `actions`, `rewards` and `terminals` have one row per transition; `timeouts` and
`next_observations` are optional, and all may have another usual name (`keys.find_fields`). Without
`next_observations` the last observation of an episode is not stored, and its last transition is
left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from dreamgym.data.episodes import Episode, Observations
from dreamgym.data.formats import ogbench
from dreamgym.data.formats.common import (
    Outline,
    append_row,
    make_episode,
    make_metadata,
    read_column,
    read_columns,
    select_keys,
    slice_rows,
)
from dreamgym.data.formats.interface import Array, ForeignDataset, ForeignOptions, Probe
from dreamgym.data.formats.keys import (
    find_fields,
    find_named_fields,
    require_agreement,
    require_no_arrivals,
    require_nothing_lost,
    resolve_ends,
)
from dreamgym.data.formats.log_rows import split_by_ends
from dreamgym.data.formats.stored_rows import open_columns
from dreamgym.errors import DatasetError

NAME = "D4RL"


def detect(probe: Probe) -> bool:
    """Return whether there are flat observations and actions, and rewards, ends or what follows."""
    found = find_fields(probe.names)
    flat = found.observations is not None and found.actions is not None
    return flat and bool(found.outcome_keys) and not ogbench.detect(probe)


def read(probe: Probe, options: ForeignOptions) -> ForeignDataset:
    """Open the dataset. Without timeouts, `options.terminals` must say what a terminal is.

    Raises:
        DatasetError: the columns differ in length, or the end flags are missing or ambiguous.
    """
    path = probe.path
    found = find_named_fields(probe.names, options, path, NAME)
    if found.observations is None or found.actions is None:
        raise DatasetError("its observations or actions are to be ignored", path=path)
    require_no_arrivals(found, path)
    require_nothing_lost(found, path)
    require_agreement(found, lambda key: read_columns(probe, key), path)
    observations = select_keys(open_columns(probe, found.observations), options.keys, path)
    following = None
    if found.next_observations is not None:
        following = select_keys(open_columns(probe, found.next_observations), options.keys, path)
    names = (found.actions, found.rewards, found.terminated, found.truncated, found.ends)
    columns = {name: read_column(probe, name) for name in names if name is not None}
    actions = columns[found.actions]
    rewards = None if found.rewards is None else columns[found.rewards]
    _require_equal_lengths(probe, columns, observations, following)
    terminated, truncated, meaning = resolve_ends(found, columns, options, path)
    if not len(terminated):
        raise DatasetError(
            "it has no column that says where its episodes end",
            path=path,
            remedy="add terminals and timeouts, one row per transition",
        )
    bounds = list(_bounds(terminated | truncated))
    lost = following is None and not options.repeat_last
    last = "no last transition" if lost else "their last transition"
    outlines = [
        Outline(
            actions=actions[start:stop],
            rewards=None if rewards is None else rewards[start:stop],
            terminated=bool(terminated[stop - 1]),
            last_is_lost=following is None and not options.repeat_last,
            repeats_last=following is None and options.repeat_last,
        )
        for start, stop in bounds
    ]

    def episodes() -> Iterator[Episode]:
        for start, stop in bounds:
            part = slice(start, stop)
            flags = bool(terminated[stop - 1]), bool(truncated[stop - 1])
            rows = slice_rows(observations, part)
            if following is None and options.repeat_last:
                rows = append_row(rows, rows, path)
            elif following is None:
                stop, flags = stop - 1, (False, False)
            else:
                rows = append_row(rows, slice_rows(following, part), path)
            if stop > start:
                kept = None if rewards is None else rewards[start:stop]
                yield make_episode(rows, actions[start:stop], kept, flags, path)

    # Number of the first row, and the row after the last, of each episode that is yielded.
    places = [
        (start, stop)
        for start, stop in bounds
        if stop - start > (following is None and not options.repeat_last)
    ]

    def read_observation_rows(number: int, key: str | None, part: slice) -> Array:
        start, stop = places[number]
        rows, after = sources if key is None else (each and each[key] for each in sources)
        chosen = rows.read(start + part.start, min(start + part.stop, stop))
        if start + part.stop <= stop:
            return chosen
        return np.concatenate([chosen, (rows if after is None else after).read(stop - 1, stop)])

    sources: Any = observations, following
    return ForeignDataset(
        format=NAME,
        convention=f"{NAME}: one row per transition, {meaning}, episodes have {last}"
        f"{found.describe()}",
        metadata=make_metadata(options, observations, actions, path, NAME, outlines=outlines),
        episodes=episodes,
        close=probe.close,
        # Rows of an npz archive can only be read in order.
        read_rows=None if probe.hdf5 is None else read_observation_rows,
    )


def _require_equal_lengths(
    probe: Probe,
    columns: dict[str, Array],
    observations: Observations,
    following: Observations | None,
) -> None:
    lengths = {name: len(values) for name, values in columns.items()}
    for name, rows in (("observations", observations), ("next_observations", following)):
        if isinstance(rows, dict):
            lengths |= {f"{name}/{key}": len(values) for key, values in rows.items()}
        elif rows is not None:
            lengths[name] = len(rows)
    if len(set(lengths.values())) > 1:
        raise DatasetError(f"its columns differ in length: {lengths}", path=probe.path)


def _bounds(ends: Array) -> Iterator[tuple[int, int]]:
    """Return the first row of each episode, and the row after its last one."""
    starts, counts = split_by_ends(ends)
    yield from zip(starts.tolist(), (starts + counts).tolist(), strict=True)
