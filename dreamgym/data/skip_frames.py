"""An environment whose steps span several of the environment inside."""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium as gym

from dreamgym.data.frame_skip import ActionsOf, FrameSkip


class SkipFrames(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Takes several steps at once: the real environment of a world with a frame skip.

    It stops where the environment ends within a step, whether by termination or truncation: a time
    limit inside counts steps of the environment. Rewards are summed, the observation and the info
    are the last ones, and `info["env_steps"]` says how many steps were taken.

    Args:
        env: whose actions are a Box, Discrete or MultiDiscrete.
        steps: as in `FrameSkip`.
        actions: as in `FrameSkip`.
    """

    def __init__(self, env: gym.Env[Any, Any], steps: int, actions: ActionsOf = "blocks") -> None:
        gym.utils.RecordConstructorArgs.__init__(self, steps=steps, actions=actions)
        gym.Wrapper.__init__(self, env)
        self.frame_skip = FrameSkip(steps=steps, actions=actions)
        self.action_space = self.frame_skip.space(env.action_space)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Take the steps of one action.

        Raises:
            ValueError: the action has another shape.
        """
        total, taken = 0.0, 0
        for single in self.frame_skip.single(action, self.env.action_space):
            observation, reward, terminated, truncated, info = self.env.step(single)
            total, taken = total + float(reward), taken + 1
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, {**info, "env_steps": taken}


def frame_skip_of(env: Any) -> FrameSkip:
    """The frame skip of an environment, or of one inside its wrappers."""
    while env is not None:
        if isinstance(env, SkipFrames):
            return env.frame_skip
        env = getattr(env, "env", None) if isinstance(env, gym.Wrapper) else None
    return FrameSkip()
