"""Which Gymnasium spaces dreamgym supports, and their conversion to and from JSON, bit for bit.

A description read from a file is not trusted: nothing in it is executed, and its sizes are checked
before anything is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, Protocol, TypeGuard

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from dreamgym.data.images import image_layout
from dreamgym.errors import DatasetError, UnsupportedSpaceError

Role = Literal["observation", "action"]

SUPPORTED: dict[str, str] = {
    "observation": "Box, or a Dict of Box",
    "action": "Discrete, MultiDiscrete or Box",
}

BOX_DTYPES = frozenset(
    {"uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"}
    | {"float16", "float32", "float64"}
)
INTEGER_DTYPES = frozenset(name for name in BOX_DTYPES if "int" in name)

MAX_ROW_BYTES = 1 << 26
"""Most bytes of one observation or action, over all Boxes of its space: a description of a larger
space is an error, or an attempt to exhaust the memory."""

_MAX_RANK = 32


class HasSpaces(Protocol):
    """An environment, a dataset, a model or anything else with the spaces of one environment."""

    @property
    def observation_space(self) -> gym.Space[Any]:
        """Observation space of one environment."""

    @property
    def action_space(self) -> gym.Space[Any]:
        """Action space of one environment."""


def same_spaces(first: HasSpaces, other: HasSpaces) -> bool:
    """Return whether two objects have equal observation spaces and equal action spaces."""
    return bool(
        first.observation_space == other.observation_space
        and first.action_space == other.action_space
    )


def is_float(space: gym.Space[Any]) -> bool:
    """Return whether the values of a space are floating-point numbers, not integers."""
    return space.dtype is not None and np.issubdtype(space.dtype, np.floating)


def check_supported(space: gym.Space[Any], role: Role) -> None:
    """Raise unless dreamgym supports `space` in this role.

    Args:
        space: an observation space or an action space of one environment.
        role: `"observation"` (Box, or Dict of Box) or `"action"` (Discrete, MultiDiscrete, Box).

    Raises:
        UnsupportedSpaceError: the space is not supported; the message names it, its key inside a
            Dict, and what is supported.
    """
    if role not in SUPPORTED:
        raise ValueError(f"role is {role!r}; it must be 'observation' or 'action'")
    if role == "observation" and isinstance(space, spaces.Dict):
        if not space.spaces:
            raise _unsupported(space, role, "", "has no keys")
        for key, child in space.spaces.items():
            if not isinstance(key, str) or not key:
                raise _unsupported(space, role, "", f"has the key {key!r}, not a non-empty string")
            if not isinstance(child, spaces.Box):
                raise _unsupported(child, role, key, "is not a Box")
            _check_box(child, role, key)
    elif isinstance(space, spaces.Box):
        _check_box(space, role, "")
    elif role == "observation" or not isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        raise _unsupported(space, role, "", "")


def _check_box(space: spaces.Box, role: Role, key: str) -> None:
    if str(space.dtype) not in BOX_DTYPES:
        raise _unsupported(space, role, key, f"has dtype {space.dtype}")
    if math.prod(space.shape) == 0:
        raise _unsupported(space, role, key, "has no elements")


def _unsupported(space: Any, role: Role, key: str, reason: str) -> UnsupportedSpaceError:
    place = f" at key {key!r}" if key else ""
    reason = f" ({reason})" if reason else ""
    return UnsupportedSpaceError(
        f"the {role} space{place} is {_brief(space)}{reason}, which dreamgym does not support; "
        f"supported for an {role}: {SUPPORTED[role]}. {_advice(space, role)}"
    )


def _advice(space: Any, role: Role) -> str:
    """Return how to wrap an environment with an unsupported space; the result is supported."""
    parts = list(_leaves(space))
    if role == "observation":
        if any(image_layout(part) is not None for part in parts if isinstance(part, spaces.Box)):
            return (
                "Wrap the environment in gymnasium.wrappers.TransformObservation with a function "
                "that returns a plain dict of arrays, one for each image and vector, and a Dict of "
                "those Boxes as its space"
            )
        flattens = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
        if parts and all(isinstance(part, flattens) and _is_numeric(part) for part in parts):
            return (
                "Wrap the environment in gymnasium.wrappers.FlattenObservation, which makes it one "
                "vector (numbers of a Discrete become one-hot), and record that"
            )
        return (
            "Wrap the environment in gymnasium.wrappers.TransformObservation with a function that "
            "returns an array of numbers of a fixed shape, and a Box of that shape as its space"
        )
    wrapper = "Wrap the environment in gymnasium.wrappers.TransformAction"
    if isinstance(space, spaces.MultiBinary):
        return (
            f"{wrapper}(env, lambda action: action.astype(numpy.int8), "
            f"gymnasium.spaces.MultiDiscrete(numpy.full({space.shape}, 2))), and record that"
        )
    if isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete):
        return f"{wrapper} with a function from such a space to the environment's actions"
    kinds = {type(part) for part in parts}
    joint = "MultiDiscrete" if kinds <= {spaces.Discrete, spaces.MultiDiscrete} else "Box"
    return (
        f"{wrapper} with a function that splits one {joint} into the parts of the environment's "
        f"action, and that {joint} as its space, and record that"
    )


def _leaves(space: Any) -> Iterator[Any]:
    """Iterate over the parts of nested Dict and Tuple spaces."""
    if isinstance(space, spaces.Dict):
        for child in space.spaces.values():
            yield from _leaves(child)
    elif isinstance(space, spaces.Tuple):
        for child in space.spaces:
            yield from _leaves(child)
    else:
        yield space


def _is_numeric(space: gym.Space[Any]) -> bool:
    """Return whether a part has at least one number, of a supported dtype."""
    shape, dtype = space.shape or (), str(np.dtype(space.dtype))
    return math.prod(shape) > 0 and (dtype in BOX_DTYPES or not isinstance(space, spaces.Box))


def _brief(space: Any) -> str:
    text = str(space)
    return text if len(text) <= 120 else f"{text[:100]}... ({type(space).__name__})"


def space_to_json(space: gym.Space[Any]) -> dict[str, Any]:
    """Return a JSON-plain description of a space, from which `space_from_json` restores it.

    Bounds are kept bit for bit; infinities become the strings `"inf"` and `"-inf"`; a bound that is
    the same everywhere becomes one number. The order of a Dict's keys is kept.

    Raises:
        UnsupportedSpaceError: the space is not a Box, Discrete, MultiDiscrete or a Dict of Box.
    """
    if isinstance(space, spaces.Dict):
        check_supported(space, "observation")
        entries = [[key, space_to_json(child)] for key, child in space.spaces.items()]
        return {"type": "Dict", "spaces": entries}
    check_supported(space, "action")
    if isinstance(space, spaces.Box):
        return {
            "type": "Box",
            "dtype": str(space.dtype),
            "shape": list(space.shape),
            "low": _bound_to_json(space.low),
            "high": _bound_to_json(space.high),
        }
    if isinstance(space, spaces.Discrete):
        return {
            "type": "Discrete",
            "dtype": str(np.dtype(space.dtype)),
            "n": int(space.n),
            "start": int(space.start),
        }
    if not isinstance(space, spaces.MultiDiscrete):  # unreachable, but narrows the type
        raise UnsupportedSpaceError(f"{_brief(space)} is not supported")
    return {
        "type": "MultiDiscrete",
        "dtype": str(space.dtype),
        "nvec": space.nvec.tolist(),
        "start": space.start.tolist(),
    }


def space_from_json(description: Any, max_bytes: int = MAX_ROW_BYTES) -> gym.Space[Any]:
    """Return the space that a description of `space_to_json` stands for.

    Args:
        description: result of `space_to_json`, usually read from a JSON file.
        max_bytes: most bytes that one element of the space may have. Nothing is allocated before
            the description has been compared with it.

    Raises:
        UnsupportedSpaceError: the description names a type of space that is not supported.
        DatasetError: the description is malformed; the message says how.
    """
    if not isinstance(description, dict):
        raise DatasetError(
            f"the description of a space is {type(description).__name__}; expected a JSON object"
        )
    size = _row_bytes(description)
    if size > max_bytes:
        raise DatasetError(
            f"a space describes {size:,} bytes for each of its elements; expected at most "
            f"{max_bytes:,}"
        )
    kind = description.get("type")
    if kind == "Dict":
        return _dict_from_json(description)
    makers = {"Box": _box, "Discrete": _discrete, "MultiDiscrete": _multi_discrete}
    if not isinstance(kind, str) or kind not in makers:
        raise UnsupportedSpaceError(
            f"a space of type {kind!r} is not supported; supported: Dict, {', '.join(makers)}"
        )
    try:
        return makers[kind](description)
    except (KeyError, TypeError, ValueError, OverflowError, AssertionError) as error:
        # Gymnasium checks its arguments with `assert`; users get a DatasetError instead.
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"malformed {kind} space: {error!r}") from error


def _row_bytes(description: Any) -> int:
    """Return the bytes of one element of a Box, or of all Boxes of a Dict; 0 if it is malformed."""
    if not isinstance(description, dict):
        return 0
    if description.get("type") == "Dict":
        entries = description.get("spaces")
        pairs = entries if isinstance(entries, list) else []
        children = [pair[1] for pair in pairs if isinstance(pair, list) and len(pair) == 2]
        return sum(_row_bytes(child) for child in children if _is_box(child))
    shape, dtype = description.get("shape"), description.get("dtype")
    if not _is_box(description) or not _is_shape(shape):
        return 0
    if not isinstance(dtype, str) or dtype not in BOX_DTYPES:
        return 0
    return math.prod(shape) * np.dtype(dtype).itemsize


def _is_box(description: Any) -> bool:
    return isinstance(description, dict) and description.get("type") == "Box"


def _is_shape(shape: Any) -> TypeGuard[list[int]]:
    sizes = isinstance(shape, list) and len(shape) <= _MAX_RANK
    return sizes and all(_is_integer(n) and 0 < n < 1 << 62 for n in shape)


def _dict_from_json(description: dict[str, Any]) -> spaces.Dict:
    entries = description.get("spaces")
    if not isinstance(entries, list) or not entries:
        raise DatasetError("a Dict space has no list of keys and spaces")
    children: dict[str, spaces.Space[Any]] = {}
    for entry in entries:
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str):
            raise DatasetError(
                f"a Dict space has the entry {str(entry)[:80]!r}; expected [key, space]"
            )
        key, child = entry
        if not key or key in children:
            raise DatasetError(f"a Dict space has an empty or a repeated key: {key!r}")
        if not isinstance(child, dict) or child.get("type") != "Box":
            raise UnsupportedSpaceError(f"key {key!r} of a Dict space is not a Box")
        children[key] = space_from_json(child)
    # A list of pairs keeps the order; a plain dict would be sorted by Gymnasium.
    return spaces.Dict(list(children.items()))


def _box(description: dict[str, Any]) -> spaces.Box:
    dtype = _dtype(description["dtype"], BOX_DTYPES)
    shape = description["shape"]
    if not _is_shape(shape):
        raise DatasetError(
            f"a Box has the shape {str(shape)[:80]}; expected at most {_MAX_RANK} positive integers"
        )
    low = _bound_from_json(description["low"], dtype, tuple(shape))
    high = _bound_from_json(description["high"], dtype, tuple(shape))
    if np.any(low > high):
        raise DatasetError("a Box has a lower bound above its upper bound")
    return spaces.Box(low=low, high=high, shape=tuple(shape), dtype=dtype.type)


def _discrete(description: dict[str, Any]) -> spaces.Discrete:
    n, start = description["n"], description["start"]
    if not _is_integer(n) or n < 1 or not _is_integer(start):
        raise DatasetError(
            f"a Discrete space has n = {n!r} and start = {start!r}; expected integers, n at least 1"
        )
    dtype = _dtype(description.get("dtype", "int64"), INTEGER_DTYPES)
    if not (_fits(start, dtype) and _fits(start + n - 1, dtype)):
        raise DatasetError(f"a Discrete space of {n} values from {start} does not fit in {dtype}")
    return spaces.Discrete(n, start=start, dtype=dtype.type)


def _multi_discrete(description: dict[str, Any]) -> spaces.MultiDiscrete:
    dtype = _dtype(description["dtype"], INTEGER_DTYPES)
    nvec = np.array(description["nvec"], dtype=dtype)
    start = np.array(description["start"], dtype=dtype)
    if nvec.size == 0 or nvec.shape != start.shape or np.any(nvec < 1):
        raise DatasetError(
            f"a MultiDiscrete space has nvec = {nvec.tolist()!s:.80}; expected positive integers, "
            "as many as in start"
        )
    return spaces.MultiDiscrete(nvec, dtype=dtype.type, start=start)


def _dtype(name: Any, allowed: frozenset[str]) -> np.dtype[Any]:
    if not isinstance(name, str) or name not in allowed:
        raise DatasetError(f"a space has dtype {name!r}; supported: {', '.join(sorted(allowed))}")
    return np.dtype(name)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _fits(value: int, dtype: np.dtype[Any]) -> bool:
    info = np.iinfo(dtype)
    return int(info.min) <= value <= int(info.max)


def _bound_to_json(bound: np.ndarray[Any, Any]) -> Any:
    if all(bound.tobytes() == np.full_like(bound, flat).tobytes() for flat in bound.flat[:1]):
        bound = bound.reshape(-1)[:1].reshape(())
    plain = bound.tolist()
    return _floats_to_json(plain) if bound.dtype.kind == "f" else plain


def _floats_to_json(value: Any) -> Any:
    """Replace floats that JSON has no number for by strings."""
    if isinstance(value, list):
        return [_floats_to_json(item) for item in value]
    if math.isnan(value):
        return "nan"
    return value if math.isfinite(value) else ("inf" if value > 0 else "-inf")


def _bound_from_json(
    value: Any, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> np.ndarray[Any, Any]:
    if not isinstance(value, list):
        return np.full(shape, _number(value, dtype), dtype=dtype)
    flat = np.empty(math.prod(shape), dtype=dtype)
    count = 0
    for item in _flatten(value):
        if count == len(flat):
            raise DatasetError(f"a Box bound has more entries than the shape {shape} holds")
        flat[count] = _number(item, dtype)
        count += 1
    if count != len(flat):
        raise DatasetError(f"a Box bound has {count} entries; the shape {shape} needs {len(flat)}")
    return flat.reshape(shape)


def _flatten(value: list[Any]) -> Iterator[Any]:
    """Iterate over the leaves of nested lists, without recursion: a file may nest too deeply."""
    stack = [iter(value)]
    while stack:
        for item in stack[-1]:
            if isinstance(item, list):
                stack.append(iter(item))
                break
            yield item
        else:
            stack.pop()


def _number(value: Any, dtype: np.dtype[Any]) -> Any:
    if dtype.kind == "f":
        if value in ("inf", "-inf", "nan") and isinstance(value, str):
            return float(value)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and (math.isinf(value) or abs(value) <= float(np.finfo(dtype).max)):
            return float(value)
    elif _is_integer(value) and _fits(value, dtype):
        return value
    raise DatasetError(f"a Box bound has the entry {value!r}; expected a {dtype}")
