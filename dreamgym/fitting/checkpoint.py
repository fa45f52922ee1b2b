"""Checkpoints: the state of a fit between two updates, in one safetensors file."""

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
class FitProgress:
    """How far a fit has come.

    Attributes:
        update: number of updates done.
        best_loss: lowest held-out loss so far.
        best: weights with that loss.
        history: figures of each evaluation.
    """

    update: int = 0
    best_loss: float = float("inf")
    best: Weights = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)


class TrainedParts(NamedTuple):
    """Everything that an update changes.

    Attributes:
        model: model that is fitted.
        optimizer: optimizer of its parameters.
        means: moving averages of the parameters; empty if there are none.
    """

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    means: list[Tensor]


class Checkpoint(NamedTuple):
    """Content of a checkpoint file.

    Attributes:
        info: numbers and text, JSON-plain.
        tensors: tensors by name.
    """

    info: dict[str, Any]
    tensors: Weights


def path_for(out: Path) -> Path:
    """Return the path of the checkpoint of a fit that will make the world `out`."""
    return out.with_name(f"{out.name}.fitting.safetensors")


def save(
    path: Path, fingerprint: dict[str, Any], parts: TrainedParts, progress: FitProgress
) -> None:
    """Write a checkpoint atomically: if the process is killed, the previous one remains.

    Args:
        path: file to write.
        fingerprint: dataset and settings, which must be the same when the fit resumes.
        parts: model, optimizer and averages.
        progress: progress of the fit.
    """
    tensors = {f"model/{key}": value for key, value in parts.model.state_dict().items()}
    tensors |= {f"best/{key}": value for key, value in progress.best.items()}
    tensors |= {f"mean/{index}": value for index, value in enumerate(parts.means)}
    numbers: dict[str, float] = {}
    state = parts.optimizer.state_dict()
    for index, slots in state["state"].items():
        for key, value in slots.items():
            (tensors if isinstance(value, Tensor) else numbers)[f"optimizer/{index}/{key}"] = value
    info = {
        "fingerprint": fingerprint,
        "update": progress.update,
        "best_loss": progress.best_loss,
        "history": progress.history,
        "optimizer": numbers,
        # Some optimizers count their steps per group of parameters.
        "steps": [group.get("step") for group in state["param_groups"]],
    }
    # safetensors refuses tensors that share memory: each gets its own.
    tensors = {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata={"dreamgym": json.dumps(info)})


def read(path: Path, fingerprint: dict[str, Any] | None = None) -> Checkpoint:
    """Read a checkpoint.

    Args:
        path: file to read.
        fingerprint: expected fingerprint; None accepts any.

    Raises:
        CheckpointError: the file is not readable, or belongs to a fit with other data or settings.
    """
    try:
        with safe_open(path, framework="pt") as file:
            info = json.loads((file.metadata() or {})["dreamgym"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a readable checkpoint ({error}); delete it to fit from the start"
        ) from error
    if fingerprint is not None:
        _check_fingerprint(path, info["fingerprint"], fingerprint)
    return Checkpoint(info, tensors)


def restore(checkpoint: Checkpoint, parts: TrainedParts) -> FitProgress:
    """Restore model, optimizer and averages in place, and return the progress.

    Raises:
        CheckpointError: the model had other layers in the version that wrote the checkpoint.
    """
    info, tensors = checkpoint
    try:
        parts.model.load_state_dict(_with_prefix("model/", tensors))
    except RuntimeError as error:
        raise CheckpointError(
            f"the interrupted fit has other layers than {type(parts.model).__name__} in this "
            "version; finish it with the version that began it, or delete the checkpoint (or give "
            f"overwrite=True) to fit from the start: {str(error).splitlines()[-1].strip()}"
        ) from error
    for index, mean in _with_prefix("mean/", tensors).items():
        parts.means[int(index)].copy_(mean)
    slots: dict[int, dict[str, Any]] = {}
    values = {
        **_with_prefix("optimizer/", tensors),
        **_with_prefix("optimizer/", info["optimizer"]),
    }
    for key, value in values.items():
        index, name = key.split("/")
        slots.setdefault(int(index), {})[name] = value
    groups = parts.optimizer.state_dict()["param_groups"]
    for group, step in zip(groups, info["steps"], strict=True):
        group |= {} if step is None else {"step": step}
    parts.optimizer.load_state_dict({"state": slots, "param_groups": groups})
    best = _with_prefix("best/", tensors)
    return FitProgress(info["update"], info["best_loss"], best, info["history"])


def _with_prefix(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values whose names have a prefix, without it."""
    return {key.removeprefix(prefix): v for key, v in values.items() if key.startswith(prefix)}


def _check_fingerprint(path: Path, saved: dict[str, Any], expected: dict[str, Any]) -> None:
    differing = [k for k in sorted({*saved, *expected}) if saved.get(k) != expected.get(k)]
    if differing:
        listed = ", ".join(
            f"{key} ({saved.get(key)!r}, here {expected.get(key)!r})" for key in differing
        )
        raise CheckpointError(
            f"{path} is the checkpoint of a fit with another {listed}; run it with its own "
            "settings to resume (--evaluate-every is evaluate_every, and so on), or delete it to "
            "fit from the start"
        )
