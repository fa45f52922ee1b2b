"""PETS: an ensemble of probabilistic networks that predict how a vector changes, and the reward.

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

from dreamgym.models.base import Prediction, Segment, State, Temperature, WorldModel
from dreamgym.models.nn.actions import ActionEncoder
from dreamgym.models.nn.codecs import Vectors
from dreamgym.models.nn.distributions import normal, per_row
from dreamgym.models.nn.layers import Linear
from dreamgym.models.nn.members import (
    bootstrap_counts,
    check_members,
    check_one_of,
    draw_member,
    select_member,
)
from dreamgym.models.observations import WHOLE, Observation, get_part
from dreamgym.models.reduction import all_reduce_sum, masked_mean
from dreamgym.models.statistics import Statistics

UNCERTAINTIES = ("disagreement", "max-sigma")


@dataclass(frozen=True, kw_only=True)
class PETSConfig:
    """Sizes of an ensemble of probabilistic networks, and how a dream goes through it.

    Attributes:
        hidden: width of each hidden layer.
        layers: hidden layers.
        members: networks.
        elites: how many of them are dreamt with: those of the least error on held-out episodes.
        propagation: "ts1", a dream draws a member for every step, or "ts-inf", each dream keeps the
            member that its start has drawn (arXiv 1805.12114, section 5.2).
        uncertainty: "disagreement", the standard deviation over members of the mean predicted, in
            units of the spread of deltas and rewards, root mean square over the dimensions: of no
            unit, and small where data was plenty; or "max-sigma", MOPO's, the greatest norm over
            members of the predicted standard deviation, in the real environment's units.
        bootstrap: give each member a bootstrap of the transitions of its own (PETS, MBPO), or else
            all the same ones, when only their first weights tell them apart.
        head: width of the termination head.
        log_variance_min: where the learned lower bound of the log variance begins.
        log_variance_max: where the learned upper bound begins.
        bound_weight: of the loss that draws the bounds together.
        decay: of the output layer's squared weights; hidden layers have 1/4, 1/2, 3/4, 3/4, ... of
            it, as in the published code.
        range_margin: as in the MDN-RNN: a dream that leaves the training data's range, widened on
            each side by this share of it, ends there with the worst return that the data has seen.
            The published code has none and dreams a few steps only; infinity turns it off.
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
        for name in ("hidden", "layers", "members", "elites", "head"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give a whole number of at least 1")
        check_members(self.members, self.elites, self.propagation)
        check_one_of("uncertainty", self.uncertainty, UNCERTAINTIES)
        if not self.log_variance_min < self.log_variance_max:
            raise ValueError(
                f"log_variance_min={self.log_variance_min} must be below "
                f"log_variance_max={self.log_variance_max}"
            )


class MembersLinear(nn.Module):
    """One linear layer of every member, as one batched product; first weights as in PETS' code.

    Args:
        members: how many.
        inputs: width in.
        outputs: width out.
    """

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(members, 1, outputs))
        spread = 0.5 * inputs**-0.5
        nn.init.trunc_normal_(self.weight, std=spread, a=-2 * spread, b=2 * spread)

    def forward(self, x: Tensor) -> Tensor:
        """(members, N, inputs) to (members, N, outputs)."""
        return torch.baddbmm(self.bias, x, self.weight).to(self.weight.dtype)


