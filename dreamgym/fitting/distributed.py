"""Device, precision and processes of a fit.

Several processes are started by `torchrun`, on one machine or several. They share every batch: each
process works on its own rows, and gradients are averaged (data parallelism).
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from dreamgym._device import product_dtype, resolve_device
from dreamgym.fitting.config import FitConfig, Precision


def is_distributed() -> bool:
    """Return whether `torchrun` started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1


def is_first() -> bool:
    """Return whether this process writes files and reports progress: rank 0, or the only one."""
    return not is_distributed() or os.environ["RANK"] == "0"


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Where and how this process computes.

    Attributes:
        device: device of this process.
        precision: as in `FitConfig`.
        rank: index of this process.
        world_size: number of processes that share every batch.
    """

    device: torch.device
    precision: Precision = "32-true"
    rank: int = 0
    world_size: int = 1

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context in which matrix products have the precision of the fit."""
        if self.precision == "bf16-mixed":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace gradients by their mean over all processes, in one message."""
        if self.world_size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        message = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(message)
        message /= self.world_size
        parts = message.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def broadcast(self, value: Any) -> Any:
        """Return the first process's value in every process."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]


def launch(config: FitConfig) -> Runtime:
    """Choose this process's device, and connect it with the other processes if there are any.

    Raises:
        ValueError: there is no such device, or the batch cannot be divided equally.
    """
    if not is_distributed():
        device = resolve_device(config.device)
        return Runtime(device=device, precision=_precision(config, device))
    world_size = int(os.environ["WORLD_SIZE"])
    _check_batch_size(config, world_size)
    device = _local_device(config.device)
    if not dist.is_initialized():
        # The group lasts as long as the process, because a process may run several fits.
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(_leave_group)
    return Runtime(
        device=device,
        precision=_precision(config, device),
        rank=dist.get_rank(),
        world_size=world_size,
    )


def _precision(config: FitConfig, device: torch.device) -> Precision:
    """Return the precision of a fit: float32 where the device has no bfloat16."""
    lower = config.precision == "bf16-mixed"
    if lower and product_dtype(device.type, torch.bfloat16) == torch.float32:
        return "32-true"
    return config.precision


def _leave_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _local_device(name: str) -> torch.device:
    """Return the device of this process, among several on one machine."""
    if ":" in name:
        raise ValueError(
            f"device={name!r} under torchrun: each process takes its own device; give the type "
            f'alone, "{name.partition(":")[0]}", or "auto"'
        )
    if name not in ("auto", "cuda") or not torch.cuda.is_available():
        kind = "cpu" if name == "auto" else resolve_device(name).type
        return torch.device(kind) if kind == "cpu" else torch.device(kind, _local_rank())
    if _local_rank() >= torch.cuda.device_count():
        raise ValueError(
            f"{os.environ['LOCAL_WORLD_SIZE']} processes on a machine with "
            f"{torch.cuda.device_count()} CUDA devices; start one process for each device"
        )
    device = torch.device("cuda", _local_rank())
    torch.cuda.set_device(device)
    return device


def _local_rank() -> int:
    return int(os.environ["LOCAL_RANK"])


def _check_batch_size(config: FitConfig, world_size: int) -> None:
    parts = world_size * config.optimizer.accumulate
    if config.batch_size % parts:
        raise ValueError(
            f"batch_size={config.batch_size} cannot be shared by {world_size} processes with "
            f"accumulate={config.optimizer.accumulate}; give a multiple of {parts}"
        )
