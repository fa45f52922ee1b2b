"""Choosing where to compute."""

from __future__ import annotations

import torch


def resolve_device(name: str | torch.device) -> torch.device:
    """The device that a name stands for; "auto" is CUDA where there is one, else the CPU.

    Raises:
        ValueError: there is no such device here.
    """
    if str(name) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device={str(name)!r} cannot be used here ({str(error).splitlines()[0]}); "
            'give "auto", "cpu", or a device that torch sees'
        ) from error
    return device
