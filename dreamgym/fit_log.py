"""Where the figures of a fit go while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Log = Callable[[str, float, int], None]
"""Takes a figure's name, its value, and the number of updates done."""


@contextmanager
def logger(folder: str | None) -> Iterator[Log]:
    """What writes figures to TensorBoard, or nowhere.

    Args:
        folder: of TensorBoard's events; None writes nothing.

    Raises:
        ImportError: the package tensorboard is not installed.
    """
    if folder is None:
        yield lambda name, value, update: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "logging to TensorBoard needs the package tensorboard: "
            "pip install 'dreamgym[tensorboard]', or leave tensorboard=None"
        ) from error
    with SummaryWriter(folder) as writer:
        yield lambda name, value, update: writer.add_scalar(name, value, update)
