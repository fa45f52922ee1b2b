"""DIAMOND's step arranged for speed: the same function as `DIAMOND.step`.

Weights and images have the channels of a pixel side by side, which convolutions on many devices
prefer, and lower precision is autocast's: products of the networks, but not the frames, the noise
levels or the LSTM's state.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from dreamgym.models.base import Prediction, State, Temperature, model_device
from dreamgym.models.diamond.model import DIAMOND
from dreamgym.models.fast import FastForm


class FastDIAMOND(FastForm):
    """A DIAMOND for inference; see `DIAMOND.prepare`.

    Args:
        model: the model to arrange.
        num_envs: rows of every step.
        dtype: dtype of the matrix products.
    """

    model: DIAMOND

    def __init__(self, model: DIAMOND, num_envs: int, dtype: torch.dtype) -> None:
        super().__init__(model)
        arranged = copy.deepcopy(model).requires_grad_(False)
        self._arranged = arranged.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._kind, self._dtype = model_device(model).type, dtype

    def step(
        self, state: State, action: Tensor, noise: Tensor, temperature: Temperature = 1.0
    ) -> tuple[State, Prediction]:
        """See `WorldModel.step`."""
        lower = self._dtype != torch.float32
        with torch.autocast(self._kind, self._dtype if lower else None, enabled=lower):
            following, prediction = self._arranged.step(state, action, noise, temperature)
        return following, prediction
