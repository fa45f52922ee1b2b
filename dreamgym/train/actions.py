"""Action spaces as learner libraries take them, and the conversion of their actions.

Learners know Discrete from 0, MultiDiscrete with one axis, and Boxes of floats.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from dreamgym.data.spaces import is_float


def learner_action_space(space: gym.Space[Any]) -> gym.Space[Any]:
    """Return the space in which a learner acts for an environment with another action space.

    Args:
        space: action space of one environment: Discrete, MultiDiscrete or Box.
    """
    if isinstance(space, gym.spaces.Discrete):
        return gym.spaces.Discrete(int(space.n)) if int(space.start) else space
    if isinstance(space, gym.spaces.MultiDiscrete):
        usual = space.nvec.ndim == 1 and not space.start.any()
        return space if usual else gym.spaces.MultiDiscrete(space.nvec.reshape(-1))
    if isinstance(space, gym.spaces.Box) and not is_float(space):
        low, high = space.low.astype(np.float32), space.high.astype(np.float32)
        return gym.spaces.Box(low, high, dtype=np.float32)
    return space


def environment_actions(actions: NDArray[Any], space: gym.Space[Any]) -> NDArray[Any]:
    """Convert actions from `learner_action_space(space)` to actions of `space`.

    Args:
        actions: (..., *shape) actions of one environment or of several.
        space: action space of one environment.
    """
    if isinstance(space, gym.spaces.Discrete):
        return np.asarray(actions, np.int64) + int(space.start)
    if isinstance(space, gym.spaces.MultiDiscrete):
        return actions.reshape(*actions.shape[:-1], *space.shape) + space.start
    if isinstance(space, gym.spaces.Box) and not is_float(space):
        inside = np.clip(np.rint(np.asarray(actions, np.float64)), space.low, space.high)
        return inside.astype(space.dtype)
    return np.asarray(actions, space.dtype)
