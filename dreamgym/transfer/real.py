"""The real environments in which policies are evaluated."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from dreamgym._settings import closest
from dreamgym.errors import TransferError
from dreamgym.world.world import World

EnvSource = str | EnvSpec | Callable[[], gym.Env]


def env_maker(env: EnvSource, **arguments: Any) -> Callable[[], gym.Env]:
    """Return a function that makes the described real environment.

    Args:
        env: an id (`"CartPole-v1"`, `"module:Name-v0"`), an `EnvSpec` or its JSON, or a callable
            without arguments that makes a `gym.Env`. Only the id, the keyword arguments and the
            time limit of an `EnvSpec` are used, never its entry point: a class path from a file is
            not imported.
        **arguments: further arguments of `gym.make`, such as `render_mode`; a callable makes its
            environments without them.

    Returns:
        A callable without arguments; every call makes a new environment.

    Raises:
        TransferError: there is no such environment (the message has the nearest registered id), the
            JSON is not that of an `EnvSpec`, or `env` is something else.
    """
    if isinstance(env, str):
        spec = _parse_spec(env) if env.lstrip().startswith("{") else None
        return _from_spec(spec, arguments) if spec is not None else _from_id(env, arguments)
    if isinstance(env, EnvSpec):
        return _from_spec(json.loads(env.to_json()), arguments)
    if isinstance(env, gym.Env):
        raise TransferError(
            f"got an environment object ({env}), but episodes run in several environments side by "
            "side; pass its id, its EnvSpec, or a function that makes a new one, e.g. "
            "lambda: gym.make('CartPole-v1')"
        )
    if callable(env):
        return env
    raise TransferError(
        f"got an env of type {type(env).__name__}; expected an id, an EnvSpec (or its JSON), or a "
        "function that makes an environment"
    )


def world_env_maker(
    world: World | None, env: EnvSource | None, **arguments: Any
) -> Callable[[], gym.Env]:
    """Return a function that makes the real environment, as a world's policies act in it.

    Args:
        world: world whose frame skip and observation keys apply; None for no world.
        env: the environment; None for the one that the world names.
        **arguments: further arguments of `gym.make`, such as `render_mode`.

    Raises:
        TransferError: neither names an environment.
    """
    if env is not None:
        maker = env_maker(env, **arguments)
        return maker if world is None else lambda: world.adapted(make_env(maker))
    if world is None or world.env_spec is None:
        lacking = (
            "neither a world nor a real environment was given"
            if world is None
            else f"the world {world.name} does not name the real environment it was fitted to"
        )
        raise TransferError(
            f"{lacking}; pass env= (an id, an EnvSpec, or a function that makes one; --env ID or "
            "--env MODULE:ID on the command line)"
        )
    return lambda: world.real_env(**arguments)


def make_env(maker: Callable[[], gym.Env]) -> gym.Env:
    """Call `maker`, and check that it made a single Gymnasium environment.

    Raises:
        TransferError: it made something else, e.g. a vector environment.
    """
    env = maker()
    if not isinstance(env, gym.Env):
        raise TransferError(
            f"the function given as env made a {type(env).__name__}; expected a "
            "single gymnasium.Env, not a vector environment"
        )
    return env


def _parse_spec(text: str) -> dict[str, Any]:
    try:
        spec = json.loads(text)
    except json.JSONDecodeError as error:
        raise TransferError(
            f"env looks like the JSON of an EnvSpec, but it cannot be read: {error}"
        ) from None
    if not isinstance(spec.get("id"), str):
        raise TransferError(
            "the JSON given as env has no 'id'; expected that of a gymnasium EnvSpec "
            "(spec.to_json())"
        )
    return spec


def _from_spec(spec: dict[str, Any], arguments: dict[str, Any]) -> Callable[[], gym.Env]:
    if ":" in spec["id"]:
        raise TransferError(
            f"the EnvSpec's id {spec['id']!r} names a module, which is not imported from a file; "
            "import the module yourself and remove it from the id"
        )
    kwargs = dict(spec.get("kwargs") or {})
    if spec.get("max_episode_steps") is not None:
        kwargs["max_episode_steps"] = spec["max_episode_steps"]
    return _from_id(spec["id"], {**kwargs, **arguments})


def _from_id(env_id: str, kwargs: dict[str, Any]) -> Callable[[], gym.Env]:
    module, _, name = env_id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        gym.spec(name)
    except gym.error.Error as error:
        raise TransferError(_no_such_environment(env_id, error)) from None
    except ModuleNotFoundError as error:
        raise TransferError(
            f"environment {env_id!r} names a module that is not installed ({error.name}); "
            "install it, or pass an id that is registered"
        ) from None
    return lambda: gym.make(env_id, **kwargs)


def _no_such_environment(env_id: str, error: Exception) -> str:
    near = closest(env_id, gym.registry)
    hint = f"; the nearest registered id is {near!r}" if near else ""
    reason = str(error).strip().rstrip(".")
    module = "" if ":" in env_id else f"; if a module registers it, write 'MODULE:{env_id}'"
    return f"no environment {env_id!r} is registered{hint}{module} (Gymnasium: {reason})"
