"""A JEPA's loss in one of several processes that share a batch; see `test_processes`."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist

from dreamgym.models import Segment
from dreamgym.models.jepa.model import JEPA
from dreamgym.models.reduction import global_batch
from tests.models.jepa.test_model import a_model, a_segment, noise_for, with_objective

PROCESSES = 2


def fresh() -> tuple[JEPA, Segment, torch.Tensor]:
    """Return model, global batch and noise, equal in every process; rows are padded unequally."""
    weights = dict.fromkeys(("sigreg", "std", "cov", "temporal", "inverse"), 1.0)
    model = a_model(with_objective(**weights, rollout=3)).train()
    segment = a_segment()
    mask = segment.mask.clone()
    mask[0, 3:], mask[4, 5:] = False, False
    segment = segment._replace(mask=mask)
    return model, segment, noise_for(model, segment)


def outcome(model: JEPA, segment: Segment, noise: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the loss, its terms, gradients, and the buffers afterwards."""
    loss, terms = model.loss(segment, noise)
    loss.backward()
    gradients = {f"gradient {n}": p.grad for n, p in model.named_parameters()}
    buffers = {f"buffer {name}": value.clone() for name, value in model.named_buffers()}
    return {"loss": loss.detach(), **terms, **gradients, **buffers}


def run(rank: int, folder: str) -> None:
    """Compute the outcome of this process's share of the batch, and save it."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=PROCESSES)
    model, segment, noise = fresh()
    rows = slice(rank * 3, rank * 3 + 3)
    with global_batch():
        result = outcome(model, Segment(*(leaf[rows] for leaf in segment)), noise[rows])
    for name, value in result.items():
        if name.startswith("gradient"):  # averaged as in data parallelism
            dist.all_reduce(value)
            value /= PROCESSES
    torch.save(result, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