class PETS(WorldModel):
    """Probabilistic ensemble with trajectory sampling.

    Every member predicts a Gaussian over the change of the observation and the reward together;
    the targets are in units of their own spread, so the bounds of the variance mean the same in
    every environment. All members are evaluated in one batched call, and a row of a dream goes on
    with one elite's sample. Published code knows the termination function; here a head that sees
    the new observation and the change is fitted to it.

    State: `z` (B, n) the standardised observation; with "ts-inf" also `member` (B,), the uniform
    number that says which elite the dream keeps. Features: z.
    """

    config_type = PETSConfig
    fit_defaults: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 1e-3,
        "batch_size": 256,
        "segment_length": 1,
        "weight_decay": 0.0,
        "gradient_clip": 100.0,
    }
    config: PETSConfig
    elites: Tensor
    has_uncertainty = True

    def __init__(
        self, observation_space: gym.Space, action_space: gym.Space, config: PETSConfig
    ) -> None:
        super().__init__(observation_space, action_space, config)
        self.vectors = Vectors(observation_space, "pets", config.range_margin)
        self.encode_action = ActionEncoder(action_space)
        size = self.vectors.size
        # One for each number sampled, the reward among them, and one that draws the member.
        self.size, self.feature_dim, self.noise_dim = size, size, size + 2
        widths = [size + self.encode_action.dim, *[config.hidden] * config.layers]
        pairs = zip(widths, [*widths[1:], 2 * (size + 1)], strict=True)
        self.network = nn.ModuleList(MembersLinear(config.members, i, o) for i, o in pairs)
        self.log_variance_min = nn.Parameter(torch.full((size + 1,), config.log_variance_min))
        self.log_variance_max = nn.Parameter(torch.full((size + 1,), config.log_variance_max))
        self.termination = nn.Sequential(
            nn.Linear(2 * size, config.head),
            nn.SiLU(),
            nn.Linear(config.head, config.head),
            nn.SiLU(),
            Linear(config.head, 1),
        )
        self.register_buffer("elites", torch.arange(config.elites))

    def set_statistics(self, statistics: Statistics) -> None:
        """See `WorldModel.set_statistics`; inputs are standardised, the actions of a Box too."""
        if statistics.action is not None:
            self.encode_action.set_moments(statistics.action.mean, statistics.action.std)
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
        """See `WorldModel.observe`; a real observation is the whole state, but for the member."""
        return {**state, "z": self.vectors.standardise(observation), **self._drawn(noise)}

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
        new, unknown = vectors.limit(z + sample[:, :-1] * vectors.delta_std)
        reward = sample[:, -1] * vectors.reward_std + vectors.reward_mean
        prediction = Prediction(
            reward=torch.where(unknown, vectors.worst_return, reward),
            termination=torch.where(unknown, 1.0, self._ends(z, new).sigmoid()),
            uncertainty=self._uncertainty(mean, log_variance),
        )
        return {**state, "z": new}, prediction

    def features(self, state: State) -> Tensor:
        """The standardised observation, (B, n)."""
        return state["z"]

    def decode(self, state: State) -> Tensor:
        """The observation (B, *shape), within the bounds of its space."""
        return self.vectors.observation(state["z"])

    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What every member says.

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
        # Arxiv 1805.12114, appendix A.1: bounds that still let a gradient through.
        below = self.log_variance_max - F.softplus(self.log_variance_max - raw)
        return mean, self.log_variance_min + F.softplus(below - self.log_variance_min)

    def loss(self, segment: Segment, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative log likelihood summed over members, the bounds' loss, decay, and termination.

        In training each member weighs the transitions by its bootstrap; in evaluation all have all,
        and the terms say each member's squared error.
        """
        vectors, z = self.vectors, self.vectors.standardise(segment.observation)
        now, new = z[:, :-1], z[:, 1:]
        reward = (segment.reward - vectors.reward_mean) / vectors.reward_std
        target = torch.cat([(new - now) / vectors.delta_std, reward.unsqueeze(-1)], -1)
        x = torch.cat([now, self.encode_action(segment.action)], -1)
        mean, log_variance = self.predict(x.flatten(0, 1))
        error = (mean - target.flatten(0, 1)).square()
        nll = (error * (-log_variance).exp() + log_variance).mean(-1)
        mask = segment.mask.flatten().float()
        count = all_reduce_sum(mask.sum()).clamp(min=1.0)
        ended = segment.terminated.float()
        ends = F.binary_cross_entropy_with_logits(self._ends(now, new), ended, reduction="none")
        per_member = all_reduce_sum((nll * self._weights(segment, mask)).sum(-1)) / count
        bounds = self.config.bound_weight * (self.log_variance_max - self.log_variance_min).sum()
        terms = {
            "nll": per_member.sum(),
            "bounds": bounds,
            "decay": self._decay(),
            "termination": masked_mean(ends, segment.mask),
        }
        total = torch.stack(list(terms.values())).sum()
        if not self.training:
            errors = all_reduce_sum((error.mean(-1) * mask).sum(-1)) / count
            terms |= {f"member_{k}": errors[k] for k in range(len(errors))}
        return total, {name: term.detach() for name, term in terms.items()}

    def after_evaluation(self, terms: dict[str, Tensor]) -> None:
        """Choose the elites: the members of the least squared error on held-out episodes."""
        errors = torch.stack([terms[f"member_{k}"] for k in range(self.config.members)])
        self.elites.copy_(errors.argsort()[: self.config.elites])

    def _drawn(self, noise: Tensor) -> State:
        return {"member": noise[:, -1]} if self.config.propagation == "ts-inf" else {}

    def _ends(self, z: Tensor, new: Tensor) -> Tensor:
        """The termination logit of a transition, (...)."""
        change = (new - z) / self.vectors.delta_std
        return self.termination(torch.cat([new, change], -1)).squeeze(-1)

    def _uncertainty(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        if self.config.uncertainty == "disagreement":
            return mean.var(0, correction=0).mean(-1).sqrt()
        vectors = self.vectors
        units = torch.cat([vectors.delta_std * vectors.std, vectors.reward_std.view(1)])
        return ((0.5 * log_variance).exp() * units).norm(dim=-1).amax(0)

    def _weights(self, segment: Segment, mask: Tensor) -> Tensor:
        """How much each transition counts for each member, (members, N) or (N,)."""
        if not (self.training and self.config.bootstrap):
            return mask
        seen = get_part(segment.observation, WHOLE).flatten(2).float()
        content = [seen[:, :-1], seen[:, 1:], self.encode_action(segment.action)]
        return mask * bootstrap_counts(torch.cat(content, -1).flatten(0, 1), self.config.members)

    def _decay(self) -> Tensor:
        """Half the squared weights of each layer at its own strength, as in the published code."""
        shares = [min(0.25 * (depth + 1), 0.75) for depth in range(self.config.layers)] + [1.0]
        named = self.network.named_parameters()
        squares = torch.stack([w.square().sum() for name, w in named if name.endswith("weight")])
        return 0.5 * self.config.decay * (squares * squares.new_tensor(shares)).sum()
