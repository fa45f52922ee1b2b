"""Descriptions of models without weights (family and config), and their JSON form.

A config may contain the spec of another model, as those of wrappers and ensembles do. Only plain
values go to a file, and a file names families as the table does: nothing that a file contains is
imported or executed.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, Self

import gymnasium as gym
import torch

from dreamgym._settings import nearest
from dreamgym.models.base import WorldModel

FAMILIES: dict[str, type[WorldModel]] = {}
"""Every family by its name in files and on the command line; filled by `models/registry.py`.

It is defined here because configs of wrappers, which are families themselves, look families up.
"""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Description of a model without its weights.

    Attributes:
        family: name in the table of families.
        config: the family's config; None for its defaults.
    """

    family: str
    config: Any = None

    def __post_init__(self) -> None:
        if self.config is None:
            object.__setattr__(self, "config", family_config(self.family))

    @classmethod
    def of(cls, model: WorldModel) -> Self:
        """Return the spec of a model.

        Raises:
            TypeError: the argument is not a model.
            ValueError: the model's class is not in the table of families.
        """
        check_is_model(model)
        return cls(family=family_name(model), config=model.config)

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Return the spec that `{"family": ..., "config": {...}}` describes.

        Raises:
            ValueError: an unknown family or setting, or an invalid value.
            TypeError: a setting is missing, or its value has the wrong type.
        """
        if not isinstance(value, Mapping) or not {"family", "config"} <= set(value):
            raise ValueError(
                f"{value!r} does not describe a model: give its 'family' and its 'config'"
            )
        config_type = family_class(value["family"]).config_type
        return cls(
            family=value["family"],
            config=config_from_json(config_type, value["config"], value["family"]),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the spec as JSON-plain values.

        Raises:
            ValueError: the config contains something that cannot be written, such as a function.
        """
        return {"family": self.family, "config": to_json(self.config)}

    def build(self, observation_space: gym.Space, action_space: gym.Space) -> WorldModel:
        """Build a model of this kind with fresh weights."""
        return family_class(self.family).from_config(observation_space, action_space, self.config)


def unsupported(
    family: str, observation_space: gym.Space, action_space: gym.Space, config: Any = None
) -> str | None:
    """Return why a family cannot model an environment, and what to do; None if it can.

    It builds the model, as a fit does, so that both give one answer.

    Args:
        family: name in the table of families.
        observation_space: observation space of one environment.
        action_space: action space of one environment.
        config: the family's config; None for its defaults.

    Raises:
        ValueError: there is no such family, or it has settings without a default.
    """
    spec = ModelSpec(family=family, config=config)
    with torch.random.fork_rng(devices=[]):
        try:
            spec.build(observation_space, action_space)
        except TypeError as error:
            return f"the {family} family: {error}"
    return None


def check_is_model(value: Any) -> None:
    """Check that a value is a world model.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(value, WorldModel):
        raise TypeError(
            f"expected a WorldModel, got {type(value).__name__}; if you have a World, pass "
            "`world.model`"
        )


def family_class(name: Any) -> type[WorldModel]:
    """Return the family with a name.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    if not isinstance(name, str) or name not in FAMILIES:
        # Wrappers are families too, but a name alone does not say around what.
        plain = [each for each, kind in FAMILIES.items() if _has_default(kind)]
        raise ValueError(f"unknown family {name!r}: {nearest(str(name), plain)}")
    return FAMILIES[name]


def _has_default(family: type[WorldModel]) -> bool:
    return all(
        each.default is not MISSING or each.default_factory is not MISSING
        for each in fields(family.config_type)
    )


def family_name(model: WorldModel) -> str:
    """Return the name of a model's class in the table of families.

    Raises:
        ValueError: it is not in the table.
    """
    for name, family in FAMILIES.items():
        if type(model) is family:
            return name
    raise ValueError(
        f"{type(model).__name__} is not in the table of families, so files cannot name it; add it "
        "to dreamgym.models.FAMILIES"
    )


def family_config(family: str) -> Any:
    """Return the default config of a family.

    Raises:
        ValueError: an unknown family, or one with settings that have no default.
    """
    config_type = family_class(family).config_type
    try:
        return config_type()
    except TypeError as error:
        raise ValueError(
            f"the {family} family has no default config ({error}); give a {config_type.__name__}"
        ) from error


def to_json(value: Any) -> Any:
    """Return a config as JSON-plain values: dataclasses as dicts, tuples as lists.

    Raises:
        ValueError: it contains something that cannot be written to a file.
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
            f"the Python function {name!r} cannot be written to a file, because nothing in a "
            "world's files is ever executed; save the world of the model inside and wrap it again "
            "after loading, or use a built-in function by its name"
        )
    raise ValueError(
        f"{value!r} is a {type(value).__name__}, which cannot be written to a config file"
    )


def config_from_json(config_type: type, value: Any, family: str) -> Any:
    """Build a config from JSON-plain values; the reverse of `to_json`.

    Args:
        config_type: a dataclass.
        value: its fields by name.
        family: the family, for messages.

    Raises:
        ValueError: an unknown field, or an invalid value.
        TypeError: a field is missing, or a value has the wrong type.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"the config of the {family} family is {value!r}; give its fields by name")
    known = {field.name for field in fields(config_type)}
    unknown = sorted(set(value) - known)
    if unknown:
        raise ValueError(
            f"{unknown[0]!r} is not a setting of the {family} family in this version: "
            f"{nearest(unknown[0], known)}; it may need a newer dreamgym"
        )
    hints = typing.get_type_hints(config_type)
    return config_type(**{key: _typed(hints[key], item, family) for key, item in value.items()})


def _typed(hint: Any, value: Any, family: str) -> Any:
    """Convert a JSON-plain value to the type of a field, if JSON has another form for it."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    options = typing.get_args(hint) if union else (hint,)
    if value is None and types.NoneType in options:
        return None
    options = tuple(option for option in options if option is not types.NoneType)
    for option in options:
        if _is_form_of(option, value):
            return _convert(option, value, family)
    if all(map(is_dataclass, options)):
        raise ValueError(f"the config of the {family} family has {value!r}, expected a config")
    return value


def _is_form_of(hint: Any, value: Any) -> bool:
    """Return whether a value is the JSON form of a nested config or a tuple."""
    if isinstance(value, Mapping):
        return is_dataclass(hint)
    return isinstance(value, list) and (hint is tuple or typing.get_origin(hint) is tuple)


def _convert(hint: Any, value: Any, family: str) -> Any:
    """Convert the JSON form of a nested config or a tuple to that type."""
    if hint is ModelSpec:
        return ModelSpec.from_json(value)
    if is_dataclass(hint):
        return config_from_json(hint, value, family)  # type: ignore[arg-type]
    arguments = typing.get_args(hint)
    if len(arguments) == 2 and arguments[1] is ...:
        arguments = arguments[:1] * len(value)
    if len(arguments) != len(value):
        return tuple(value)
    return tuple(_typed(h, v, family) for h, v in zip(arguments, value, strict=True))
