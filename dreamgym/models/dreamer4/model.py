"""Dreamer 4: shortcut forcing on the latents of a tokeniser (Hafner et al., arXiv 2509.24527)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium as gym
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.models.base import (
    Prediction,
    Segment,
    State,
    Temperature,
    end_outside_data,
)
from dreamgym.models.dreamer4.config import PRESET_FITS, PRESETS, Dreamer4Config
from dreamgym.models.dreamer4.modules import Dynamics, Level, Tokenizer
from dreamgym.models.nn.actions import ActionEncoder
from dreamgym.models.nn.block_causal import BlockCausalModel, Keys
from dreamgym.models.nn.dense import linear
from dreamgym.models.nn.distributions import normal, per_row
from dreamgym.models.nn.reward_head import RewardHead
from dreamgym.models.observations import Observation
from dreamgym.models.reduction import masked_mean
from dreamgym.models.splitmix import BITS, uniforms
from dreamgym.models.statistics import Statistics


class Dreamer4(BlockCausalModel):
    """A tokeniser of observations, and a transformer that denoises the latents of the next one.

    The tokeniser makes a few tokens of an observation, each of some numbers in [-1, 1]. The
    dynamics turns noise into the tokens of the next observation in a few steps, given the action
    and what was before. It is told how noisy its input is and how far a step has to go, and has
    learnt that a large step does what two half as large do. A last token, which the others do not
    see, becomes h, and predicts reward and termination.

    Observations before are given to it clean, with the lowest noise that it has learnt as their
    level. The tokeniser sees single observations; the authors' attends over time, for which a state
    would have to hold frames.

    State: `z` (B, window, tokens, numbers), the latents of the last observations, the newest last;
    `actions` (B, window, A), the encoded action that led to each; `length` (B,) int64, how many are
    set (those before are zero); `h` (B, width) of the newest. The window is all that an output
    depends on. Features: (z, h) of the newest.

    All randomness of a step is in its start noise, of which the temperature multiplies the
    variance.

    A dream whose vectors leave the range of the training data ends there (`end_outside_data`),
    unless the config turns that off.

    Args:
        observation_space: a Box or a Dict of Boxes.
        action_space: a Box, Discrete or MultiDiscrete space.
        config: sizes and losses.

    Raises:
        TypeError: a space is of another kind.
        ValueError: the patch does not divide the side of images.
    """

    config_type = Dreamer4Config
    presets: ClassVar[Mapping[str, Dreamer4Config]] = PRESETS
    preset_fits: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESET_FITS
    fit_defaults: ClassVar[Mapping[str, Any]] = {
        "batch_size": 32,
        "segment_length": 16,
        "learning_rate": 2e-3,
        "gradient_clip": 1.0,
        "clip_by": "norm",
    }
    given = ("z", "actions", "length")
    config: Dreamer4Config
    places: Tensor
    worst_return: Tensor
    updates: Tensor

    def __init__(
        self, observation_space: gym.Space, action_space: gym.Space, config: Dreamer4Config
    ) -> None:
        super().__init__(observation_space, action_space, config)
        objective, width = config.objective, config.width
        self.shape = (config.tokens, config.packing * config.channels)
        self.noise_dim = math.prod(self.shape)
        self.feature_dim = self.noise_dim + width
        self.encode_action = ActionEncoder(action_space)
        self.tokenizer = Tokenizer(observation_space, config)
        self.dynamics = Dynamics(self.encode_action.dim, config)
        self.reward = RewardHead(head(objective.reward_outputs, config), objective)
        self.termination = head(1, config)
        # Saved with the weights, so that a file cannot ask for a window that it has not.
        self.register_buffer("places", torch.arange(config.window))
        self.register_buffer("worst_return", torch.zeros(()))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def set_statistics(self, statistics: Statistics) -> None:
        """See `WorldModel.set_statistics`."""
        self.tokenizer.set_moments(statistics.observation)
        if statistics.action is not None:
            self.encode_action.fit(statistics.action)
        self.reward.set_moments(statistics.reward_mean, statistics.reward_std)
        self.worst_return.copy_(statistics.worst_return)

    def initial(self, batch_size: int) -> State:
        """See `WorldModel.initial`; an empty window."""
        config, zeros = self.config, self.worst_return.new_zeros
        return {
            "z": zeros(batch_size, config.window, *self.shape),
            "actions": zeros(batch_size, config.window, self.encode_action.dim),
            "length": zeros(batch_size, dtype=torch.int64),
            "h": zeros(batch_size, config.width),
        }

    def observe(
        self, state: State, action: Tensor, observation: Observation, noise: Tensor
    ) -> State:
        """See `WorldModel.observe`; it draws nothing."""
        encoded = self.action_after(state, action)
        z = self.tokenizer.encode(self.tokenizer.targets(observation))
        h, _ = self.clean(z, encoded, self.seen(state), self.before(state))
        return push(state, z, encoded, h)

    def features(self, state: State) -> Tensor:
        """Return (z, h): (B, tokens x numbers + width)."""
        return torch.cat([state["z"][:, -1].flatten(1), state["h"]], -1)

    def decode(self, state: State) -> Observation:
        """Return the observation (B, ...) of z, in the dtypes and bounds of its space."""
        return self.tokenizer.to_observation(self.tokenizer.predict(state["z"][:, -1]))

    # ------------------------------------------------------------ parts of a step

    def imagine(
        self,
        state: State,
        action: Tensor,
        noise: Tensor,
        temperature: Temperature,
        before: list[Keys],
    ) -> tuple[State, Prediction, list[Keys]]:
        """See `BlockCausalModel.imagine`; the latents are drawn by denoising."""
        encoded, seen = self.action_after(state, action), self.seen(state)
        z = self._denoised(normal(noise), temperature, encoded, seen, before)
        h, kept = self.clean(z, encoded, seen, before)
        reward = self.reward.predict(h)
        termination = self.termination(h).squeeze(-1).sigmoid()
        outside = None
        if self.config.range_margin is not None and self.tokenizer.sizes:
            vectors = self.tokenizer.predict(z)[0]
            outside = self.tokenizer.outside_data(vectors, self.config.range_margin)
        prediction = Prediction(reward, termination, torch.zeros_like(reward))
        ended = end_outside_data(prediction, outside, self.worst_return)
        return push(state, z, encoded, h), ended, kept

    def before(self, state: State) -> list[Keys]:
        """See `BlockCausalModel.before`."""
        known = self.places >= self.config.window - state["length"].unsqueeze(-1)
        level = self._cleanest(state["actions"])
        return self.dynamics(state["z"], level, state["actions"], known)[2]

    def seen(self, state: State) -> Tensor:
        """Return which of the last `context` observations, and the next one, are there."""
        context, length = self.config.context, state["length"]
        known = torch.arange(context, device=length.device) >= context - length.unsqueeze(-1)
        return F.pad(known, (0, 1), value=True)

    def action_after(self, state: State, action: Tensor) -> Tensor:
        """Return a raw action (B, ...) as (B, A); an episode's first observation has none."""
        encoded = self.encode_action(action).to(self.worst_return.dtype)
        return torch.where((state["length"] == 0).unsqueeze(-1), 0.0, encoded)

    def clean(
        self, z: Tensor, encoded: Tensor, seen: Tensor, before: list[Keys]
    ) -> tuple[Tensor, list[Keys]]:
        """Return h (B, width) of an observation, and keys and values with it among the last.

        Args:
            z: (B, tokens, numbers) its latents.
            encoded: (B, A) the action that led to it.
            seen: output of `seen`.
            before: keys and values of the observations before.
        """
        actions = encoded.unsqueeze(1)
        level = self._cleanest(actions)
        _, h, kept = self.dynamics(z.unsqueeze(1), level, actions, seen, before)
        return h.squeeze(1), kept

    def _denoised(
        self,
        start: Tensor,
        temperature: Temperature,
        encoded: Tensor,
        seen: Tensor,
        before: list[Keys],
    ) -> Tensor:
        """Return latents (B, tokens, numbers) made from normal noise (B, noise_dim)."""
        config, actions = self.config, encoded.unsqueeze(1)
        z = start.unflatten(1, self.shape).unsqueeze(1)
        z = z * per_row(temperature, z) ** 0.5
        stride = config.finest // config.steps
        full = torch.full_like(actions[..., 0], 1, dtype=torch.int64)
        for k in range(config.steps):
            level = Level(full * (k * stride), full * (stride.bit_length() - 1))
            predicted, _, _ = self.dynamics(z, level, actions, seen, before)
            # The velocity is (predicted - z) / (1 - k / steps); a step is 1 / steps of it.
            z = z + (predicted - z) / (config.steps - k)
        return z.squeeze(1).clamp(-1.0, 1.0)

    def _cleanest(self, actions: Tensor) -> Level:
        """Return the level of clean observations with actions (B, T, A)."""
        zeros = torch.zeros_like(actions[..., 0], dtype=torch.int64)
        return Level(zeros + (self.config.finest - 1), zeros)

    # ------------------------------------------------------------ fitting

    @property
    def phase_starts(self) -> tuple[int, ...]:
        """See `WorldModel.phase_starts`: the dynamics is fitted after the tokeniser."""
        return (self.config.tokenizer_updates,) if self.config.tokenizer_updates else ()

    def before_fit(self) -> None:
        """See `WorldModel.before_fit`: the tokeniser is fitted first again."""
        self.updates.zero_()

    def after_update(self) -> None:
        """Count the updates: the tokeniser is frozen after `tokenizer_updates` of them."""
        self.updates += 1

    def loss(self, segment: Segment, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of the tokeniser, and that of the dynamics, of arXiv 2509.24527.

        The dynamics and the heads have no gradient in the tokeniser. With `tokenizer_updates` the
        tokeniser is fitted first; in eval mode all terms are there. What the loss needs of random
        numbers beyond `noise` is derived from it.
        """
        first = self.config.tokenizer_updates
        alone = bool(first and self.training and self.updates < first)
        frozen = bool(first and self.training and not alone)
        targets = self.tokenizer.targets(segment.observation)
        observed = F.pad(segment.mask, (1, 0), value=True)  # a segment's first is never padding
        keys = (noise[..., 0] * 2.0**BITS).long()
        drawn = uniforms(keys, 3 + self.tokenizer.droppable).to(noise.dtype)
        terms = {} if frozen else self._tokenizer_terms(targets, observed, drawn[..., 2:])
        if not alone:
            with torch.no_grad():
                z = self.tokenizer.encode(targets)
            terms |= self._dynamics_terms(segment, z, noise, drawn[..., :2])
        weights = self.config.objective
        total = torch.stack([getattr(weights, name) * term for name, term in terms.items()]).sum()
        return total, {name: term.detach() for name, term in terms.items()}

    def _tokenizer_terms(
        self, targets: list[Tensor], observed: Tensor, drawn: Tensor
    ) -> dict[str, Tensor]:
        """Return the errors of reconstruction with some patches hidden.

        Args:
            targets: outputs of `Tokenizer.targets`, (B, L + 1, ...).
            observed: (B, L + 1) bool, false on padding.
            drawn: (B, L + 1, 1 + patches) uniforms.
        """
        share = self.config.objective.dropped * drawn[..., :1]
        latents = self.tokenizer.encode(targets, drawn[..., 1:] < share)
        predicted = self.tokenizer.predict(latents)
        errors: dict[str, Tensor] = {}
        names = ["vector"] * bool(self.tokenizer.sizes) + ["image"] * len(self.tokenizer.pixels)
        for name, guess, truth in zip(names, predicted, targets, strict=True):
            error = (guess - truth).square().flatten(2).sum(-1)
            errors[name] = errors.get(name, 0.0) + masked_mean(error, observed)
        return errors

    def _dynamics_terms(
        self, segment: Segment, z: Tensor, noise: Tensor, drawn: Tensor
    ) -> dict[str, Tensor]:
        """Return the losses of the dynamics and of the heads.

        Args:
            segment: B windows of L transitions.
            z: (B, L + 1, tokens, numbers) clean latents.
            noise: (B, L + 1, noise_dim) uniforms.
            drawn: (B, L + 1, 2) uniforms.
        """
        observed = F.pad(segment.mask, (1, 0), value=True)
        encoded = self.encode_action(segment.action).to(z.dtype)
        actions = F.pad(encoded, (0, 0, 1, 0))
        level = self._levels(drawn)
        signal = (level.signal / self.config.finest).to(z.dtype)[..., None, None]
        noisy = (1 - signal) * normal(noise).unflatten(-1, self.shape) + signal * z
        predicted, _, _ = self.dynamics(noisy, level, actions, observed)
        target = self._targets(z, noisy, level, actions)
        error = (predicted - target).square().sum((-1, -2))
        ramp = 0.9 * signal[..., 0, 0] + 0.1
        _, h, _ = self.dynamics(z, self._cleanest(actions), actions, observed)
        h = h[:, 1:]
        cross_entropy = F.binary_cross_entropy_with_logits(
            self.termination(h).squeeze(-1), segment.terminated.to(h.dtype), reduction="none"
        )
        return {
            "dynamics": masked_mean(ramp * error, observed),
            "reward": masked_mean(self.reward.loss(h, segment.reward), segment.mask),
            "termination": masked_mean(cross_entropy, segment.mask),
        }

    def _bootstrapped(self, batch: int) -> int:
        """Return how many rows of a batch learn larger steps: the first ones."""
        return math.ceil(self.config.objective.bootstrapped * batch)

    def _levels(self, drawn: Tensor) -> Level:
        """Return the levels for uniforms (B, L + 1, 2), the finest steps but for the first rows.

        Larger steps are uniform among the powers of two, signals on the grid that such steps reach.
        """
        finest = self.config.finest
        sizes = finest.bit_length() - 1
        larger = torch.arange(len(drawn), device=drawn.device) < self._bootstrapped(len(drawn))
        step = torch.where(larger.unsqueeze(-1), 1 + (drawn[..., 0] * sizes).long(), 0)
        stride = 2**step
        return Level((drawn[..., 1] * (finest // stride)).long() * stride, step)

    @torch.no_grad()
    def _targets(self, z: Tensor, noisy: Tensor, level: Level, actions: Tensor) -> Tensor:
        """Return the latents (B, T, tokens, numbers) that the dynamics should predict.

        They are the clean ones, or those to which the mean velocity of two steps of half the size
        leads. With these as targets the squared error is the published one, which compares
        velocities and multiplies by (1 - signal) squared.

        Args:
            z: (B, T, tokens, numbers) clean latents.
            noisy: the noisy ones.
            level: their levels.
            actions: (B, T, A) encoded.
        """
        rows = self._bootstrapped(len(z))
        if not rows:
            return z
        noisy, actions, finest = noisy[:rows], actions[:rows], self.config.finest
        known = torch.ones_like(actions[..., 0], dtype=torch.bool)
        signal, half = level.signal[:rows], level.step[:rows] - 1
        stride = 2**half
        moved, velocities = noisy, []
        for at in (signal, signal + stride):
            predicted, _, _ = self.dynamics(moved, Level(at, half), actions, known)
            left = (1 - at / finest).to(z.dtype)[..., None, None]
            velocities.append((predicted - moved) / left)
            moved = moved + velocities[-1] * (stride / finest).to(z.dtype)[..., None, None]
        left = (1 - signal / finest).to(z.dtype)[..., None, None]
        reached = noisy + left * (velocities[0] + velocities[1]) / 2
        return torch.cat([reached, z[rows:]])


def head(outputs: int, config: Dreamer4Config) -> nn.Sequential:
    """Return a prediction head on h."""
    layers: list[nn.Module] = []
    for _ in range(config.head_layers):
        layers += [nn.Linear(config.width, config.width), nn.SiLU()]
    return nn.Sequential(*layers, linear(config.width, outputs))


def push(state: State, z: Tensor, encoded: Tensor, h: Tensor) -> State:
    """Return the state after an observation; a full window loses its oldest.

    Args:
        state: leaves (B, ...).
        z: (B, tokens, numbers) latents of the observation.
        encoded: (B, A) the action that led to it.
        h: (B, width) of it.
    """
    window = state["z"].shape[1]
    return {
        "z": torch.cat([state["z"][:, 1:], z.unsqueeze(1)], 1),
        "actions": torch.cat([state["actions"][:, 1:], encoded.unsqueeze(1)], 1),
        "length": (state["length"] + 1).clamp(max=window),
        "h": h,
    }
