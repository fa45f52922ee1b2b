"""Minari's nested spaces as the spaces that dreamgym models: Box, and a Dict of Box.

A Dict or Tuple inside another one becomes keys such as `outer/inner` and `outer/0`. Observations of
Discrete, MultiDiscrete and MultiBinary spaces become vectors of zeros and ones, as
`gymnasium.wrappers.FlattenObservation` makes them. Actions of a MultiBinary space become those of a
MultiDiscrete, and the parts of a Dict or Tuple of actions are joined to one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from dreamgym.data.formats.interface import Array
from dreamgym.data.spaces import MAX_ROW_BYTES, space_from_json
from dreamgym.errors import DatasetError, UnsupportedSpaceError

_MAX_DEPTH = 16
_MAX_ONE_HOT = 4096

_Discrete = spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """A part of an observation or an action that is not a Dict or a Tuple.

    Attributes:
        place: its keys in Dicts, and its indices in Tuples, the outermost first.
        space: its space; `None` if it is not known.
    """

    place: tuple[str | int, ...]
    space: gym.Space[Any] | None = None

    @property
    def key(self) -> str:
        """Its key in a flat Dict; empty for a space without parts."""
        return "/".join(map(str, self.place))


def parse_space(description: Any) -> list[Leaf]:
    """Return the parts of a space in Minari's JSON; those of text are left out.

    Raises:
        DatasetError: the description is not valid, or an element of the space is too large.
    """
    leaves, left = [], MAX_ROW_BYTES
    for leaf in _parse_leaves(description, ()):
        if isinstance(leaf.space, spaces.Box):
            left -= math.prod(leaf.space.shape) * leaf.space.dtype.itemsize
        if left < 0:
            raise DatasetError(f"an element of a space takes more than {MAX_ROW_BYTES:,} bytes")
        leaves.append(leaf)
    return leaves


def _parse_leaves(description: Any, place: tuple[str | int, ...]) -> Iterator[Leaf]:
    if not isinstance(description, dict) or len(place) > _MAX_DEPTH:
        raise DatasetError(f"a space is {str(description)[:80]!r}; expected a JSON object")
    kind, inner = description.get("type"), description.get("subspaces")
    if kind == "Dict" and isinstance(inner, dict):
        for key, child in inner.items():
            yield from _parse_leaves(child, (*place, key))
    elif kind == "Tuple" and isinstance(inner, list):
        for index, child in enumerate(inner):
            yield from _parse_leaves(child, (*place, index))
    elif kind == "MultiBinary":
        yield Leaf(place=place, space=_multi_binary(description.get("n")))
    elif kind != "Text":
        yield Leaf(place=place, space=space_from_json(description))


def _multi_binary(size: Any) -> spaces.MultiBinary:
    sizes = size if isinstance(size, list) else [size]
    if (
        not sizes
        or not all(type(n) is int and n > 0 for n in sizes)
        or (math.prod(sizes) > _MAX_ONE_HOT)
    ):
        raise DatasetError(
            f"a MultiBinary has the size {str(size)[:80]}; expected 1 to {_MAX_ONE_HOT:,}"
        )
    return spaces.MultiBinary(size)


# ---------------------------------------------------------------- observations


def observation_box(leaf: Leaf) -> spaces.Box:
    """Return the Box of a part of an observation.

    Raises:
        UnsupportedSpaceError: the part has too many values for a vector of zeros and ones.
    """
    if isinstance(leaf.space, spaces.Box):
        return leaf.space
    size = spaces.flatdim(leaf.space) if leaf.space is not None else 0
    if not isinstance(leaf.space, _Discrete) or size > _MAX_ONE_HOT:
        raise UnsupportedSpaceError(
            f"the observation space at {leaf.key!r} is {str(leaf.space)[:80]} with {size:,} "
            f"values; expected at most {_MAX_ONE_HOT:,}, which are modelled one by one"
        )
    box = spaces.flatten_space(leaf.space)
    return box if isinstance(box, spaces.Box) else spaces.Box(0, 1, (size,), np.int8)


def observation_rows(leaf: Leaf, values: Array) -> Array:
    """Return rows of a part of an observation `(N, ...)` as its Box has them.

    Raises:
        DatasetError: the rows do not fit the space.
    """
    if leaf.space is None:
        return values
    if isinstance(leaf.space, spaces.Box):
        return _shaped(values, leaf.space.shape, leaf)
    box = observation_box(leaf)
    if isinstance(leaf.space, spaces.MultiBinary):
        return _shaped(values, box.shape, leaf).astype(box.dtype)
    flat = values.reshape(len(values), -1).astype(np.int64)
    if isinstance(leaf.space, spaces.Discrete):
        counts, starts = np.array([leaf.space.n]), np.array([leaf.space.start])
    elif isinstance(leaf.space, spaces.MultiDiscrete):
        counts, starts = leaf.space.nvec.reshape(-1), np.asarray(leaf.space.start).reshape(-1)
    else:
        raise TypeError(f"expected a space of numbers, got {leaf.space}")
    numbers = flat - starts
    if flat.shape[1] != len(counts) or (numbers < 0).any() or (numbers >= counts).any():
        raise DatasetError(f"its values do not fit {leaf.space}", key=leaf.key or "observations")
    columns = zip(counts, numbers.T, strict=True)
    parts = [np.eye(n, dtype=box.dtype)[column] for n, column in columns]
    return np.concatenate(parts, axis=1)


def _shaped(values: Array, shape: tuple[int, ...], leaf: Leaf) -> Array:
    if values.size != len(values) * math.prod(shape):
        raise DatasetError(
            f"its rows have the shape {values.shape[1:]}; its space has {shape}",
            key=leaf.key or "observations",
        )
    return values.reshape(len(values), *shape)


def observation_note(leaves: Sequence[Leaf]) -> list[str]:
    """Return how the real environment is to be wrapped to give the same observations."""
    notes = []
    if any(len(leaf.place) > 1 for leaf in leaves):
        notes.append(
            "its observations are nested Dicts, read as one Dict of "
            f"{sorted(leaf.key for leaf in leaves)}; wrap the real environment to have these keys"
        )
    numbers = [leaf for leaf in leaves if isinstance(leaf.space, _Discrete)]
    if numbers and numbers[0].place:
        notes.append(
            f"the numbers of {[leaf.key for leaf in numbers]} are read as vectors of zeros "
            "and ones (gymnasium.spaces.flatten); wrap the real environment to have these"
        )
    elif numbers:
        notes.append(
            f"its observations ({numbers[0].space}) are read as vectors of zeros and ones; wrap "
            "the real environment in gymnasium.wrappers.FlattenObservation"
        )
    return notes


# ---------------------------------------------------------------- actions


def action_space(leaves: Sequence[Leaf]) -> tuple[gym.Space[Any], list[str]]:
    """Return the space of the joined actions, and how the real environment is to be wrapped.

    Raises:
        UnsupportedSpaceError: Boxes and numbers are mixed.
    """
    if len(leaves) == 1 and not isinstance(leaves[0].space, spaces.MultiBinary | None):
        only = leaves[0].space
        if only is not None:
            return only, [] if not leaves[0].place else [_joined_note(leaves, only)]
    kinds = [leaf.space for leaf in leaves]
    joined: gym.Space[Any]
    if kinds and all(isinstance(space, spaces.Box) for space in kinds):
        lows = [np.ravel(space.low) for space in kinds if isinstance(space, spaces.Box)]
        highs = [np.ravel(space.high) for space in kinds if isinstance(space, spaces.Box)]
        dtype = np.result_type(*lows)
        joined = spaces.Box(np.concatenate(lows), np.concatenate(highs), dtype=dtype.type)
    elif kinds and all(isinstance(space, _Discrete) for space in kinds):
        joined = spaces.MultiDiscrete(np.concatenate([_choices(space) for space in kinds]))
    else:
        raise UnsupportedSpaceError(
            f"the action space has the parts {[str(space)[:40] for space in kinds]}; expected "
            "either Boxes or numbers (Discrete, MultiDiscrete, MultiBinary)"
        )
    return joined, [_joined_note(leaves, joined)]


def _joined_note(leaves: Sequence[Leaf], joined: gym.Space[Any]) -> str:
    parts = ", ".join(f"{leaf.key or 'the action'} {str(leaf.space)[:60]}" for leaf in leaves)
    return (
        f"its actions ({parts}) are read as {str(joined)[:80]}; wrap the real environment in "
        "gymnasium.wrappers.TransformAction to take these"
    )


def _choices(space: Any) -> Array:
    """Return the numbers of choices of a space of numbers, `(K,)`."""
    if isinstance(space, spaces.Discrete):
        return np.array([space.n], np.int64)
    if isinstance(space, spaces.MultiBinary):
        return np.full(math.prod(space.shape), 2, np.int64)
    return np.ravel(space.nvec).astype(np.int64)


def join_actions(leaves: Sequence[Leaf], values: Sequence[Array], joined: gym.Space[Any]) -> Array:
    """Return the actions of all parts `(T, ...)` as one array."""
    if len(leaves) == 1 and leaves[0].space is joined:
        return values[0]
    if len(leaves) == 1 and leaves[0].space is None:
        return values[0]
    columns = []
    for leaf, rows in zip(leaves, values, strict=True):
        flat = rows.reshape(len(rows), -1)
        if isinstance(leaf.space, spaces.Discrete | spaces.MultiDiscrete):
            flat = flat - np.ravel(leaf.space.start)
        columns.append(flat)
    return np.concatenate(columns, axis=1).astype(joined.dtype)
