"""Every exception that dreamgym defines, under the base class `DreamgymError`.

The exceptions to the rule are `TrainingInterrupted` and `AlarmStop`: they are `KeyboardInterrupt`s,
which `except Exception` must not catch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path


class DreamgymError(Exception):
    """Base class of the errors that dreamgym raises.

    Every one of them is also a built-in exception (`ValueError`, `TypeError`, `OSError` or
    `RuntimeError`). Arguments that are out of range raise plain `ValueError`.
    """


class DatasetError(DreamgymError, ValueError):
    """Raised when a dataset is damaged, unsuitable for the requested use, or cannot be written.

    The message reads `path: /key: episode 3, row 7: problem; remedy`, with the parts that are
    known. The parts are attributes as well, so that a caller can act on them.

    Args:
        problem: what is wrong: what was found, and what was expected.
        path: the file or folder.
        key: the HDF5 key, observation key or column.
        episode: index of the episode in the file, from 0.
        row: index of the row within the episode, from 0.
        remedy: what the user can do about it.
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
        """Return the same error with path and episode filled in where they were unknown."""
        return DatasetError(
            self.problem,
            path=self.path or path,
            key=self.key,
            episode=self.episode if self.episode is not None else episode,
            row=self.row,
            remedy=self.remedy,
        )


class UnsupportedSpaceError(DreamgymError, TypeError):
    """Raised for a space that dreamgym cannot record or model.

    The message names the space and lists the supported ones.
    """


class DiskFullError(DreamgymError, OSError):
    """Raised when the disk has no room for a file; existing files are unchanged."""


class FitError(DreamgymError, RuntimeError):
    """Raised when a fit cannot continue, such as after a loss that is not finite.

    The last good checkpoint is kept.
    """


class CheckpointError(DreamgymError, ValueError):
    """Raised when a fit's checkpoint cannot be read, or belongs to a fit with other settings."""


class WorldError(DreamgymError, ValueError):
    """Raised when a world cannot be found or read, has changed since it was saved, or does not fit.

    The message says which file or setting is at fault.
    """


class LeWMError(DreamgymError, ValueError):
    """Raised when a LeWM checkpoint cannot be imported.

    The message names the file and what to do.
    """


class PretrainedError(DreamgymError, RuntimeError):
    """Raised when a pretrained encoder cannot be loaded or used.

    The message says why and what to do.
    """


class TrainingError(DreamgymError, ValueError):
    """Raised when a policy cannot be trained as asked: unknown algorithm, wrong setting or space.

    The message says what is possible instead.
    """


class PolicyFileError(DreamgymError, ValueError):
    """Raised when a policy file cannot be read or written."""


class TrainingInterrupted(KeyboardInterrupt):
    """Raised for Ctrl-C during training, after the policy trained so far has been saved.

    Attributes:
        path: file that the policy was saved to; None if no `out` was given or nothing was trained.
        steps: dream steps that the policy was trained for.
    """

    def __init__(self, message: str, *, path: Path | None, steps: int) -> None:
        super().__init__(message)
        self.path = path
        self.steps = steps


class AlarmStop(KeyboardInterrupt):
    """Raised when an alarm stops a training (`dreamgym.trust.watch`).

    It is a `KeyboardInterrupt`, since every learner keeps the policy so far at Ctrl-C.
    """


class TransferError(DreamgymError, ValueError):
    """Raised when a policy, an environment and a world do not fit each other.

    The message says what was given, what was expected and what to do.
    """


class OnlineError(DreamgymError, ValueError):
    """Raised when the online loop cannot run as asked, or continue what a folder holds.

    The message says what was given, what was expected and what to do.
    """


class PolicyError(TransferError):
    """Raised when a policy cannot act in an environment.

    The message says why: it is not a policy, its spaces or frame skip are not the environment's, or
    it returned something that is not an action.
    """


@contextmanager
def file_errors(make: Callable[[str], DreamgymError]) -> Iterator[None]:
    """Turn whatever the content of a file makes a library raise into an error of this package.

    It is the outermost guard of everything that reads files: expected problems have better messages
    of their own, which pass unchanged. A missing library is not the file's fault.

    Args:
        make: makes the error from a text that says what happened.
    """
    try:
        yield
    except (DreamgymError, ImportError):
        raise
    except MemoryError as error:
        raise make("reading it takes more memory than there is") from error
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        text = " ".join(str(error).split())[:200]
        raise make(f"it cannot be read ({type(error).__name__}: {text})") from error
