"""Read and write the folder of a world: world.json and two safetensors files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from dreamgym._files import sha256
from dreamgym.data.frame_skip import FrameSkip
from dreamgym.data.metadata import check_env_spec
from dreamgym.data.spaces import space_from_json
from dreamgym.errors import DatasetError, WorldError
from dreamgym.models import ModelSpec
from dreamgym.models.weights import tensor_shapes
from dreamgym.world.zoo import WORLD_FILE

FORMAT = "dreamgym-world"
SCHEMA_VERSION = 1
MODEL_FILE = "model.safetensors"
STARTS_FILE = "starts.safetensors"
NUM_EPISODE_STARTS = "beginnings"
"""The JSON key of `StartStates.num_episode_starts`."""

REQUIRED_KEYS = (
    "family",
    "config",
    "observation_space",
    "action_space",
    "env_spec",
    "horizon",
    NUM_EPISODE_STARTS,
    "provenance",
    "quality",
    "files",
)


def write_description(folder: Path, description: dict[str, Any]) -> None:
    """Write world.json, with the sizes and checksums of the files beside it."""
    files = {
        name: {"sha256": sha256(folder / name), "bytes": (folder / name).stat().st_size}
        for name in (MODEL_FILE, STARTS_FILE)
    }
    content = {"format": FORMAT, "schema_version": SCHEMA_VERSION, **description, "files": files}
    (folder / WORLD_FILE).write_text(json.dumps(content, indent=2) + "\n")


def read_description(folder: Path) -> dict[str, Any]:
    """Read world.json, and check it and the files beside it.

    Raises:
        WorldError: `folder` is not a world, was written by a newer dreamgym, or a file is missing
            or changed.
    """
    path = folder / WORLD_FILE
    if not path.is_file():
        raise WorldError(f"{folder} is not a world: it has no {WORLD_FILE}; fit a world into it")
    try:
        description = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise WorldError(f"{path} is not JSON ({error}); restore it or fit again") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise WorldError(f"{path} is not a world's description: its format is not {FORMAT!r}")
    version = description.get("schema_version")
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise WorldError(
            f"{path} has schema version {version!r}, and this dreamgym reads up to "
            f"{SCHEMA_VERSION}; upgrade dreamgym"
        )
    _check_values(path, description)
    for name in (MODEL_FILE, STARTS_FILE):
        _check_file(folder / name, description["files"].get(name) or {})
    return description


def _check_values(path: Path, description: dict[str, Any]) -> None:
    """Raise WorldError unless every required key is there with a value of its type."""
    missing = [key for key in REQUIRED_KEYS if key not in description]
    if missing:
        raise WorldError(f"{path} lacks {', '.join(missing)}; restore it or fit the world again")
    for key in ("config", "provenance", "quality", "files"):
        if not isinstance(description[key], dict):
            raise WorldError(
                f"{path}: {key} is not a JSON object; restore it or fit the world again"
            )
    try:
        if description["env_spec"] is not None:
            check_env_spec(description["env_spec"])
    except DatasetError as error:
        raise WorldError(
            f"{path}: env_spec is not an environment's spec ({error.problem}); restore it or fit "
            "the world again"
        ) from error
    limit = description["provenance"].get("dataset_time_limit")
    if limit is not None and not _is_count(limit):
        raise WorldError(
            f"{path}: dataset_time_limit is {limit!r:.80}, expected a whole number of at least 1; "
            "restore it or fit the world again"
        )
    for key in ("horizon", NUM_EPISODE_STARTS):
        if not _is_count(description[key]):
            raise WorldError(
                f"{path}: {key} is {description[key]!r:.80}, expected a whole number of at least "
                "1; restore it or fit the world again"
            )


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value < 1 << 31


def _check_file(path: Path, expected: dict[str, Any]) -> None:
    """Raise WorldError unless the file is there with the size and checksum of world.json."""
    if not path.is_file():
        raise WorldError(f"{path} is missing; copy the world's whole folder, or fit it again")
    if sha256(path) != expected.get("sha256"):
        raise WorldError(
            f"{path} has changed since the world was saved: its checksum differs "
            f"({path.stat().st_size} bytes, expected {expected.get('bytes')}); restore it or fit "
            "the world again"
        )


def parse_spec(folder: Path, description: dict[str, Any]) -> tuple[gym.Space, gym.Space, ModelSpec]:
    """Return the observation space, the action space and the model spec of a description.

    Raises:
        WorldError: an unknown family or setting, or a space that cannot be read.
    """
    path = folder / WORLD_FILE
    try:
        spec = ModelSpec.from_json(description)
        observation_space = space_from_json(description["observation_space"])
        action_space = space_from_json(description["action_space"])
    except (TypeError, ValueError, KeyError, RecursionError) as error:
        raise WorldError(f"{path} cannot be understood: {error}") from error
    return observation_space, action_space, spec


def parse_frame_skip(folder: Path, description: dict[str, Any]) -> FrameSkip:
    """Return the frame skip of a description; no skip where the key is absent.

    Raises:
        WorldError: a frame skip that this dreamgym does not know.
    """
    try:
        return FrameSkip(**description.get("frame_skip", {}))
    except (TypeError, ValueError) as error:
        raise WorldError(f"{folder / WORLD_FILE} cannot be understood: {error}") from error


def parse_termination(folder: Path, description: dict[str, Any]) -> str | float:
    """Return the recommended termination rule; "sample" where the key is absent.

    Raises:
        WorldError: neither "sample" nor a probability.
    """
    termination = description.get("termination", "sample")
    if termination == "sample" or (type(termination) in (int, float) and 0 < termination <= 1):
        return termination
    raise WorldError(
        f"{folder / WORLD_FILE}: termination is {termination!r}, expected 'sample' or a "
        "probability in (0, 1]; restore it or fit the world again"
    )


def read_tensors(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Read a safetensors file onto the CPU.

    Raises:
        WorldError: not a safetensors file.
    """
    with _safetensors_errors(folder / name):
        return load_file(folder / name)


def read_shapes(folder: Path, name: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes in a safetensors file by the tensor's name, from its header alone.

    Raises:
        WorldError: not a safetensors file.
    """
    with _safetensors_errors(folder / name):
        return tensor_shapes(folder / name)


@contextmanager
def _safetensors_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise WorldError(f"{path} cannot be read: {error}; fit the world again") from error
