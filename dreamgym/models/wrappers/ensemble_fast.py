"""The fast form of an ensemble: all members in one batched call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from dreamgym.models.base import Prediction, State, Temperature
from dreamgym.models.fast import FastForm
from dreamgym.models.observations import Observation
from dreamgym.models.wrappers.ensemble import Ensemble


class _MethodCall(nn.Module):
    """Any method of a model as `forward`, which is what `functional_call` calls."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, method: str, *arguments: Any) -> Any:
        return getattr(self.model, method)(*arguments)


class FastEnsemble(FastForm):
    """An ensemble with its members' weights stacked: each method is one call over all members.

    Args:
        ensemble: fitted; its weights are copied.
        num_envs: rows of every step; not used.
        dtype: dtype of matrix products; float32 is the only one.

    Raises:
        ValueError: another dtype.
    """

    model: Ensemble

    def __init__(self, ensemble: Ensemble, num_envs: int, dtype: torch.dtype) -> None:
        if dtype != torch.float32:
            raise ValueError(f"Ensemble has no fast form for dtype {dtype}; pass dtype='float32'")
        super().__init__(ensemble)
        calls = [_MethodCall(member) for member in ensemble.members]
        states = [call.state_dict() for call in calls]
        self.call = calls[0]  # of the first member; `functional_call` puts in the others' weights
        self.weights = {key: torch.stack([s[key] for s in states]) for key in states[0]}

    def observe(
        self, state: State, action: Tensor, observation: Observation, noise: Tensor
    ) -> State:
        """See `WorldModel.observe`."""
        return self.model.observe_with(self.call_members, state, action, observation, noise)

    def step(
        self, state: State, action: Tensor, noise: Tensor, temperature: Temperature = 1.0
    ) -> tuple[State, Prediction]:
        """See `WorldModel.step`."""
        return self.model.step_with(self.call_members, state, action, noise, temperature)

    def call_members(self, method: str, state: State, *arguments: Any) -> Any:
        """See `Ensemble.call_members`."""

        def call(weights: State, state: State) -> Any:
            return functional_call(self.call, weights, (method, state, *arguments))

        # The fused attention of a CPU cannot be batched over members; written out, it can.
        with sdpa_kernel(SDPBackend.MATH):
            results = vmap(call, in_dims=(0, 1))(self.weights, state)
        # `out_dims=1` cannot place what no member changes, such as a frame that was observed.
        return torch.utils._pytree.tree_map(lambda leaf: leaf.transpose(0, 1), results)
