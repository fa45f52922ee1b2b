"""The dream that a learner's adapter steps, in the autoreset mode and the arrays that it needs."""

from __future__ import annotations

from typing import Any

from gymnasium.vector import AutoresetMode, VectorEnv

from dreamgym.dream.options import AUTORESET_MODES
from dreamgym.dream.vector_env import DreamVectorEnv
from dreamgym.errors import TrainingError


def dream_for(env: Any, *, library: str, autoreset_mode: str, output: str | None = None) -> Any:
    """Return a dream in the mode that a library needs, recreated where `env` is in another one.

    Args:
        env: a `DreamVectorEnv`, or a vector environment that wraps one.
        library: name of the library, for messages.
        autoreset_mode: the only mode whose final observations the library reads rightly.
        output: "numpy" or "torch"; None for any.

    Returns:
        `env` itself where it fits, else a new environment of its world; a wrapped one is not
        recreated, since its wrappers would be lost.

    Raises:
        TrainingError: not a vector environment, or a wrapped one in another mode.
    """
    if not isinstance(env, VectorEnv):
        raise TrainingError(
            f"expected a DreamVectorEnv, got {type(env).__name__}; make one with "
            'gym.make_vec("dreamgym/World-v0", world=..., num_envs=256)'
        )
    dream = env.unwrapped
    has = env.metadata.get("autoreset_mode")
    wanted = {"autoreset_mode": autoreset_mode}
    fits = has is AUTORESET_MODES[autoreset_mode]
    if output is not None:
        wanted["output"] = output
        fits = fits and isinstance(dream, DreamVectorEnv) and dream.options.output == output
    if fits:
        return env
    if isinstance(env, DreamVectorEnv):
        return env.with_options(**wanted)
    options = ", ".join(f"{name}={value!r}" for name, value in wanted.items())
    shown = has.value if isinstance(has, AutoresetMode) else has
    raise TrainingError(
        f"{library} needs {options}, and the wrapped environment {env} has autoreset mode {shown}"
        + ("" if output is None else " or other arrays")
        + f": make the dream with {options} before it is wrapped"
    )
