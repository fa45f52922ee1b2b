"""What can go wrong in training and with a policy's file."""

from __future__ import annotations

from pathlib import Path


class TrainingError(ValueError):
    """Something asked of training that cannot be done; the message says what can."""


class PolicyFileError(ValueError):
    """A policy's file that cannot be read, or one that could not be written."""


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C during training; what was trained so far is saved where there was a place for it.

    Attributes:
        path: where the policy was saved; None where no `out` was given or nothing was trained yet.
        steps: dream steps that it was trained for.
    """

    def __init__(self, message: str, *, path: Path | None, steps: int) -> None:
        super().__init__(message)
        self.path = path
        self.steps = steps
