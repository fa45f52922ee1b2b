"""A folder of plain npz files, one per episode: the format of a hand-written recorder.

`observations` has `T + 1` rows (or `T`: then the last action has no outcome and is left out) and
`actions` has `T`. `rewards`, `terminated` and `truncated` (single values or rows) are optional.
`dones` are ambiguous.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dreamgym.data.episodes import Episode
from dreamgym.data.formats.common import (
    make_episode,
    make_metadata,
    require_terminals,
    sort_by_number,
)
from dreamgym.data.formats.interface import Array, ForeignDataset, ForeignOptions, NpzFile, Probe
from dreamgym.errors import DatasetError

NAME = "npz episodes"
_TERMINATED = ("terminated", "terminations")
_TRUNCATED = ("truncated", "truncations", "timeouts")
_AMBIGUOUS = ("dones", "done", "terminals", "terminal")


def detect(probe: Probe) -> bool:
    """Return whether the first npz file of a folder has `observations` and `actions`."""
    paths = probe.files("*.npz")
    if not paths:
        return False
    with NpzFile(paths[0]) as first:
        return {"observations", "actions"} <= set(first.names)


def read(probe: Probe, options: ForeignOptions) -> ForeignDataset:
    """Open the dataset. Where there are only `dones`, `options.terminals` must say what they mean.

    Raises:
        DatasetError: A file has neither `T` nor `T + 1` observations, or its end is ambiguous.
    """
    by_name = {path.stem: path for path in probe.files("*.npz")}
    paths = [by_name[name] for name in sort_by_number(by_name)]
    first = _read_episode(paths[0], options)

    def episodes() -> Iterator[Episode]:
        for path in paths:
            episode = _read_episode(path, options)
            if episode.length:
                yield episode

    return ForeignDataset(
        format=NAME,
        convention=f"{NAME}: {len(paths)} files, one per episode, in the order of their numbers",
        metadata=make_metadata(options, first.observations, first.actions, probe.path, NAME),
        episodes=episodes,
        close=probe.close,
    )


def _read_episode(path: Path, options: ForeignOptions) -> Episode:
    with NpzFile(path) as file:
        arrays = {name: file.read(name) for name in file.names}
        observations, actions = file.read_rows("observations"), file.read_rows("actions")
    rewards = arrays.get("rewards")
    surplus = len(observations) - len(actions)
    if surplus not in (0, 1):
        raise DatasetError(
            f"it has {len(observations)} observations and {len(actions)} actions: neither T nor "
            "T + 1 observations",
            path=path,
            key="observations",
        )
    ended = _read_end(path, arrays, options)
    if surplus == 0:  # the outcome of the last action, and so the end, was not recorded
        actions, ended = actions[:-1], (False, False)
        rewards = None if rewards is None else rewards[:-1]
    return make_episode(observations, actions, rewards, ended, path)


def _read_end(path: Path, arrays: dict[str, Array], options: ForeignOptions) -> tuple[bool, bool]:
    """Return whether the episode terminated, and whether it was truncated."""
    if any(name in arrays for name in _TERMINATED + _TRUNCATED):
        terminated = any(_last(arrays[name]) for name in _TERMINATED if name in arrays)
        return terminated, any(_last(arrays[name]) for name in _TRUNCATED if name in arrays)
    ambiguous = [name for name in _AMBIGUOUS if name in arrays]
    if not ambiguous or not _last(arrays[ambiguous[0]]):
        return False, False
    meaning = require_terminals(options, path, f"there is only {ambiguous[0]!r}")
    return meaning == "termination", meaning == "boundary"


def _last(values: Array) -> bool:
    return bool(np.asarray(values).reshape(-1)[-1]) if values.size else False
