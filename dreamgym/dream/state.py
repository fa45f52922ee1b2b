"""Where dreams stand, and what a step of them gives: plain values of tensors."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dreamgym.models import State, WorldModel
from dreamgym.models.base import select
from dreamgym.models.observations import Observation

MODEL_PREFIX = "model."


class Dreams(NamedTuple):
    """Where N dreams stand: a value, which can be kept, copied and gone back to.

    Attributes:
        model: the model's state; leaves (N, ...).
        seed: () int64 that keys all randomness.
        env: (N,) int64, the index that keys a row's own noise.
        episode: (N,) int64, how many episodes each row has begun before this one.
        age: (N,) int64 steps since the episode began.
        horizon: (N,) int64 steps after which this episode is truncated.
        temperature: (N,) float32 of this episode.
        episode_return: (N,) float32 sum of rewards since the episode began.
        done: (N,) bool; the episode has ended and the row waits for its reset.
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
        """A copy that shares no memory."""
        return Dreams.from_tensors({key: leaf.clone() for key, leaf in self.tensors().items()})

    def detach(self) -> Dreams:
        """The same values, cut off from the graph of gradients."""
        return Dreams.from_tensors({key: leaf.detach() for key, leaf in self.tensors().items()})

    def rows(self, index: Tensor) -> Dreams:
        """The given rows, copied: with their noise, so the same actions give the same futures.

        Args:
            index: (M,) int64; a row may be taken more than once.
        """
        leaves = {
            key: leaf if leaf.ndim == 0 else leaf[index] for key, leaf in self.tensors().items()
        }
        return Dreams.from_tensors(leaves)

    def tensors(self) -> dict[str, Tensor]:
        """Every leaf by name, as safetensors files hold them; the model's are `model.<name>`."""
        own = {name: getattr(self, name) for name in self._fields if name != "model"}
        return {**{f"{MODEL_PREFIX}{key}": leaf for key, leaf in self.model.items()}, **own}

    @classmethod
    def from_tensors(cls, leaves: dict[str, Tensor]) -> Dreams:
        """The reverse of `tensors`.

        Raises:
            ValueError: a leaf is missing.
        """
        missing = [name for name in cls._fields[1:] if name not in leaves]
        if missing:
            raise ValueError(f"these are no dreams: {', '.join(missing)} is missing")
        model = {
            key.removeprefix(MODEL_PREFIX): leaf
            for key, leaf in leaves.items()
            if key.startswith(MODEL_PREFIX)
        }
        return cls(model, *(leaves[name] for name in cls._fields[1:]))


def merge(mask: Tensor, new: Dreams, old: Dreams) -> Dreams:
    """The rows of `new` where `mask` (N,) is true, those of `old` elsewhere."""
    rows = {
        name: torch.where(mask, getattr(new, name), getattr(old, name))
        for name in ("env", "episode", "age", "horizon", "temperature", "episode_return", "done")
    }
    return old._replace(model=select(mask, new.model, old.model), **rows)


def writable(state: State, before: State) -> State:
    """A state that may be written into: leaves in the memory of `before` or of others are copied.

    So are leaves that are not all of a piece, of which rows may lie in the same place.
    """
    taken = {leaf.untyped_storage().data_ptr() for leaf in before.values()}
    leaves = {}
    for key, leaf in state.items():
        place = leaf.untyped_storage().data_ptr()
        leaves[key] = leaf if place not in taken and leaf.is_contiguous() else leaf.clone()
        taken.add(place)
    return leaves


def features_are_new(model: WorldModel) -> bool:
    """Whether features never are memory of the state: tried on one that is all of a piece."""
    with torch.no_grad():
        state = {key: leaf.clone().contiguous() for key, leaf in model.initial(2).items()}
        features = model.features(state).untyped_storage().data_ptr()
    return features not in {leaf.untyped_storage().data_ptr() for leaf in state.values()}


def requires_grad(actions: Any, dreams: Dreams) -> bool:
    """Whether a step from here has gradients to carry."""
    asked = isinstance(actions, Tensor) and actions.requires_grad
    return asked or any(leaf.requires_grad for leaf in dreams.model.values())


class Outcome(NamedTuple):
    """What a step gives; every leaf is (N, ...).

    Attributes:
        observation: what the policy sees next; after a SameStep reset, the new episode's first.
        reward: float32; zero where NextStep reset the row.
        terminated: bool.
        truncated: bool; never together with `terminated`.
        done: bool, either of them.
        final_observation: the true last observation of rows that are done.
        episode_return: of the episode that this step belongs to, this step included.
        episode_length: likewise.
        uncertainty: the model's own, >= 0.
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
