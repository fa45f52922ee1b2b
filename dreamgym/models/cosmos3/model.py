"""Cosmos 3 as a world model: a published video model under a block of actions (NVIDIA 2026)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import gymnasium as gym
import torch
import torch.nn.functional as F
from torch import Tensor

from dreamgym.data.spaces import is_float
from dreamgym.models.base import Prediction, Segment, State, Temperature, WorldModel
from dreamgym.models.cosmos3.config import Cosmos3Config
from dreamgym.models.cosmos3.pipeline import COLOURS, Described, FrozenPipeline, describe
from dreamgym.models.nn.actions import ActionEncoder
from dreamgym.models.nn.conv import Pixels
from dreamgym.models.nn.layers import mlp
from dreamgym.models.nn.observation_codec import MID_GREY
from dreamgym.models.nn.reward_head import RewardHead
from dreamgym.models.observations import Observation, is_image, only_part
from dreamgym.models.reduction import masked_mean
from dreamgym.models.splitmix import BITS
from dreamgym.models.statistics import Statistics

MAX_BYTE = 255.0


class Cosmos3(WorldModel):
    """A frozen video model that predicts the k frames after an image, given k actions.

    A step takes a block of actions, as a frame skip of k steps in blocks does (`FrameSkip`): a Box
    of k x D numbers, of which D are an action of the pipeline's domain. Its observation is the last
    of the k frames, since a step has one observation, and that of a frame skip is the last one; the
    frames between are not kept. The next block starts from that frame alone. The pipeline has no
    other memory, and its authors have not validated such chains of blocks.

    Only the heads of reward and termination are fitted, on real frames. Rows are predicted one
    after the other, since the pipeline takes one sample at a time. It syncs with the host, so
    a step is neither compiled nor captured (`foreign_step`).

    State: `frame` (B, 3, height, width) bytes. Features: mean colours over a grid of `cells`.
    Noise: all randomness is in the start noise of the frames. Two uniforms a row make the key of
    its stream, instead of one for each of its tens of thousands of numbers. The temperature scales
    its variance.

    Args:
        observation_space: a Box of colour images, or a Dict of one.
        action_space: a Box of floats; the raw actions of a block, one after the other, in the units
            of the pipeline's own data.
        config: the pipeline and its inputs, and the sizes of the heads.

    Raises:
        TypeError: a space is of another kind, or not of whole blocks.
        ValueError: images have another size than the pipeline takes, or it has no such domain, tier
            or view.
        PretrainedError: the pipeline cannot be loaded.
    """

    config_type = Cosmos3Config
    fit_defaults: ClassVar[Mapping[str, Any]] = {
        "batch_size": 32,
        "segment_length": 4,
        "learning_rate": 1e-3,
        "gradient_clip": 10.0,
        "clip_by": "norm",
    }
    config: Cosmos3Config

    def __init__(
        self, observation_space: gym.Space, action_space: gym.Space, config: Cosmos3Config
    ) -> None:
        super().__init__(observation_space, action_space, config)
        # Spaces come first: the weights may have to be downloaded.
        self._key, box = only_part(observation_space, "cosmos3")
        if not is_image(box):
            raise TypeError(f"the cosmos3 family takes colour images, not {observation_space}")
        self.pixels = Pixels(box, config.image_size)
        if self.pixels.channels != COLOURS:
            raise TypeError(
                f"the cosmos3 family takes images of {COLOURS} colours, and those of "
                f"{observation_space} have {self.pixels.channels} channels; record them in colour "
                "and without stacking"
            )
        if not isinstance(action_space, gym.spaces.Box) or not is_float(action_space):
            raise TypeError(
                f"the cosmos3 family takes a Box of floats as actions, not {action_space}"
            )
        described = describe(config)
        self.block = _block(action_space, config, described)
        _check_size(self.pixels.size, described)
        # Load the exact revision of the pipeline, and save it with the config.
        self.config = replace(config, pipeline=described.resolved)
        self.pipeline = FrozenPipeline(self.config, described)
        self.encode_action = ActionEncoder(action_space)
        self.cells = min(config.cells, *self.pixels.size)
        self.feature_dim, self.noise_dim = COLOURS * self.cells**2, 2
        outcome = 2 * self.feature_dim + self.encode_action.dim
        reward = mlp(outcome, config.hidden, config.objective.reward_outputs)
        self.reward = RewardHead(reward, config.objective)
        self.termination = mlp(outcome, config.hidden, 1)

    @property
    def foreign_step(self) -> bool:
        """See `WorldModel.foreign_step`; that of the pipeline."""
        return True

    @property
    def pretrained_weights(self) -> str:
        """See `WorldModel.pretrained_weights`."""
        return f"{self.pipeline.resolved} ({self.pipeline.described.licence})"

    def set_statistics(self, statistics: Statistics) -> None:
        """See `WorldModel.set_statistics`; of the heads alone."""
        if statistics.action is not None:
            self.encode_action.fit(statistics.action)
        self.reward.set_moments(statistics.reward_mean, statistics.reward_std)

    def initial(self, batch_size: int) -> State:
        """See `WorldModel.initial`; black frames."""
        shape = (batch_size, COLOURS, *self.pixels.size)
        return {"frame": torch.zeros(shape, dtype=torch.uint8, device=self.reward.mean.device)}

    def observe(
        self, state: State, action: Tensor, observation: Observation, noise: Tensor
    ) -> State:
        """See `WorldModel.observe`; the observation replaces the frame, and nothing else counts."""
        return {"frame": self._bytes(self._frames(observation))}

    def step(
        self, state: State, action: Tensor, noise: Tensor, temperature: Temperature = 1.0
    ) -> tuple[State, Prediction]:
        """See `WorldModel.step`; a block of actions, and the last of its frames.

        Raises:
            ValueError: the images do not fit into the canvas, or the guardrail refuses a frame.
        """
        frame = state["frame"]
        actions = action.reshape(len(frame), self.block, -1)
        scale = torch.as_tensor(temperature, dtype=torch.float32, device=frame.device).sqrt()
        inputs = zip(frame, actions, _keys(noise), scale.expand(len(frame)), strict=True)
        after = torch.stack([self.pipeline.predict(*row) for row in inputs])
        outcome = self._outcome(self._pooled(frame), self._pooled(after), action)
        reward = self.reward.predict(outcome)
        termination = self.termination(outcome).squeeze(-1).sigmoid()
        return {"frame": after}, Prediction(reward, termination, torch.zeros_like(reward))

    def features(self, state: State) -> Tensor:
        """Return the mean colours of the frame, (B, feature_dim)."""
        return self._pooled(state["frame"])

    def goal_features(self, state: State) -> Tensor:
        """Return all pixels, scaled so that distances are root mean squared differences."""
        pixels = state["frame"].flatten(1).float() / MAX_BYTE
        return pixels / pixels.shape[1] ** 0.5

    def decode(self, state: State) -> Observation:
        """See `Decodes.decode`; the frame itself."""
        images = self.pixels.to_bytes(state["frame"].float() / MAX_BYTE)
        return {self._key: images} if self._key else images

    def loss(self, segment: Segment, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the losses of the heads on real frames; the pipeline is neither run nor fitted.

        Rewards have the loss of `RewardHead`, terminations the cross-entropy.
        """
        frames = self._bytes(self._frames(segment.observation))
        pooled = self._pooled(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        outcome = self._outcome(pooled[:, :-1], pooled[:, 1:], segment.action)
        logit = self.termination(outcome).squeeze(-1)
        cross_entropy = F.binary_cross_entropy_with_logits(
            logit, segment.terminated.to(logit.dtype), reduction="none"
        )
        objective = self.config.objective
        reward = masked_mean(self.reward.loss(outcome, segment.reward), segment.mask)
        termination = masked_mean(cross_entropy, segment.mask)
        total = objective.reward * reward + objective.termination * termination
        return total, {"reward": reward.detach(), "termination": termination.detach()}

    def _frames(self, observation: Observation) -> Tensor:
        """Return observations (..., *shape) as (..., 3, height, width) in [0, 1]."""
        image = observation if isinstance(observation, Tensor) else observation[self._key]
        return self.pixels.to_float(image)

    def _bytes(self, frames: Tensor) -> Tensor:
        """Return frames in [0, 1] as bytes."""
        return (frames * MAX_BYTE).round().clamp(0.0, MAX_BYTE).to(torch.uint8)

    def _pooled(self, frames: Tensor) -> Tensor:
        """Return the mean colours of frames (B, 3, height, width) of bytes, around zero."""
        cells = F.adaptive_avg_pool2d(frames.float() / MAX_BYTE, self.cells)
        return cells.flatten(1) - MID_GREY

    def _outcome(self, before: Tensor, after: Tensor, action: Tensor) -> Tensor:
        """Return the inputs of the heads, for mean colours (..., n) and raw actions (..., *)."""
        encoded = self.encode_action(action).to(after.dtype)
        return torch.cat([after, after - before, encoded], -1)


def _keys(noise: Tensor) -> Tensor:
    """Return a key (B,) int64 for the uniforms (B, 2) of each row."""
    high, low = (noise * 2.0**BITS).long().unbind(-1)
    return (high << BITS) | low


def _block(space: gym.spaces.Box, config: Cosmos3Config, described: Described) -> int:
    """Return how many actions a block has.

    Raises:
        TypeError: not a whole number of actions, or of latents.
    """
    size, action = math.prod(space.shape), described.action_size
    block, rest = divmod(size, action)
    if rest or not block or block % described.temporal:
        raise TypeError(
            f"a step of cosmos3 takes a block of k actions of {action} numbers each in "
            f"domain={config.domain!r}, k a multiple of {described.temporal}: a Box of k x "
            f"{action} numbers, got {size} of {space}; read the data with "
            f"SkippedDataset(dataset, FrameSkip(steps={4 * described.temporal}))"
        )
    return block


def _check_size(size: tuple[int, int], described: Described) -> None:
    """Check that frames are whole latents.

    Raises:
        ValueError: they are not.
    """
    unit = described.spatial
    if any(side % unit for side in size):
        near = tuple(max(1, side // unit) * unit for side in size)
        raise ValueError(
            f"frames of {size[0]} by {size[1]} pixels are not whole latents of {unit} pixels; pass "
            f"image_size={near}"
        )
