"""A folder of plain npz files, one an episode, as one writes them oneself.

`observations` with `T + 1` rows (`T` leave the last action without an outcome), `actions` with `T`;
`rewards`, `terminated` and `truncated` (single values, or rows) may be missing. `dones` are
ambiguous.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dreamgym.data.episodes import Episode, Observations
from dreamgym.data.formats.common import (
    Array,
    Foreign,
    ForeignOptions,
    NpzFile,
    Opened,
    make_episode,
    make_metadata,
    numbered,
    require_word,
)
from dreamgym.errors import DatasetError

NAME = "npz episodes"
_TERMINATED = ("terminated", "terminations")
_TRUNCATED = ("truncated", "truncations", "timeouts")
_AMBIGUOUS = ("dones", "done", "terminals", "terminal")


def detect(opened: Opened) -> bool:
    """A folder of npz files with observations and actions."""
    if opened.folder is None:
        return False
    file = NpzFile(opened.folder[0])
    try:
        return {"observations", "actions"} <= set(file.names)
    finally:
        file.close()


def read(opened: Opened, options: ForeignOptions) -> Foreign:
    """Open it; where there are only `dones`, the user must say what they mean.

    Raises:
        DatasetError: Rows that are neither `T` nor `T + 1`, or an ambiguity.
    """
    names = {path.stem: path for path in opened.folder or ()}
    paths = [names[name] for name in numbered(names)]
    first = _read_one(paths[0], options)

    def episodes() -> Iterator[Episode]:
        for path in paths:
            episode = _read_one(path, options)
            if episode.length:
                yield episode

    return Foreign(
        format=NAME,
        convention=f"{NAME}: {len(paths)} files, one an episode, in the order of their numbers",
        metadata=make_metadata(options, first.observations, first.actions, opened.path, NAME),
        episodes=episodes,
        close=opened.close,
    )


def _read_one(path: Path, options: ForeignOptions) -> Episode:
    file = NpzFile(path)
    try:
        arrays = {name: file.read(name) for name in file.names}
    finally:
        file.close()
    observations: Observations = arrays["observations"]
    actions, rewards = arrays["actions"], arrays.get("rewards")
    surplus = len(observations) - len(actions)
    if surplus not in (0, 1):
        raise DatasetError(
            f"{len(observations)} observations and {len(actions)} actions: rows are neither T nor "
            "T + 1",
            path=path,
            key="observations",
        )
    ended = _flags(path, arrays, options)
    if surplus == 0:  # the last action's outcome, and so the end, was not recorded
        actions, ended = actions[:-1], (False, False)
        rewards = None if rewards is None else rewards[:-1]
    return make_episode(observations, actions, rewards, ended)


def _flags(path: Path, arrays: dict[str, Array], options: ForeignOptions) -> tuple[bool, bool]:
    given = {name for names in (_TERMINATED, _TRUNCATED) for name in names if name in arrays}
    if given:
        terminated = any(_last(arrays[name]) for name in _TERMINATED if name in arrays)
        return terminated, any(_last(arrays[name]) for name in _TRUNCATED if name in arrays)
    ambiguous = [name for name in _AMBIGUOUS if name in arrays]
    if not ambiguous or not _last(arrays[ambiguous[0]]):
        return False, False
    terminated = require_word(options, path, f"there is only {ambiguous[0]!r}") == "termination"
    return terminated, not terminated


def _last(values: Array) -> bool:
    return bool(np.asarray(values).reshape(-1)[-1]) if values.size else False
