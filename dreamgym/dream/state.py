"""`Dreams`, the state of N running dreams, and `Outcome`, the result of one step: plain tensors."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dreamgym.models import State, WorldModel
from dreamgym.models.base import select
from dreamgym.models.observations import Observation

MODEL_PREFIX = "model."


class Dreams(NamedTuple):
    """The state of N running dreams: a value that can be kept, copied and restored.

    Attributes:
        model: state of the world model; leaves (N, ...).
        seed: () int64, the key of all randomness.
        env: (N,) int64, index of the environment; keys the row's own noise.
        episode: (N,) int64, number of the row's current episode, from 0.
        age: (N,) int64, steps since the episode began.
        horizon: (N,) int64, step at which the episode is truncated.
        temperature: (N,) float32, temperature of the episode.
        episode_return: (N,) float32, sum of rewards since the episode began.
        done: (N,) bool, the episode has ended and the row waits for its reset.
    """

    model: State
    seed: Tensor
    env: Tensor
    episode: Tensor
    age: Tensor
    horizon: Tensor
    temperature: Tensor
    episode_return: Tensor
    done: Tensor

    def clone(self) -> Dreams:
        """Return a copy that shares no memory."""
        return Dreams.from_tensors({key: leaf.clone() for key, leaf in self.tensors().items()})

    def detach(self) -> Dreams:
        """Return the same values, detached from the autograd graph."""
        return Dreams.from_tensors({key: leaf.detach() for key, leaf in self.tensors().items()})

    def rows(self, index: Tensor) -> Dreams:
        """Return copies of some rows, with their noise: equal actions give equal futures.

        Args:
            index: (M,) int64 row numbers; a row may be repeated.
        """
        leaves = {
            key: leaf if leaf.ndim == 0 else leaf[index] for key, leaf in self.tensors().items()
        }
        return Dreams.from_tensors(leaves)

    def tensors(self) -> dict[str, Tensor]:
        """Return every leaf by name, as a safetensors file holds them.

        Leaves of the model's state are called `model.<name>`.
        """
        counters = {name: getattr(self, name) for name in self._fields if name != "model"}
        return {**{f"{MODEL_PREFIX}{key}": leaf for key, leaf in self.model.items()}, **counters}

    @classmethod
    def from_tensors(cls, leaves: dict[str, Tensor]) -> Dreams:
        """Build dreams from the leaves that `tensors` returned.

        Raises:
            ValueError: a leaf is missing.
        """
        missing = [name for name in cls._fields[1:] if name not in leaves]
        if missing:
            raise ValueError(
                f"these tensors are not Dreams: {', '.join(missing)} is missing; pass all that "
                "Dreams.tensors() returned"
            )
        model = {
            key.removeprefix(MODEL_PREFIX): leaf
            for key, leaf in leaves.items()
            if key.startswith(MODEL_PREFIX)
        }
        return cls(model, *(leaves[name] for name in cls._fields[1:]))


class Outcome(NamedTuple):
    """The result of one step; every leaf is (N, ...).

    Attributes:
        observation: next observation for the policy; after a SameStep reset, the first
            observation of the new episode.
        reward: float32; zero where NextStep reset the row.
        terminated: bool.
        truncated: bool; never true together with `terminated`.
        done: bool, terminated or truncated.
        final_observation: last observation of the episode where `done`, else the next one.
        episode_return: float32, return of the episode up to and including this step.
        episode_length: int64, length of the episode up to and including this step.
        uncertainty: float32, the model's epistemic uncertainty, >= 0.
    """

    observation: Observation
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    done: Tensor
    final_observation: Observation
    episode_return: Tensor
    episode_length: Tensor
    uncertainty: Tensor


def merge(mask: Tensor, new: Dreams, old: Dreams) -> Dreams:
    """Return the rows of `new` where `mask` (N,) is true and those of `old` elsewhere."""
    rows = {
        name: torch.where(mask, getattr(new, name), getattr(old, name))
        for name in ("env", "episode", "age", "horizon", "temperature", "episode_return", "done")
    }
    return old._replace(model=select(mask, new.model, old.model), **rows)


def unshare(state: State, before: State) -> State:
    """Return a state whose leaves can be written in place without changing any other tensor.

    Leaves that share memory with `before` or with each other are copied. So are leaves that are
    not contiguous: rows of an expanded tensor share memory.
    """
    used = {leaf.untyped_storage().data_ptr() for leaf in before.values()}
    leaves = {}
    for key, leaf in state.items():
        address = leaf.untyped_storage().data_ptr()
        leaves[key] = leaf if address not in used and leaf.is_contiguous() else leaf.clone()
        used.add(address)
    return leaves


def features_share_memory(model: WorldModel) -> bool:
    """Check whether `features` may return memory of the state, by trying it on one state."""
    with torch.no_grad():
        state = {key: leaf.clone().contiguous() for key, leaf in model.initial(2).items()}
        features = model.features(state).untyped_storage().data_ptr()
    return features in {leaf.untyped_storage().data_ptr() for leaf in state.values()}


def requires_grad(actions: Any, dreams: Dreams) -> bool:
    """Check whether a step with these actions has gradients to propagate."""
    if isinstance(actions, Tensor) and actions.requires_grad:
        return True
    return any(leaf.requires_grad for leaf in dreams.model.values())
