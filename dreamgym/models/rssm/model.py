"""RSSM: a recurrent state-space model, deterministic memory beside a stochastic state.

Hafner et al.: PlaNet (arXiv 1811.04551), Dreamer (1912.01603), DreamerV2 (2010.02193), DreamerV3
(2301.04104). One class; what differs between them is in the config, and theirs are its presets.
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
    zero_action,
)
from dreamgym.models.nn.actions import ActionEncoder
from dreamgym.models.nn.distributions import TwoHot
from dreamgym.models.observations import Observation, map_observation
from dreamgym.models.reduction import masked_mean
from dreamgym.models.rssm.config import FITS, PRESETS, RSSMConfig
from dreamgym.models.rssm.modules import (
    BlockGRUCell,
    GRUCell,
    Joined,
    ObservationCodec,
    free,
    latent,
    linear,
    mlp,
)
from dreamgym.models.statistics import Statistics


class RSSM(WorldModel):
    """The recurrent state-space model on vectors, images or both.

    State: `h` (B, deter) of the recurrent cell, which has seen everything up to the action that
    led here, and `z` (B, stoch x classes, or stoch if Gaussian), which was sampled from the prior
    p(z | h) in a dream and from the posterior q(z | h, observation) of real ones. Features: (h, z).

    A dream of vectors that leaves the range of the data ends there with the worst return seen, as
    in MOReL (Kidambi et al. 2020, arXiv 2005.05951, definition 2), unless the config says not to.
    """

    config_type = RSSMConfig
    presets: ClassVar[Mapping[str, RSSMConfig]] = PRESETS
    preset_fits: ClassVar[Mapping[str, Mapping[str, Any]]] = FITS
    fit_defaults: ClassVar[Mapping[str, Any]] = {
        "batch_size": 64,
        "segment_length": 16,
        "learning_rate": 2e-3,
        "gradient_clip": 10.0,
    }
    config: RSSMConfig
    worst_return: Tensor

    def __init__(
        self, observation_space: gym.Space, action_space: gym.Space, config: RSSMConfig
    ) -> None:
        super().__init__(observation_space, action_space, config)
        self.latent = latent(config)
        self.feature_dim = config.deter + self.latent.size
        self.noise_dim = config.stoch
        self.encode_action = ActionEncoder(action_space)
        cell = BlockGRUCell if config.blocks else GRUCell
        self.cell = cell(self.latent.size, self.encode_action.dim, config)
        self.senses = ObservationCodec(observation_space, self.feature_dim, config)
        self.prior = nn.Sequential(
            *mlp(config.deter, config.prior_layers, config.hidden, config),
            linear(config.hidden, self.latent.parameters),
        )
        self.posterior = Joined((config.deter, self.senses.dim), config.hidden, config)
        self.posterior_out = linear(config.hidden, self.latent.parameters)
        self.reward = RewardHead(self.feature_dim, config)
        self.continuation = _head(self.feature_dim, 1, config)
        self.register_buffer("worst_return", torch.zeros(()))

    def set_statistics(self, statistics: Statistics) -> None:
        """See `WorldModel.set_statistics`."""
        self.senses.set_moments(statistics.observation)
        self.reward.mean.copy_(statistics.reward_mean)
        self.reward.std.copy_(statistics.reward_std)
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
        seen = self._seen(self.senses.targets(observation))
        return {"h": h, "z": self.latent.sample(self._posterior(h, seen), noise)}

    def step(
        self, state: State, action: Tensor, noise: Tensor, temperature: Temperature = 1.0
    ) -> tuple[State, Prediction]:
        """See `WorldModel.step`; z is sampled from the prior."""
        h = self._advance(state, action)
        after = {"h": h, "z": self.latent.sample(self.prior(h), noise, temperature)}
        features = self.features(after)
        reward = self.reward.predict(features)
        termination = (-self.continuation(features).squeeze(-1)).sigmoid()
        if self.config.range_margin is not None and self.senses.sizes:
            unknown = self.senses.unknown(features, self.config.range_margin)
            reward = torch.where(unknown, self.worst_return, reward)
            termination = torch.where(unknown, 1.0, termination)
        return after, Prediction(reward, termination, torch.zeros_like(reward))

    def features(self, state: State) -> Tensor:
        """(h, z): (B, deter + width of z)."""
        return torch.cat([state["h"], state["z"]], -1)

    def decode(self, state: State) -> Observation:
        """The observation (B, ...) expected in a state, in the type and bounds of its space."""
        return self.senses.decode(self.features(state))

    def loss(self, segment: Segment, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Errors of reconstruction, reward and termination, and KL (arXiv 2301.04104, equation 4).

        What needs no memory, encoders and heads, is computed for the whole segment at once.
        """
        targets, objective = self.senses.targets(segment.observation), self.config.objective
        h, z, posterior = self._unroll(segment, targets, noise)
        features, prior = torch.cat([h, z], -1), self.prior(h)
        observed = F.pad(segment.mask, (1, 0), value=True)  # a segment begins with a real one
        nats = (observed, objective.free_nats, objective.free_nats_of)
        # One value, two gradients: to the prior, and to the posterior.
        dyn = self.latent.kl(posterior.detach(), prior)
        rep = self.latent.kl(posterior, prior.detach())
        goes_on = self.continuation(features[:, 1:]).squeeze(-1)
        ends = F.binary_cross_entropy_with_logits(
            goes_on, 1.0 - segment.terminated.to(goes_on.dtype), reduction="none"
        )
        rewarded = self.reward.loss(features[:, 1:], segment.reward)
        terms = {
            "reconstruction": masked_mean(self.senses.error(features, targets), observed),
            "reward": masked_mean(rewarded, segment.mask),
            "termination": masked_mean(ends, segment.mask),
            "dyn": free(dyn, *nats),
            "rep": free(rep, *nats),
        }
        weights = {
            "reward": objective.reward,
            "termination": objective.termination,
            "dyn": objective.dyn,
            "rep": objective.rep,
        }
        total = sum((weights.get(k, 1.0) * v for k, v in terms.items()), start=torch.zeros(()))
        terms["kl"] = masked_mean(dyn, observed)
        return total, {name: term.detach() for name, term in terms.items()}

    def diagnostics(self, segment: Segment, noise: Tensor) -> LatentDiagnostics:
        """See `WorldModel.diagnostics`: KL of the first observation of each segment."""
        batch, objective = len(segment.action), self.config.objective
        h = self._advance(
            self.initial(batch), zero_action(self.action_space, batch, segment.action.device)
        )
        first = map_observation(lambda leaf: leaf[:, 0], segment.observation)
        posterior = self._posterior(h, self._seen(self.senses.targets(first)))
        nats = self.latent.divergences(posterior, self.prior(h))
        remedy = "lower objective.dyn and objective.rep, or objective.free_nats where that is large"
        return LatentDiagnostics({"": KLDiagnostic(nats, objective.free_nats, "all", remedy)}, {})

    def _unroll(
        self, segment: Segment, targets: list[Tensor], noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """h, z and the posterior's parameters after each observation, (B, L + 1, ...) each.

        The same as `filter`, with every product that does not wait for h taken beforehand.
        """
        batch = len(segment.action)
        first = zero_action(self.action_space, batch, segment.action.device).unsqueeze(1)
        actions = torch.cat([first, segment.action.to(first.dtype)], 1)
        prepared = self._prepared(actions).unbind(1)
        seen, numbers = self._seen(targets).unbind(1), noise.unbind(1)
        state = self.initial(batch)
        h, z, steps = state["h"], state["z"], []
        for action, what, number in zip(prepared, seen, numbers, strict=True):
            h = self.cell(h, z, action)
            posterior = self._posterior(h, what)
            z = self.latent.sample(posterior, number)
            steps.append((h, z, posterior))
        hs, zs, posteriors = (torch.stack(leaves, 1) for leaves in zip(*steps, strict=True))
        return hs, zs, posteriors

    def _advance(self, state: State, action: Tensor) -> Tensor:
        return self.cell(state["h"], state["z"], self._prepared(action))

    def _prepared(self, action: Tensor) -> Tensor:
        """What raw actions (..., *shape) add to the cell's steps."""
        return self.cell.prepare_actions(self.encode_action(action).to(self.worst_return.dtype))

    def _seen(self, targets: list[Tensor]) -> Tensor:
        """What observations add to the posterior's hidden layer, (..., hidden)."""
        return self.posterior.part(1, self.senses.encode(targets))

    def _posterior(self, h: Tensor, seen: Tensor) -> Tensor:
        return self.posterior_out(self.posterior.finish(self.posterior.part(0, h) + seen))


class RewardHead(nn.Module):
    """The expected reward, in the units that the objective asks for.

    Args:
        features: width of the input.
        config: sizes and units.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, features: int, config: RSSMConfig) -> None:
        super().__init__()
        self.units = config.objective.rewards
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))
        self.two_hot = TwoHot(config.objective.bins)
        self.net = _head(features, config.objective.bins if self._squashed else 1, config)
        if self._squashed:
            # Nothing is promised before anything was learnt.
            for parameter in self.net[-1].parameters():
                nn.init.zeros_(parameter)

    @property
    def _squashed(self) -> bool:
        return self.units == "two-hot"

    def predict(self, features: Tensor) -> Tensor:
        """The reward (...) in the real environment's units."""
        return self.expected(self.net(features))

    def expected(self, said: Tensor) -> Tensor:
        """The reward (...) that outputs (..., bins or 1) of the network stand for."""
        if self._squashed:
            return self.two_hot.mean(said)
        said = said.squeeze(-1)
        return said * self.std + self.mean if self.units == "standard" else said

    def loss(self, features: Tensor, reward: Tensor) -> Tensor:
        """Cross-entropy with the two-hot reward, or the squared error; (...)."""
        said = self.net(features)
        if self._squashed:
            return self.two_hot.loss(said, reward)
        wanted = (reward - self.mean) / self.std if self.units == "standard" else reward
        return (said.squeeze(-1) - wanted).square()


def _head(features: int, outputs: int, config: RSSMConfig) -> nn.Sequential:
    hidden = mlp(features, config.head_layers, config.units, config)
    width = config.units if config.head_layers else features
    return nn.Sequential(*hidden, linear(width, outputs))
