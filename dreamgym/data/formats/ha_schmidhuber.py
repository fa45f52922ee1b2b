"""Ha and Schmidhuber's World Models (2018): a folder of npz files, one an episode.

`obs` (T, 64, 64, 3) uint8 and `action` (T, n) float16: no reward, no end flag and no final
observation, so that the last action of each leads nowhere and is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dreamgym.data.episodes import Episode
from dreamgym.data.formats.common import (
    Array,
    Foreign,
    ForeignOptions,
    NpzFile,
    Opened,
    make_episode,
    make_metadata,
)
from dreamgym.errors import DatasetError

NAME = "Ha & Schmidhuber"


def detect(opened: Opened) -> bool:
    """Files with `obs` and `action`, and nothing that says how an episode ended."""
    if opened.folder is None:
        return opened.npz is not None and opened.has("obs", "action")
    first = NpzFile(opened.folder[0])
    try:
        return {"obs", "action"} <= set(first.names)
    finally:
        first.close()


def read(opened: Opened, options: ForeignOptions) -> Foreign:
    """Open it.

    Raises:
        DatasetError: A file holds other arrays, or arrays of different lengths.
    """
    paths = opened.folder or (opened.path,)
    observations, actions = _arrays(paths[0])

    def episodes() -> Iterator[Episode]:
        for path in paths:
            rows, taken = _arrays(path)
            if len(taken) > 1:
                yield make_episode(rows, taken[:-1], None, (False, False))

    return Foreign(
        format=NAME,
        convention=f"{NAME}: one npz an episode, T rows, no end flags (all are cut off), "
        "rewards are zero",
        metadata=make_metadata(options, observations, actions.astype("float32"), opened.path, NAME),
        episodes=episodes,
        close=opened.close,
    )


def _arrays(path: Path) -> tuple[Array, Array]:
    file = NpzFile(path)
    try:
        observations, actions = file.read("obs"), file.read("action")
    finally:
        file.close()
    if len(observations) != len(actions):
        raise DatasetError(
            f"{len(observations)} rows of obs and {len(actions)} of action", path=path
        )
    return observations, actions
