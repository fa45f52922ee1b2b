"""MDN-RNN: an LSTM whose output is a mixture density over the change of the observation.

Ha and Schmidhuber, "World Models" (2018), arXiv 1803.10122; the mixture density is Bishop (1994).
On vectors the V of V-M-C is the identity with a normaliser: z is the standardised observation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.models.actions import ActionEncoder
from dreamgym.models.base import Prediction, Segment, State, Temperature, WorldModel
from dreamgym.models.lstm import LSTM
from dreamgym.models.observations import WHOLE, Observation, part
from dreamgym.models.sampling import categorical, normal, per_row
from dreamgym.models.statistics import Statistics

HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True, kw_only=True)
class MDNRNNConfig:
    """Sizes of an MDN-RNN.

    Attributes:
        hidden: width of the LSTM.
        mixtures: components of each dimension's mixture.
        trunk: width of the hidden layer between LSTM and mixtures.
        head: width of the hidden layer of the reward and termination heads.
        log_sigma_min: floor of a component's log standard deviation, in units of the deltas'
            spread.
        log_sigma_max: ceiling of the same.
        range_margin: a dream that leaves the training data's range, widened on each side by this
            share of it, ends there with the worst return that the data has seen.
    """

    hidden: int = 64
    mixtures: int = 5
    trunk: int = 64
    head: int = 64
    log_sigma_min: float = -3.0
    log_sigma_max: float = 2.0
    range_margin: float = 0.3

    def __post_init__(self) -> None:
        for name in ("hidden", "mixtures", "trunk", "head"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give a whole number of at least 1")
        if not self.log_sigma_min < self.log_sigma_max:
            raise ValueError(
                f"log_sigma_min={self.log_sigma_min} must be below "
                f"log_sigma_max={self.log_sigma_max}"
            )


class Mixture(NamedTuple):
    """One Gaussian mixture for each dimension; every leaf is (..., n, mixtures)."""

    logits: Tensor
    mean: Tensor
    log_sigma: Tensor

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of `value` (..., n), summed over the dimensions: (...)."""
        standard = (value.unsqueeze(-1) - self.mean) * (-self.log_sigma).exp()
        component = -0.5 * standard.square() - self.log_sigma - HALF_LOG_TAU
        return torch.logsumexp(component + self.logits.log_softmax(-1), -1).sum(-1)

    def sample(self, choose: Tensor, spread: Tensor, temperature: Temperature) -> Tensor:
        """Draw from the mixture at a temperature (arXiv 1803.10122, section 3.2).

        Args:
            choose: (B, n) uniforms that pick the component.
            spread: (B, n) uniforms that pick the place within it.
            temperature: divides the logits, and its square root widens sigma.
        """
        tau = per_row(temperature, self.logits)
        index = categorical(self.logits / tau, choose).unsqueeze(-1)
        mean = self.mean.gather(-1, index).squeeze(-1)
        sigma = self.log_sigma.gather(-1, index).squeeze(-1).exp()
        return mean + sigma * per_row(temperature, sigma) ** 0.5 * normal(spread)


