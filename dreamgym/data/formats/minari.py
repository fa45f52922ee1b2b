"""Minari: `main_data.hdf5` of groups `episode_N`, with `metadata.json` beside it.

`T + 1` observations an episode; Dict observations are groups of groups; images may be JPEG, a row
of bytes each, which Pillow decodes (JPEG loses a little: such images are not what was recorded).
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np

from dreamgym.data.episodes import Episode, Observations
from dreamgym.data.formats.common import (
    Array,
    Foreign,
    ForeignOptions,
    Opened,
    guess_action_space,
    guess_observation_space,
    make_episode,
    numbered,
    read_whole,
)
from dreamgym.data.hdf5.guard import get_group, hdf5_errors, require_sound_heaps
from dreamgym.data.hdf5.schema import DatasetMetadata
from dreamgym.data.spaces import space_from_json
from dreamgym.errors import DatasetError

NAME = "Minari"
_MAX_PIXELS = 1 << 26


def detect(opened: Opened) -> bool:
    """A root of groups `episode_N` that hold observations."""
    file = opened.hdf5
    if file is None or "episode_0" not in file:
        return False
    return "actions" in get_group(file, "episode_0", opened.path)


def read(opened: Opened, options: ForeignOptions) -> Foreign:
    """Open it; spaces and environment come from `metadata.json` where it is there.

    Raises:
        DatasetError: Rows that are not `T + 1`, or images that cannot be decoded.
    """
    file, path = opened.hdf5, opened.path
    if file is None:
        raise DatasetError("it is no HDF5 file", path=path)
    said = _metadata(opened)
    names = numbered(name for name in file if name.startswith("episode_"))
    first = _read_one(file, names[0], opened)
    metadata = DatasetMetadata(
        observation_space=options.observation_space
        or _space(said, "observation_space")
        or guess_observation_space(first.observations),
        action_space=options.action_space
        or _space(said, "action_space")
        or guess_action_space(first.actions, path),
        env_spec=said.get("env_spec") if isinstance(said.get("env_spec"), str) else None,
        env_id=options.env_id or _env_id(said),
        policy=str(said.get("algorithm_name", f"unknown ({NAME})")),
    )

    def episodes() -> Iterator[Episode]:
        for name in names:
            yield _read_one(file, name, opened)

    def rows(number: int, key: str | None, part: slice) -> Array:
        group, name = get_group(file, names[number], path), "observations"
        if key is not None:
            group, name = get_group(group, name, path), key
        found = _observations(group, name, opened, part)
        if isinstance(found, dict):
            raise DatasetError("a Dict within a Dict", path=path, key=str(group.name))
        return found

    where = "metadata.json" if said else "the values (there is no metadata.json)"
    return Foreign(
        format=NAME,
        convention=f"{NAME}: {len(names)} episodes of T + 1 observations, spaces from {where}",
        metadata=metadata,
        episodes=episodes,
        close=opened.close,
        rows=rows,
    )


def _read_one(file: h5py.File, name: str, opened: Opened) -> Episode:
    path = opened.path
    group = get_group(file, name, path)
    rows = {
        key: read_whole(group, key, path)
        for key in ("actions", "rewards", "terminations", "truncations")
    }
    observations = _observations(group, "observations", opened)
    first = observations
    while isinstance(first, dict):
        first = next(iter(first.values()))
    if len(first) != len(rows["actions"]) + 1:
        raise DatasetError(
            f"{len(first)} observations for {len(rows['actions'])} actions; T + 1 are wanted",
            path=path,
            key=f"/{name}/observations",
        )
    ended = bool(rows["terminations"][-1]), bool(rows["truncations"][-1])
    return make_episode(observations, rows["actions"], rows["rewards"], ended)


def _observations(
    group: h5py.Group, name: str, opened: Opened, part: slice = slice(None)
) -> Observations:
    node = group.get(name, getlink=True)
    if isinstance(node, h5py.HardLink) and isinstance(group[name], h5py.Group):
        inner = get_group(group, name, opened.path)
        rows: dict[str, Array] = {}
        for key in inner:
            deep = _observations(inner, key, opened, part)
            if isinstance(deep, dict):
                raise DatasetError("a Dict within a Dict", path=opened.path, key=str(inner.name))
            rows[key] = deep
        return rows
    if isinstance(node, h5py.HardLink) and h5py.check_vlen_dtype(group[name].dtype) == np.uint8:
        return _decoded(group[name], opened, part)
    return read_whole(group, name, opened.path, part)


@functools.lru_cache(maxsize=8)
def _require_sound(path: Path, changed: int) -> None:
    """Look through a file's heap once, as long as it does not change."""
    require_sound_heaps(path)


def _decoded(dataset: h5py.Dataset, opened: Opened, part: slice) -> Array:
    """JPEG rows as `(T + 1, H, W, 3)` uint8."""
    _require_sound(opened.path, opened.path.stat().st_mtime_ns)
    key = str(dataset.name)
    try:
        from PIL import Image
    except ImportError:
        raise DatasetError(
            "its images are JPEG, and Pillow is not installed",
            path=opened.path,
            key=key,
            remedy="pip install pillow",
        ) from None
    images: list[Array] = []
    with hdf5_errors(opened.path, key):
        rows = dataset[part]
    for row, data in enumerate(rows, start=part.start or 0):
        try:
            with Image.open(io.BytesIO(data.tobytes()), formats=["JPEG"]) as image:
                if image.width * image.height > _MAX_PIXELS:
                    raise DatasetError(f"an image of {image.size} pixels", key=key, row=row)
                images.append(np.asarray(image.convert("RGB")))
        except (OSError, SyntaxError) as error:
            raise DatasetError(f"no JPEG ({error})", path=opened.path, key=key, row=row) from error
    return np.stack(images)


def _metadata(opened: Opened) -> dict[str, Any]:
    beside = opened.path.with_name("metadata.json")
    if not beside.is_file():
        return {}
    try:
        said = json.loads(beside.read_text())
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"it is no JSON ({error})", path=beside) from error
    return said if isinstance(said, dict) else {}


def _space(said: dict[str, Any], name: str) -> gym.Space[Any] | None:
    """Minari's JSON of a space is nearly ours; a Dict keeps its spaces under another name."""
    text = said.get(name)
    if not isinstance(text, str):
        return None
    try:
        return space_from_json(_ours(json.loads(text)))
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"metadata.json: {name}: {error}") from error


def _ours(space: Any) -> Any:
    if isinstance(space, dict) and space.get("type") == "Dict":
        inner = space.get("subspaces")
        entries = inner.items() if isinstance(inner, dict) else ()
        return {"type": "Dict", "spaces": [[key, _ours(child)] for key, child in entries]}
    return space


def _env_id(said: dict[str, Any]) -> str | None:
    try:
        found = json.loads(said["env_spec"]).get("id")
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return str(found) if found else None
