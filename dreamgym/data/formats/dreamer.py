"""Dreamer: a folder of npz files with `is_first`, one episode each, or in version 3 chunks of them.

There are `T + 1` rows per episode, of which `is_first` marks the first. The reward and the flags of
a row arrive with its observation (danijar/dreamerv2 `common/driver.py`, danijar/dreamerv3
`embodied/core/driver.py`). In versions 1 and 2 so does the action, and that of the first row is
zero; in version 3 the action of a row is the one that is taken there, and that of the last row is
zero.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from dreamgym.data.formats.columnar import UNREADABLE, Table, open_table
from dreamgym.data.formats.common import plural
from dreamgym.data.formats.interface import Array, ForeignDataset, ForeignOptions, NpzFile, Probe
from dreamgym.data.formats.keys import find_fields, meaning
from dreamgym.errors import DatasetError

NAME = "Dreamer"
_FIRST = "is_first"
_NOT_OBSERVATIONS = ("log_", "log/", "dyn/", "enc/", "dec/")
_OTHERS = frozenset({"reset", "consec", "stepid", "id", "action", "logprob", "context"})


def detect(probe: Probe) -> bool:
    """Return whether the first npz file of a folder has `is_first` and `action`."""
    paths = probe.files("*.npz")
    if not paths:
        return False
    with NpzFile(paths[0]) as first:
        names = set(first.names)
    return {_FIRST, "action"} <= names and find_fields(names).observations is None


def read(probe: Probe, options: ForeignOptions) -> ForeignDataset:
    """Open the dataset.

    Raises:
        DatasetError: a file is damaged, or it is not clear whether a row has the action that led to
            it or the one taken there, and `options.columns` does not say it.
    """
    paths = list(probe.files("*.npz"))
    places = [place for path in paths for place in _episodes(path)]

    @functools.lru_cache(maxsize=16)
    def load(path: Path, name: str) -> Array:
        with NpzFile(path) as file:
            return file.read_rows(name)

    def read_column(number: int, name: str, part: slice) -> Array:
        path, start, _ = places[number]
        return load(path, name)[start + part.start : start + part.stop]

    with NpzFile(paths[0]) as file:
        names = file.names
    observed = [
        name
        for name in names
        if meaning(name) is None and name not in _OTHERS and not name.startswith(_NOT_OBSERVATIONS)
    ]
    roles = {}
    if not {"action", "previous_action"} & set(options.columns):
        roles[_alignment(places, probe.path)] = "action"
    rewards = find_fields(names, options.ignore).rewards
    if rewards is not None:
        roles["previous_reward"] = rewards
    table = Table(
        path=probe.path,
        format=NAME,
        text=f"{plural(len(places), 'episode')} in {plural(len(paths), 'file')}, "
        "T + 1 rows per episode",
        names=names,
        lengths=[count for _, _, count in places],
        read=read_column,
        observations=observed,
        roles=roles,
        last_is_observation=True,
    )
    return open_table(table, options, probe.close)


def _episodes(path: Path) -> list[tuple[Path, int, int]]:
    """Return path, first row and number of rows of each episode in a file."""
    try:
        with NpzFile(path) as file:
            first = file.read_rows(_FIRST).reshape(-1) != 0
    except DatasetError:
        return [(path, 0, UNREADABLE)]
    starts = np.flatnonzero(first)
    if not len(starts) or starts[0] != 0:
        starts = np.concatenate([[0], starts])  # a chunk may begin within an episode
    counts = np.diff(np.append(starts, len(first)))
    return [(path, int(s), int(n)) for s, n in zip(starts, counts, strict=True) if n > 1]


def _alignment(places: list[tuple[Path, int, int]], path: Path) -> str:
    """Return whether the actions are those that led to their row, as a role."""
    first, last = [], []
    for file, start, count in places:
        try:
            with NpzFile(file) as archive:
                actions = archive.read_rows("action")[start : start + count]
        except DatasetError:
            continue
        first.append(not actions[:1].any())
        last.append(not actions[-1:].any())
    if first and all(first) != all(last):
        return "previous_action" if all(first) else "action"
    raise DatasetError(
        "it is not clear whether the action of a row led to its observation (versions 1 and 2, in "
        "which the first one is zero) or is taken there (version 3, in which the last one is zero)",
        path=path,
        remedy="say it: --columns previous_action=action or --columns action=action, in Python "
        "ForeignOptions(columns={'previous_action': 'action'})",
    )
