"""OGBench: one npz file of flat `observations`, `actions` and `terminals`, and no rewards.

`T + 1` rows a trajectory, the last action of each without meaning. `terminals` marks the last row
of a trajectory: a boundary, and by OGBench's own definition no termination.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dreamgym.data.episodes import Episode
from dreamgym.data.formats.common import (
    Foreign,
    ForeignOptions,
    Opened,
    make_episode,
    make_metadata,
)
from dreamgym.errors import DatasetError

NAME = "OGBench"


def detect(opened: Opened) -> bool:
    """An npz with terminals and without rewards."""
    return (
        opened.npz is not None
        and opened.has("observations", "actions", "terminals")
        and not opened.has("rewards")
    )


def read(opened: Opened, options: ForeignOptions) -> Foreign:
    """Open it.

    Raises:
        DatasetError: Columns of different lengths, or no trajectory ends.
    """
    observations, actions = opened.rows("observations"), opened.rows("actions")
    ends = np.flatnonzero(opened.rows("terminals").reshape(-1) != 0)
    if len(observations) != len(actions) or len(ends) == 0 or ends[-1] != len(actions) - 1:
        raise DatasetError(
            f"{len(observations)} observations, {len(actions)} actions and {len(ends)} ends do not "
            "make whole trajectories",
            path=opened.path,
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
                )
            start = end + 1

    meaning = "terminations (as you said)" if terminated else "boundaries, that is truncations"
    return Foreign(
        format=NAME,
        convention=f"{NAME}: T + 1 rows a trajectory, terminals are {meaning}, rewards are zero",
        metadata=make_metadata(options, observations, actions, opened.path, NAME),
        episodes=episodes,
        close=opened.close,
    )
