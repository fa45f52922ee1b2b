"""The step of block-causal families arranged for speed: the same function as the plain one.

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
from dreamgym.models.fast import FastForm
from dreamgym.models.host_sync import host_sync_allowed
from dreamgym.models.nn.block_causal import BlockCausalModel, Keys


class KeptKeys(FastForm):
    """A block-causal model for inference with a fixed number of rows; see `WorldModel.prepare`.

    Args:
        model: the model to arrange.
        num_envs: rows of every step.
        dtype: dtype of the matrix products.
    """

    model: BlockCausalModel

    def __init__(self, model: BlockCausalModel, num_envs: int, dtype: torch.dtype) -> None:
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
        self._state = {key: following[key].clone() for key in self.model.given}
        self._keys = kept
        return following, prediction

    def _before(self, state: State) -> list[Keys]:
        """Return keys and values of the last observations of each row."""
        if self._state is None or len(self._state["length"]) != len(state["length"]):
            return self.model.before(state)
        hit = torch.ones_like(state["length"], dtype=torch.bool)
        for name, kept in self._state.items():
            hit &= (kept == state[name]).flatten(1).all(1) if kept.ndim > 1 else kept == state[name]
        if bool(hit.all()):
            return self._keys
        rows = (~hit).nonzero().squeeze(1)
        fresh = self.model.before({key: state[key][rows] for key in self.model.given})
        return [
            (old[0].index_copy(0, rows, new[0]), old[1].index_copy(0, rows, new[1]))
            for old, new in zip(self._keys, fresh, strict=True)
        ]
