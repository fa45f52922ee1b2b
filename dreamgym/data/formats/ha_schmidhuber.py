"""Ha & Schmidhuber's World Models (2018): a folder of npz files, one per episode.

`obs` is (T, 64, 64, 3) uint8 and `action` is (T, n) float16. There are no rewards, no end flags and
no final observation, so the last action of each episode has no outcome and is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dreamgym.data.episodes import Episode
from dreamgym.data.formats.common import make_episode, make_metadata
from dreamgym.data.formats.interface import Array, ForeignDataset, ForeignOptions, NpzFile, Probe
from dreamgym.errors import DatasetError

NAME = "Ha & Schmidhuber"


def detect(probe: Probe) -> bool:
    """Return whether an npz file, or the first one of a folder, has `obs` and `action`."""
    paths = probe.files("*.npz")
    if not paths:
        return probe.npz is not None and probe.has("obs", "action")
    with NpzFile(paths[0]) as first:
        return {"obs", "action"} <= set(first.names)


def read(probe: Probe, options: ForeignOptions) -> ForeignDataset:
    """Open the dataset.

    Raises:
        DatasetError: A file lacks an array, or its arrays differ in length.
    """
    paths = probe.files("*.npz") or (probe.path,)
    observations, actions = _read_arrays(paths[0])

    def episodes() -> Iterator[Episode]:
        for path in paths:
            rows, actions = _read_arrays(path)
            if len(actions) > 1:
                yield make_episode(rows, actions[:-1], None, (False, False), path)

    return ForeignDataset(
        format=NAME,
        convention=f"{NAME}: one npz file per episode, T rows, no end flags (all episodes are cut "
        "off), rewards are zero",
        metadata=make_metadata(options, observations, actions.astype("float32"), probe.path, NAME),
        episodes=episodes,
        close=probe.close,
    )


def _read_arrays(path: Path) -> tuple[Array, Array]:
    with NpzFile(path) as file:
        observations, actions = file.read_rows("obs"), file.read_rows("action")
    if len(observations) != len(actions):
        raise DatasetError(
            f"obs has {len(observations)} rows and action {len(actions)}; expected as many",
            path=path,
        )
    return observations, actions
