"""A folder of plain npz files, one per episode: the format of a hand-written recorder.

`observations` has `T + 1` rows (or `T`: then the last action has no outcome and is left out, unless
there are `next_observations`) and `actions` has `T`. `rewards`, `terminated` and `truncated`
(single values or rows) are optional. `dones` are ambiguous. All may have another usual name, such
as `obs` and `reward` (`keys.find_fields`). Where observations and actions have none, the user names
the columns, of as many rows each.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from dreamgym.data.episodes import Episode
from dreamgym.data.formats.common import (
    FlaggedOutline,
    first_readable,
    make_metadata,
    plural,
    read_outlines,
    require_as_many,
    require_keys,
    sort_by_number,
)
from dreamgym.data.formats.episode_columns import EpisodeArrays, open_episodes
from dreamgym.data.formats.ha_schmidhuber import has_no_outcomes
from dreamgym.data.formats.interface import (
    Array,
    ForeignDataset,
    ForeignOptions,
    NpzFile,
    Probe,
    each_episode,
)
from dreamgym.data.formats.keys import (
    Fields,
    find_fields,
    find_named_fields,
    require_agreement,
    require_no_arrivals,
    require_nothing_lost,
    resolve_ends,
)
from dreamgym.errors import DatasetError

NAME = "npz episodes"
_FIRST = "is_first"  # of Dreamer


def detect(probe: Probe) -> bool:
    """Return whether the first npz file of a folder has observations and actions.

    Of a folder without HDF5 files, several arrays of any names will do.
    """
    paths = probe.files("*.npz")
    if not paths:
        return False
    with NpzFile(paths[0]) as first:
        names = first.names
    found = find_fields(names)
    if None in (found.observations, found.actions):
        others = probe.files("*.h5") + probe.files("*.hdf5")
        return not others and len(names) > 1 and _FIRST not in names
    return not has_no_outcomes(names)


def read(probe: Probe, options: ForeignOptions) -> ForeignDataset:
    """Open the dataset. Where there are only `dones`, `options.terminals` must say what they mean.

    Raises:
        DatasetError: a file has neither `T` nor `T + 1` observations, its end is ambiguous, or only
            some files have rewards.
    """
    by_name = {path.stem: path for path in probe.files("*.npz")}
    paths = [by_name[name] for name in sort_by_number(by_name)]
    names = first_readable(lambda number: _names(paths[number]), range(len(paths)))
    found = find_fields(names)
    if None in (found.observations, found.actions):
        return _open_columns(paths, names, probe, options)
    require_keys(options.keys, None, probe.path)
    model = first_readable(lambda number: _read_fields(paths[number], options), range(len(paths)))
    parts, good = read_outlines(
        len(paths), lambda number: _read_part(paths[number], options, model), probe.path
    )

    def read_episode(number: int) -> Episode:
        part = parts[number]
        if isinstance(part, DatasetError):
            raise part
        return _read_episode(paths[number], part)

    first = first_readable(read_episode, range(len(paths)))
    return ForeignDataset(
        format=NAME,
        convention=f"{NAME}: {plural(len(paths), 'file')}, one per episode, in the "
        "order of their numbers, "
        f"{good[0].meaning}{model.describe()}",
        metadata=make_metadata(
            options,
            first.observations,
            first.actions,
            probe.path,
            NAME,
            outlines=good,
        ),
        episodes=each_episode(len(paths), read_episode, probe.path),
        close=probe.close,
    )


def _names(path: Path) -> list[str]:
    with NpzFile(path) as file:
        return file.names


def _open_columns(
    paths: list[Path], names: list[str], probe: Probe, options: ForeignOptions
) -> ForeignDataset:
    """Open files of columns that the user names."""

    @functools.lru_cache(maxsize=16)
    def load(number: int, name: str) -> Array:
        with NpzFile(paths[number]) as file:
            return file.read_rows(name)

    def count_rows(number: int, name: str) -> int:
        with NpzFile(paths[number]) as file:
            return file.count_rows(name)

    arrays = EpisodeArrays(
        format=NAME,
        text=f"{plural(len(paths), 'file')}, one per episode",
        names=names,
        places=[path.name for path in paths],
        count_rows=count_rows,
        read=lambda number, name, part: load(number, name)[part],
    )
    return open_episodes(arrays, options, probe)


def _read_fields(path: Path, options: ForeignOptions) -> Fields:
    with NpzFile(path) as file:
        return find_named_fields(file.names, options, path, NAME)


def _read_part(path: Path, options: ForeignOptions, model: Fields) -> FlaggedOutline:
    """Read actions, rewards and end flags of one file.

    Args:
        path: the file.
        options: what the user knows.
        model: the keys of the first file.
    """
    with NpzFile(path) as file:
        found = find_named_fields(file.names, options, path, NAME)
        require_no_arrivals(found, path)
        require_nothing_lost(found, path)
        require_agreement(found, file.read, path)
        for role in ("observations", "actions"):
            if getattr(found, role) is None:
                raise DatasetError("it is missing", path=path, key=getattr(model, role) or role)
        if (found.rewards is None) != (model.rewards is None):
            has = "no rewards" if found.rewards is None else f"rewards ({found.rewards!r})"
            raise DatasetError(
                f"it has {has}, unlike the first file; expected rewards in all files or in none",
                path=path,
            )
        actions = file.read_rows(str(found.actions))
        rewards = None if found.rewards is None else file.read(found.rewards)
        names = (found.terminated, found.truncated, found.ends)
        flags = {name: _last(file.read(name), name, path) for name in names if name is not None}
        count = file.count_rows(str(found.observations))
    terminated, truncated, meaning = resolve_ends(found, flags, options, path)
    surplus = count - len(actions)
    if surplus not in (0, 1):
        raise DatasetError(
            f"it has {count} observations and {len(actions)} actions: neither T nor T + 1 "
            "observations",
            path=path,
            key=found.observations,
        )
    lacks_last = surplus == 0 and found.next_observations is None
    return FlaggedOutline(
        actions=actions,
        rewards=rewards,
        terminated=bool(terminated.any()),
        last_is_lost=lacks_last and not options.repeat_last,
        repeats_last=lacks_last and options.repeat_last,
        found=found,
        truncated=bool(truncated.any()),
        meaning=meaning,
    )


def _read_episode(path: Path, part: FlaggedOutline) -> Episode:
    count = len(part.actions)
    with NpzFile(path) as file:
        observations = file.read_rows(str(part.found.observations))
        if len(observations) == count and part.found.next_observations is not None:
            following = file.read_rows(part.found.next_observations)
            require_as_many(following, count, path, part.found.next_observations)
            observations = np.concatenate([observations, following[-1:]])
    return part.with_observations(observations, path)


def _last(values: Array, name: str, path: Path) -> Array:
    """Return the last flag of an episode, `(1,)`; a file with several episodes is refused."""
    flags = np.asarray(values).reshape(-1) != 0
    if not len(flags):
        return np.zeros(1, bool)
    if flags[:-1].any() and not flags.all():
        raise DatasetError(
            f"it is set at row {int(np.argmax(flags))} of {len(flags)}, before the last one",
            path=path,
            key=name,
            remedy="write one file per episode, or give the file itself if it holds several",
        )
    return flags[-1:]
