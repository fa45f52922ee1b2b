"""An ensemble of any family: its members share one dream and disagree about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from dreamgym.models.base import (
    Decodes,
    LatentDiagnostics,
    Prediction,
    Segment,
    State,
    Temperature,
    WorldModel,
)
from dreamgym.models.base import stack as stack_states
from dreamgym.models.nn.members import check_members, draw_member, hashed_uniforms, select_member
from dreamgym.models.observations import Observation, get_part, map_observation, observation_boxes
from dreamgym.models.spec import ModelSpec
from dreamgym.models.statistics import Statistics

DEFAULT_MEMBER = "mdn-rnn"


LEAD = 0

"""The member whose features and images stand for the ensemble's."""


BYTES = 255.0


@dataclass(frozen=True, kw_only=True)
class EnsembleConfig:
    """An ensemble of one family.

    Attributes:
        member: what each member is.
        members: how many.
        elites: how many of them are dreamt with: those of the least loss on held-out episodes.
        propagation: "ts1" or "ts-inf", as in PETS.
    """

    member: ModelSpec = field(default_factory=lambda: ModelSpec(family=DEFAULT_MEMBER))
    members: int = 5
    elites: int = 5
    propagation: str = "ts1"

    def __post_init__(self) -> None:
        check_members(self.members, self.elites, self.propagation)


