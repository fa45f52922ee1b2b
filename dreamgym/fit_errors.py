"""What stops a fit, in words that say what to do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from dreamgym.fit_config import FitConfig

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class FitError(RuntimeError):
    """A fit that cannot go on; the last good checkpoint is kept."""


def finite(terms: Mapping[str, Tensor], update: int, checkpoint: Path | None) -> dict[str, float]:
    """The terms of a loss as numbers.

    Args:
        terms: scalars by name.
        update: updates done.
        checkpoint: where one is kept, if there is one.

    Raises:
        FitError: one of them is not finite.
    """
    figures = {name: float(term.detach()) for name, term in terms.items()}
    for name, value in figures.items():
        if not math.isfinite(value):
            raise FitError(
                f"{name} is {value} at update {update}{_kept(checkpoint)}. "
                "Lower the learning rate or look at the data with `dreamgym check`"
            )
    return figures


@contextmanager
def naming_memory(config: FitConfig, update: int, checkpoint: Path | None) -> Iterator[None]:
    """Turn every way of saying "out of memory" into one error that says which size to lower.

    Args:
        config: whose sizes are named.
        update: updates done.
        checkpoint: where one is kept, if there is one.

    Raises:
        FitError: the block ran out of memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        said = str(error).lower()
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not known and not any(words in said for words in OUT_OF_MEMORY):
            raise
        pieces = config.optimizer.accumulate
        raise FitError(
            f"out of memory at update {update} with batch_size={config.batch_size}, "
            f"segment_length={config.segment_length} and accumulate={pieces}"
            f"{_kept(checkpoint)}. Give accumulate={2 * pieces}, which leaves the batch what it "
            "is and takes it in smaller pieces; or lower batch_size, or else segment_length"
        ) from error


def _kept(checkpoint: Path | None) -> str:
    there = checkpoint is not None and checkpoint.exists()
    return f"; the last good checkpoint is {checkpoint}" if there else ""
