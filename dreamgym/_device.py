"""Choosing where to compute, and with how many threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

PROCESS = os.getpid()

"""Where this module was imported: elsewhere it is a fork of that process."""


def resolve_device(name: str | torch.device) -> torch.device:
    """The device that a name stands for; "auto" is CUDA where there is one, else the CPU.

    Raises:
        ValueError: there is no such device here.
    """
    if str(name) == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        # The device that memory is really on: "cuda" is "cuda:0", and tensors say so.
        return torch.empty(0, device=torch.device(name)).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device={str(name)!r} cannot be used here ({str(error).splitlines()[0]}); "
            'give "auto", "cpu", or a device that torch sees'
        ) from error


def limit_threads_after_fork() -> None:
    """In a fork use one thread: the parent's others are not there, and would be waited for forever.

    A process that has computed with several threads of OpenMP and then forks leaves its children
    with a pool of threads that do not exist; the first operation that needs them hangs.
    """
    if os.getpid() != PROCESS and torch.get_num_threads() > 1:
        torch.set_num_threads(1)


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Use `count` threads inside torch's operations, and what it was before afterwards.

    Small products gain nothing from a second thread, and fall to a third of their speed when
    another process has the core.

    Args:
        count: threads; None leaves torch's own choice.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators for a block, and leave them as they were.

    Weights and dropout draw from them. (`torch.manual_seed` would seed every CUDA device.)

    Args:
        seed: of the block's random numbers.
        device: the only one whose generator is used, beside the CPU's.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.default_generators[device.index].manual_seed(seed)
        yield
