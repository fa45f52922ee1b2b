"""DIAMOND: diffusion for world modelling (Alonso et al. 2024, arXiv 2405.12399)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import gymnasium as gym
import torch
import torch.nn.functional as F
from torch import Tensor

from dreamgym.models.base import Prediction, Segment, State, Temperature, WorldModel
from dreamgym.models.diamond.config import PRESET_FITS, PRESETS, DIAMONDConfig
from dreamgym.models.diamond.diffusion import (
    Preconditioning,
    quantised,
    sample,
    to_frames,
    to_network,
)
from dreamgym.models.diamond.modules import Denoiser, Outcomes
from dreamgym.models.nn.actions import ActionEncoder
from dreamgym.models.nn.conv import Pixels
from dreamgym.models.nn.distributions import per_row, quick_normal
from dreamgym.models.observations import Observation, get_part, join_parts, only_part
from dreamgym.models.reduction import masked_mean
from dreamgym.models.statistics import Statistics

BYTE = 255.0
"""Value of the brightest pixel."""


class DIAMOND(WorldModel):
    """A diffusion model of the next frame, and a network for rewards and terminations.

    The denoiser turns noise into the next frame in a few steps, given the last frames and actions.
    The other network sees a frame, the action and the next frame, and remembers by an LSTM. The two
    share nothing, so their losses are fitted side by side.

    State: `frames` (B, frames, channels, side, side) uint8, the newest last; `actions` (B, frames -
    1, A), the encoded actions between them; `length` (B,) int64, how many frames are set (grey
    stands for the others); `h` and `c` (B, hidden) of the LSTM. Features: the newest frame in
    [-1, 1], and h. The published policies see frames, as `view="observation"` shows them.

    All randomness of a step is in its start noise; from there on the steps are deterministic. The
    temperature multiplies its variance. Rewards are expectations; the authors sample their sign.

    Args:
        observation_space: a Box of images.
        action_space: a Box, Discrete or MultiDiscrete space.
        config: sizes, noise levels and losses.

    Raises:
        TypeError: a space is of another kind.
    """

    config_type = DIAMONDConfig
    presets: ClassVar[Mapping[str, DIAMONDConfig]] = PRESETS
    preset_fits: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESET_FITS
    fit_defaults: ClassVar[Mapping[str, Any]] = {
        "batch_size": 16,
        "segment_length": 16,
        "learning_rate": 2e-3,
        "gradient_clip": 10.0,
        "clip_by": "norm",
    }
    config: DIAMONDConfig

    def __init__(
        self, observation_space: gym.Space, action_space: gym.Space, config: DIAMONDConfig
    ) -> None:
        super().__init__(observation_space, action_space, config)
        side = config.image_size
        self.key, box = only_part(observation_space, "diamond")
        self.pixels = Pixels(box, (side, side))
        self.shape = (self.pixels.channels, side, side)
        self.encode_action = ActionEncoder(action_space)
        self.denoiser = Denoiser(self.shape[0], self.encode_action, config)
        self.outcomes = Outcomes(self.shape[0], self.encode_action, config)
        numbers = self.shape[0] * side * side
        self.feature_dim = numbers + config.hidden
        # After the start noise what a fit draws for a frame: offsets, levels, and which frame.
        self.noise_dim = numbers + self.shape[0] + 3

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.outcomes.lstm.bias.dtype

    def set_statistics(self, statistics: Statistics) -> None:
        """See `WorldModel.set_statistics`."""
        if statistics.action is not None:
            self.encode_action.fit(statistics.action)
        self.outcomes.reward.set_moments(statistics.reward_mean, statistics.reward_std)

    def initial(self, batch_size: int) -> State:
        """See `WorldModel.initial`; no frames."""
        config, zeros = self.config, self.outcomes.lstm.bias.new_zeros
        return {
            "frames": zeros(batch_size, config.frames, *self.shape, dtype=torch.uint8),
            "actions": zeros(batch_size, config.frames - 1, self.encode_action.dim),
            "length": zeros(batch_size, dtype=torch.int64),
            "h": zeros(batch_size, config.hidden),
            "c": zeros(batch_size, config.hidden),
        }

    def observe(
        self, state: State, action: Tensor, observation: Observation, noise: Tensor
    ) -> State:
        """See `WorldModel.observe`; the LSTM follows every transition between real frames."""
        frame = self._frames(observation)
        actions = self._with_action(state, action)
        h, c = self._outcome(state, actions[:, -1], to_network(frame, self.dtype))
        begins = (state["length"] == 0).unsqueeze(-1)
        lstm = {"h": torch.where(begins, 0.0, h), "c": torch.where(begins, 0.0, c)}
        # What came before an episode's first frame was no action.
        actions = torch.where(begins.unsqueeze(-1), 0.0, actions)
        return self._push(state, actions, frame) | lstm

    def step(
        self, state: State, action: Tensor, noise: Tensor, temperature: Temperature = 1.0
    ) -> tuple[State, Prediction]:
        """See `WorldModel.step`; arXiv 2405.12399, algorithm 1."""
        past, actions = self._past(state), self._with_action(state, action)
        start = quick_normal(noise[:, : past[0, 0].numel()]).unflatten(-1, self.shape)
        start = start * per_row(temperature, start) ** 0.5
        frame = self._sample(past, actions, start)
        h, c = self._outcome(state, actions[:, -1], frame)
        reward, termination = self._predict(h)
        following = self._push(state, actions, to_frames(frame)) | {"h": h, "c": c}
        return following, Prediction(reward, termination, torch.zeros_like(reward))

    def features(self, state: State) -> Tensor:
        """Return the newest frame in [-1, 1], and h: (B, channels x side x side + hidden)."""
        return torch.cat([self._past(state)[:, -1].flatten(1), state["h"]], -1)

    def decode(self, state: State) -> Observation:
        """Return the newest frame as an observation (B, ...), zeros if there is none."""
        image = self.pixels.to_bytes(state["frames"][:, -1].float() / BYTE)
        return join_parts({self.key: image})

    def sampled_in(self, denoising_steps: int) -> DIAMOND:
        """Return a model with the same weights that takes another number of denoising steps.

        Fitting does not depend on that number: `world.with_model(world.model.sampled_in(1))`.

        Args:
            denoising_steps: evaluations of the network in a step; more cost as many times more.
        """
        diffusion = replace(self.config.diffusion, denoising_steps=denoising_steps)
        config = replace(self.config, diffusion=diffusion)
        with torch.random.fork_rng(devices=[]):
            model = type(self)(self.observation_space, self.action_space, config)
        model.load_state_dict(self.state_dict())
        return model.to(self.outcomes.lstm.bias.device).train(self.training)

    def loss(self, segment: Segment, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the denoising error (arXiv 2405.12399, equation 5), and those of the outcomes.

        The denoiser predicts `targets` frames of each segment. Frames before the segment are grey,
        as those before an episode.
        """
        objective = self.config.objective
        frames = to_network(self._frames(segment.observation), self.dtype)
        actions = self._encode_action(segment.action)
        reward, termination = self._outcome_losses(segment, frames, actions)
        error, counts = self._denoising_error(segment, frames, actions, noise)
        terms = {
            "frame": masked_mean(error, counts),
            "reward": masked_mean(reward, segment.mask),
            "termination": masked_mean(termination, segment.mask),
        }
        weights = vars(objective)
        total = sum((weights[name] * term for name, term in terms.items()), torch.zeros(()))
        return total, {name: term.detach() for name, term in terms.items()}

    def _outcome_losses(
        self, segment: Segment, frames: Tensor, actions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the losses (B, L) of rewards and terminations.

        Args:
            segment: B segments of L transitions.
            frames: (B, L + 1, channels, side, side) in [-1, 1].
            actions: (B, L, A) encoded.
        """
        outcomes = self.outcomes
        flat = (part.flatten(0, 1) for part in (frames[:, :-1], actions, frames[:, 1:]))
        encoded = outcomes.encode(*flat).unflatten(0, actions.shape[:2])
        hidden = outcomes.trunk(outcomes.lstm.unroll(encoded))
        reward = outcomes.reward.loss(hidden, segment.reward)
        logits = outcomes.termination(hidden).movedim(-1, 1)
        return reward, F.cross_entropy(logits, segment.terminated.long(), reduction="none")

    def _denoising_error(
        self, segment: Segment, frames: Tensor, actions: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the mean squared error of each of N predicted frames, and whether it counts.

        Args:
            segment: B segments of L transitions.
            frames: (B, L + 1, channels, side, side) in [-1, 1].
            actions: (B, L, A) encoded.
            noise: (B, L + 1, noise_dim) uniforms.
        """
        config, diffusion = self.config, self.config.diffusion
        count = min(config.targets, segment.action.shape[1])
        numbers, channels = self.noise_dim - self.shape[0] - 3, self.shape[0]
        drawn = noise[:, :count, numbers:]
        # One target from each of `count` equal parts of the valid transitions.
        valid = segment.mask.sum(1, keepdim=True)
        share = (torch.arange(count, device=valid.device) + drawn[..., channels]) / count
        target = 1 + torch.minimum((share * valid).long(), (valid - 1).clamp(min=0))  # (B, count)
        row = torch.arange(len(target), device=target.device).unsqueeze(1)
        normals = quick_normal(noise[..., :numbers]).unflatten(-1, self.shape)
        clean = frames[row, target].flatten(0, 1)
        past, previous = self._before(frames, actions, target)
        level = None
        if diffusion.context_noise:
            level = drawn[..., channels + 1].flatten()
            past_noise, _ = self._before(normals, actions, target)
            scale = level * diffusion.context_noise * diffusion.sigma_data
            past = past + scale.view(-1, 1, 1, 1, 1) * past_noise
        sigma = diffusion.log_mean + diffusion.log_std * quick_normal(drawn[..., channels + 2])
        sigma = sigma.exp().clamp(diffusion.fitted_min, diffusion.fitted_max).flatten()
        offset = diffusion.sigma_offset * quick_normal(drawn[..., :channels]).flatten(0, 1)
        noisy = clean + offset[..., None, None] + _image(sigma) * normals[row, target].flatten(0, 1)
        c = Preconditioning.at(sigma, diffusion)
        embedded = self.denoiser.embed(previous, level)
        output = self._network(noisy, c, past, embedded)
        error = (output - (clean - _image(c.c_skip) * noisy) / _image(c.c_out)).square()
        return error.flatten(1).mean(1), (valid > 0).expand_as(target).flatten()

    def _before(self, frames: Tensor, actions: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return what precedes target frames: zeros where that is before the segment.

        Args:
            frames: (B, L + 1, ...).
            actions: (B, L, A).
            target: (B, count) indices into the frames, at least 1.

        Returns:
            (B x count, frames, ...) and (B x count, frames, A).
        """
        steps = torch.arange(-self.config.frames, 0, device=target.device)
        place = target.unsqueeze(-1) + steps
        row = torch.arange(len(target), device=target.device).view(-1, 1, 1)
        chosen = []
        for leaf in (frames, actions):
            values = leaf[row, place.clamp(min=0)]
            known = (place >= 0).view(*place.shape, *[1] * (leaf.ndim - 2))
            chosen.append(torch.where(known, values, 0.0).flatten(0, 1))
        return chosen[0], chosen[1]

    def _sample(self, past: Tensor, actions: Tensor, start: Tensor) -> Tensor:
        """Return the next frame (B, channels, side, side) in [-1, 1], on one of 256 levels.

        Args:
            past: (B, frames, channels, side, side) in [-1, 1].
            actions: (B, frames, A) encoded.
            start: (B, channels, side, side) normals.
        """
        diffusion = self.config.diffusion
        embedded = self.denoiser.embed(actions, None)

        def denoise(noisy: Tensor, level: float) -> Tensor:
            c = Preconditioning.at(noisy.new_full((1,), level), diffusion)
            output = self._network(noisy, c, past, embedded)
            return quantised(_image(c.c_skip) * noisy + _image(c.c_out) * output)

        return quantised(sample(denoise, start, diffusion))

    def _network(self, noisy: Tensor, c: Preconditioning, past: Tensor, embedded: Tensor) -> Tensor:
        """Return the denoiser's output for noisy frames (B, channels, side, side)."""
        scaled = past.flatten(1, 2) / self.config.diffusion.sigma_data
        return self.denoiser(_image(c.c_in) * noisy, c.c_noise, scaled, embedded)

    def _outcome(self, state: State, action: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
        """Return h and c after an action (B, A), and a frame (B, ...) in [-1, 1]."""
        encoded = self.outcomes.encode(self._past(state)[:, -1], action, frame)
        return self.outcomes.lstm.step(encoded, state["h"], state["c"])

    def _predict(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return the reward and the probability of termination, (B,) each."""
        hidden = self.outcomes.trunk(h)
        termination = self.outcomes.termination(hidden).softmax(-1)[..., 1]
        return self.outcomes.reward.predict(hidden), termination

    def _frames(self, observation: Observation) -> Tensor:
        """Return frames (..., channels, side, side) uint8 of observations (..., *box.shape)."""
        pixels = self.pixels.to_float(get_part(observation, self.key))
        return (pixels * BYTE).round().to(torch.uint8)

    def _past(self, state: State) -> Tensor:
        """Return the past frames (B, frames, channels, side, side) in [-1, 1]; grey if not set."""
        frames, count = state["frames"], self.config.frames
        places = torch.arange(count, device=frames.device)
        known = places >= count - state["length"].unsqueeze(-1)
        return torch.where(known[..., None, None, None], to_network(frames, self.dtype), 0.0)

    def _encode_action(self, action: Tensor) -> Tensor:
        """Return raw actions (..., *shape) as (..., A)."""
        return self.encode_action(action).to(self.dtype)

    def _with_action(self, state: State, action: Tensor) -> Tensor:
        """Return the actions (B, frames, A) after the past frames, the last one raw (B, ...)."""
        return torch.cat([state["actions"], self._encode_action(action).unsqueeze(1)], 1)

    def _push(self, state: State, actions: Tensor, frame: Tensor) -> State:
        """Return the state with a new frame (B, ...) of bytes, and without its oldest one."""
        return {
            "frames": torch.cat([state["frames"][:, 1:], frame.unsqueeze(1)], 1),
            "actions": actions[:, 1:],
            "length": (state["length"] + 1).clamp(max=self.config.frames),
            "h": state["h"],
            "c": state["c"],
        }


def _image(values: Tensor) -> Tensor:
    """Return numbers (N,) with the axes of images (N, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)
