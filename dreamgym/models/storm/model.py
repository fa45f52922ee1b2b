"""STORM: a stochastic transformer world model (Zhang et al. 2023, arXiv 2310.09615)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium as gym
import torch
import torch.nn.functional as F
from torch import Tensor

from dreamgym.models.base import (
    KLDiagnostic,
    LatentDiagnostics,
    Prediction,
    Segment,
    State,
    Temperature,
    WorldModel,
    end_outside_data,
)
from dreamgym.models.nn.actions import ActionEncoder
from dreamgym.models.nn.dense import linear
from dreamgym.models.nn.latents import Categoricals, kl_loss
from dreamgym.models.nn.observation_codec import ObservationCodec
from dreamgym.models.nn.reward_head import RewardHead
from dreamgym.models.nn.windows import at, put
from dreamgym.models.nn.windows import push as push_windows
from dreamgym.models.observations import Observation, map_observation
from dreamgym.models.reduction import masked_mean
from dreamgym.models.statistics import Statistics
from dreamgym.models.storm.config import PRESET_FITS, PRESETS, STORMConfig
from dreamgym.models.storm.modules import Transformer, codec_config, head


class STORM(WorldModel):
    """A causal transformer over categorical latents of single observations and the actions.

    The latent z of an observation is drawn from a posterior that sees this observation alone. A
    token mixes z with the action after it; from the tokens so far the transformer computes h, which
    predicts reward, termination and the next z.

    State: `latents` (B, context, stoch) uint8, the classes of the categoricals, oldest first;
    `actions` (B, context, A), the encoded action after each of them; `length` (B,) int64, how many
    latents are set (what lies beyond is zero); `h` (B, width), the output that predicted the newest
    latent, zero at an episode's first. Features: (z, h) of the newest latent, as in the paper.

    Positions are learnt and absolute: the oldest latent has the first. When a latent comes to a
    full window, the older half of the window is dropped first, and the positions restart. So keys
    and values can be kept from step to step until then. A window is full at the context, or at the
    longest segment that the model was fitted to. The authors never dream beyond their context; the
    policy that they evaluate recomputes a sliding window.

    A dream whose vectors leave the range of the training data ends there (`end_outside_data`),
    unless the config turns that off.

    Args:
        observation_space: a Box or a Dict of Boxes.
        action_space: a Box, Discrete or MultiDiscrete space.
        config: sizes and losses.

    Raises:
        TypeError: a space is of another kind.
    """

    config_type = STORMConfig
    presets: ClassVar[Mapping[str, STORMConfig]] = PRESETS
    preset_fits: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESET_FITS
    fit_defaults: ClassVar[Mapping[str, Any]] = {
        "batch_size": 64,
        "segment_length": 16,
        "learning_rate": 1e-3,
        "gradient_clip": 10.0,
        "clip_by": "norm",
    }
    config: STORMConfig
    worst_return: Tensor
    trained: Tensor

    def __init__(
        self, observation_space: gym.Space, action_space: gym.Space, config: STORMConfig
    ) -> None:
        super().__init__(observation_space, action_space, config)
        self.latent = Categoricals(config.stoch, config.classes, config.unimix)
        self.feature_dim = self.latent.size + config.width
        self.noise_dim = config.stoch
        self.encode_action = ActionEncoder(action_space)
        self.senses = ObservationCodec(observation_space, self.latent.size, codec_config(config))
        self.posterior = linear(self.senses.dim, self.latent.parameters)
        self.transformer = Transformer(self.latent.size, self.encode_action.dim, config)
        self.prior = linear(config.width, self.latent.parameters)
        self.reward = RewardHead(head(config.objective.reward_outputs, config), config.objective)
        self.termination = head(1, config)
        self.register_buffer("worst_return", torch.zeros(()))
        self.register_buffer("trained", torch.zeros((), dtype=torch.int64))

    def set_statistics(self, statistics: Statistics) -> None:
        """See `WorldModel.set_statistics`."""
        self.senses.set_moments(statistics.observation)
        if statistics.action is not None:
            self.encode_action.fit(statistics.action)
        self.reward.set_moments(statistics.reward_mean, statistics.reward_std)
        self.worst_return.copy_(statistics.worst_return)

    def initial(self, batch_size: int) -> State:
        """See `WorldModel.initial`; an empty window."""
        config, zeros = self.config, self.worst_return.new_zeros
        return {
            "latents": zeros(batch_size, config.context, config.stoch, dtype=torch.uint8),
            "actions": zeros(batch_size, config.context, self.encode_action.dim),
            "length": zeros(batch_size, dtype=torch.int64),
            "h": zeros(batch_size, config.width),
        }

    def observe(
        self, state: State, action: Tensor, observation: Observation, noise: Tensor
    ) -> State:
        """See `WorldModel.observe`; the latent is drawn from the posterior."""
        window = enter_action(state, self._encode_action(action))
        begins = (state["length"] == 0).unsqueeze(-1)
        h = torch.where(begins, 0.0, self._output(window))
        encoded = self.senses.encode(self.senses.targets(observation))
        latent = self.latent.draw(self.posterior(encoded), noise)
        return push(window, latent, h, self.window())

    def step(
        self, state: State, action: Tensor, noise: Tensor, temperature: Temperature = 1.0
    ) -> tuple[State, Prediction]:
        """See `WorldModel.step`; the latent is drawn from the prior."""
        window = enter_action(begun(state), self._encode_action(action))
        h = self._output(window)
        classes = self.latent.draw(self.prior(h), noise, temperature)
        reward = self.reward.predict(h)
        termination = self.termination(h).squeeze(-1).sigmoid()
        outside = None
        if self.config.range_margin is not None and self.senses.sizes:
            vectors = self.senses.decode_vectors(self.latent.one_hot(classes))
            outside = self.senses.outside_data(vectors, self.config.range_margin)
        prediction = Prediction(reward, termination, torch.zeros_like(reward))
        following = push(window, classes, h, self.window())
        return following, end_outside_data(prediction, outside, self.worst_return)

    def window(self) -> Tensor:
        """Return how many latents fill a window: the context, or the longest segment of the fit.

        Later positions are untrained, and would turn dreams into noise.
        """
        return torch.where(self.trained > 0, self.trained.clamp(min=2), self.config.context)

    def features(self, state: State) -> Tensor:
        """Return (z, h): (B, stoch x classes + width)."""
        return torch.cat([self.latent.one_hot(newest(state, "latents")), state["h"]], -1)

    def decode(self, state: State) -> Observation:
        """Return the expected observation (B, ...) of z, in the dtypes and bounds of its space."""
        return self.senses.decode(self.latent.one_hot(newest(state, "latents")))

    def loss(self, segment: Segment, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of arXiv 2310.09615, equations 5 and 6.

        Its terms are the errors of reconstruction, reward and termination, and the KL between the
        posterior and the prior from the tokens before, with two gradients.

        Raises:
            ValueError: the segment is longer than the context.
        """
        objective = self.config.objective
        if self.training:
            self.trained.clamp_(min=segment.action.shape[1])
        posterior, prior, h, targets = self._unroll(segment, noise)
        z = self.latent.sample(posterior, noise)
        observed = F.pad(segment.mask, (1, 0), value=True)  # a segment's first is never padding
        free_nats = objective.free_nats, objective.free_nats_of
        dyn = self.latent.kl(posterior[:, 1:].detach(), prior)
        rep = self.latent.kl(posterior[:, 1:], prior.detach())
        logit = self.termination(h).squeeze(-1)
        cross_entropy = F.binary_cross_entropy_with_logits(
            logit, segment.terminated.to(logit.dtype), reduction="none"
        )
        error = self.senses.error(z, targets, observed)
        terms = {
            "reconstruction": masked_mean(error, observed),
            "reward": masked_mean(self.reward.loss(h, segment.reward), segment.mask),
            "termination": masked_mean(cross_entropy, segment.mask),
            "dyn": kl_loss(dyn, segment.mask, *free_nats),
            "rep": kl_loss(rep, segment.mask, *free_nats),
        }
        total = objective.total(terms)
        terms["kl"] = masked_mean(dyn, segment.mask)
        return total, {name: term.detach() for name, term in terms.items()}

    def diagnostics(self, segment: Segment, noise: Tensor) -> LatentDiagnostics:
        """See `WorldModel.diagnostics`; the KL of the observation after the first transition."""
        first = Segment(
            map_observation(lambda leaf: leaf[:, :2], segment.observation),
            *(leaf[:, :1] for leaf in segment[1:]),
        )
        posterior, prior, _, _ = self._unroll(first, noise[:, :2])
        nats = self.latent.divergences(posterior[:, 1], prior[:, 0])
        remedy = "lower objective.dyn and objective.rep, or objective.free_nats where that is large"
        free = self.config.objective.free_nats
        return LatentDiagnostics({"": KLDiagnostic(nats, free, "all", remedy)}, {})

    def _unroll(
        self, segment: Segment, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Return the parameters of posterior and prior, h, and the encoder's targets.

        Returns:
            (B, L + 1, parameters) of the posterior at each observation, (B, L, parameters) of the
            prior after each action, (B, L, width) and the outputs of `ObservationCodec.targets`.
        """
        length = segment.action.shape[1]
        if length > self.config.context:
            raise ValueError(
                f"segments have {length} transitions, this STORM a context of "
                f"{self.config.context}: fit with segment_length={self.config.context} or less, or "
                "with a larger context"
            )
        targets = self.senses.targets(segment.observation)
        observed = F.pad(segment.mask, (1, 0), value=True)
        posterior = self.posterior(self.senses.encode(targets, observed))
        z = self.latent.sample(posterior[:, :-1], noise[:, :-1])
        h = self.transformer(z, self._encode_action(segment.action))
        return posterior, self.prior(h), h, targets

    def _encode_action(self, action: Tensor) -> Tensor:
        """Return raw actions (..., *shape) as (..., A)."""
        return self.encode_action(action).to(self.worst_return.dtype)

    def _output(self, window: State) -> Tensor:
        """Return the transformer's output (B, width) at the newest latent of each row."""
        # What lies beyond a row's newest latent has no influence on it: attention is causal.
        latents = self.latent.one_hot(window["latents"]).to(window["actions"].dtype)
        outputs = self.transformer(latents, window["actions"])
        return at(outputs, window["length"].clamp(min=1) - 1)


def begun(state: State) -> State:
    """Return a state in which empty windows hold one latent of zeros, so that it can be stepped."""
    return state | {"length": state["length"].clamp(min=1)}


def newest(state: State, leaf: str) -> Tensor:
    """Return the newest entries (B, n) of a leaf (B, context, n); zeros for an empty window."""
    return at(state[leaf], state["length"].clamp(min=1) - 1)


def enter_action(state: State, encoded: Tensor) -> State:
    """Return a state with the encoded action (B, A) after its newest latent."""
    return state | {"actions": put(state["actions"], state["length"] - 1, encoded)}


def push(state: State, classes: Tensor, h: Tensor, limit: Tensor) -> State:
    """Return the state after a new latent; a full window loses its older half first.

    Args:
        state: leaves (B, ...).
        classes: (B, stoch) classes of the latent.
        h: (B, width) the output that predicted it.
        limit: () latents of a full window, from 2 to the context.
    """
    news = {"latents": classes, "actions": torch.zeros_like(state["actions"][:, 0])}
    pushed, length = push_windows(state, state["length"], news, limit)
    return {**pushed, "length": length, "h": h}
