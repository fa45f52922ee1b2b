"""V-JEPA 2-AC: planning with a predictor of V-JEPA 2's patches (Assran et al. 2025, 2506.09985)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium as gym
import torch
import torch.nn.functional as F
from torch import Tensor

from dreamgym.models.base import Segment, State
from dreamgym.models.nn.layers import mlp
from dreamgym.models.nn.windows import at
from dreamgym.models.observations import Observation, is_image, observation_boxes
from dreamgym.models.patches import Entry, Normalisation, PatchModel, Transitions
from dreamgym.models.reduction import masked_mean
from dreamgym.models.vjepa2_ac.config import PRESET_FITS, PRESETS, VJEPA2ACConfig
from dreamgym.models.vjepa2_ac.modules import POSE, Predictor, droid_pose


class VJEPA2AC(PatchModel):
    """A transformer that predicts the patches of the next frame, as a frozen V-JEPA 2 encodes it.

    Each frame is encoded by itself, as a still clip, and its patches are layer-normed, without
    weights. The predictor sees the tokens of `context` frames: the action after each, its vectors
    (proprioception), and its patches. Observations without vectors have no token of vectors, which
    the published model always has. `PatchModel` describes state, heads and decoder.

    State: beside the patches `vectors` (B, context, n), in the model's units. The next ones follow
    by a learned head or by arithmetic of poses (`VJEPA2ACConfig.pose`), and a dream whose vectors
    leave the range of the training data ends there (`end_outside_data`), unless the config turns
    that off.

    Args:
        observation_space: a Box of colour images, or a Dict of one such and of vectors.
        action_space: a Box, Discrete or MultiDiscrete space.
        config: sizes and losses.

    Raises:
        TypeError: a space is of another kind, or not that of poses where the config asks for them.
        ValueError: the encoder cannot take images of this size.
        PretrainedError: the encoder cannot be loaded.
    """

    family: ClassVar[str] = "vjepa2-ac"
    normalisation: ClassVar[Normalisation] = Normalisation(
        (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )
    config_type = VJEPA2ACConfig
    presets: ClassVar[Mapping[str, VJEPA2ACConfig]] = PRESETS
    preset_fits: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESET_FITS
    fit_defaults: ClassVar[Mapping[str, Any]] = {
        "batch_size": 16,
        "segment_length": 4,
        "learning_rate": 4e-4,
        "weight_decay": 0.04,
        "gradient_clip": 10.0,
        "clip_by": "norm",
    }
    config: VJEPA2ACConfig

    def __init__(
        self, observation_space: gym.Space, action_space: gym.Space, config: VJEPA2ACConfig
    ) -> None:
        if config.pose == "droid":
            _check_poses(observation_space, action_space)
        super().__init__(observation_space, action_space, config, units=config.units)
        senses, actions = self.senses, self.encode_action.dim
        vectors = senses.vector_size
        self.predictor = Predictor(senses.width, senses.grid, actions, vectors, config)
        self.pose = None
        if config.pose == "learned" and vectors:
            self.pose = mlp(self.feature_dim + actions, config.hidden, vectors)

    def entry_sizes(self) -> dict[str, int]:
        """See `PatchModel.entry_sizes`."""
        senses = self.senses
        sizes = {"patches": senses.patches * senses.width}
        return sizes | ({"vectors": senses.vector_size} if senses.sizes else {})

    def entry(self, observation: Observation, *, cached: bool = False) -> Entry:
        """See `PatchModel.entry`."""
        patches = self._normed(self.senses.encode(observation, cached=cached))
        vectors = self.senses.vector_targets(observation)
        entry = {"patches": patches.flatten(-2)}
        return entry if vectors is None else entry | {"vectors": vectors.to(patches.dtype)}

    def following(self, window: State, place: Tensor) -> Entry:
        """See `PatchModel.following`."""
        predicted = self.predict(window, window["actions"])
        action, before = at(window["actions"], place), self._at(window, place)
        return self._after(before, action, at(predicted, place))

    def predict(self, frames: Entry, actions: Tensor) -> Tensor:
        """Return the layer-normed patches after each frame, from it and those before it.

        Args:
            frames: leaves (B, T, n), of at most `context` frames.
            actions: (B, T, A) encoded actions after them.

        Returns:
            (B, T, patches x width).
        """
        patches = frames["patches"].unflatten(-1, (self.senses.patches, -1))
        output = self.predictor(patches, actions, frames.get("vectors"))
        return self._normed(output).flatten(-2)

    def vectors(self, entry: Entry) -> Tensor:
        """See `PatchModel.vectors`."""
        return entry["vectors"]

    def loss(self, segment: Segment, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the absolute error of predicted patches (arXiv 2506.09985, eq. 2-4), and others.

        The patches after each frame are predicted from real frames (teacher forcing), and those
        after the first also from predictions, over `objective.rollout_steps`, with real vectors.

        Raises:
            ValueError: the segment is longer than the context.
        """
        actions = self._encode_action(segment.action)
        length = actions.shape[1]
        if length > self.config.context:
            raise ValueError(
                f"segments have {length} transitions, this V-JEPA 2-AC a context of "
                f"{self.config.context}: fit with segment_length={self.config.context} or less, or "
                "with a larger context"
            )
        self.update_window(length)
        frames = self.entry(segment.observation, cached=True)
        before, after = ({k: leaf[:, part] for k, leaf in frames.items()} for part in _ENDS)
        predicted = self.predict(before, actions)
        error = (predicted - after["patches"]).abs().mean(-1)
        terms = {"prediction": masked_mean(error, segment.mask)}
        seen = [
            Transitions(before, after, 0),
            Transitions(before, self._after(before, actions, predicted), 0),
        ]
        steps = min(self.config.objective.rollout_steps, length)
        if steps > 1:
            rolled = self._rollout(before, actions, predicted[:, :1], steps)
            error = (rolled - after["patches"][:, :steps]).abs().mean(-1)
            terms["rollout"] = masked_mean(error, segment.mask[:, :steps])
            real = {k: leaf[:, 1:steps] for k, leaf in before.items()}
            dreamt = real | {"patches": rolled[:, :-1]}
            following = self._after(dreamt, actions[:, 1:steps], rolled[:, 1:])
            seen.append(Transitions(dreamt, following, 1))
        return self.total(segment, terms, actions, seen)

    def vector_error(
        self, before: Entry, actions: Tensor, after: Entry, observation: Observation
    ) -> Tensor | None:
        """See `PatchModel.vector_error`; of the learned head."""
        target = self.senses.vector_targets(observation)
        if self.pose is None or target is None:
            return None
        predicted = self._after(before, actions, after["patches"])["vectors"]
        return (predicted - target).square().mean(-1)

    def _rollout(self, before: Entry, actions: Tensor, first: Tensor, steps: int) -> Tensor:
        """Return the patches (B, steps, n) after the first frame, each from those before it.

        Args:
            before: real frames, leaves (B, L, n).
            actions: (B, L, A) encoded.
            first: (B, 1, n) the prediction from the first frame.
            steps: number of predictions.
        """
        patches = torch.cat([before["patches"][:, :1], first], 1)
        for count in range(2, steps + 1):
            window = {k: leaf[:, :count] for k, leaf in before.items()} | {"patches": patches}
            newest = self.predict(window, actions[:, :count])[:, -1:]
            patches = torch.cat([patches, newest], 1)
        return patches[:, 1:]

    def _after(self, before: Entry, action: Tensor, patches: Tensor) -> Entry:
        """Return predicted frames: their patches, and the vectors that follow.

        Args:
            before: the frames before, leaves (..., n).
            action: (..., A) encoded.
            patches: (..., n) predicted.
        """
        entry = {"patches": patches}
        if "vectors" not in before:
            return entry
        vectors = before["vectors"]
        if self.pose is None:
            return entry | {"vectors": droid_pose(vectors, action)}
        inputs = torch.cat([self.pooled(entry | {"vectors": vectors}), action], -1)
        return entry | {"vectors": vectors + self.pose(inputs)}

    def _normed(self, patches: Tensor) -> Tensor:
        """Return patches (..., width) with mean zero and variance one each."""
        return F.layer_norm(patches, patches.shape[-1:])


def _check_poses(observation_space: gym.Space, action_space: gym.Space) -> None:
    """Check that observations have a pose, and that actions can be added to it.

    Raises:
        TypeError: they have other numbers.
    """
    boxes = observation_boxes(observation_space).values()
    vectors = sum(math.prod(box.shape) for box in boxes if not is_image(box))
    numbers = math.prod(action_space.shape or ())
    if not isinstance(action_space, gym.spaces.Box) or (vectors, numbers) != (POSE, POSE):
        raise TypeError(
            f"pose='droid' takes {POSE} numbers beside the image (place, angles, gripper), and Box "
            f"actions that change them, got {vectors} numbers and {action_space}; pass "
            "pose='learned'"
        )


_ENDS = (slice(None, -1), slice(1, None))
"""The frames before the transitions of a segment, and those after them."""
