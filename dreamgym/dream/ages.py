"""The ages of coming steps, counted ahead: in few rows a step costs as many calls as it has."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dreamgym.dream.state import Dreams


class Age(NamedTuple):
    """How old rows are after a step, unless one of them begins anew in it.

    Attributes:
        age: (N,) int64 steps since the episode began.
        length: the same, in memory of its own.
        never: three (N,) bool of nothing but false, each in memory of its own.
        late: (N,) bool, which rows have reached their horizon; None if no row has.
    """

    age: Tensor
    length: Tensor
    never: tuple[Tensor, Tensor, Tensor]
    late: Tensor | None


class Ages:
    """Of all rows in the coming steps.

    Args:
        dreams: where they stand before these.
        steps: how many.
    """

    def __init__(self, dreams: Dreams, steps: int) -> None:
        self._coming = torch.arange(1, steps + 1).unsqueeze(1)
        self._age = dreams.age + self._coming
        self._late = self._age >= dreams.horizon
        self._calm: list[bool] = (~self._late.any(1)).tolist()
        never = torch.zeros(3, *self._age.shape, dtype=torch.bool)
        self._length = self._age.clone()
        columns = (self._age, self._length, *never)
        # Each with a count of writes of its own, as autograd keeps one: views share their base's.
        self._views = list(zip(*([row.data for row in leaf] for leaf in columns), strict=True))

    def at(self, step: int) -> Age:
        """After one of the steps."""
        age, length, *never = self._views[step]
        late = None if self._calm[step] else self._late[step]
        return Age(age, length, tuple(never), late)

    def began(self, step: int, rows: Tensor, horizon: Tensor) -> None:
        """Some rows begin an episode before one of the steps.

        Args:
            step: the first that belongs to it.
            rows: (R,) which.
            horizon: (R,) of the new episode.
        """
        left = len(self._age) - step
        age = self._coming[:left].expand(-1, len(rows))
        for counted in (self._age, self._length):
            counted[step:].index_copy_(1, rows, age)
        self._late[step:].index_copy_(1, rows, age >= horizon)
        self._calm[step:] = (~self._late[step:].any(1)).tolist()
