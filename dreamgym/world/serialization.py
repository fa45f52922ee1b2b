"""The folder that a world is on disk: world.json and two safetensors files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from dreamgym._files import sha256
from dreamgym.data.frame_skip import FrameSkip
from dreamgym.data.spaces import space_from_json
from dreamgym.errors import WorldError
from dreamgym.models import ModelSpec
from dreamgym.world.zoo import WORLD_FILE

FORMAT = "dreamgym-world"


SCHEMA_VERSION = 1


MODEL_FILE = "model.safetensors"


STARTS_FILE = "starts.safetensors"


REQUIRED = [
    "family",
    "config",
    "observation_space",
    "action_space",
    "env_spec",
    "horizon",
    "beginnings",
    "provenance",
    "quality",
]


def write_description(folder: Path, description: dict[str, Any]) -> None:
    """Write world.json, with the sizes and checksums of the files beside it."""
    files = {
        name: {"sha256": sha256(folder / name), "bytes": (folder / name).stat().st_size}
        for name in (MODEL_FILE, STARTS_FILE)
    }
    whole = {"format": FORMAT, "schema_version": SCHEMA_VERSION, **description, "files": files}
    (folder / WORLD_FILE).write_text(json.dumps(whole, indent=2) + "\n")


def read_description(folder: Path) -> dict[str, Any]:
    """Read world.json and check every file against it.

    Raises:
        WorldError: not a world, written by a newer dreamgym, or a file is missing or changed.
    """
    path = folder / WORLD_FILE
    if not path.is_file():
        raise WorldError(f"{folder} is not a world: it has no {WORLD_FILE}; fit one into it")
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
    missing = [key for key in (*REQUIRED, "files") if key not in description]
    if missing:
        raise WorldError(f"{path} lacks {', '.join(missing)}; restore it or fit the world again")
    for name in ("config", "provenance", "quality", "files"):
        if not isinstance(description[name], dict):
            raise WorldError(f"{path}: {name} is no object; restore it or fit the world again")
    spec = description["env_spec"]
    if spec is not None and not (
        isinstance(spec, dict) and {"id", "kwargs", "max_episode_steps"} <= {*spec}
    ):
        raise WorldError(f"{path}: env_spec is not an environment's; restore it or fit again")
    for name in ("horizon", "beginnings"):
        if not isinstance(description[name], int) or description[name] < 1:
            raise WorldError(f"{path}: {name} is {description[name]!r}, not a number of at least 1")
    for name in (MODEL_FILE, STARTS_FILE):
        _check_file(folder / name, description["files"].get(name) or {})
    return description


def _check_file(path: Path, wanted: dict[str, Any]) -> None:
    if not path.is_file():
        raise WorldError(f"{path} is missing; copy the world's whole folder, or fit it again")
    if sha256(path) != wanted.get("sha256"):
        raise WorldError(
            f"{path} has changed since the world was saved ({path.stat().st_size} bytes, "
            f"{wanted.get('bytes')} wanted; the checksum differs); restore it or fit it again"
        )


def parse(folder: Path, description: dict[str, Any]) -> tuple[gym.Space, gym.Space, ModelSpec]:
    """Spaces and model that a description names.

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


def frame_skip(folder: Path, description: dict[str, Any]) -> FrameSkip:
    """The frame skip that a description names; none where it names none.

    Raises:
        WorldError: it is not one that this dreamgym knows.
    """
    try:
        return FrameSkip(**description.get("frame_skip", {}))
    except (TypeError, ValueError) as error:
        raise WorldError(f"{folder / WORLD_FILE} cannot be understood: {error}") from error


def termination(folder: Path, description: dict[str, Any]) -> str | float:
    """What a description recommends to end a dream; "sample" where it recommends nothing.

    Raises:
        WorldError: neither "sample" nor a probability.
    """
    said = description.get("termination", "sample")
    if said == "sample" or (type(said) in (int, float) and 0 < said <= 1):
        return said
    raise WorldError(
        f"{folder / WORLD_FILE}: termination is {said!r}, neither 'sample' nor a probability in "
        "(0, 1]; restore it or fit the world again"
    )


def read_tensors(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Read a safetensors file onto the CPU.

    Raises:
        WorldError: it is not a safetensors file.
    """
    try:
        return load_file(folder / name)
    except (SafetensorError, OSError) as error:
        raise WorldError(f"{folder / name} cannot be read: {error}; fit it again") from error
