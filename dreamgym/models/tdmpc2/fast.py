"""TD-MPC2's step arranged for speed: the same function as `TDMPC2.step`."""

from __future__ import annotations

import torch
from torch import Tensor

from dreamgym.models.base import Prediction, State, Temperature, model_device
from dreamgym.models.fast import FastForm
from dreamgym.models.nn.packed import Packing
from dreamgym.models.tdmpc2.model import TDMPC2


class FastTDMPC2(FastForm):
    """A TD-MPC2 for inference with a fixed number of rows; see `TDMPC2.prepare`.

    Args:
        model: the model to arrange.
        num_envs: rows of every step.
        dtype: dtype of the matrix products.
    """

    model: TDMPC2

    def __init__(self, model: TDMPC2, num_envs: int, dtype: torch.dtype) -> None:
        super().__init__(model)
        packing = Packing(num_envs, dtype, model_device(model))
        self._dynamics = packing.chain(model.dynamics)
        self._reward = packing.chain(model.reward)
        self._termination = packing.chain(model.termination)
        self._probe = None if model.probe is None else packing.chain(model.probe)

    def step(
        self, state: State, action: Tensor, noise: Tensor, temperature: Temperature = 1.0
    ) -> tuple[State, Prediction]:
        """See `WorldModel.step`."""
        model = self.model
        both = torch.cat([state["z"], model.encode_action(action)], -1)
        z = self._dynamics(both)
        vectors = None if self._probe is None else self._probe(z)
        termination = self._termination(torch.cat([both, z], -1))
        return {"z": z}, model.to_prediction(self._reward(both), termination, vectors)
