"""Configs inside configs: how the config of one model names another model, and how JSON does.

Only plain values go to a file, and only names of the table of families come out of one: nothing
that a file says is imported or executed.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Self

import gymnasium as gym

from dreamgym._files import nearest
from dreamgym.models.base import WorldModel

FAMILIES: dict[str, type[WorldModel]] = {}
"""Every family by the name that files and the command line use; `models/registry.py` fills it."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What a model is, without its weights.

    Attributes:
        family: a name of the table of families.
        config: the family's own config; None for its defaults.
    """

    family: str
    config: Any = None

    def __post_init__(self) -> None:
        if self.config is None:
            object.__setattr__(self, "config", family_config(self.family))

    @classmethod
    def of(cls, model: WorldModel) -> Self:
        """The spec of a model.

        Raises:
            TypeError: it is no model.
            ValueError: its class is not in the table of families.
        """
        given: Any = model
        if not isinstance(given, WorldModel):
            raise TypeError(f"a {type(given).__name__} is no model; of a world give its `.model`")
        return cls(family=family_name(model), config=model.config)

    @classmethod
    def from_json(cls, given: Any) -> Self:
        """The spec that `{"family": ..., "config": {...}}` says.

        Raises:
            ValueError: an unknown family or setting, or a value that is refused.
            TypeError: a setting is missing, or its value has another type.
        """
        if not isinstance(given, Mapping) or not {"family", "config"} <= set(given):
            raise ValueError(f"{given!r} is no model: give its 'family' and its 'config'")
        config_type = family_class(given["family"]).config_type
        return cls(
            family=given["family"],
            config=config_from_json(config_type, given["config"], given["family"]),
        )

    def to_json(self) -> dict[str, Any]:
        """The spec as JSON-plain values.

        Raises:
            ValueError: the config holds what no file can hold, such as a Python function.
        """
        return {"family": self.family, "config": to_json(self.config)}

    def build(self, observation_space: gym.Space, action_space: gym.Space) -> WorldModel:
        """A model of this kind with fresh weights."""
        return family_class(self.family).from_config(observation_space, action_space, self.config)


def family_class(name: Any) -> type[WorldModel]:
    """The family of a name.

    Raises:
        ValueError: there is none; the message has the nearest.
    """
    table = FAMILIES
    if not isinstance(name, str) or name not in table:
        raise ValueError(f"unknown family {name!r}: {nearest(str(name), table)}")
    return table[name]


def family_name(model: WorldModel) -> str:
    """The name that the table of families has for a model.

    Raises:
        ValueError: it has none.
    """
    for name, family in FAMILIES.items():
        if type(model) is family:
            return name
    raise ValueError(
        f"{type(model).__name__} is not in the table of families, so no file can name it; add it "
        "to dreamgym.models.FAMILIES"
    )


def family_config(family: str) -> Any:
    """The config that a family has by itself.

    Raises:
        ValueError: an unknown family, or one with settings that only the user can choose.
    """
    config_type = family_class(family).config_type
    try:
        return config_type()
    except TypeError as error:
        raise ValueError(
            f"the {family} family has no default config ({error}); give a {config_type.__name__}"
        ) from error


def to_json(value: Any) -> Any:
    """A config as JSON-plain values: dataclasses as dicts, tuples as lists.

    Raises:
        ValueError: there is something in it that no file can hold.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    if callable(value):
        name = getattr(value, "__name__", type(value).__name__)
        raise ValueError(
            f"the Python function {name!r} cannot be written to a file, for nothing in a world's "
            "files is ever executed; save the world of the model inside and wrap it again after "
            "loading, or use a ready-made function by its name"
        )
    raise ValueError(f"{value!r} is a {type(value).__name__}, which a config's file cannot hold")


def config_from_json(config_type: type, given: Any, name: str) -> Any:
    """A config from JSON-plain values; the reverse of `plain`.

    Args:
        config_type: a dataclass.
        given: its fields.
        name: the family, for messages.

    Raises:
        ValueError: a field that it does not have, or a value that it refuses.
        TypeError: a field is missing, or a value has another type.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"the config of the {name} family is {given!r}; give its fields by name")
    known = {field.name for field in fields(config_type)}
    unknown = sorted(set(given) - known)
    if unknown:
        raise ValueError(
            f"the setting {unknown[0]!r} is none of the {name} family of this dreamgym: "
            f"{nearest(unknown[0], known)}; it may need a newer dreamgym"
        )
    hints = typing.get_type_hints(config_type)
    return config_type(**{key: _typed(hints[key], value, name) for key, value in given.items()})


def _typed(hint: Any, value: Any, name: str) -> Any:
    """A JSON-plain value as the type that a field has."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    options = typing.get_args(hint) if union else (hint,)
    if value is None and types.NoneType in options:
        return None
    options = tuple(option for option in options if option is not types.NoneType)
    for option in options:
        if _fits(option, value):
            return _built(option, value, name)
    if all(map(is_dataclass, options)):
        raise ValueError(f"the config of the {name} family has {value!r} where a config belongs")
    return value


def _built(hint: Any, value: Any, name: str) -> Any:
    """What a value that fits a hint says."""
    if hint is ModelSpec:
        return ModelSpec.from_json(value)
    if is_dataclass(hint):
        return config_from_json(hint, value, name)  # type: ignore[arg-type]
    arguments = typing.get_args(hint)
    if len(arguments) == 2 and arguments[1] is ...:
        arguments = arguments[:1] * len(value)
    if len(arguments) != len(value):
        return tuple(value)
    return tuple(_typed(h, v, name) for h, v in zip(arguments, value, strict=True))


def _fits(hint: Any, value: Any) -> bool:
    """Whether the value is how JSON says a nested config or a tuple."""
    if isinstance(value, Mapping):
        return is_dataclass(hint)
    return isinstance(value, list) and (hint is tuple or typing.get_origin(hint) is tuple)
