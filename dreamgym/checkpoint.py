"""The state of a fit between two updates: one safetensors file, written aside and renamed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dreamgym.files import written_aside

Weights = dict[str, Tensor]


class CheckpointError(ValueError):
    """A checkpoint that is not of this fit, or cannot be read."""


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


def path_for(out: Path) -> Path:
    """Where the checkpoint of a fit that will become `out` lies."""
    return out.with_name(f"{out.name}.fitting.safetensors")


def save(
    path: Path,
    fingerprint: dict[str, Any],
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
) -> None:
    """Write model, best weights, optimiser and progress; a kill leaves the one before."""
    tensors = {f"model/{key}": value for key, value in model.state_dict().items()}
    tensors |= {f"best/{key}": value for key, value in progress.best.items()}
    for index, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{key}": value for key, value in slots.items()}
    said = {
        "fingerprint": fingerprint,
        "update": progress.update,
        "best_loss": progress.best_loss,
        "history": progress.history,
    }
    # safetensors refuses two names for one memory: every tensor gets its own.
    tensors = {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}
    with written_aside(path) as temporary:
        save_file(tensors, temporary, metadata={"dreamgym": json.dumps(said)})


def restore(
    path: Path,
    fingerprint: dict[str, Any],
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
) -> Progress:
    """Put model and optimiser where a checkpoint left them, and say how far that was.

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
    _check_same_fit(path, said["fingerprint"], fingerprint)
    model.load_state_dict(_under("model/", tensors))
    slots: dict[int, Weights] = {}
    for key, value in _under("optimizer/", tensors).items():
        index, name = key.split("/")
        slots.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})
    return Progress(said["update"], said["best_loss"], _under("best/", tensors), said["history"])


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
