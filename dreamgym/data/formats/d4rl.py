"""D4RL: flat columns in the root of one HDF5 file.

`observations`, `actions`, `rewards`, `terminals` have one row a transition; `timeouts` and
`next_observations` may be missing. Without `next_observations` the last observation of an episode
is nowhere, and its last transition is left out.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dreamgym.data.episodes import Episode
from dreamgym.data.formats.common import (
    Array,
    Foreign,
    ForeignOptions,
    Opened,
    make_episode,
    make_metadata,
    require_word,
)
from dreamgym.errors import DatasetError

NAME = "D4RL"


def detect(opened: Opened) -> bool:
    """Flat observations, actions, rewards and terminals; HDF5, or the same as npz."""
    return opened.has("observations", "actions", "rewards", "terminals")


def read(opened: Opened, options: ForeignOptions) -> Foreign:
    """Open it; where there are no timeouts, the user must say what a terminal is.

    Raises:
        DatasetError: Columns of different lengths, or an ambiguity that the options leave open.
    """
    columns = {name: opened.rows(name) for name in ("observations", "actions", "rewards")}
    terminals = opened.rows("terminals").reshape(-1) != 0
    columns["terminals"] = terminals
    for name in ("timeouts", "next_observations"):
        if opened.has(name):
            columns[name] = opened.rows(name)
    _require_equal(opened, columns)
    if "timeouts" in columns:
        timeouts = columns["timeouts"].reshape(-1) != 0
        terminated, truncated = terminals, timeouts & ~terminals
        how = "terminals are terminations, timeouts truncations"
    elif require_word(options, opened.path, "there are no timeouts") == "termination":
        terminated, truncated = terminals, np.zeros_like(terminals)
        how = "terminals are terminations (as you said), there are no timeouts"
    else:
        terminated, truncated = np.zeros_like(terminals), terminals
        how = "terminals are boundaries (as you said), that is truncations"
    whole = "next_observations" in columns
    last = "their own last observation" if whole else "no last transition"
    return Foreign(
        format=NAME,
        convention=f"{NAME}: one row a transition, {how}, episodes with {last}",
        metadata=make_metadata(
            options, columns["observations"], columns["actions"], opened.path, NAME
        ),
        episodes=lambda: _episodes(columns, terminated, truncated),
        close=opened.close,
    )


def _require_equal(opened: Opened, columns: dict[str, Array]) -> None:
    counts = {name: len(values) for name, values in columns.items()}
    if len(set(counts.values())) > 1:
        raise DatasetError(f"its columns differ in length: {counts}", path=opened.path)


def _episodes(columns: dict[str, Array], terminated: Array, truncated: Array) -> Iterator[Episode]:
    following = columns.get("next_observations")
    count = len(terminated)
    ends = np.flatnonzero(terminated | truncated)
    if not len(ends) or ends[-1] != count - 1:
        ends = np.append(ends, count - 1)
    start = 0
    for end in ends.tolist():
        observations = columns["observations"][start : end + 1]
        stop, flags = end, (False, False)
        if following is not None:
            observations = np.concatenate([observations, following[end : end + 1]])
            stop, flags = end + 1, (bool(terminated[end]), bool(truncated[end]))
        if stop > start:
            yield make_episode(
                observations, columns["actions"][start:stop], columns["rewards"][start:stop], flags
            )
        start = end + 1
