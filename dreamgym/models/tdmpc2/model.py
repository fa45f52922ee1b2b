"""TD-MPC2: an implicit world model with values and a policy (Hansen et al., arXiv 2310.16828)."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, ClassVar, NamedTuple, Self

import gymnasium as gym
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.models.base import (
    Prediction,
    Segment,
    State,
    Temperature,
    WorldModel,
    end_outside_data,
)
from dreamgym.models.nn.actions import ActionEncoder
from dreamgym.models.nn.codecs import VectorCodec
from dreamgym.models.nn.distributions import TwoHot
from dreamgym.models.observations import (
    Observation,
    get_part,
    is_image,
    join_parts,
    observation_boxes,
)
from dreamgym.models.reduction import all_reduce_sum, masked_mean, processes
from dreamgym.models.splitmix import BITS, uniforms, words
from dreamgym.models.statistics import Statistics
from dreamgym.models.tdmpc2.config import PRESET_FITS, PRESETS, TDMPC2Config
from dreamgym.models.tdmpc2.modules import (
    Mish,
    Policy,
    QFunctions,
    SimNorm,
    as_buffers,
    head,
    initialised,
    mlp,
    normed,
)

LARGEST_SYMLOG = 10.0
"""Symlog of the largest bin of rewards and values."""

SMALLEST_STD = 0.01
"""Rewards with a smaller spread are divided by it, since the bins around zero are 0.2 apart."""

PERCENTILES = (0.05, 0.95)
"""The spread of the values is the distance between these quantiles."""


class Rollout(NamedTuple):
    """Latents and actions of B segments of L transitions.

    Attributes:
        latents: (B, L + 1, latent), the encoding of the first observation, and predictions.
        encoded: (B, L, latent), the encodings of the later observations, without a gradient.
        actions: (B, L, A) encoded.
    """

    latents: Tensor
    encoded: Tensor
    actions: Tensor


class TDMPC2(WorldModel):
    """A latent that predicts rewards, terminations and values, but no observations.

    State: `z` (B, latent), groups of numbers that sum to one (SimNorm); the encoding of the newest
    observation, or a prediction. Features: z. A step is deterministic and takes no noise.

    It is both `Values` and `Acts`: the value of z is the mean of its Q functions at the policy's
    most likely action. Together they make the model of a planner such as MPPI far-sighted; see
    `PLANNER_PRESETS["td-mpc2"]`, with `discount` from the config.

    Q functions and policy are fitted to the logged data alone. The target of a Q function has the
    next action from the policy, and Q there may be wrong where the data has no such action: refit
    with what the planner recorded, as the online loop does.

    A probe, which does not shape the latent, decodes observations. With it a dream whose vectors
    leave the range of the training data ends there (`end_outside_data`); the published models have
    neither.

    Args:
        observation_space: a Box of numbers, or a Dict of such.
        action_space: a Box, Discrete or MultiDiscrete space.
        config: sizes and losses.

    Raises:
        TypeError: a space is of another kind, or the observation has an image.
    """

    config_type = TDMPC2Config
    presets: ClassVar[Mapping[str, TDMPC2Config]] = PRESETS
    preset_fits: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESET_FITS
    fit_defaults: ClassVar[Mapping[str, Any]] = {
        "batch_size": 128,
        "segment_length": 4,
        "learning_rate": 1e-3,
        "gradient_clip": 20.0,
        "clip_by": "norm",
    }
    config: TDMPC2Config
    unit: Tensor
    worst_return: Tensor
    updates: Tensor
    spread: Tensor
    new_spread: Tensor

    def __init__(
        self, observation_space: gym.Space, action_space: gym.Space, config: TDMPC2Config
    ) -> None:
        super().__init__(observation_space, action_space, config)
        boxes = observation_boxes(observation_space)
        for key, box in boxes.items():
            if is_image(box):
                where = f"the part {key!r} of the observation" if key else "the observation"
                raise TypeError(
                    f"{where} is an image, {box}; the tdmpc2 family takes vectors, and rssm, storm "
                    "and jepa take images"
                )
        self.keys = list(boxes)
        self.codecs = nn.ModuleList(VectorCodec(box, config.vectors) for box in boxes.values())
        self.vectors: list[VectorCodec] = list(self.codecs)  # type: ignore[arg-type]
        self.encode_action = ActionEncoder(action_space)
        self.feature_dim, self.noise_dim = config.latent, 0
        size, both = sum(self._sizes), config.latent + self.encode_action.dim
        width, hidden = size, []
        for _ in range(config.encoder_layers - 1):
            hidden += normed(width, config.encoder, Mish())
            width = config.encoder
        latent = normed(width, config.latent, SimNorm(config.group))
        self.encoder = initialised(nn.Sequential(*hidden, *latent))
        for parameter in self.encoder.parameters():
            parameter.learning_rate_scale = config.encoder_rate  # type: ignore[attr-defined]
        last = normed(config.mlp, config.latent, SimNorm(config.group))
        self.dynamics = mlp(both, config.mlp, last)
        zero = config.zero_init
        self.reward = head(both, config.mlp, config.bins, zero=zero)
        # The authors' head sees the next latent alone, which must then learn what ends an episode.
        self.termination = None
        if config.termination:
            self.termination = head(both + config.latent, config.mlp, 1, zero=False)
        self.policy_net = Policy(config.latent, config.mlp, self.encode_action)
        self.q = QFunctions(
            [
                head(both, config.mlp, config.bins, zero=zero, dropout=config.dropout)
                for _ in range(config.values)
            ]
        )
        self.target = as_buffers(deepcopy(self.q))
        self.probe = None
        if config.range_margin is not None:
            self.probe = head(config.latent, config.mlp, size, zero=False)
        self.two_hot = TwoHot(config.bins, LARGEST_SYMLOG, in_symlog=True)
        for name in ("unit", "spread", "new_spread"):
            self.register_buffer(name, torch.ones(()))
        self.register_buffer("worst_return", torch.zeros(()))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def train(self, mode: bool = True) -> Self:
        """Set the mode; the target never drops out, as in the authors' code."""
        super().train(mode)
        self.target.eval()
        return self

    def set_statistics(self, statistics: Statistics) -> None:
        """See `WorldModel.set_statistics`."""
        for key, codec in zip(self.keys, self.vectors, strict=True):
            if key in statistics.observation:
                codec.set_moments(statistics.observation[key])
        if statistics.action is not None:
            self.encode_action.fit(statistics.action)
        std = statistics.reward_std
        unit = torch.where(std < SMALLEST_STD, std, 1.0).to(self.unit)
        # Values are targets of themselves: in another unit they would have to be learnt anew.
        self.unit.copy_(torch.where(self.updates > 0, self.unit, unit))
        self.worst_return.copy_(statistics.worst_return)

    # ------------------------------------------------------------ filtering and dreaming

    def initial(self, batch_size: int) -> State:
        """See `WorldModel.initial`; zeros."""
        return {"z": self.worst_return.new_zeros(batch_size, self.config.latent)}

    def observe(
        self, state: State, action: Tensor, observation: Observation, noise: Tensor
    ) -> State:
        """See `WorldModel.observe`; the encoding of this observation alone."""
        return {"z": self.encoder(self._numbers(observation))}

    def step(
        self, state: State, action: Tensor, noise: Tensor, temperature: Temperature = 1.0
    ) -> tuple[State, Prediction]:
        """See `WorldModel.step`; deterministic."""
        both = torch.cat([state["z"], self._encode_action(action)], -1)
        z = self.dynamics(both)
        vectors = None if self.probe is None else self.probe(z)
        termination = None
        if self.termination is not None:
            termination = self.termination(torch.cat([both, z], -1))
        return {"z": z}, self.to_prediction(self.reward(both), termination, vectors)

    def to_prediction(
        self, reward: Tensor, termination: Tensor | None, vectors: Tensor | None
    ) -> Prediction:
        """Convert outputs of the heads and of the probe, (B, n) each, to a prediction."""
        rewards = self.two_hot.mean(reward) * self.unit
        zeros = torch.zeros_like(rewards)
        ends = zeros if termination is None else termination.squeeze(-1).sigmoid()
        prediction = Prediction(rewards, ends, zeros)
        outside, margin = None, self.config.range_margin
        if vectors is not None and margin is not None:
            parts = zip(self.vectors, vectors.split(self._sizes, -1), strict=True)
            outside = torch.stack(
                [codec.outside_data(codec.decode(part), margin) for codec, part in parts]
            ).any(0)
        return end_outside_data(prediction, outside, self.worst_return)

    def features(self, state: State) -> Tensor:
        """Return z, (B, latent)."""
        return state["z"]

    @property
    def decodes(self) -> bool:
        """See `WorldModel.decodes`; true if there is a probe."""
        return self.probe is not None

    def decode(self, state: State) -> Observation:
        """See `Decodes.decode`; what the probe decodes.

        Raises:
            AttributeError: there is no probe.
        """
        if self.probe is None:
            raise AttributeError(
                "this TD-MPC2 cannot decode with range_margin=None; pass a number to fit a probe"
            )
        parts = zip(
            self.keys, self.vectors, self.probe(state["z"]).split(self._sizes, -1), strict=True
        )
        return join_parts({key: codec.to_space(codec.decode(part)) for key, codec, part in parts})

    def value(self, state: State) -> Tensor:
        """See `Values.value`; discounted by the config's `discount`."""
        z = state["z"]
        return self.two_hot.mean(self.q(z, self.policy_net.mode(z))).mean(0) * self.unit

    def policy(self, state: State, noise: Tensor) -> Tensor:
        """See `Acts.policy`; a sample of the policy."""
        keys = (noise[:, 0] * 2.0**BITS).long()
        z, policy = state["z"], self.policy_net
        sampled, _ = policy.sample(z, uniforms(keys, policy.uniforms).to(z.dtype))
        return policy.to_raw(sampled, self.encode_action)

    # ------------------------------------------------------------ fitting

    def loss(self, segment: Segment, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of arXiv 2310.16828, equations 3 to 6, and that of the probe.

        The gradient of the policy's loss reaches the policy alone, and the probe's the probe alone.
        The samples of the policy are made from the number of updates done.
        """
        config, rollout = self.config, self._rollout(segment)
        lanes = self.policy_net.uniforms
        drawn = self._uniforms(segment, lanes)
        steps = torch.arange(segment.mask.shape[1] + 1, device=segment.mask.device)
        weight = config.rho**steps
        observed = F.pad(segment.mask, (1, 0), value=True)  # a segment's first is never padding

        def mean(term: Tensor) -> Tensor:
            return masked_mean(weight[: term.shape[1]] * term, segment.mask)

        before, after = rollout.latents[:, :-1], rollout.latents[:, 1:]
        both = torch.cat([before, rollout.actions], -1)
        two = self._two()
        target = self._value_target(segment, rollout, drawn[:, 1:, :lanes], two)
        terms = {
            "consistency": mean((after - rollout.encoded).square().mean(-1)),
            "reward": mean(self.two_hot.loss(self.reward(both), segment.reward / self.unit)),
            "value": mean(self.two_hot.loss(self.q(before, rollout.actions), target).mean(0)),
        }
        if self.termination is not None:
            logit = self.termination(torch.cat([both, after], -1)).squeeze(-1)
            ends = segment.terminated.to(logit.dtype)
            cross_entropy = F.binary_cross_entropy_with_logits(logit, ends, reduction="none")
            terms["termination"] = mean(cross_entropy)
        total = sum((getattr(config, k) * v for k, v in terms.items()), start=torch.zeros(()))
        gain = self._gain(rollout.latents.detach(), drawn[..., lanes:], two)
        terms["policy"] = masked_mean(-weight * gain, observed)
        total = total + terms["policy"]
        if self.probe is not None:
            every = torch.cat([rollout.encoded, after], 1).detach()
            truth = self._numbers(segment.observation)[:, 1:].repeat(1, 2, 1)
            error = (self.probe(every) - truth).square().mean(-1)
            terms["probe"] = masked_mean(error, segment.mask.repeat(1, 2))
            total = total + terms["probe"]
        return total, {name: term.detach() for name, term in terms.items()}

    @property
    def selects_by_loss(self) -> bool:
        """See `WorldModel.selects_by_loss`; values are targets of themselves, so it is false."""
        return False

    @torch.no_grad()
    def after_update(self) -> None:
        """See `WorldModel.after_update`; moves the target Q functions and the values' spread."""
        self.updates += 1
        self.spread.lerp_(self.new_spread, self.config.target_rate)
        online = dict(self.q.named_parameters())
        for name, weight in self.target.named_buffers():
            weight.lerp_(online[name].detach(), self.config.target_rate)

    def _rollout(self, segment: Segment) -> Rollout:
        """Encode a segment, and predict the latents after its first observation."""
        numbers = self._numbers(segment.observation)
        with torch.no_grad():
            encoded = self.encoder(numbers[:, 1:])
        actions = self._encode_action(segment.action)
        latents = [self.encoder(numbers[:, 0])]
        for action in actions.unbind(1):
            latents.append(self.dynamics(torch.cat([latents[-1], action], -1)))
        return Rollout(torch.stack(latents, 1), encoded, actions)

    @torch.no_grad()
    def _value_target(
        self, segment: Segment, rollout: Rollout, drawn: Tensor, two: list[int]
    ) -> Tensor:
        """Return the TD target (B, L): the least of two Q functions at the policy's action."""
        action, _ = self.policy_net.sample(rollout.encoded, drawn)
        following = self.two_hot.mean(self.target(rollout.encoded, action, two)).amin(0)
        goes_on = 1.0 - segment.terminated.to(following.dtype)
        return segment.reward / self.unit + self.config.discount * goes_on * following

    def _gain(self, latents: Tensor, drawn: Tensor, two: list[int]) -> Tensor:
        """Return what the policy maximises, (B, L + 1): scaled values, and entropy."""
        action, entropy = self.policy_net.sample(latents, drawn)
        values = self.two_hot.mean(self.q.frozen(latents, action, two)).mean(0)
        if self.training:
            quantiles = torch.tensor(PERCENTILES, device=values.device, dtype=values.dtype)
            low, high = values[:, 0].detach().quantile(quantiles)
            spread = all_reduce_sum(high - low) / processes()
            self.new_spread.copy_(spread.clamp(min=1.0))
        return values / self.spread + self.config.entropy * entropy

    def _two(self) -> list[int]:
        """Return the indices of two random Q functions, or of the only one; a host sync."""
        order = uniforms(self.updates, self.config.values).argsort()
        return order[:2].tolist()

    def _uniforms(self, segment: Segment, lanes: int) -> Tensor:
        """Return uniforms (B, L + 1, 2 lanes), a function of the number of updates."""
        batch, length = segment.mask.shape
        keys = words(self.updates, batch)
        return uniforms(keys, 2 * lanes * (length + 1)).view(batch, length + 1, 2 * lanes)

    @property
    def _sizes(self) -> list[int]:
        return [codec.size for codec in self.vectors]

    def _numbers(self, observation: Observation) -> Tensor:
        """Return all vectors (..., *shape) side by side, in the config's units: (..., n)."""
        pairs = zip(self.keys, self.vectors, strict=True)
        return torch.cat([codec.encode(get_part(observation, key)) for key, codec in pairs], -1)

    def _encode_action(self, action: Tensor) -> Tensor:
        """Return raw actions (..., *shape) as (..., A)."""
        return self.encode_action(action).to(self.worst_return.dtype)
