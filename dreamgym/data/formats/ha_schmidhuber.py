"""Ha & Schmidhuber's World Models (2018): a folder of npz files, one per episode.

`obs` is (T, 64, 64, 3) uint8 and `action` is (T, n) float16. There are no rewards, no end flags and
no final observation, so the last action of each episode has no outcome and is left out. Files that
have rewards or end flags as well are read by `npz_folder`.
"""

from __future__ import annotations

from pathlib import Path

from dreamgym.data.episodes import Episode
from dreamgym.data.formats.common import (
    Outline,
    first_readable,
    make_episode,
    make_metadata,
    require_keys,
)
from dreamgym.data.formats.interface import (
    Array,
    ForeignDataset,
    ForeignOptions,
    NpzFile,
    Probe,
    each_episode,
)
from dreamgym.data.formats.keys import find_fields, require_nothing_lost
from dreamgym.errors import DatasetError

NAME = "Ha & Schmidhuber"


def detect(probe: Probe) -> bool:
    """Return whether an npz file, or the first one of a folder, has only `obs` and `action`."""
    paths = probe.files("*.npz")
    if not paths:
        return probe.npz is not None and has_no_outcomes(probe.npz.names)
    with NpzFile(paths[0]) as first:
        return has_no_outcomes(first.names)


def has_no_outcomes(names: list[str]) -> bool:
    """Return whether there are `obs` and `action`, but no rewards, ends or next observations."""
    return {"obs", "action"} <= set(names) and not find_fields(names).outcome_keys


def read(probe: Probe, options: ForeignOptions) -> ForeignDataset:
    """Open the dataset.

    Raises:
        DatasetError: a file lacks an array, has rewards or end flags unlike the first file, or its
            arrays differ in length.
    """
    options.require_roles((), probe.path, NAME)
    require_keys(options.keys, None, probe.path)
    paths = probe.files("*.npz") or (probe.path,)
    observations, actions = first_readable(
        lambda number: _read_arrays(paths[number], options), range(len(paths))
    )
    outlines = []
    for path in paths:
        try:
            outlines.append(Outline(actions=_read_actions(path), last_is_lost=True))
        except DatasetError:
            continue  # reading the episode reports why

    def read_episode(number: int) -> Episode:
        rows, taken = _read_arrays(paths[number], options)
        return make_episode(rows, taken[:-1], None, (False, False), paths[number])

    return ForeignDataset(
        format=NAME,
        convention=f"{NAME}: one npz file per episode, T rows, no end flags (all episodes are cut "
        "off), rewards are zero: the file has none",
        metadata=make_metadata(
            options,
            observations,
            actions.astype("float32"),
            probe.path,
            NAME,
            outlines=outlines,
        ),
        episodes=each_episode(len(paths), read_episode, probe.path),
        close=probe.close,
    )


def _read_actions(path: Path) -> Array:
    with NpzFile(path) as file:
        return file.read_rows("action")


def _read_arrays(path: Path, options: ForeignOptions) -> tuple[Array, Array]:
    """Return observations and actions of one file, `T` rows each."""
    with NpzFile(path) as file:
        require_nothing_lost(find_fields(file.names, options.ignore), path, reads=())
        observations, actions = file.read_rows("obs"), file.read_rows("action")
    if len(observations) != len(actions):
        raise DatasetError(
            f"obs has {len(observations)} rows and action {len(actions)}; expected as many",
            path=path,
        )
    return observations, actions
