"""What an opened dataset says about itself."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from dreamgym.data.frame_skip import FrameSkip
from dreamgym.data.schema import DatasetMetadata


class Described:
    """Gives the fields of `metadata` by their own names."""

    metadata: DatasetMetadata

    @property
    def observation_space(self) -> gym.Space[Any]:
        """Of one environment."""
        return self.metadata.observation_space

    @property
    def action_space(self) -> gym.Space[Any]:
        """Of one environment."""
        return self.metadata.action_space

    @property
    def env_spec(self) -> str | None:
        """JSON of Gymnasium's `EnvSpec`."""
        return self.metadata.env_spec

    @property
    def env_id(self) -> str | None:
        """Id of the environment that it was recorded from."""
        return self.metadata.env_id

    @property
    def policy(self) -> str:
        """What chose the actions, in words."""
        return self.metadata.policy

    @property
    def frame_skip(self) -> FrameSkip:
        """None of it; see `SkippedDataset`."""
        return FrameSkip()