class MDNRNN(WorldModel):
    """The MDN-RNN on vectors, with heads for reward and termination.

    Outside the range of its data a model knows nothing, and a policy would be rewarded for finding
    that out. There a dream halts with the worst return seen, as in MOReL (Kidambi et al. 2020,
    arXiv 2005.05951, definition 2), whose unknown states these are.

    State: `z` (B, n) the standardised observation; `h`, `c` (B, hidden) of the LSTM, which has
    seen everything up to the action that led to `z`. Features: (z, h).
    """

    config_type = MDNRNNConfig
    config: MDNRNNConfig
    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor
    delta_std: Tensor
    reward_mean: Tensor
    reward_std: Tensor
    worst_return: Tensor
    space_low: Tensor
    space_high: Tensor

    def __init__(
        self, observation_space: gym.Space, action_space: gym.Space, config: MDNRNNConfig
    ) -> None:
        super().__init__(observation_space, action_space, config)
        box = _vector_box(observation_space)
        size = int(np.prod(box.shape))
        self.size, self.feature_dim, self.noise_dim = size, size + config.hidden, 2 * size
        self.encode_action = ActionEncoder(action_space)
        self.lstm = LSTM(size + self.encode_action.dim, config.hidden)
        self.trunk = nn.Linear(config.hidden + size + self.encode_action.dim, config.trunk)
        self.mixture = nn.Linear(config.trunk, 3 * config.mixtures * size)
        self.heads = nn.Sequential(
            nn.Linear(config.hidden + 2 * size, config.head),
            nn.SiLU(),
            nn.Linear(config.head, config.head),
            nn.SiLU(),
            nn.Linear(config.head, 2),
        )
        for name in ("mean", "low"):
            self.register_buffer(name, torch.zeros(size))
        for name in ("std", "high", "delta_std"):
            self.register_buffer(name, torch.ones(size))
        self.register_buffer("reward_mean", torch.zeros(()))
        self.register_buffer("reward_std", torch.ones(()))
        self.register_buffer("worst_return", torch.zeros(()))
        self.register_buffer("space_low", torch.tensor(box.low.reshape(-1), dtype=torch.float32))
        self.register_buffer("space_high", torch.tensor(box.high.reshape(-1), dtype=torch.float32))

    def set_statistics(self, statistics: Statistics) -> None:
        """See `WorldModel.set_statistics`; ranges and deltas are kept in standardised units."""
        mean, std, low, high, delta_std = statistics.vector
        margin = self.config.range_margin * (high - low)
        values = {
            "mean": mean,
            "std": std,
            "low": (low - margin - mean) / std,
            "high": (high + margin - mean) / std,
            "delta_std": delta_std / std,
            "reward_mean": statistics.reward_mean,
            "reward_std": statistics.reward_std,
            "worst_return": statistics.worst_return,
        }
        for name, value in values.items():
            getattr(self, name).copy_(value)

    def initial(self, batch_size: int) -> State:
        """See `WorldModel.initial`."""
        weight = self.mixture.weight
        shapes = {"z": self.size, "h": self.config.hidden, "c": self.config.hidden}
        return {key: weight.new_zeros(batch_size, width) for key, width in shapes.items()}

    def observe(
        self, state: State, action: Tensor, observation: Observation, noise: Tensor
    ) -> State:
        """See `WorldModel.observe`; nothing is sampled, for the identity V has no posterior."""
        h, c = self._advance(state, self.encode_action(action))
        return {"z": self._standardise(part(observation, WHOLE)), "h": h, "c": c}

    def step(
        self, state: State, action: Tensor, noise: Tensor, temperature: Temperature = 1.0
    ) -> tuple[State, Prediction]:
        """See `WorldModel.step`."""
        encoded = self.encode_action(action)
        h, c = self._advance(state, encoded)
        choose, spread = noise.chunk(2, -1)
        delta = self._mixture(h, state["z"], encoded).sample(choose, spread, temperature)
        # What the space forbids cannot happen; what the data never showed can, and is unknown.
        free = self._within_space(state["z"] + delta * self.delta_std)
        z = torch.clamp(free, self.low, self.high)
        unknown = (free != z).any(-1)
        reward, termination = self._heads(h, state["z"], z)
        reward = reward * self.reward_std + self.reward_mean
        prediction = Prediction(
            reward=torch.where(unknown, self.worst_return, reward),
            termination=torch.where(unknown, 1.0, termination.sigmoid()),
            uncertainty=torch.zeros_like(reward),
        )
        return {"z": z, "h": h, "c": c}, prediction

    def features(self, state: State) -> Tensor:
        """(z, h), as the controller of V-M-C sees them: (B, n + hidden)."""
        return torch.cat([state["z"], state["h"]], -1)

    def decode(self, state: State) -> Tensor:
        """The observation (B, *shape), within the bounds of its space."""
        flat = torch.clamp(state["z"] * self.std + self.mean, self.space_low, self.space_high)
        return flat.reshape(-1, *(self.observation_space.shape or ()))

    def loss(self, segment: Segment, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative log likelihood of the deltas, squared reward error, termination cross-entropy.

        Teacher-forced: one call of the fused LSTM over the segment, which begins as `filter` does.
        """
        z = self._standardise(part(segment.observation, WHOLE))
        encoded = self.encode_action(segment.action)
        now, new = z[:, :-1], z[:, 1:]
        first = torch.cat([torch.zeros_like(now[:, :1]), self._zero_code(encoded)], -1)
        inputs = torch.cat([first, torch.cat([now, encoded], -1)], 1)
        h = self.lstm.unroll(inputs)[:, 1:]
        likelihood = self._mixture(h, now, encoded).log_prob((new - now) / self.delta_std)
        reward, termination = self._heads(h, now, new)
        wanted = (segment.reward - self.reward_mean) / self.reward_std
        ends = F.binary_cross_entropy_with_logits(
            termination, segment.terminated.float(), reduction="none"
        )
        mask = segment.mask.float()
        terms = {
            "nll": -_masked_mean(likelihood, mask),
            "reward": _masked_mean((reward - wanted).square(), mask),
            "termination": _masked_mean(ends, mask),
        }
        total = terms["nll"] + terms["reward"] + terms["termination"]
        return total, {name: term.detach() for name, term in terms.items()}

    def _zero_code(self, encoded: Tensor) -> Tensor:
        """The encoding (B, 1, dim) of the zero action that comes with a first observation."""
        shape = (encoded.shape[0], 1, *(self.action_space.shape or ()))
        return self.encode_action(torch.zeros(shape, device=encoded.device))

    def _within_space(self, z: Tensor) -> Tensor:
        low, high = (
            (self.space_low - self.mean) / self.std,
            (self.space_high - self.mean) / self.std,
        )
        return torch.clamp(z, low, high)

    def _standardise(self, observation: Tensor) -> Tensor:
        lead = observation.shape[: observation.ndim - len(self.observation_space.shape or ())]
        return (observation.reshape(*lead, self.size).float() - self.mean) / self.std

    def _advance(self, state: State, encoded: Tensor) -> tuple[Tensor, Tensor]:
        return self.lstm.step(torch.cat([state["z"], encoded], -1), state["h"], state["c"])

    def _mixture(self, h: Tensor, z: Tensor, encoded: Tensor) -> Mixture:
        hidden = F.silu(self.trunk(torch.cat([h, z, encoded], -1)))
        parameters = self.mixture(hidden).unflatten(-1, (3, self.size, self.config.mixtures))
        logits, mean, raw = parameters.unbind(-3)
        low, high = self.config.log_sigma_min, self.config.log_sigma_max
        return Mixture(logits, mean, (low + F.softplus(raw - low)).clamp(max=high))

    def _heads(self, h: Tensor, z: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised reward and termination logit, from the new state and the change to it."""
        change = (new - z) / self.delta_std
        reward, termination = self.heads(torch.cat([h, new, change], -1)).unbind(-1)
        return reward, termination


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / mask.sum().clamp(min=1.0)


def _vector_box(space: gym.Space) -> gym.spaces.Box:
    if isinstance(space, gym.spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return space
    raise TypeError(
        f"the mdn-rnn family takes observations from a Box of floats, not {space}; "
        "wrap the environment so that it gives a float vector (FlattenObservation, say)"
    )
