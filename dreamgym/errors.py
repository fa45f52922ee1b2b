"""Every exception that dreamgym raises on purpose, under one base class."""

from __future__ import annotations

from os import PathLike
from pathlib import Path


class DreamgymError(Exception):
    """Base class of every error that dreamgym raises on purpose."""


class DatasetError(DreamgymError, ValueError):
    """Something is wrong with a dataset, with what it was asked for, or with writing it.

    The message reads `path: /key: episode 3, row 7: what is wrong; what to do`, with the parts that
    are known. The parts are kept as attributes too, so that a caller can act on them.

    Args:
        problem: What is wrong: what was found, and what was wanted.
        path: The file, or folder.
        key: The HDF5 key, observation key or column.
        episode: Index of the episode in the file, counted from 0.
        row: Index of the row within the episode, counted from 0.
        remedy: What the user can do about it.
    """

    def __init__(
        self,
        problem: str,
        *,
        path: str | PathLike[str] | None = None,
        key: str | None = None,
        episode: int | None = None,
        row: int | None = None,
        remedy: str | None = None,
    ) -> None:
        self.problem = problem
        self.path = None if path is None else str(path)
        self.key = key
        self.episode = episode
        self.row = row
        self.remedy = remedy
        super().__init__(self._message())

    def _message(self) -> str:
        place = []
        if self.episode is not None:
            place.append(f"episode {self.episode}")
        if self.row is not None:
            place.append(f"row {self.row}")
        parts = [self.path, self.key, ", ".join(place) or None, self.problem]
        message = ": ".join(part for part in parts if part)
        return f"{message}; {self.remedy}" if self.remedy else message

    def at(self, *, path: str | PathLike[str], episode: int | None = None) -> DatasetError:
        """The same error with its path, and its episode, filled in where they were not known."""
        return DatasetError(
            self.problem,
            path=self.path or path,
            key=self.key,
            episode=self.episode if self.episode is not None else episode,
            row=self.row,
            remedy=self.remedy,
        )


class UnsupportedSpaceError(DreamgymError, TypeError):
    """A space that dreamgym cannot record or model; the message names it and what is supported."""


class DiskFullError(DreamgymError, OSError):
    """There was no room to write; nothing that stood before was touched."""


class FitError(DreamgymError, RuntimeError):
    """A fit that cannot go on; the last good checkpoint is kept."""


class CheckpointError(DreamgymError, ValueError):
    """A checkpoint that is not of this fit, or cannot be read."""


class WorldError(DreamgymError, ValueError):
    """A world that cannot be found, read, or trusted to be what it was when it was saved."""


class LeWMError(DreamgymError, ValueError):
    """A checkpoint that cannot be used; the message says which file and what to do."""


class PretrainedError(DreamgymError, RuntimeError):
    """A pretrained model that cannot be had or used; the message says why and what to do."""


class TrainingError(DreamgymError, ValueError):
    """Something asked of training that cannot be done; the message says what can."""


class PolicyFileError(DreamgymError, ValueError):
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


class TransferError(DreamgymError, ValueError):
    """A policy, an environment and a world that do not fit each other.

    The message names what was given, what was wanted and what to do.
    """


class PolicyError(TransferError):
    """A policy that cannot act in an environment.

    It is not a policy, its spaces or frame skip are not the environment's, or what it returned is
    not an action.
    """
