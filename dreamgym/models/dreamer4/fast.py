"""Dreamer 4's step arranged for speed: the same function as `Dreamer4.step`.

On a CPU the keys and values of the observations before are kept from step to step, in this form and
not in the state. With them it keeps the states that it returned: a row whose state is another one,
as after a reset, is recomputed, and the state alone decides the result. Which rows those are is
known only after a host sync. So on other devices, and in compiled code, they are computed in each
step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dreamgym.models.base import Prediction, State, Temperature
from dreamgym.models.dreamer4.model import Dreamer4
from dreamgym.models.dreamer4.modules import Keys
from dreamgym.models.fast import FastForm
from dreamgym.models.host_sync import host_sync_allowed

GIVEN = ("z", "actions", "length")
"""Leaves of a state that keys and values depend on."""


class FastDreamer4(FastForm):
    """A Dreamer 4 for inference with a fixed number of rows; see `Dreamer4.prepare`.

    Args:
        model: the model to arrange.
        num_envs: rows of every step.
        dtype: dtype of the matrix products.
    """

    model: Dreamer4

    def __init__(self, model: Dreamer4, num_envs: int, dtype: torch.dtype) -> None:
        super().__init__(model)
        self.dtype = dtype
        self._state: State | None = None
        self._keys: list[Keys] = []

    def step(
        self, state: State, action: Tensor, noise: Tensor, temperature: Temperature = 1.0
    ) -> tuple[State, Prediction]:
        """See `WorldModel.step`."""
        lower = self.dtype != torch.float32
        with torch.autocast(action.device.type, self.dtype, enabled=lower):
            if torch.is_grad_enabled() or not host_sync_allowed(action.device):
                following, prediction = self.model.step(state, action, noise, temperature)
                return following, prediction
            before = self._before(state)
            following, prediction, kept = self.model.imagine(
                state, action, noise, temperature, before
            )
        # Copies: the caller may change what it was given.
        self._state = {key: following[key].clone() for key in GIVEN}
        self._keys = kept
        return following, prediction

    def _before(self, state: State) -> list[Keys]:
        """Return keys and values of the last observations of each row."""
        if self._state is None or len(self._state["length"]) != len(state["length"]):
            return self.model.before(state)
        hit = self._state["length"] == state["length"]
        for name in ("z", "actions"):
            hit &= (self._state[name] == state[name]).flatten(1).all(1)
        if bool(hit.all()):
            return self._keys
        rows = (~hit).nonzero().squeeze(1)
        fresh = self.model.before({key: state[key][rows] for key in GIVEN})
        return [
            (old[0].index_copy(0, rows, new[0]), old[1].index_copy(0, rows, new[1]))
            for old, new in zip(self._keys, fresh, strict=True)
        ]
