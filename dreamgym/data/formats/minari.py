"""Minari: `main_data.hdf5` with groups `episode_N`, and `metadata.json` beside it.

There are `T + 1` observations per episode. Dict observations are groups of datasets; a Dict inside
a Dict is read as one Dict, with keys such as `achieved_goal/kettle`. Images may be stored as JPEG,
one row of bytes each, which Pillow decodes (JPEG is lossy: such images are not exactly what was
recorded).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np

from dreamgym.data.episodes import Episode, Observations
from dreamgym.data.formats.common import (
    Outline,
    given_observation_space,
    infer_action_space,
    infer_observation_space,
    make_episode,
    read_rows,
    require_keys,
    sort_by_number,
)
from dreamgym.data.formats.interface import (
    Array,
    ForeignDataset,
    ForeignOptions,
    Probe,
    list_names,
)
from dreamgym.data.formats.keys import find_fields
from dreamgym.data.hdf5.guard import get_group, hdf5_errors, is_group, require_sound_heaps
from dreamgym.data.image_decoding import decode_image
from dreamgym.data.metadata import DatasetMetadata, spec_of_id
from dreamgym.data.spaces import space_from_json
from dreamgym.errors import DatasetError

NAME = "Minari"
_DATA_FILES = ("main_data.hdf5", "data/main_data.hdf5")


def detect(probe: Probe) -> bool:
    """Return whether the root holds groups `episode_N` with actions."""
    path = _data_path(probe)
    if path is None:
        return False
    file = probe.open_hdf5(path)
    return is_group(file, "episode_0", path) and "actions" in get_group(file, "episode_0", path)


def read(probe: Probe, options: ForeignOptions) -> ForeignDataset:
    """Open the dataset; spaces and environment come from `metadata.json` if it is there.

    Raises:
        DatasetError: an episode has not `T + 1` observations, or an image cannot be decoded.
    """
    options.require_roles(("observation",), probe.path, NAME)
    path = _data_path(probe)
    if path is None:
        raise DatasetError(f"it has none of the files {_DATA_FILES}", path=probe.path)
    file = probe.open_hdf5(path)
    info = _read_metadata_json(path)
    with hdf5_errors(path):
        names = sort_by_number(name for name in file if name.startswith("episode_"))
    first = _read_episode(file, names[0], path, options)
    found = find_fields(list_names(get_group(file, names[0], path), path), options.ignore)
    notes: list[str] = []
    if isinstance(first.observations, dict) and any("/" in key for key in first.observations):
        notes.append(
            f"its observations are nested Dicts, read as one Dict of {sorted(first.observations)}; "
            "wrap the real environment to have these keys"
        )
    action_space = options.action_space or _parse_space(info, "action_space", path)
    if action_space is None:
        groups = (get_group(file, name, path) for name in names)
        outlines = [Outline(actions=read_rows(group, "actions", path)) for group in groups]
        action_space, note = infer_action_space(outlines, path)
        notes.append(note)
    env_spec = info.get("env_spec") if isinstance(info.get("env_spec"), str) else None
    metadata = DatasetMetadata(
        observation_space=given_observation_space(options, path)
        or _parse_space(info, "observation_space", path, options.keys)
        or infer_observation_space(first.observations),
        action_space=action_space,
        env_spec=env_spec if options.env_id is None else spec_of_id(options.env_id),
        env_id=options.env_id or _parse_env_id(info),
        policy=str(info.get("algorithm_name", f"unknown ({NAME})")),
        notes=tuple(notes),
    )

    def episodes() -> Iterator[Episode]:
        for name in names:
            yield _read_episode(file, name, path, options)

    def read_observation_rows(number: int, key: str | None, part: slice) -> Array:
        group, name = get_group(file, names[number], path), "observations"
        if key is not None:
            *outer, name = f"observations/{key}".split("/")
            for inner in outer:
                group = get_group(group, inner, path)
        return _read_rows(group, name, path, part)

    source = "metadata.json" if info else "the values (there is no metadata.json)"
    return ForeignDataset(
        format=NAME,
        convention=f"{NAME}: {len(names)} episodes of T + 1 observations, spaces from {source}"
        f"{found.describe()}",
        metadata=metadata,
        episodes=episodes,
        close=probe.close,
        read_rows=read_observation_rows,
    )


def _data_path(probe: Probe) -> Path | None:
    """Return the HDF5 file: `probe.path` itself, or the one in a Minari folder."""
    if not probe.is_folder:
        return None if probe.hdf5 is None else probe.path
    inside = (probe.path / name for name in _DATA_FILES)
    return next((path for path in inside if path.is_file()), None)


def _read_episode(file: h5py.File, name: str, path: Path, options: ForeignOptions) -> Episode:
    group = get_group(file, name, path)
    rows = {
        key: read_rows(group, key, path)
        for key in ("actions", "rewards", "terminations", "truncations")
    }
    observations = _read_observations(group, path, options)
    first = next(iter(observations.values())) if isinstance(observations, dict) else observations
    if len(first) != len(rows["actions"]) + 1:
        raise DatasetError(
            f"it has {len(first)} observations for {len(rows['actions'])} actions; expected T + 1",
            path=path,
            key=f"/{name}/observations",
        )
    flags = rows["terminations"], rows["truncations"]
    terminated, truncated = (bool(flag[-1]) if len(flag) else False for flag in flags)
    return make_episode(
        observations, rows["actions"], rows["rewards"], (terminated, truncated), path
    )


def _read_observations(group: h5py.Group, path: Path, options: ForeignOptions) -> Observations:
    """Read the observations of an episode: one array, or arrays by their path in the Dict."""
    if not is_group(group, "observations", path):
        require_keys(options.keys, None, path)
        return _read_rows(group, "observations", path)
    inner = get_group(group, "observations", path)
    known = list(_paths(inner, path))
    if not known:
        raise DatasetError("it has no observations", path=path, key=str(inner.name))
    require_keys(options.keys, known, path)
    rows = {}
    for key in options.keys or known:
        *outer, name = key.split("/")
        parent = inner
        for part in outer:
            parent = get_group(parent, part, path)
        rows[key] = _read_rows(parent, name, path)
    return rows


def _paths(group: h5py.Group, path: Path) -> Iterator[str]:
    """Return the paths of the arrays in a group: those of a group inside as `group/array`."""
    with hdf5_errors(path):
        names = list(group)
    for name in names:
        if is_group(group, name, path):
            for inner in _paths(get_group(group, name, path), path):
                yield f"{name}/{inner}"
        else:
            yield name


def _read_rows(group: h5py.Group, name: str, path: Path, part: slice = slice(None)) -> Array:
    if _is_jpeg(group, name):
        return _decode_images(group[name], path, part)
    return read_rows(group, name, path, part)


def _is_jpeg(group: h5py.Group, name: str) -> bool:
    """Return whether a dataset has rows of bytes of variable length."""
    link = group.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        return False
    return h5py.check_vlen_dtype(group[name].dtype) == np.uint8


def _decode_images(dataset: h5py.Dataset, path: Path, part: slice) -> Array:
    """Decode JPEG rows to `(N, H, W, 3)` uint8."""
    _require_sound_heaps_once(path, path.stat().st_mtime_ns)
    key = str(dataset.name)
    images: list[Array] = []
    with hdf5_errors(path, key):
        rows = dataset[part]
    for row, data in enumerate(rows, start=part.start or 0):
        try:
            image = decode_image(data.tobytes(), "RGB")
        except DatasetError as error:
            raise _at_row(error, path, key, row) from error.__cause__
        if images and image.shape != images[0].shape:
            problem = DatasetError(f"its shape is {image.shape}; the first has {images[0].shape}")
            raise _at_row(problem, path, key, row)
        images.append(image)
    if not images:
        raise DatasetError("it has no images", path=path, key=key)
    return np.stack(images)


def _at_row(error: DatasetError, path: Path, key: str, row: int) -> DatasetError:
    return DatasetError(error.problem, path=path, key=key, row=row, remedy=error.remedy)


@functools.lru_cache(maxsize=8)
def _require_sound_heaps_once(path: Path, modified: int) -> None:
    """Check the heaps of a file once per modification time (nanoseconds)."""
    require_sound_heaps(path)


def _read_metadata_json(path: Path) -> dict[str, Any]:
    """Return the contents of `metadata.json` beside the data file; empty if there is none."""
    metadata_path = path.with_name("metadata.json")
    if not metadata_path.is_file():
        return {}
    try:
        info = json.loads(metadata_path.read_text())
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"it is not valid JSON ({error})", path=metadata_path) from error
    return info if isinstance(info, dict) else {}


def _parse_space(
    info: dict[str, Any], name: str, path: Path, keys: tuple[str, ...] | None = None
) -> gym.Space[Any] | None:
    """Return a space of `metadata.json`; of a Dict, only the keys to read.

    A Dict inside a Dict becomes one Dict, with keys such as `outer/inner`.
    """
    text = info.get(name)
    if not isinstance(text, str):
        return None
    try:
        entries = dict(_space_leaves(json.loads(text)))
        if "" in entries:
            return space_from_json(entries[""])
        require_keys(keys, entries, path)
        chosen = [[key, entries[key]] for key in keys or entries]
        return space_from_json({"type": "Dict", "spaces": chosen})
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"metadata.json: {name}: {error}") from error


def _space_leaves(space: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Return the JSON of the spaces inside nested Dicts, by path; of another space, itself."""
    if not (isinstance(space, dict) and space.get("type") == "Dict"):
        yield key, space
        return
    inner = space.get("subspaces")
    for name, child in inner.items() if isinstance(inner, dict) else ():
        yield from _space_leaves(child, f"{key}/{name}" if key else name)


def _parse_env_id(info: dict[str, Any]) -> str | None:
    try:
        env_id = json.loads(info["env_spec"]).get("id")
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return str(env_id) if env_id else None
