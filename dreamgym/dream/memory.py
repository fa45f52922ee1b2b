"""How much memory dreams take, asked before it is taken."""

from __future__ import annotations

from pathlib import Path

import torch

from dreamgym.models import WorldModel

COPIES = 4
"""Of a state at the peak of a step: the old one, the new one, a start, and the merged one."""
MEMORY_INFO = Path("/proc/meminfo")
NOISE_BYTES = 40
"""A number of noise costs at its peak: the hash in 64 bits, some copies of it, and the float."""


def bytes_per_env(model: WorldModel) -> int:
    """What one more environment costs at the peak of a step, roughly and rather too much."""
    state = sum(leaf.numel() * leaf.element_size() for leaf in model.initial(1).values())
    return COPIES * (state + 4 * model.feature_dim) + NOISE_BYTES * (model.noise_dim + 8)


def check_memory(model: WorldModel, num_envs: int, device: torch.device) -> None:
    """Refuse more environments than the device has memory for.

    Raises:
        ValueError: saying how many fit.
    """
    free = free_bytes(device)
    each = bytes_per_env(model)
    if free is not None and num_envs * each > free:
        raise ValueError(
            f"num_envs={num_envs} would take about {num_envs * each / 2**30:.1f} GiB on {device}, "
            f"which has {free / 2**30:.1f} GiB free: about {free // each} environments fit"
        )


def free_bytes(device: torch.device) -> int | None:
    """Free memory of a device; None where the system does not tell."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type == "cpu" and MEMORY_INFO.exists():
        for line in MEMORY_INFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):  # what can be had, the page cache included
                return 1024 * int(line.split()[1])
    return None
