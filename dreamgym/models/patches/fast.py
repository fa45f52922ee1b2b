"""The step of a model of patches in lower precision: the same function as its own, up to rounding.

Lower precision is autocast's: matrix products of the predictor and the heads, but not the state,
the norms or the arithmetic of poses. In float32 the step is the plain one.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from dreamgym.models.base import Prediction, State, Temperature, model_device
from dreamgym.models.fast import FastForm
from dreamgym.models.patches.patch_model import PatchModel


class FastPatchModel(FastForm):
    """A model of patches for inference; see `WorldModel.prepare`.

    Args:
        model: the model to arrange; its encoder is shared, not copied.
        num_envs: rows of every step.
        dtype: dtype of the matrix products.
    """

    model: PatchModel

    def __init__(self, model: PatchModel, num_envs: int, dtype: torch.dtype) -> None:
        super().__init__(model)
        arranged = copy.deepcopy(model, {id(model.senses): model.senses})
        self._arranged = arranged.requires_grad_(False)
        self._kind, self._dtype = model_device(model).type, dtype

    def step(
        self, state: State, action: Tensor, noise: Tensor, temperature: Temperature = 1.0
    ) -> tuple[State, Prediction]:
        """See `WorldModel.step`."""
        lower = self._dtype != torch.float32
        with torch.autocast(self._kind, self._dtype if lower else None, enabled=lower):
            following, prediction = self._arranged.step(state, action, noise, temperature)
        return following, prediction
