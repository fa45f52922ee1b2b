"""Where a fit computes: device, precision, and the processes that share it.

Lightning Fabric does it. Several processes are started by `torchrun`, on one machine or several,
and share every batch: each works on its own rows, and gradients are averaged (data parallelism).
Fabric is one of the package's own dependencies, not an extra, so that there is one loop however
many processes it runs in. Its import takes a tenth of a second after the first step of an
optimiser, which needs the slow part of it (torch's compiler) in any case.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import torch

from dreamgym._device import product_dtype, resolve_device
from dreamgym.fitting.config import FitConfig, Precision

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def several() -> bool:
    """Whether `torchrun` started this process among others."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1


def is_first() -> bool:
    """Whether this is the process that writes files and speaks: the first, or the only one."""
    return not several() or os.environ["RANK"] == "0"


def launched(config: FitConfig) -> Fabric:
    """Fabric, at work on the device and in the processes that there are.

    Raises:
        ValueError: there is no such device; or the batch cannot be shared equally.
    """
    from lightning_fabric import Fabric

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it says what it was told
    if not several():
        device = resolve_device(config.device)
        where = [device.index] if device.index is not None else 1
        fabric = Fabric(
            accelerator=device.type, devices=where, precision=_precision(config, device.type)
        )
    else:
        count, here = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
        _check_share(config, count)
        kind = _kind(config.device)
        fabric = Fabric(
            accelerator=kind,
            devices=here,
            num_nodes=count // here,
            strategy="ddp",
            precision=_precision(config, kind),
        )
    fabric.launch()
    return fabric


def _precision(config: FitConfig, kind: str) -> Precision:
    """The precision that a kind of device has; see `product_dtype`."""
    if config.precision == "bf16-mixed" and product_dtype(kind, torch.bfloat16) == torch.float32:
        return "32-true"
    return config.precision


def _kind(device: str) -> str:
    """The kind of device of which each process takes its own."""
    if ":" in device:
        raise ValueError(
            f"device={device!r} under torchrun: each process takes its own; give the kind alone, "
            f'"{device.partition(":")[0]}", or "auto"'
        )
    if device in ("auto", "cuda") and torch.cuda.is_available():
        return "cuda"  # not asked for memory, which would all be that of the first
    return "cpu" if device == "auto" else resolve_device(device).type


def _check_share(config: FitConfig, count: int) -> None:
    equal = count * config.optimizer.accumulate
    if config.batch_size % equal:
        raise ValueError(
            f"batch_size={config.batch_size} cannot be shared by {count} processes in "
            f"accumulate={config.optimizer.accumulate} equal pieces; give a multiple of {equal}"
        )
