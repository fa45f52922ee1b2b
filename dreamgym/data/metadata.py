"""What a dataset records about its origin: spaces, environment, policy, seed, library versions."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
from gymnasium import spaces

from dreamgym.data.layout import observation_columns
from dreamgym.data.spaces import check_supported
from dreamgym.errors import DatasetError


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that write a dataset."""
    try:
        dreamgym_version = version("dreamgym")
    except PackageNotFoundError:
        dreamgym_version = "unknown"
    return {
        "dreamgym": dreamgym_version,
        "gymnasium": gym.__version__,
        "numpy": np.__version__,
        "h5py": h5py.version.version,
        "hdf5": h5py.version.hdf5_version,
        "python": platform.python_version(),
    }


def _utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True)
class DatasetMetadata:
    """What a dataset records about its origin.

    Attributes:
        observation_space: observation space of one environment: Box, or Dict of Box.
        action_space: action space of one environment: Discrete, MultiDiscrete or Box.
        env_spec: JSON of Gymnasium's `EnvSpec`; `None` if there is none.
        env_id: id of the environment; `None` if it has none.
        env_name: names of its class and its wrappers, where there is no `env_spec`; `None` if they
            are not known.
        policy: name of the policy that chose the actions, as free text.
        seed: seed of the whole recording; `None` if it had none.
        created: UTC time in ISO 8601.
        versions: versions of the libraries that wrote it, by name.
        notes: what is worth knowing about its conversion from a foreign format.
        problems: reasons of its conversion for which fitting refuses it.
    """

    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    env_spec: str | None = None
    env_id: str | None = None
    env_name: str | None = None
    policy: str = "unspecified"
    seed: int | None = None
    created: str = field(default_factory=_utc_now)
    versions: Mapping[str, str] = field(default_factory=library_versions)
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_supported(self.observation_space, "observation")
        check_supported(self.action_space, "action")

    @classmethod
    def of_env(
        cls,
        env: gym.Env[Any, Any] | gym.vector.VectorEnv,
        *,
        policy: str = "unspecified",
        seed: int | None = None,
    ) -> DatasetMetadata:
        """Return the metadata of a recording of `env`; of one sub-environment if it is a vector."""
        if isinstance(env, gym.vector.VectorEnv):
            observation_space, action_space = env.single_observation_space, env.single_action_space
        else:
            observation_space, action_space = env.observation_space, env.action_space
        spec = _spec_to_json(env.spec)
        return cls(
            observation_space=observation_space,
            action_space=action_space,
            env_spec=spec,
            env_name=_class_names(env) if spec is None and isinstance(env, gym.Env) else None,
            env_id=None if env.spec is None else env.spec.id,
            policy=policy,
            seed=seed,
        )

    def observation_columns(self) -> dict[str, spaces.Box]:
        """Return the Box of each observation column, see `layout.observation_columns`."""
        return observation_columns(self.observation_space)

    def with_keys(self, keys: Sequence[str]) -> DatasetMetadata:
        """Return a copy with only some keys of its Dict observation space, in the space's order."""
        chosen = [(key, box) for key, box in self.observation_columns().items() if key in keys]
        return replace(self, observation_space=spaces.Dict(chosen))


def _class_names(env: gym.Env[Any, Any]) -> str:
    """Return the names of the classes of an environment and its wrappers, the outermost first."""
    names = []
    while isinstance(env, gym.Wrapper):
        if not isinstance(env, gym.wrappers.OrderEnforcing | gym.wrappers.PassiveEnvChecker):
            limit = getattr(env, "_max_episode_steps", None)
            names.append(type(env).__name__ + ("" if limit is None else f"({limit})"))
        env = env.env
    return " of ".join([*names, type(env).__name__])


def spec_of_id(env_id: str) -> str:
    """Return the JSON of the `EnvSpec` of an id that the user named.

    A spec with the id alone is returned where the id is not registered in this process.
    """
    try:
        spec = _spec_to_json(gym.spec(env_id))
    except (gym.error.Error, ImportError):
        spec = None
    return spec or json.dumps({"id": env_id, "kwargs": {}, "max_episode_steps": None})


def check_env_spec(spec: Any, key: str | None = None) -> None:
    """Check what a file gives as the JSON of an `EnvSpec`: worlds, reports and fits rely on it.

    Args:
        spec: the parsed JSON.
        key: where it stands, for the error message.

    Raises:
        DatasetError: it is not an object with an id, arguments and a time limit.
    """
    limit = spec.get("max_episode_steps") if isinstance(spec, dict) else None
    wrappers = (spec.get("additional_wrappers") if isinstance(spec, dict) else None) or []
    if not isinstance(spec, dict):
        problem = f"it is a {type(spec).__name__}; expected a JSON object"
    elif not isinstance(spec.get("id"), str) or not spec["id"]:
        problem = f"its id is {spec.get('id')!r}; expected a text"
    elif not isinstance(spec.get("kwargs"), dict):
        problem = f"its kwargs are {spec.get('kwargs')!r:.80}; expected a JSON object"
    elif limit is not None and (type(limit) is not int or limit < 1):
        problem = f"its max_episode_steps is {limit!r:.80}; expected at least 1, or null"
    elif not isinstance(wrappers, list) or not all(
        isinstance(each, dict) and {"name", "kwargs"} <= each.keys() for each in wrappers
    ):
        problem = "its additional_wrappers are not a list of names and arguments"
    else:
        return
    raise DatasetError(
        f"the environment's spec is not valid: {problem}",
        key=key,
        remedy="write it with EnvSpec.to_json, or leave it out",
    )


def _spec_to_json(spec: Any) -> str | None:
    if spec is None:
        return None
    try:
        return str(spec.to_json())
    except (TypeError, ValueError):
        return None  # a keyword argument that JSON cannot hold; the id is stored beside it
