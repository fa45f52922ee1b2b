"""MDN-RNN: an LSTM, mixtures of Gaussians for the next latents, and heads for the transition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import gymnasium as gym
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.models.base import (
    LatentDiagnostics,
    Prediction,
    Segment,
    State,
    Temperature,
    WorldModel,
    end_outside_data,
    zero_action,
)
from dreamgym.models.mdn_rnn.config import LOG_SIGMA_MAX, PRESET_FITS, PRESETS, MDNRNNConfig
from dreamgym.models.mdn_rnn.vae import ImageVAESizes, ObservationEncoder, kl_diagnostics
from dreamgym.models.nn.actions import ActionEncoder
from dreamgym.models.nn.distributions import Mixture
from dreamgym.models.nn.layers import LSTM, Linear, mlp
from dreamgym.models.observations import Observation
from dreamgym.models.reduction import masked_mean
from dreamgym.models.statistics import Statistics
from dreamgym.models.weights import OPEN_BOUNDS


class MDNRNN(WorldModel):
    """The MDN-RNN, with heads for reward and termination.

    A dream that leaves the range of the training data ends there (`end_outside_data`). The latents
    of images have no such range.

    In the published code M's first input of an episode, (z, action, restart flag), is a special
    one: the flag is one, and h and c are zero. Here an episode's first *observation* comes with the
    zero action in the initial state, so M's first input is (0, zero action, flag one): the flag is
    a leaf of the state, one in the initial state and zero in all others. A segment that starts
    within an episode is filtered and fitted in the same way; there the flag says that nothing was
    observed before.

    State: `z` (B, n), standardised numbers and latents; `h` and `c` (B, hidden) of the LSTM, which
    has seen everything up to the action that led to `z`; with a restart flag, `restart` (B, 1).
    Features: (z, h).

    Args:
        observation_space: a Box of floats, an image, or a Dict of them.
        action_space: a Box, Discrete or MultiDiscrete space.
        config: sizes.

    Raises:
        TypeError: a space is of another kind.
    """

    config_type = MDNRNNConfig
    presets: ClassVar[Mapping[str, MDNRNNConfig]] = PRESETS
    preset_fits: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESET_FITS
    config: MDNRNNConfig
    reward_mean: Tensor
    reward_std: Tensor
    worst_return: Tensor
    terminal_reward_low: Tensor
    terminal_reward_high: Tensor
    updates: Tensor

    def __init__(
        self, observation_space: gym.Space, action_space: gym.Space, config: MDNRNNConfig
    ) -> None:
        super().__init__(observation_space, action_space, config)
        self.vision = ObservationEncoder(
            observation_space,
            ImageVAESizes(config.image_size, config.latent, config.width),
            config.range_margin,
        )
        size = self.size = self.vision.size
        self.feature_dim, self.noise_dim = size + config.hidden, 2 * size
        self.encode_action = ActionEncoder(action_space)
        actions = self.encode_action.dim
        self.lstm = LSTM(size + actions + int(config.restart_flag), config.hidden)
        if config.trunk:
            self.trunk = nn.Linear(config.hidden + size + actions, config.trunk)
        self.mixture = Linear(config.trunk or config.hidden, 3 * config.mixtures * size)
        self.heads = (
            TransitionHeads(config.hidden, size, actions, config.head)
            if config.head
            else LinearHeads(config.hidden)
        )
        measured = {"reward_mean": 0.0, "reward_std": 1.0, "worst_return": 0.0}
        if config.head:
            measured |= OPEN_BOUNDS
        self.measured = tuple(measured)  # names of what `Statistics` gives
        for name, value in measured.items():
            self.register_buffer(name, torch.tensor(value))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def set_statistics(self, statistics: Statistics) -> None:
        """See `WorldModel.set_statistics`."""
        self.vision.set_statistics(statistics)
        if statistics.action is not None:
            self.encode_action.fit(statistics.action)
        for name in self.measured:
            getattr(self, name).copy_(getattr(statistics, name))

    @property
    def phase_starts(self) -> tuple[int, ...]:
        """See `WorldModel.phase_starts`: M is fitted after V."""
        return (self.config.vision_updates,) if self.config.vision_updates else ()

    def before_fit(self) -> None:
        """See `WorldModel.before_fit`: V is fitted first again."""
        self.updates.zero_()

    def after_fit(self) -> None:
        """See `WorldModel.after_fit`: release the cached posteriors of the frames."""
        self.vision.clear_cache()

    def after_update(self) -> None:
        """Count the updates: V is frozen after `vision_updates` of them."""
        self.updates += 1

    def initial(self, batch_size: int) -> State:
        """See `WorldModel.initial`."""
        weight = self.mixture.weight
        widths = {"z": self.size, "h": self.config.hidden, "c": self.config.hidden}
        state = {key: weight.new_zeros(batch_size, width) for key, width in widths.items()}
        if self.config.restart_flag:
            state["restart"] = weight.new_ones(batch_size, 1)
        return state

    def observe(
        self, state: State, action: Tensor, observation: Observation, noise: Tensor
    ) -> State:
        """See `WorldModel.observe`; latents are sampled, because M is fitted on samples."""
        recurrent = self._advance(state, self.encode_action(action))
        z = self.vision.encode_observation(observation, noise[..., : self.size])
        return {"z": z, **recurrent}

    def step(
        self, state: State, action: Tensor, noise: Tensor, temperature: Temperature = 1.0
    ) -> tuple[State, Prediction]:
        """See `WorldModel.step`."""
        encoded, vision, z = self.encode_action(action), self.vision, state["z"]
        recurrent = self._advance(state, encoded)
        h = recurrent["h"]
        choose, spread = noise.chunk(2, -1)
        delta = self._mixture(h, z, encoded).sample(choose, spread, temperature)
        new, outside = vision.limit(z * vision.carried + delta * vision.delta_std)
        output = self._predict_reward_termination(h, z, new, encoded)
        termination = output.termination_logit.sigmoid()
        reward = output.reward * self.reward_std + self.reward_mean
        if self.config.head:
            at_end = reward + output.end_bonus * self.reward_std
            at_end = at_end.clamp(self.terminal_reward_low, self.terminal_reward_high)
            reward = torch.lerp(reward, at_end, termination)
        prediction = Prediction(reward, termination, torch.zeros_like(reward))
        following = {"z": new, **recurrent}
        return following, end_outside_data(prediction, outside, self.worst_return)

    def features(self, state: State) -> Tensor:
        """Return (z, h), as the controller of V-M-C sees them: (B, n + hidden)."""
        return torch.cat([state["z"], state["h"]], -1)

    def decode(self, state: State) -> Observation:
        """Return the observation (B, *shape), or a dict of them, within the space's bounds."""
        return self.vision.decode_observation(state["z"])

    def loss(self, segment: Segment, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return V's loss on some of the frames plus M's on all; M's has no gradient in V.

        M's loss: negative log likelihood, squared reward error, termination cross-entropy. With
        `vision_updates` V is fitted first and M after it, on a frozen V; in eval mode the loss
        always has the terms of both.
        """
        vision_updates = self.config.vision_updates
        vision_first = bool(vision_updates and self.training and self.updates < vision_updates)
        vision_frozen = bool(vision_updates and self.training and not vision_first)
        noise = noise[..., : self.size]
        terms = {} if vision_frozen else self._vision_terms(segment, noise)
        if not vision_first:
            vision = self.vision
            encode = vision.encode_cached if vision_frozen else vision.encode_observation
            terms |= self._dynamics_terms(segment, encode(segment.observation, noise))
        weighted = [v * self.config.kl_scale if k.startswith("kl") else v for k, v in terms.items()]
        return torch.stack(weighted).sum(), {name: term.detach() for name, term in terms.items()}

    def diagnostics(self, segment: Segment, noise: Tensor) -> LatentDiagnostics:
        """See `WorldModel.diagnostics`; the KL divergence of every image's posterior."""
        frames = self.vision.sample_frames(
            segment, noise[..., : self.size], self.config.vision_frames
        )
        return kl_diagnostics(frames, self.config.kl_tolerance)

    def _vision_terms(self, segment: Segment, noise: Tensor) -> dict[str, Tensor]:
        """Return V's terms for each part that is an image; frames under padding are left out."""
        settings = {"tolerance": self.config.kl_tolerance, "foreground": self.config.foreground}
        terms = {}
        frames = self.vision.sample_frames(segment, noise, self.config.vision_frames)
        for key, batch in frames.items():
            loss = batch.vae.loss(batch.images, batch.epsilon, **settings)
            suffix = f"_{key}" if key else ""
            for name, values in loss._asdict().items():
                everywhere = torch.ones_like(values, dtype=torch.bool)
                terms[name + suffix] = masked_mean(values, everywhere)
        return terms

    def _dynamics_terms(self, segment: Segment, z: Tensor) -> dict[str, Tensor]:
        """Return M's terms, teacher-forced, with one call of the fused LSTM.

        Args:
            segment: B windows of L transitions.
            z: (B, L + 1, n) encoded observations.
        """
        encoded = self.encode_action(segment.action)
        now, new = z[:, :-1], z[:, 1:]
        h = self.lstm.unroll(self._unroll_inputs(now, encoded))[:, 1:]
        delta = (new - now * self.vision.carried) / self.vision.delta_std
        mixture = self._mixture(h, now, encoded)
        log_likelihood = mixture.log_prob(delta, self.vision.likelihood_weight())
        output = self._predict_reward_termination(h, now, new, encoded)
        reward = output.expected_reward(segment.terminated)
        target = (segment.reward - self.reward_mean) / self.reward_std
        cross_entropy = F.binary_cross_entropy_with_logits(
            output.termination_logit, segment.terminated.float(), reduction="none"
        )
        return {
            "nll": -masked_mean(log_likelihood, segment.mask),
            "reward": masked_mean((reward - target).square(), segment.mask),
            "termination": masked_mean(cross_entropy, segment.mask),
        }

    def _unroll_inputs(self, z: Tensor, encoded: Tensor) -> Tensor:
        """Return the LSTM's inputs (B, L + 1, ...) that filtering a segment would give it.

        The first is that of the initial state with the zero action.
        """
        zero = self.encode_action(zero_action(self.action_space, len(encoded), encoded.device))
        first = torch.cat([torch.zeros_like(z[:, :1]), zero.unsqueeze(1)], -1)
        inputs = torch.cat([first, torch.cat([z, encoded], -1)], 1)
        if not self.config.restart_flag:
            return inputs
        restart = torch.zeros_like(inputs[..., :1])
        restart[:, 0] = 1.0
        return torch.cat([inputs, restart], -1)

    def _advance(self, state: State, encoded: Tensor) -> State:
        """Return the leaves of the next state that do not depend on the next z."""
        inputs = [state["z"], encoded]
        if self.config.restart_flag:
            inputs.append(state["restart"])
        h, c = self.lstm.step(torch.cat(inputs, -1), state["h"], state["c"])
        recurrent = {"h": h, "c": c}
        if self.config.restart_flag:
            recurrent["restart"] = torch.zeros_like(state["restart"])
        return recurrent

    def _mixture(self, h: Tensor, z: Tensor, encoded: Tensor) -> Mixture:
        """Return the mixtures (..., n, mixtures) of the change of z."""
        hidden = F.silu(self.trunk(torch.cat([h, z, encoded], -1))) if self.config.trunk else h
        parameters = self.mixture(hidden).unflatten(-1, (3, self.size, self.config.mixtures))
        logits, mean, raw = parameters.unbind(-3)
        floor = self.config.log_sigma_min
        return Mixture(logits, mean, (floor + F.softplus(raw - floor)).clamp(max=LOG_SIGMA_MAX))

    def _predict_reward_termination(
        self, h: Tensor, z: Tensor, new: Tensor, encoded: Tensor
    ) -> TransitionOutput:
        """Apply the heads to transitions from z to `new`, (..., n) each."""
        return self.heads(h, new, (new - z) / self.vision.delta_std, encoded)


class TransitionOutput(NamedTuple):
    """What the heads predict for a transition; leaves (...).

    Attributes:
        reward: standardised reward if the episode continues.
        end_bonus: amount added to the reward if the episode ends.
        termination_logit: logit of the probability that the episode ends.
    """

    reward: Tensor
    end_bonus: Tensor
    termination_logit: Tensor

    def expected_reward(self, termination: Tensor) -> Tensor:
        """Return the standardised reward (...), given the probability (...) of termination."""
        return self.reward + termination * self.end_bonus


class LinearHeads(nn.Module):
    """Linear heads on h, as in the published code.

    Args:
        hidden: width of h.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.reward: nn.Module = Linear(hidden, 1)
        self.termination: nn.Module = Linear(hidden, 1)

    def forward(self, h: Tensor, new: Tensor, change: Tensor, encoded: Tensor) -> TransitionOutput:
        """Predict reward and termination from h (..., hidden) alone; see `TransitionHeads`."""
        reward, logit = self.reward(h).squeeze(-1), self.termination(h).squeeze(-1)
        return TransitionOutput(reward, torch.zeros_like(reward), logit)


class TransitionHeads(nn.Module):
    """Heads of two hidden layers on the sampled transition.

    The reward heads do not see h: h predicts the reward before the transition that causes it is
    sampled, so a dream would pay for transitions that did not happen, and policies exploit that.
    The reward is r + p b, with p the probability of termination, which may depend on h, and b what
    termination adds: +100 for a landing, for instance, that looks like every moment before it. b
    has a network of its own: its errors, large and rare, disturb r where the two share layers. Few
    transitions teach it, so a dream bounds r + b by the rewards of the data's terminations
    (`Statistics.terminal_reward_low`): a policy would find where b is extrapolated.

    Args:
        hidden: width of h.
        size: width of z.
        actions: width of an encoded action.
        width: width of the hidden layers.
    """

    def __init__(self, hidden: int, size: int, actions: int, width: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.reward = mlp(2 * size + actions, width, 1)
        self.end_bonus = mlp(2 * size + actions, width, 1)
        self.termination = mlp(hidden + 2 * size, width, 1)
        # Data without a termination cannot teach the bonus, so it starts at zero.
        for parameter in self.end_bonus[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, h: Tensor, new: Tensor, change: Tensor, encoded: Tensor) -> TransitionOutput:
        """Predict reward and termination of transitions.

        Args:
            h: (..., hidden).
            new: (..., size) the z after the transition.
            change: (..., size) the change of z, in units of the deltas' standard deviation.
            encoded: (..., actions).
        """
        transition = torch.cat([new, change, encoded], -1)
        reward, end_bonus = self.reward(transition), self.end_bonus(transition)
        logit = self.termination(torch.cat([h, new, change], -1))
        return TransitionOutput(reward.squeeze(-1), end_bonus.squeeze(-1), logit.squeeze(-1))
