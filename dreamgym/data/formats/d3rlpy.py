"""d3rlpy: one HDF5 file with arrays `observations_N`, `actions_N`, `rewards_N`, `terminated_N`.

An episode has `T` observations for `T` actions, so that its last action has no outcome. One that
did not terminate was ended by something else: it is truncated (d3rlpy `dataset/io.py`, version
2.1). Observations of several arrays are `observations_N_0`, `observations_N_1`.
"""

from __future__ import annotations

import numpy as np

from dreamgym.data.formats.columnar import UNREADABLE, Table, open_table
from dreamgym.data.formats.common import plural, read_rows
from dreamgym.data.formats.interface import Array, ForeignDataset, ForeignOptions, Probe
from dreamgym.data.hdf5.guard import get_dataset, hdf5_errors, require_stored
from dreamgym.errors import DatasetError

NAME = "d3rlpy"


def detect(probe: Probe) -> bool:
    """Return whether there are `num_episodes` and arrays of episode 0."""
    return probe.hdf5 is not None and probe.has("num_episodes", "columns", "actions_0")


def read(probe: Probe, options: ForeignOptions) -> ForeignDataset:
    """Open the dataset; its rows are read episode by episode.

    Raises:
        DatasetError: an array is missing or damaged.
    """
    file, path = probe.hdf5, probe.path
    if file is None:
        raise DatasetError("it is not an HDF5 file", path=path)
    numbers = _numbers(list(file))
    places = {"actions": "actions_{}", "rewards": "rewards_{}"}
    observed = ["observations"]
    if "observations_0" in file:
        places["observations"] = "observations_{}"
    else:
        observed = [f"observations/{k}" for k in range(len(file)) if f"observations_0_{k}" in file]
        places |= {name: "observations_{}_" + name.split("/")[1] for name in observed}

    def read_column(number: int, name: str, part: slice) -> Array:
        if name in ("terminated", "truncated"):
            with hdf5_errors(path):
                terminated = bool(get_dataset(file, f"terminated_{numbers[number]}", path)[()])
            last = np.arange(part.start, part.stop) == lengths[number] - 1
            return last & (terminated == (name == "terminated"))
        key = places[name].format(numbers[number])
        require_stored(get_dataset(file, key, path), part.stop, path)
        return read_rows(file, key, path, part)

    lengths = []
    for number in numbers:
        try:
            lengths.append(len(get_dataset(file, f"actions_{number}", path)))
        except DatasetError:
            lengths.append(UNREADABLE)
    table = Table(
        path=path,
        format=NAME,
        text=f"{plural(len(numbers), 'episode')}; those that did not terminate are truncated",
        names=[*places, "terminated", "truncated"],
        lengths=lengths,
        read=read_column,
        observations=observed,
        roles={"action": "actions", "reward": "rewards"}
        | {name: name for name in ("terminated", "truncated")},
    )
    return open_table(table, options, probe.close)


def _numbers(names: list[str]) -> list[int]:
    """Return the numbers of the episodes."""
    ends = (name.removeprefix("actions_") for name in names if name.startswith("actions_"))
    return sorted(int(end) for end in ends if end.isdigit())