class Ensemble(WorldModel):
    """Members of one family, each with a state of its own, that all believe the same history.

    Each member keeps a state, for its memory is in its own language. In a step all members imagine;
    one elite's observation is taken for what happened (trajectory sampling, arXiv 1805.12114), and
    every other member observes it as if it were real. So they never drift apart, and what they
    disagree about is one step. They imagine with the same noise: they differ by what they have
    learned. Members that do not decode cannot tell each other what they dreamt: then each dreams
    on by itself, the first one's dream is the ensemble's, and they disagree about the reward.

    Uncertainty: the standard deviation over members of the imagined observation and reward, in
    units of the spread of deltas and rewards (images: of the range of a byte, and a whole image
    counts as one number), root mean square over the numbers.

    Fitting gives each member its own weights to begin with, and its own resample, with replacement,
    of every batch.

    State: the members' leaves (B, members, ...), and with "ts-inf" also `member` (B,), the uniform
    number that says which elite the dream follows. Features: the first member's.
    """

    config_type = EnsembleConfig
    config: EnsembleConfig
    elites: Tensor
    reward_spread: Tensor
    has_uncertainty = True

    def __init__(
        self, observation_space: gym.Space, action_space: gym.Space, config: EnsembleConfig
    ) -> None:
        super().__init__(observation_space, action_space, config)
        spec = config.member
        built = [spec.build(observation_space, action_space) for _ in range(config.members)]
        self.members = nn.ModuleList(built)
        lead = built[LEAD]
        self.feature_dim, self.noise_dim = lead.feature_dim, lead.noise_dim + 1
        self.decodes = isinstance(lead, Decodes)
        if self.decodes:
            self.decode = self._decode
        if config.propagation == "ts-inf" and "member" in lead.initial(1):
            raise ValueError(
                "members that keep a member of their own for a whole dream cannot be in an "
                "ensemble that does, too: give one of both propagation='ts1'"
            )
        self.register_buffer("elites", torch.arange(config.elites))
        self.register_buffer("reward_spread", torch.ones(()))
        for key, box in observation_boxes(observation_space).items():
            unit = torch.full((), BYTES) if box.dtype == "uint8" else torch.ones(box.shape)
            self.register_buffer(_spread_of(key), unit)

    def set_statistics(self, statistics: Statistics) -> None:
        """See `WorldModel.set_statistics`."""
        for member in self._members():
            member.set_statistics(statistics)
        self.reward_spread.copy_(statistics.reward_std)
        for key, moments in statistics.observation.items():
            spread = getattr(self, _spread_of(key))
            spread.copy_(moments.delta_std.view_as(spread))

    def initial(self, batch_size: int) -> State:
        """See `WorldModel.initial`."""
        state = stack_states([member.initial(batch_size) for member in self._members()])
        if self.config.propagation == "ts-inf":
            state["member"] = self.reward_spread.new_zeros(batch_size)
        return state

    def observe(
        self, state: State, action: Tensor, observation: Observation, noise: Tensor
    ) -> State:
        """See `WorldModel.observe`; every member observes, and a dream's elite is drawn."""
        own, drawn = self._split(state)
        seen = self.all("observe", own, action, observation, noise[:, :-1])
        return {**seen, **dict.fromkeys(drawn, noise[:, -1])}

    def step(
        self, state: State, action: Tensor, noise: Tensor, temperature: Temperature = 1.0
    ) -> tuple[State, Prediction]:
        """See `WorldModel.step`."""
        own, drawn = self._split(state)
        following, said = self.all("step", own, action, noise[:, :-1], temperature)
        if self.decodes:
            member = draw_member(drawn.get("member", noise[:, -1]), self.elites)
            imagined = self.all("decode", following)
            happened = map_observation(
                lambda leaf: select_member(leaf.transpose(0, 1), member), imagined
            )
            told = self.all("observe", own, action, happened, noise[:, :-1])
            following = _but_for(member, following, told)
        else:
            member, imagined = torch.full(action.shape[:1], LEAD, device=action.device), {}
        prediction = Prediction(
            reward=select_member(said.reward.T, member),
            termination=select_member(said.termination.T, member),
            uncertainty=self._disagreement(imagined, said.reward),
        )
        return {**following, **drawn}, prediction

    def features(self, state: State) -> Tensor:
        """The first member's, (B, feature_dim)."""
        return self._lead().features(self._of_lead(state))

    def loss(self, segment: Segment, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The members' losses added up, and the mean of their terms.

        In training each has its own resample of the rows; in evaluation all have all rows, and the
        terms also say each member's own, under its number.
        """
        rows = len(segment.mask)
        drawn = (
            (hashed_uniforms(noise[:, 0, -1:], self.config.members) * rows)
            .long()
            .clamp(max=rows - 1)
        )
        losses, terms = [], []
        for member, index in zip(self._members(), drawn, strict=True):
            own, own_noise = segment, noise[..., :-1]
            if self.training:
                own = Segment(
                    map_observation(lambda leaf, index=index: leaf[index], segment.observation),  # type: ignore[misc]
                    *(leaf[index] for leaf in segment[1:]),
                )
                own_noise = own_noise[index]
            loss, said = member.loss(own, own_noise)
            losses.append(loss)
            terms.append(said)
        mean = {name: torch.stack([said[name] for said in terms]).mean() for name in terms[0]}
        if not self.training:
            for k, (loss, said) in enumerate(zip(losses, terms, strict=True)):
                mean |= {f"{k}/{name}": term for name, term in said.items()}
                mean[f"{k}/loss"] = loss.detach()
        return torch.stack(losses).sum(), mean

    @property
    def phase_starts(self) -> tuple[int, ...]:
        """See `WorldModel.phase_starts`: the members', who are all of one kind."""
        return self._lead().phase_starts

    @property
    def assumes_single_env_steps(self) -> bool:
        """See `WorldModel.assumes_single_env_steps`."""
        return self._lead().assumes_single_env_steps

    def before_fit(self) -> None:
        """See `WorldModel.before_fit`."""
        for member in self._members():
            member.before_fit()

    def after_fit(self) -> None:
        """See `WorldModel.after_fit`."""
        for member in self._members():
            member.after_fit()

    def after_update(self) -> None:
        """See `WorldModel.after_update`."""
        for member in self._members():
            member.after_update()

    def after_evaluation(self, terms: dict[str, Tensor]) -> None:
        """Choose the elites: the members of the least loss on held-out episodes."""
        losses = torch.stack([terms[f"{k}/loss"] for k in range(self.config.members)])
        self.elites.copy_(losses.argsort()[: self.config.elites])
        for k, member in enumerate(self._members()):
            own = f"{k}/"
            said = {key.removeprefix(own): v for key, v in terms.items() if key.startswith(own)}
            member.after_evaluation(said)

    def diagnostics(self, segment: Segment, noise: Tensor) -> LatentDiagnostics:
        """The members', each under its number."""
        found = LatentDiagnostics({}, {})
        for k, member in enumerate(self._members()):
            own = member.diagnostics(segment, noise[..., :-1])
            found.divergences.update({f"{k}/{key}": v for key, v in own.divergences.items()})
            found.spreads.update({f"{k}/{key}": v for key, v in own.spreads.items()})
        return found

    def all(self, method: str, state: State, *arguments: Any) -> Any:
        """What every member's method gives; here, one member after the other.

        Args:
            method: of the members; the state is its first argument.
            state: leaves (B, members, ...).
            *arguments: the same for all.

        Returns:
            What the method returns, with leaves (B, members, ...).
        """
        results = [
            getattr(member, method)({key: leaf[:, k] for key, leaf in state.items()}, *arguments)
            for k, member in enumerate(self._members())
        ]
        return torch.utils._pytree.tree_map(lambda *leaves: torch.stack(leaves, 1), *results)

    def _decode(self, state: State) -> Observation:
        """The first member's decoding; the members agree on what has happened."""
        lead: Any = self._lead()
        decoded: Observation = lead.decode(self._of_lead(state))
        return decoded

    def _members(self) -> Iterator[WorldModel]:
        yield from self.members  # type: ignore[misc]

    def _lead(self) -> WorldModel:
        return next(self._members())

    def _of_lead(self, state: State) -> State:
        return {key: leaf[:, LEAD] for key, leaf in self._split(state)[0].items()}

    def _split(self, state: State) -> tuple[State, State]:
        """The members' leaves, and the ensemble's own."""
        if self.config.propagation != "ts-inf":
            return state, {}
        own = {key: leaf for key, leaf in state.items() if key != "member"}
        return own, {"member": state["member"]}

    def _disagreement(self, imagined: Observation, reward: Tensor) -> Tensor:
        """(B,) of what the members imagined, leaves (B, members, ...)."""
        variances = [(reward / self.reward_spread).var(1, correction=0).unsqueeze(-1)]
        for key in observation_boxes(self.observation_space) if self.decodes else ():
            spread = getattr(self, _spread_of(key))
            variance = (get_part(imagined, key).float() / spread).var(1, correction=0).flatten(1)
            variances.append(variance if spread.ndim else variance.mean(-1, keepdim=True))
        return torch.cat(variances, -1).mean(-1).sqrt()


def _spread_of(key: str) -> str:
    """The buffer's name: a module's may have no dot in it."""
    return f"spread_{key}".replace("%", "%25").replace(".", "%2E")


def _but_for(member: Tensor, own: State, told: State) -> State:
    """What the drawn member imagined itself, and what the others were told; (B, members, ...)."""
    following = {}
    for key, leaf in told.items():
        index = torch.arange(leaf.shape[1], device=leaf.device)
        mask = (index == member.unsqueeze(-1)).view(*leaf.shape[:2], *[1] * (leaf.ndim - 2))
        following[key] = torch.where(mask, own[key], leaf)
    return following
