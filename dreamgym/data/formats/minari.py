"""Minari: `main_data.hdf5` with groups `episode_N`, and `metadata.json` beside it.

There are `T + 1` observations per episode. Dict observations are groups of datasets. Images may be
stored as JPEG, one row of bytes each, which Pillow decodes (JPEG is lossy: such images are not
exactly what was recorded).
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
    infer_action_space,
    infer_observation_space,
    make_episode,
    read_rows,
    sort_by_number,
)
from dreamgym.data.formats.interface import Array, ForeignDataset, ForeignOptions, Probe
from dreamgym.data.hdf5.guard import get_group, hdf5_errors, is_group, require_sound_heaps
from dreamgym.data.metadata import DatasetMetadata
from dreamgym.data.spaces import space_from_json
from dreamgym.errors import DatasetError

NAME = "Minari"
_DATA_FILES = ("main_data.hdf5", "data/main_data.hdf5")
_MAX_PIXELS = 1 << 26


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
        DatasetError: An episode has not `T + 1` observations, or an image cannot be decoded.
    """
    path = _data_path(probe)
    if path is None:
        raise DatasetError(f"it has none of the files {_DATA_FILES}", path=probe.path)
    file = probe.open_hdf5(path)
    info = _read_metadata_json(path)
    with hdf5_errors(path):
        names = sort_by_number(name for name in file if name.startswith("episode_"))
    first = _read_episode(file, names[0], path)
    metadata = DatasetMetadata(
        observation_space=options.observation_space
        or _parse_space(info, "observation_space")
        or infer_observation_space(first.observations),
        action_space=options.action_space
        or _parse_space(info, "action_space")
        or infer_action_space(first.actions, path),
        env_spec=info.get("env_spec") if isinstance(info.get("env_spec"), str) else None,
        env_id=options.env_id or _parse_env_id(info),
        policy=str(info.get("algorithm_name", f"unknown ({NAME})")),
    )

    def episodes() -> Iterator[Episode]:
        for name in names:
            yield _read_episode(file, name, path)

    def read_observation_rows(number: int, key: str | None, part: slice) -> Array:
        group, name = get_group(file, names[number], path), "observations"
        if key is not None:
            group, name = get_group(group, name, path), key
        rows = _read_observations(group, name, path, part)
        if isinstance(rows, dict):
            raise _nested_dict_error(group, path)
        return rows

    source = "metadata.json" if info else "the values (there is no metadata.json)"
    return ForeignDataset(
        format=NAME,
        convention=f"{NAME}: {len(names)} episodes of T + 1 observations, spaces from {source}",
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


def _read_episode(file: h5py.File, name: str, path: Path) -> Episode:
    group = get_group(file, name, path)
    rows = {
        key: read_rows(group, key, path)
        for key in ("actions", "rewards", "terminations", "truncations")
    }
    observations = _read_observations(group, "observations", path)
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


def _read_observations(
    group: h5py.Group, name: str, path: Path, part: slice = slice(None)
) -> Observations:
    if is_group(group, name, path):
        inner = get_group(group, name, path)
        rows: dict[str, Array] = {}
        for key in inner:
            values = _read_observations(inner, key, path, part)
            if isinstance(values, dict):
                raise _nested_dict_error(inner, path)
            rows[key] = values
        if not rows:
            raise DatasetError("it has no observations", path=path, key=str(inner.name))
        return rows
    if _is_jpeg(group, name):
        return _decode_images(group[name], path, part)
    return read_rows(group, name, path, part)


def _nested_dict_error(group: h5py.Group, path: Path) -> DatasetError:
    return DatasetError(
        "it is a Dict inside a Dict; expected a Dict of arrays", path=path, key=str(group.name)
    )


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
    try:
        from PIL import Image
    except ImportError:
        raise DatasetError(
            "its images are JPEG, and Pillow is not installed",
            path=path,
            key=key,
            remedy="pip install pillow",
        ) from None
    images: list[Array] = []
    with hdf5_errors(path, key):
        rows = dataset[part]
    for row, data in enumerate(rows, start=part.start or 0):
        try:
            with Image.open(io.BytesIO(data.tobytes()), formats=["JPEG"]) as image:
                if image.width * image.height > _MAX_PIXELS:
                    raise DatasetError(
                        f"its image has {image.size} pixels; expected at most {_MAX_PIXELS:,}",
                        path=path,
                        key=key,
                        row=row,
                    )
                images.append(np.asarray(image.convert("RGB")))
        except (OSError, SyntaxError) as error:
            raise DatasetError(
                f"it is not a JPEG image ({error})", path=path, key=key, row=row
            ) from error
    return np.stack(images)


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


def _parse_space(info: dict[str, Any], name: str) -> gym.Space[Any] | None:
    text = info.get(name)
    if not isinstance(text, str):
        return None
    try:
        return space_from_json(_to_native_json(json.loads(text)))
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"metadata.json: {name}: {error}") from error


def _to_native_json(space: Any) -> Any:
    """Convert Minari's JSON of a space to dreamgym's; they differ in Dict only."""
    if isinstance(space, dict) and space.get("type") == "Dict":
        inner = space.get("subspaces")
        entries = inner.items() if isinstance(inner, dict) else ()
        return {"type": "Dict", "spaces": [[key, _to_native_json(child)] for key, child in entries]}
    return space


def _parse_env_id(info: dict[str, Any]) -> str | None:
    try:
        env_id = json.loads(info["env_spec"]).get("id")
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return str(env_id) if env_id else None
