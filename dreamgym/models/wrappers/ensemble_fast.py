"""The fast form of an ensemble: all members in one batched call."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from dreamgym.models.base import State, WorldModel
from dreamgym.models.wrappers.ensemble import Ensemble


class _Calls(nn.Module):
    """Any method of a model as a forward, which is what `functional_call` calls."""

    def __init__(self, model: WorldModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, method: str, *arguments: Any) -> Any:
        return getattr(self.model, method)(*arguments)


class FastEnsemble(Ensemble):
    """An ensemble with its members' weights stacked: each method is one call over all of them.

    Args:
        ensemble: fitted; its weights are copied.
        num_envs: rows of every step; not used.
        dtype: of matrix products; float32 is the only one.

    Raises:
        ValueError: another dtype.
    """

    def __init__(self, ensemble: Ensemble, num_envs: int, dtype: torch.dtype) -> None:
        if dtype != torch.float32:
            raise ValueError(f"Ensemble has no fast form for dtype {dtype}; pass dtype='float32'")
        spaces = ensemble.observation_space, ensemble.action_space
        WorldModel.__init__(self, *spaces, ensemble.config)
        self.feature_dim, self.noise_dim = ensemble.feature_dim, ensemble.noise_dim
        self.members, self.decodes = ensemble.members, ensemble.decodes
        if self.decodes:
            self.decode = self._decode
        for name, buffer in ensemble.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        self.calls = _Calls(ensemble._lead())
        states = [_Calls(member).state_dict() for member in ensemble._members()]
        self.weights = {key: torch.stack([s[key] for s in states]) for key in states[0]}

    def all(self, method: str, state: State, *arguments: Any) -> Any:
        """See `Ensemble.all`."""

        def call(weights: State, state: State) -> Any:
            return functional_call(self.calls, weights, (method, state, *arguments))

        # The fused attention of a CPU cannot be batched over members; written out, it can.
        with sdpa_kernel(SDPBackend.MATH):
            return vmap(call, in_dims=(0, 1), out_dims=1)(self.weights, state)
