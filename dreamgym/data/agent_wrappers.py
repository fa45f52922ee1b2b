"""What a live agent was trained behind, applied to what it acts on.

An agent of a learner library may see its environment through wrappers that its `predict` does not
apply. Only `dreamgym.train` knows such libraries: it says in `dreamgym._agents` which class of its
own knows the wrappers of whose agents.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import gymnasium as gym
from numpy.typing import NDArray

from dreamgym._agents import WRAPPERS_OF
from dreamgym.errors import PolicyError

Array = NDArray[Any]

ENV_WRAPPERS = (
    gym.ObservationWrapper,
    gym.ActionWrapper,
    gym.vector.VectorObservationWrapper,
    gym.vector.VectorActionWrapper,
)
"""Gymnasium's wrappers that change observations or actions."""

PART_OF_THE_TASK = ("StickyAction", "DelayObservation")
"""Wrappers that make the task harder, and are not part of a policy."""


class AgentWrappers:
    """The wrappers between an agent and the observations of one environment; here none.

    Args:
        agent: an object with `predict`.

    Attributes:
        observation_space: observation space inside the wrappers; None where it is the agent's.
        env_wrappers: names of the wrappers around the environment itself, which are not applied.
    """

    def __init__(self, agent: Any) -> None:
        self.observation_space: gym.Space[Any] | None = None
        self.env_wrappers: list[str] = []

    def __call__(self, observations: Any, starting: Array, acting: Array) -> Any:
        """Return observations as the agent saw them in its training.

        Args:
            observations: (B, ...) observations of the environment, or a dict of them.
            starting: (B,) bool, rows in which an episode starts.
            acting: (B,) bool, rows that have an observation; others keep their frame stack.
        """
        return observations

    def check_env(self, env: gym.Env[Any, Any]) -> None:
        """Check that an environment has the wrappers that the agent's own environment had.

        Raises:
            PolicyError: one that changes observations or actions is missing.
        """
        present = env_wrappers(env)
        missing = [name for name in self.env_wrappers if name not in present]
        name = env.spec.id if env.spec is not None else str(env)
        if missing:
            raise PolicyError(
                f"the agent was trained behind {', '.join(missing)}, and {name} is not wrapped in "
                "it: the agent would see other observations or act otherwise. Pass a function that "
                "makes the environment with the same wrappers, e.g. env=lambda: "
                f"{missing[-1]}(gym.make(...)), or as policy a function of one raw observation "
                "that does what they do"
            )
        if "NormalizeObservation" in self.env_wrappers:
            warnings.warn(
                "the agent was trained behind NormalizeObservation, and the environment's own "
                "NormalizeObservation starts with other statistics: returns may be too low. Train "
                "behind VecNormalize instead, whose statistics are used, or copy obs_rms",
                UserWarning,
                stacklevel=4,
            )


def wrappers_of(agent: Any) -> AgentWrappers:
    """Return what an agent was trained behind.

    Raises:
        PolicyError: it was trained behind statistics that it was loaded without.
    """
    for base in type(agent).__mro__:
        path = WRAPPERS_OF.get(base.__module__.split(".")[0])
        if path is not None:
            module, _, name = path.rpartition(".")
            made: AgentWrappers = getattr(importlib.import_module(module), name)(agent)
            return made
    return AgentWrappers(agent)


def env_wrappers(env: Any) -> list[str]:
    """Return the names of Gymnasium's wrappers that change observations or actions."""
    names = []
    while isinstance(env, gym.Wrapper | gym.vector.VectorWrapper):
        if isinstance(env, ENV_WRAPPERS) and type(env).__name__ not in PART_OF_THE_TASK:
            names.append(type(env).__name__)
        env = env.env
    return names
