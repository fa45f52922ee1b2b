"""Handing out what a step gives: tensors on the device, or NumPy arrays."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from torch import Tensor

from dreamgym.dream.options import DreamOptions
from dreamgym.dream.state import Outcome
from dreamgym.models.observations import Observation

StepResult = tuple[Any, Any, Any, Any, dict[str, Any]]


class OutputAdapter:
    """Gives tensors as they are, or as NumPy arrays in the dtypes of the space.

    Args:
        options: its `output` and its autoreset mode are read.
        space: of one environment's observations.
    """

    def __init__(self, options: DreamOptions, space: gym.Space) -> None:
        self.numpy, self.mode, self.space = options.output == "numpy", options.mode, space

    def observation(self, observation: Observation) -> Any:
        """Observations (N, ...), or a dict of them."""
        if isinstance(observation, dict):
            boxes: Any = self.space
            return {key: self._part(part, boxes[key]) for key, part in observation.items()}
        return self._part(observation, self.space)

    def step(self, outcome: Outcome) -> StepResult:
        """Observations, rewards, both flags and infos, as Gymnasium's vector environments."""
        return (
            self.observation(outcome.observation),
            self._give(outcome.reward),
            self._give(outcome.terminated),
            self._give(outcome.truncated),
            self._info(outcome),
        )

    def _info(self, outcome: Outcome) -> dict[str, Any]:
        info = {
            "uncertainty": self._give(outcome.uncertainty),
            "episode": {
                "r": self._give(outcome.episode_return),
                "l": self._give(outcome.episode_length),
            },
            "_episode": self._give(outcome.done),
        }
        if self.mode is AutoresetMode.SAME_STEP:
            info["final_obs"] = self.observation(outcome.final_observation)
            info["_final_obs"] = self._give(outcome.done.clone())
        return info

    def _part(self, part: Tensor, space: gym.Space) -> Any:
        given = self._give(part)
        # Models compute in float32; NumPy callers are promised the dtype of the space.
        return given.astype(space.dtype, copy=False) if self.numpy else given

    def _give(self, tensor: Tensor) -> Any:
        return np.asarray(tensor.detach().cpu()) if self.numpy else tensor
