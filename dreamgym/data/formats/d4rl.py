"""D4RL: flat columns in the root of one HDF5 file.

`observations`, `actions`, `rewards` and `terminals` have one row per transition; `timeouts` and
`next_observations` are optional. Without `next_observations` the last observation of an episode is
not stored, and its last transition is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dreamgym.data.episodes import Episode
from dreamgym.data.formats.common import (
    make_episode,
    make_metadata,
    read_column,
    require_terminals,
)
from dreamgym.data.formats.interface import Array, ForeignDataset, ForeignOptions, Probe
from dreamgym.errors import DatasetError

NAME = "D4RL"


def detect(probe: Probe) -> bool:
    """Return whether there are flat observations, actions, rewards and terminals (HDF5 or npz)."""
    return probe.has("observations", "actions", "rewards", "terminals")


def read(probe: Probe, options: ForeignOptions) -> ForeignDataset:
    """Open the dataset. Without timeouts, `options.terminals` must say what a terminal is.

    Raises:
        DatasetError: The columns differ in length, or the end flags are ambiguous.
    """
    columns = {name: read_column(probe, name) for name in ("observations", "actions", "rewards")}
    terminals = read_column(probe, "terminals").reshape(-1) != 0
    columns["terminals"] = terminals
    for name in ("timeouts", "next_observations"):
        if probe.has(name):
            columns[name] = read_column(probe, name)
    _require_equal_lengths(probe, columns)
    if "timeouts" in columns:
        timeouts = columns["timeouts"].reshape(-1) != 0
        terminated, truncated = terminals, timeouts & ~terminals
        meaning = "terminals are terminations, timeouts are truncations"
    elif require_terminals(options, probe.path, "there are no timeouts") == "termination":
        terminated, truncated = terminals, np.zeros_like(terminals)
        meaning = "terminals are terminations (by option), there are no timeouts"
    else:
        terminated, truncated = np.zeros_like(terminals), terminals
        meaning = "terminals are boundaries (by option), read as truncations"
    has_next = "next_observations" in columns
    last = "their last transition" if has_next else "no last transition"
    return ForeignDataset(
        format=NAME,
        convention=f"{NAME}: one row per transition, {meaning}, episodes have {last}",
        metadata=make_metadata(
            options, columns["observations"], columns["actions"], probe.path, NAME
        ),
        episodes=lambda: _episodes(columns, terminated, truncated, probe.path),
        close=probe.close,
    )


def _require_equal_lengths(probe: Probe, columns: dict[str, Array]) -> None:
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DatasetError(f"its columns differ in length: {lengths}", path=probe.path)


def _episodes(
    columns: dict[str, Array], terminated: Array, truncated: Array, path: Path
) -> Iterator[Episode]:
    next_observations = columns.get("next_observations")
    count = len(terminated)
    ends = np.flatnonzero(terminated | truncated)
    if not len(ends) or ends[-1] != count - 1:
        ends = np.append(ends, count - 1)
    start = 0
    for end in ends.tolist():
        observations = columns["observations"][start : end + 1]
        stop, flags = end, (False, False)
        if next_observations is not None:
            observations = np.concatenate([observations, next_observations[end : end + 1]])
            stop, flags = end + 1, (bool(terminated[end]), bool(truncated[end]))
        if stop > start:
            yield make_episode(
                observations,
                columns["actions"][start:stop],
                columns["rewards"][start:stop],
                flags,
                path,
            )
        start = end + 1
