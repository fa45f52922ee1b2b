"""DINO-WM: a world model of pretrained patches (Zhou et al. 2024, arXiv 2411.04983)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium as gym
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.models.base import Segment, State
from dreamgym.models.dino_wm.config import PRESET_FITS, PRESETS, DINOWMConfig
from dreamgym.models.dino_wm.modules import Predictor
from dreamgym.models.nn.layers import mlp
from dreamgym.models.nn.windows import at
from dreamgym.models.observations import Observation
from dreamgym.models.patches import Entry, Normalisation, PatchModel, Transitions
from dreamgym.models.reduction import masked_mean


class DINOWM(PatchModel):
    """A transformer that predicts the patches of the next frame, as a frozen DINOv2 encodes it.

    Each patch of a frame is joined with an embedding of the frame's vectors (proprioception) and
    one of the action after it. The predictor sees the patches of `context` frames and predicts
    patches and embedded vectors of the next one. `PatchModel` describes state, heads and decoder.

    A probe decodes vectors from what is predicted; a dream whose vectors leave the range of the
    training data ends there (`end_outside_data`), unless the config turns that off. The authors'
    model has neither rewards and terminations nor that probe.

    `goal_features` are the patches and embedded vectors, scaled so that the squared distance is the
    authors' objective: the sum of both mean squared differences.

    Args:
        observation_space: a Box of colour images, or a Dict of one such and of vectors.
        action_space: a Box, Discrete or MultiDiscrete space; for a frame skip that of the block.
        config: sizes and losses.

    Raises:
        TypeError: a space is of another kind.
        ValueError: the encoder cannot take images of this size.
        PretrainedError: the encoder cannot be loaded.
    """

    family: ClassVar[str] = "dino-wm"
    # The authors' images are in [-1, 1], and not normalised as DINOv2 expects.
    normalisation: ClassVar[Normalisation] = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    config_type = DINOWMConfig
    presets: ClassVar[Mapping[str, DINOWMConfig]] = PRESETS
    preset_fits: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESET_FITS
    fit_defaults: ClassVar[Mapping[str, Any]] = {
        "batch_size": 16,
        "segment_length": 8,
        "learning_rate": 5e-4,
        "gradient_clip": 10.0,
        "clip_by": "norm",
    }
    config: DINOWMConfig

    def __init__(
        self, observation_space: gym.Space, action_space: gym.Space, config: DINOWMConfig
    ) -> None:
        super().__init__(observation_space, action_space, config)
        vectors = self.senses.vector_size
        self.embed_action = nn.Linear(self.encode_action.dim, config.action_width)
        self.embed_vectors = nn.Linear(vectors, config.vector_width) if vectors else None
        self.probe = mlp(self.feature_dim, config.hidden, vectors) if vectors else None
        width = self.width + config.action_width
        self.predictor = Predictor(self.senses.patches, width, config)

    @property
    def width(self) -> int:
        """Numbers in a patch of an entry: the encoder's, and the embedded vectors'."""
        return self.senses.width + bool(self.senses.sizes) * self.config.vector_width

    def entry_sizes(self) -> dict[str, int]:
        """See `PatchModel.entry_sizes`."""
        return {"patches": self.senses.patches * self.width}

    def entry(self, observation: Observation, *, cached: bool = False) -> Entry:
        """See `PatchModel.entry`; the embedded vectors are part of every patch."""
        patches = self.senses.encode(observation, cached=cached)
        vectors = self.senses.vector_targets(observation)
        if self.embed_vectors is not None and vectors is not None:
            embedded = self.embed_vectors(vectors).to(patches.dtype)
            patches = torch.cat([patches, self._on_patches(embedded)], -1)
        return {"patches": patches.flatten(-2)}

    def following(self, window: State, place: Tensor) -> Entry:
        """See `PatchModel.following`."""
        predicted = self.predict(window["patches"], window["actions"])
        return {"patches": at(predicted, place)}

    def predict(self, patches: Tensor, actions: Tensor) -> Tensor:
        """Return the prediction after each frame, from it and those before it.

        Args:
            patches: (B, T, patches x width), of at most `context` frames.
            actions: (B, T, A) encoded actions after them.

        Returns:
            (B, T, patches x width).
        """
        embedded = self.embed_action(actions).to(patches.dtype)
        frames = patches.unflatten(-1, (self.senses.patches, -1))
        output = self.predictor(torch.cat([frames, self._on_patches(embedded)], -1))
        return output[..., : self.width].flatten(-2)

    def vectors(self, entry: Entry) -> Tensor:
        """See `PatchModel.vectors`; as the probe decodes them.

        Raises:
            AttributeError: the observations have no vectors.
        """
        if self.probe is None:
            raise AttributeError(f"{self.observation_space} has no vectors")
        return self.probe(self.pooled(entry))

    def goal_features(self, state: State) -> Tensor:
        """See `WorldModel.goal_features`."""
        patches = self.newest(state)["patches"].unflatten(-1, (self.senses.patches, -1))
        encoded, embedded = patches.tensor_split([self.senses.width], -1)
        parts = [encoded.flatten(1)]
        if self.embed_vectors is not None:
            parts.append(embedded[:, 0])  # of the first patch, as the authors take it
        return torch.cat([part / part.shape[1] ** 0.5 for part in parts], -1)

    def loss(self, segment: Segment, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the squared error of predicted patches and embedded vectors, and other losses.

        Every window of `context` frames in a segment predicts the frame after each of its own; for
        segments of a single window this is the authors' loss. Further steps are predicted from
        predictions, which the authors do not (`objective.rollout_steps`). Targets get no gradient.
        """
        actions = self._encode_action(segment.action)
        frames = self.entry(segment.observation, cached=True)["patches"]
        size = min(self.config.context, actions.shape[1])
        self.update_window(size)
        observed, targets = F.pad(segment.mask, (1, 0), value=True), frames.detach()
        window, conditions = _windows(frames[:, :-1], size), _windows(actions, size)
        predicted = self._predict_windows(window, conditions)
        error = (predicted - _windows(targets[:, 1:], size)).square().mean(-1)
        terms = {"prediction": masked_mean(error, _windows(observed[:, 1:], size))}
        # Each frame's prediction from the longest context.
        longest = torch.cat([predicted[:, 0, :-1], predicted[:, :, -1]], 1)
        seen = [
            Transitions({"patches": frames[:, :-1]}, {"patches": after}, 0)
            for after in (frames[:, 1:], longest)
        ]
        errors = []
        for depth in range(1, min(self.config.objective.rollout_steps, window.shape[1])):
            newest = predicted[:, :-1, -1]
            window = torch.cat([window[:, :-1, 1:], newest.unsqueeze(2)], 2)
            conditions = conditions[:, 1:]
            predicted = self._predict_windows(window, conditions)
            after = predicted[:, :, -1]
            each = Transitions({"patches": newest}, {"patches": after}, size - 1 + depth)
            error = (after - targets[:, each.arrivals]).square().mean(-1)
            errors.append(masked_mean(error, observed[:, each.arrivals]))
            seen.append(each)
        if errors:
            terms["rollout"] = torch.stack(errors).mean()
        return self.total(segment, terms, actions, seen)

    def vector_error(
        self, before: Entry, actions: Tensor, after: Entry, observation: Observation
    ) -> Tensor | None:
        """See `PatchModel.vector_error`; of the probe."""
        target = self.senses.vector_targets(observation)
        if target is None:
            return None
        return (self.vectors(after) - target).square().mean(-1)

    def _predict_windows(self, windows: Tensor, actions: Tensor) -> Tensor:
        """Return predictions (B, W, size, n) on windows (B, W, size, n)."""
        output = self.predict(windows.flatten(0, 1), actions.flatten(0, 1))
        return output.unflatten(0, windows.shape[:2])

    def _on_patches(self, values: Tensor) -> Tensor:
        """Repeat values (..., n) on every patch: (..., patches, n)."""
        return values.unsqueeze(-2).expand(
            *values.shape[:-1], self.senses.patches, values.shape[-1]
        )


def _windows(frames: Tensor, size: int) -> Tensor:
    """Return all windows of `size` frames: (B, T, ...) as (B, T - size + 1, size, ...)."""
    return frames.unfold(1, size, 1).movedim(-1, 2)
