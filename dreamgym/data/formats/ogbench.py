"""OGBench: one npz file of flat `observations`, `actions` and `terminals`, without rewards.

There are `T + 1` rows per trajectory; the last action of each has no meaning. `terminals` marks the
last row of a trajectory: by OGBench's own definition a boundary, not a termination. A file with
rewards or next observations as well is not OGBench's; `d4rl` reads it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dreamgym.data.episodes import Episode
from dreamgym.data.formats.common import (
    Outline,
    make_episode,
    make_metadata,
    read_column,
    require_keys,
)
from dreamgym.data.formats.interface import ForeignDataset, ForeignOptions, Probe
from dreamgym.data.formats.keys import find_fields
from dreamgym.data.formats.stored_rows import open_columns
from dreamgym.errors import DatasetError

NAME = "OGBench"


def detect(probe: Probe) -> bool:
    """Return whether the file is an npz archive with terminals, and no other outcomes."""
    return (
        probe.npz is not None
        and probe.has("observations", "actions", "terminals")
        and find_fields(probe.names).outcome_keys == ("terminals",)
    )


def read(probe: Probe, options: ForeignOptions) -> ForeignDataset:
    """Open the dataset. Ends are truncations unless `options.terminals` is `"termination"`.

    Raises:
        DatasetError: the columns differ in length, or the last row does not end a trajectory.
    """
    options.require_roles((), probe.path, NAME)
    require_keys(options.keys, None, probe.path)
    observations, actions = open_columns(probe, "observations"), read_column(probe, "actions")
    ends = np.flatnonzero(read_column(probe, "terminals").reshape(-1) != 0)
    if len(observations) != len(actions) or len(ends) == 0 or ends[-1] != len(actions) - 1:
        raise DatasetError(
            f"{len(observations)} observations, {len(actions)} actions and {len(ends)} ends do not "
            "make complete trajectories; expected columns of one length that end with a terminal",
            path=probe.path,
            key="terminals",
        )
    terminated = options.terminals == "termination"

    def episodes() -> Iterator[Episode]:
        start = 0
        for end in ends.tolist():
            if end > start:
                yield make_episode(
                    observations[start : end + 1],
                    actions[start:end],
                    None,
                    (terminated, not terminated),
                    probe.path,
                )
            start = end + 1

    meaning = "terminations (by option)" if terminated else "boundaries, read as truncations"
    return ForeignDataset(
        format=NAME,
        convention=f"{NAME}: T + 1 rows per trajectory, terminals are {meaning}, rewards "
        "are zero: the file has none",
        metadata=make_metadata(
            options,
            observations,
            actions,
            probe.path,
            NAME,
            outlines=[Outline(actions=actions[np.setdiff1d(np.arange(len(actions)), ends)])],
        ),
        episodes=episodes,
        close=probe.close,
    )
