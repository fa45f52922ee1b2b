"""The one error of the data room."""

from __future__ import annotations

from os import PathLike


class DatasetError(ValueError):
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
