"""Memory that a step frees is kept for the next one.

glibc maps every large block from the kernel and unmaps it when it is freed, until it has seen so
large a block freed; from then on it keeps blocks of that size. A step of a thousand dreams frees
blocks of megabytes, and taking them anew page by page can cost a fifth of it.
"""

from __future__ import annotations

import torch

LARGEST_KEPT = 31 * 2**20
"""Bytes: glibc learns from blocks of up to 32 MiB (`M_MMAP_THRESHOLD` of mallopt(3))."""


def keep_freed_memory() -> None:
    """Free one large block that nobody has touched, which costs nothing and is the lesson.

    It holds for the whole process, which from then on may keep up to twice as much of what was
    freed. Other allocators take no notice.
    """
    torch.empty(LARGEST_KEPT, dtype=torch.uint8, device="cpu")
