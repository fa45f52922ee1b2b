"""RSSM: a recurrent state-space model, with a deterministic and a stochastic state.

Hafner et al.: PlaNet (arXiv 1811.04551), Dreamer (1912.01603), DreamerV2 (2010.02193), DreamerV3
(2301.04104). One class for all of them; the differences are in the config, and theirs are presets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium as gym
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.models.base import (
    KLDiagnostic,
    LatentDiagnostics,
    Prediction,
    Segment,
    State,
    Temperature,
    WorldModel,
    end_outside_data,
    zero_action,
)
from dreamgym.models.nn.actions import ActionEncoder
from dreamgym.models.nn.dense import dense_layers, linear
from dreamgym.models.nn.latents import kl_loss
from dreamgym.models.nn.observation_codec import ObservationCodec
from dreamgym.models.nn.reward_head import RewardHead
from dreamgym.models.observations import Observation, map_observation
from dreamgym.models.reduction import masked_mean
from dreamgym.models.rssm.config import PRESET_FITS, PRESETS, RSSMConfig
from dreamgym.models.rssm.modules import (
    BlockGRUCell,
    GRUCell,
    MultiInputLayer,
    codec_config,
    head,
    make_latent,
)
from dreamgym.models.statistics import Statistics


class RSSM(WorldModel):
    """The recurrent state-space model on vectors, images or both.

    State: `h` (B, deter) of the recurrent cell, which has seen everything up to the action that
    led here, and `z` (B, stoch x classes, or stoch if Gaussian), sampled from the prior p(z | h) by
    `step` and from the posterior q(z | h, observation) by `observe`. Features: (h, z).

    A dream whose vectors leave the range of the training data ends there (`end_outside_data`),
    unless the config turns that off.

    Args:
        observation_space: a Box or a Dict of Boxes.
        action_space: a Box, Discrete or MultiDiscrete space.
        config: sizes and losses.

    Raises:
        TypeError: a space is of another kind.
    """

    config_type = RSSMConfig
    presets: ClassVar[Mapping[str, RSSMConfig]] = PRESETS
    preset_fits: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESET_FITS
    fit_defaults: ClassVar[Mapping[str, Any]] = {
        "batch_size": 64,
        "segment_length": 16,
        "learning_rate": 2e-3,
        "gradient_clip": 10.0,
        "clip_by": "norm",
    }
    config: RSSMConfig
    worst_return: Tensor

    def __init__(
        self, observation_space: gym.Space, action_space: gym.Space, config: RSSMConfig
    ) -> None:
        super().__init__(observation_space, action_space, config)
        self.latent, objective = make_latent(config), config.objective
        self.feature_dim = config.deter + self.latent.size
        self.noise_dim = config.stoch
        self.encode_action = ActionEncoder(action_space)
        cell = BlockGRUCell if config.blocks else GRUCell
        self.cell = cell(self.latent.size, self.encode_action.dim, config)
        self.senses = ObservationCodec(observation_space, self.feature_dim, codec_config(config))
        self.prior = nn.Sequential(
            *dense_layers(config.deter, config.prior_layers, config.hidden, config),
            linear(config.hidden, self.latent.parameters),
        )
        self.posterior = MultiInputLayer((config.deter, self.senses.dim), config.hidden, config)
        self.posterior_out = linear(config.hidden, self.latent.parameters)
        self.reward = RewardHead(
            head(self.feature_dim, objective.reward_outputs, config), objective
        )
        self.continuation = head(self.feature_dim, 1, config)
        self.register_buffer("worst_return", torch.zeros(()))

    def set_statistics(self, statistics: Statistics) -> None:
        """See `WorldModel.set_statistics`."""
        self.senses.set_moments(statistics.observation)
        if statistics.action is not None:
            self.encode_action.fit(statistics.action)
        self.reward.set_moments(statistics.reward_mean, statistics.reward_std)
        self.worst_return.copy_(statistics.worst_return)

    def initial(self, batch_size: int) -> State:
        """See `WorldModel.initial`; all zeros."""
        new_zeros = self.posterior_out.weight.new_zeros
        return {
            "h": new_zeros(batch_size, self.config.deter),
            "z": new_zeros(batch_size, self.latent.size),
        }

    def observe(
        self, state: State, action: Tensor, observation: Observation, noise: Tensor
    ) -> State:
        """See `WorldModel.observe`; z is sampled from the posterior."""
        h = self._advance(state, action)
        encoded = self._encode(self.senses.targets(observation))
        return {"h": h, "z": self.latent.sample(self._posterior(h, encoded), noise)}

    def step(
        self, state: State, action: Tensor, noise: Tensor, temperature: Temperature = 1.0
    ) -> tuple[State, Prediction]:
        """See `WorldModel.step`; z is sampled from the prior."""
        h = self._advance(state, action)
        following = {"h": h, "z": self.latent.sample(self.prior(h), noise, temperature)}
        features = self.features(following)
        reward = self.reward.predict(features)
        termination = (-self.continuation(features).squeeze(-1)).sigmoid()
        outside = None
        if self.config.range_margin is not None and self.senses.sizes:
            vectors = self.senses.decode_vectors(features)
            outside = self.senses.outside_data(vectors, self.config.range_margin)
        prediction = Prediction(reward, termination, torch.zeros_like(reward))
        return following, end_outside_data(prediction, outside, self.worst_return)

    def features(self, state: State) -> Tensor:
        """Return (h, z): (B, deter + width of z)."""
        return torch.cat([state["h"], state["z"]], -1)

    def decode(self, state: State) -> Observation:
        """Return the expected observation (B, ...), in the dtypes and bounds of its space."""
        return self.senses.decode(self.features(state))

    def loss(self, segment: Segment, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of arXiv 2301.04104, equation 4.

        Its terms are the errors of reconstruction, reward and termination, and the two KLs. The
        encoders and heads need no recurrence and run on the whole segment at once.
        """
        targets, objective = self.senses.targets(segment.observation), self.config.objective
        h, z, posterior = self._unroll(segment, targets, noise)
        features, prior = torch.cat([h, z], -1), self.prior(h)
        observed = F.pad(segment.mask, (1, 0), value=True)  # a segment's first is never padding
        free_nats = objective.free_nats, objective.free_nats_of
        # The same value with two gradients: to the prior, and to the posterior.
        dyn = self.latent.kl(posterior.detach(), prior)
        rep = self.latent.kl(posterior, prior.detach())
        logit = self.continuation(features[:, 1:]).squeeze(-1)
        cross_entropy = F.binary_cross_entropy_with_logits(
            logit, 1.0 - segment.terminated.to(logit.dtype), reduction="none"
        )
        reward_loss = self.reward.loss(features[:, 1:], segment.reward)
        terms = {
            "reconstruction": masked_mean(self.senses.error(features, targets), observed),
            "reward": masked_mean(reward_loss, segment.mask),
            "termination": masked_mean(cross_entropy, segment.mask),
            "dyn": kl_loss(dyn, observed, *free_nats),
            "rep": kl_loss(rep, observed, *free_nats),
        }
        total = objective.total(terms)
        terms["kl"] = masked_mean(dyn, observed)
        return total, {name: term.detach() for name, term in terms.items()}

    def diagnostics(self, segment: Segment, noise: Tensor) -> LatentDiagnostics:
        """See `WorldModel.diagnostics`; the KL of each segment's first observation."""
        batch, objective = len(segment.action), self.config.objective
        action = zero_action(self.action_space, batch, segment.action.device)
        h = self._advance(self.initial(batch), action)
        first = map_observation(lambda leaf: leaf[:, 0], segment.observation)
        posterior = self._posterior(h, self._encode(self.senses.targets(first)))
        nats = self.latent.divergences(posterior, self.prior(h))
        remedy = "lower objective.dyn and objective.rep, or objective.free_nats where that is large"
        return LatentDiagnostics({"": KLDiagnostic(nats, objective.free_nats, "all", remedy)}, {})

    def _unroll(
        self, segment: Segment, targets: list[Tensor], noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return h, z and the posterior's parameters after each observation, (B, L + 1, ...) each.

        The same as `filter_states`, with all products that do not depend on h computed in advance.
        """
        batch = len(segment.action)
        first = zero_action(self.action_space, batch, segment.action.device).unsqueeze(1)
        actions = torch.cat([first, segment.action.to(first.dtype)], 1)
        inputs = (self._prepare_actions(actions), self._encode(targets), noise)
        state = self.initial(batch)
        h, z, steps = state["h"], state["z"], []
        for prepared, encoded, uniform in zip(*(leaf.unbind(1) for leaf in inputs), strict=True):
            h = self.cell(h, z, prepared)
            posterior = self._posterior(h, encoded)
            z = self.latent.sample(posterior, uniform)
            steps.append((h, z, posterior))
        hs, zs, posteriors = (torch.stack(leaves, 1) for leaves in zip(*steps, strict=True))
        return hs, zs, posteriors

    def _advance(self, state: State, action: Tensor) -> Tensor:
        """Return the next h (B, deter) after a raw action (B, ...)."""
        return self.cell(state["h"], state["z"], self._prepare_actions(action))

    def _prepare_actions(self, action: Tensor) -> Tensor:
        """Return what raw actions (..., *shape) add to the cell's steps."""
        return self.cell.prepare_actions(self.encode_action(action).to(self.worst_return.dtype))

    def _encode(self, targets: list[Tensor]) -> Tensor:
        """Return what observations add to the posterior's hidden layer, (..., hidden)."""
        return self.posterior.product(1, self.senses.encode(targets))

    def _posterior(self, h: Tensor, encoded: Tensor) -> Tensor:
        """Return the posterior's parameters (B, parameters) for outputs of `_encode`."""
        return self.posterior_out(self.posterior.finish(self.posterior.product(0, h) + encoded))
