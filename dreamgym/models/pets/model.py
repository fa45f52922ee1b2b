"""PETS: an ensemble of probabilistic networks that predict the change of a vector and the reward.

Chua et al. 2018, "Deep reinforcement learning in a handful of trials using probabilistic dynamics
models", arXiv 1805.12114; with the sizes of MBPO (Janner et al. 2019, arXiv 1906.08253) and the
penalty of MOPO (Yu et al. 2020, arXiv 2005.13239).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium as gym
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym._settings import check_at_least, check_choice
from dreamgym.models.base import (
    Prediction,
    Segment,
    State,
    Temperature,
    WorldModel,
    end_outside_data,
)
from dreamgym.models.nn.actions import ActionEncoder
from dreamgym.models.nn.codecs import TransitionCodec, flattened
from dreamgym.models.nn.distributions import normal, per_row
from dreamgym.models.nn.layers import mlp
from dreamgym.models.nn.members import (
    bootstrap_counts,
    check_members,
    draw_member,
    select_member,
)
from dreamgym.models.observations import (
    WHOLE,
    Observation,
    get_part,
    is_image,
    observation_boxes,
)
from dreamgym.models.reduction import all_reduce_sum, masked_mean
from dreamgym.models.statistics import Statistics

MAX_LAYERS = 1024
"""More hidden layers are an error, or a file that attempts to exhaust the memory."""

UNCERTAINTIES = ("disagreement", "max-sigma")


@dataclass(frozen=True, kw_only=True)
class PETSConfig:
    """Config of a PETS model: sizes, losses, and how a dream is propagated.

    Attributes:
        hidden: width of each hidden layer.
        layers: number of hidden layers.
        members: number of networks.
        elites: number of members used in dreams, those with the smallest held-out error.
        propagation: "ts1" draws a member at every step; "ts-inf" draws one at the start state and
            keeps it for the whole dream (arXiv 1805.12114, section 5.2).
        uncertainty: "disagreement" is the standard deviation over members of the predicted mean, in
            units of the spread of deltas and rewards, root mean square over the dimensions:
            unitless, and small where there was much data. "max-sigma" is MOPO's: the largest norm
            over members of the predicted standard deviation, in the real environment's units.
        bootstrap: fit each member to its own bootstrap of the transitions (PETS, MBPO); otherwise
            members differ by their initial weights only.
        head: width of the termination head.
        log_variance_min: initial value of the learned lower bound of the log variance.
        log_variance_max: initial value of the learned upper bound.
        bound_weight: weight of the loss that pulls the two bounds together.
        decay: weight decay of the output layer; the hidden layers have 1/4, 1/2, 3/4, 3/4, ... of
            it, as in the published code.
        range_margin: a dream that leaves the training data's range, widened on each side by this
            share of it and at least by three typical changes in a step, ends there with the worst
            return seen in the data (`end_outside_data`).
            Infinity turns this off, as in the published code, which dreams a few steps only.
    """

    hidden: int = 200
    layers: int = 4
    members: int = 7
    elites: int = 5
    propagation: str = "ts1"
    uncertainty: str = "disagreement"
    bootstrap: bool = True
    head: int = 64
    log_variance_min: float = -10.0
    log_variance_max: float = 0.5
    bound_weight: float = 0.01
    decay: float = 1e-4
    range_margin: float = 0.3

    def __post_init__(self) -> None:
        check_at_least(self, 1, "hidden", "layers", "members", "elites", "head")
        if self.layers > MAX_LAYERS:
            raise ValueError(f"layers={self.layers}, expected at most {MAX_LAYERS}")
        check_members(self.members, self.elites, self.propagation)
        check_choice("uncertainty", self.uncertainty, UNCERTAINTIES)
        if not self.log_variance_min < self.log_variance_max:
            raise ValueError(
                f"log_variance_min={self.log_variance_min} must be below "
                f"log_variance_max={self.log_variance_max}"
            )


class MembersLinear(nn.Module):
    """One linear layer of all members as a batched product; initialised as in the PETS code.

    Args:
        members: number of members.
        inputs: input width.
        outputs: output width.
    """

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(members, 1, outputs))
        std = 0.5 * inputs**-0.5
        nn.init.trunc_normal_(self.weight, std=std, a=-2 * std, b=2 * std)

    def forward(self, x: Tensor) -> Tensor:
        """Map (members, N, inputs) to (members, N, outputs)."""
        return torch.baddbmm(self.bias, x, self.weight).to(self.weight.dtype)


class TransitionScales(TransitionCodec):
    """The codec of the observations, with the scale of the rewards.

    Attributes:
        reward_mean: () mean reward of the training data.
        reward_std: () standard deviation of the rewards.
        worst_return: () see `Statistics.worst_return`.
    """

    reward_mean: Tensor
    reward_std: Tensor
    worst_return: Tensor

    def __init__(self, box: gym.spaces.Box, margin: float) -> None:
        super().__init__(box, margin)
        self.register_buffer("reward_mean", torch.zeros(()))
        self.register_buffer("reward_std", torch.ones(()))
        self.register_buffer("worst_return", torch.zeros(()))

    def set_statistics(self, statistics: Statistics) -> None:
        """Fit to training data."""
        self.set_moments(statistics.vector)
        for name in ("reward_mean", "reward_std", "worst_return"):
            getattr(self, name).copy_(getattr(statistics, name))


class PETS(WorldModel):
    """Probabilistic ensemble with trajectory sampling.

    Every member predicts a Gaussian over the change of the observation and the reward together.
    Targets are in units of their own spread, so that the variance bounds mean the same in every
    environment. All members are evaluated in one batched call, and each row continues with the
    sample of one elite. The published code knows the termination function; here a head on the new
    observation and the change is fitted to it.

    State: `z` (B, n), the standardised observation; with "ts-inf" also `member` (B,), the uniform
    number that selects the elite of the whole dream. Features: z.

    Raises:
        TypeError: the observation space is not a Box of numbers, or it holds images.
    """

    config_type = PETSConfig
    fit_defaults: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 1e-3,
        "batch_size": 256,
        "segment_length": 1,
        "weight_decay": 0.0,
        "gradient_clip": 1.0,
        "clip_by": "agc",
    }
    config: PETSConfig
    elites: Tensor
    has_uncertainty = True

    def __init__(
        self, observation_space: gym.Space, action_space: gym.Space, config: PETSConfig
    ) -> None:
        super().__init__(observation_space, action_space, config)
        self.vectors = TransitionScales(_vector_box(observation_space), config.range_margin)
        self.encode_action = ActionEncoder(action_space)
        size = self.vectors.size
        # One uniform for each sampled number, including the reward, and one to draw the member.
        self.size, self.feature_dim, self.noise_dim = size, size, size + 2
        widths = [size + self.encode_action.dim, *[config.hidden] * config.layers]
        pairs = zip(widths, [*widths[1:], 2 * (size + 1)], strict=True)
        self.network = nn.ModuleList(MembersLinear(config.members, i, o) for i, o in pairs)
        self.log_variance_min = nn.Parameter(torch.full((size + 1,), config.log_variance_min))
        self.log_variance_max = nn.Parameter(torch.full((size + 1,), config.log_variance_max))
        self.termination = mlp(2 * size, config.head, 1)
        self.register_buffer("elites", torch.arange(config.elites))

    def set_statistics(self, statistics: Statistics) -> None:
        """See `WorldModel.set_statistics`; Box actions are standardised as well."""
        if statistics.action is not None:
            self.encode_action.fit(statistics.action, standardise=True)
        self.vectors.set_statistics(statistics)

    def initial(self, batch_size: int) -> State:
        """See `WorldModel.initial`."""
        state = {"z": self.log_variance_min.new_zeros(batch_size, self.size)}
        if self.config.propagation == "ts-inf":
            state["member"] = self.log_variance_min.new_zeros(batch_size)
        return state

    def observe(
        self, state: State, action: Tensor, observation: Observation, noise: Tensor
    ) -> State:
        """See `WorldModel.observe`; the observation is the state, except for the member."""
        return {**state, "z": self._encode(observation), **self._drawn_member(noise)}

    def step(
        self, state: State, action: Tensor, noise: Tensor, temperature: Temperature = 1.0
    ) -> tuple[State, Prediction]:
        """See `WorldModel.step`."""
        z, vectors = state["z"], self.vectors
        mean, log_variance = self.predict(torch.cat([z, self.encode_action(action)], -1))
        member = draw_member(state.get("member", noise[:, -1]), self.elites)
        sigma = (0.5 * select_member(log_variance, member)).exp()
        sigma = sigma * per_row(temperature, sigma) ** 0.5
        sample = select_member(mean, member) + sigma * normal(noise[:, :-1])
        new, outside = vectors.limit(z + sample[:, :-1] * vectors.delta_std)
        prediction = Prediction(
            reward=sample[:, -1] * vectors.reward_std + vectors.reward_mean,
            termination=self._termination_logit(z, new).sigmoid(),
            uncertainty=self._uncertainty(mean, log_variance),
        )
        return {**state, "z": new}, end_outside_data(prediction, outside, vectors.worst_return)

    def features(self, state: State) -> Tensor:
        """Return the standardised observation, (B, n)."""
        return state["z"]

    def decode(self, state: State) -> Tensor:
        """Return the observation (B, *shape), within the bounds of its space."""
        return self.vectors.to_space(self.vectors.decode(state["z"]))

    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate all members.

        Args:
            x: (N, n + action width) standardised observations and encoded actions.

        Returns:
            Mean and log variance, (members, N, n + 1), of the change and, last, of the reward, in
            units of their spread.
        """
        hidden = x.expand(self.config.members, *x.shape)
        for layer in self.network[:-1]:
            hidden = F.silu(layer(hidden))
        mean, raw = self.network[-1](hidden).chunk(2, -1)
        # arXiv 1805.12114, appendix A.1: soft bounds, through which gradients still flow.
        below = self.log_variance_max - F.softplus(self.log_variance_max - raw)
        return mean, self.log_variance_min + F.softplus(below - self.log_variance_min)

    def loss(self, segment: Segment, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of negative log likelihood, bound loss, weight decay and termination loss.

        The likelihood is summed over members. In training mode each member weights the transitions
        by its bootstrap. In eval mode all members see all transitions, and the terms include each
        member's squared error (`member_0`, ...), from which `after_evaluation` chooses the elites.
        """
        vectors, z = self.vectors, self._encode(segment.observation)
        now, new = z[:, :-1], z[:, 1:]
        reward = (segment.reward - vectors.reward_mean) / vectors.reward_std
        target = torch.cat([(new - now) / vectors.delta_std, reward.unsqueeze(-1)], -1)
        x = torch.cat([now, self.encode_action(segment.action)], -1)
        mean, log_variance = self.predict(x.flatten(0, 1))
        error = (mean - target.flatten(0, 1)).square()
        weight = F.pad(vectors.likelihood_weight(), (0, 1), value=1.0)  # the reward's is one
        nll = ((error * (-log_variance).exp() + log_variance) * weight).mean(-1)
        mask = segment.mask.flatten().float()
        count = all_reduce_sum(mask.sum()).clamp(min=1.0)
        ended = segment.terminated.float()
        logit = self._termination_logit(now, new)
        termination = F.binary_cross_entropy_with_logits(logit, ended, reduction="none")
        per_member = all_reduce_sum((nll * self._weights(segment, mask)).sum(-1)) / count
        bounds = self.config.bound_weight * (self.log_variance_max - self.log_variance_min).sum()
        terms = {
            "nll": per_member.sum(),
            "bounds": bounds,
            "decay": self._weight_decay(),
            "termination": masked_mean(termination, segment.mask),
        }
        total = torch.stack(list(terms.values())).sum()
        if not self.training:
            errors = all_reduce_sum(((error * weight).mean(-1) * mask).sum(-1)) / count
            terms |= {f"member_{k}": errors[k] for k in range(len(errors))}
        return total, {name: term.detach() for name, term in terms.items()}

    def after_evaluation(self, terms: dict[str, Tensor]) -> None:
        """Choose as elites the members with the smallest squared error on held-out episodes."""
        errors = torch.stack([terms[f"member_{k}"] for k in range(self.config.members)])
        self.elites.copy_(errors.argsort()[: self.config.elites])

    def _encode(self, observation: Observation) -> Tensor:
        """Return the standardised observation (..., n)."""
        return self.vectors.encode(get_part(observation, WHOLE))

    def _drawn_member(self, noise: Tensor) -> State:
        """Return the state's `member` leaf, drawn from noise (B, noise_dim), if there is one."""
        return {"member": noise[:, -1]} if self.config.propagation == "ts-inf" else {}

    def _termination_logit(self, z: Tensor, new: Tensor) -> Tensor:
        """Return the logit (...) that the transition from z (..., n) to `new` is terminal."""
        change = (new - z) / self.vectors.delta_std
        return self.termination(torch.cat([new, change], -1)).squeeze(-1)

    def _uncertainty(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """Return the epistemic uncertainty (B,) of the members' predictions."""
        if self.config.uncertainty == "disagreement":
            return mean.var(0, correction=0).mean(-1).sqrt()
        vectors = self.vectors
        # Channels that never changed in the data are known exactly.
        changes = vectors.delta_std * vectors.std * (vectors.low < vectors.high)
        units = torch.cat([changes, vectors.reward_std.view(1)])
        return ((0.5 * log_variance).exp() * units).norm(dim=-1).amax(0)

    def _weights(self, segment: Segment, mask: Tensor) -> Tensor:
        """Return each transition's weight for each member, (members, N), or for all, (N,)."""
        if not (self.training and self.config.bootstrap):
            return mask
        observed = flattened(get_part(segment.observation, WHOLE), self.vectors.box.shape).float()
        content = [observed[:, :-1], observed[:, 1:], self.encode_action(segment.action)]
        return mask * bootstrap_counts(torch.cat(content, -1).flatten(0, 1), self.config.members)

    def _weight_decay(self) -> Tensor:
        """Return half the squared weights, each layer at its own strength (see `PETSConfig`)."""
        shares = [min(0.25 * (depth + 1), 0.75) for depth in range(self.config.layers)] + [1.0]
        weights = [w for name, w in self.network.named_parameters() if name.endswith("weight")]
        squares = torch.stack([weight.square().sum() for weight in weights])
        return 0.5 * self.config.decay * (squares * squares.new_tensor(shares)).sum()


def _vector_box(space: gym.Space) -> gym.spaces.Box:
    """Return the observation space if it is a Box of numbers, other than images.

    Raises:
        TypeError: it is another space.
    """
    if isinstance(space, gym.spaces.Box) and not is_image(space):
        return space
    boxes = observation_boxes(space)
    images = any(map(is_image, boxes.values()))
    remedy = f"use a family that takes {'images' if images else 'a Dict'} (docs/families.md)"
    if any(not is_image(box) for box in boxes.values()) and isinstance(space, gym.spaces.Dict):
        remedy += ", or choose one key of numbers (--key KEY)"
    if not images:
        remedy += (
            ", or wrap the environment in gymnasium.wrappers.FlattenObservation and record again"
        )
    raise TypeError(
        f"the pets family takes observations from a Box of numbers, not {space}; {remedy}"
    )
