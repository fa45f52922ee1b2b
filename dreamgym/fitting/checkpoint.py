"""The state of a fit between two updates: one safetensors file, written aside and renamed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dreamgym._files import atomic_file
from dreamgym.errors import CheckpointError

Weights = dict[str, Tensor]


@dataclass
class Progress:
    """How far a fit has come.

    Attributes:
        update: updates done.
        best_loss: lowest held-out loss so far.
        best: the weights that gave it.
        history: figures of each evaluation.
    """

    update: int = 0
    best_loss: float = float("inf")
    best: Weights = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)


class Parts(NamedTuple):
    """What moves in a fit.

    Attributes:
        model: that is fitted.
        optimizer: of its parameters.
        means: running means of the parameters, where they are taken.
    """

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    means: list[Tensor]


class Stored(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        said: numbers and text, JSON-plain.
        tensors: by name.
    """

    said: dict[str, Any]
    tensors: Weights


def path_for(out: Path) -> Path:
    """Where the checkpoint of a fit that will become `out` lies."""
    return out.with_name(f"{out.name}.fitting.safetensors")


def save(path: Path, fingerprint: dict[str, Any], parts: Parts, progress: Progress) -> None:
    """Write all that moves, and the progress; a kill leaves the checkpoint before."""
    tensors = {f"model/{key}": value for key, value in parts.model.state_dict().items()}
    tensors |= {f"best/{key}": value for key, value in progress.best.items()}
    tensors |= {f"mean/{index}": value for index, value in enumerate(parts.means)}
    numbers: dict[str, float] = {}
    state = parts.optimizer.state_dict()
    for index, slots in state["state"].items():
        for key, value in slots.items():
            (tensors if isinstance(value, Tensor) else numbers)[f"optimizer/{index}/{key}"] = value
    said = {
        "fingerprint": fingerprint,
        "update": progress.update,
        "best_loss": progress.best_loss,
        "history": progress.history,
        "optimizer": numbers,
        # Some optimisers count their steps for a whole group of parameters.
        "steps": [group.get("step") for group in state["param_groups"]],
    }
    # safetensors refuses two names for one memory: every tensor gets its own.
    tensors = {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata={"dreamgym": json.dumps(said)})


def read(path: Path, fingerprint: dict[str, Any] | None = None) -> Stored:
    """Read a checkpoint.

    Args:
        path: where it lies.
        fingerprint: of the fit that it must be of; None takes that of any.

    Raises:
        CheckpointError: unreadable, or of a fit with other data or settings.
    """
    try:
        with safe_open(path, framework="pt") as file:
            said = json.loads((file.metadata() or {})["dreamgym"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a readable checkpoint ({error}); delete it to fit from the start"
        ) from error
    if fingerprint is not None:
        _check_same_fit(path, said["fingerprint"], fingerprint)
    return Stored(said, tensors)


def restore(stored: Stored, parts: Parts) -> Progress:
    """Put all that moves where a checkpoint left it, and say how far that was."""
    said, tensors = stored
    parts.model.load_state_dict(_under("model/", tensors))
    for index, value in _under("mean/", tensors).items():
        parts.means[int(index)].copy_(value)
    slots: dict[int, dict[str, Any]] = {}
    for key, value in [*_under("optimizer/", tensors).items(), *_numbers(said["optimizer"])]:
        index, name = key.split("/")
        slots.setdefault(int(index), {})[name] = value
    groups = parts.optimizer.state_dict()["param_groups"]
    for group, step in zip(groups, said["steps"], strict=True):
        group |= {} if step is None else {"step": step}
    parts.optimizer.load_state_dict({"state": slots, "param_groups": groups})
    return Progress(said["update"], said["best_loss"], _under("best/", tensors), said["history"])


def _numbers(said: dict[str, float]) -> list[tuple[str, Any]]:
    return [(key.removeprefix("optimizer/"), value) for key, value in said.items()]


def _under(prefix: str, tensors: Weights) -> Weights:
    return {
        key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
    }


def _check_same_fit(path: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    differing = [key for key in sorted({*there, *here}) if there.get(key) != here.get(key)]
    if differing:
        key = differing[0]
        raise CheckpointError(
            f"{path} is an unfinished fit with another {key} ({there.get(key)!r}, here "
            f"{here.get(key)!r}); run it with the settings it began with to go on, or delete it "
            "to fit from the start"
        )
