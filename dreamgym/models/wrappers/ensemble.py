"""An ensemble of any family: its members share one dream, and disagree about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import gymnasium as gym
import torch
from torch import Tensor, nn

from dreamgym.models.base import (
    CodeDiagnostic,
    Decodes,
    LatentDiagnostics,
    Prediction,
    Segment,
    State,
    Temperature,
    WorldModel,
    forward_hooks,
)
from dreamgym.models.base import stack as stack_states
from dreamgym.models.nn.members import check_members, draw_member, hashed_uniforms, select_member
from dreamgym.models.observations import Observation, get_part, map_observation, observation_boxes
from dreamgym.models.spec import ModelSpec
from dreamgym.models.statistics import Statistics

DEFAULT_MEMBER = "mdn-rnn"

LEAD = 0
"""The member whose features and images stand for the ensemble's."""

BYTE_RANGE = 255.0

SMALLEST_CHANGE = 0.01
"""Floor of the unit of disagreement about a number, as a share of its spread: a decoder is not
exact, and a number that only changes between episodes has no changes of its own."""

CallMembers = Callable[..., Any]
"""Calls a method of all members; see `Ensemble.call_members`."""


@dataclass(frozen=True, kw_only=True)
class EnsembleConfig:
    """Config of an ensemble of one family.

    Attributes:
        member: what each member is.
        members: number of members.
        elites: number of members used in dreams, those with the smallest held-out loss.
        propagation: "ts1" or "ts-inf", as in PETS.
    """

    member: ModelSpec = field(default_factory=lambda: ModelSpec(family=DEFAULT_MEMBER))
    members: int = 5
    elites: int = 5
    propagation: str = "ts1"

    def __post_init__(self) -> None:
        check_members(self.members, self.elites, self.propagation)


@forward_hooks(lambda ensemble: ensemble.members)
class Ensemble(WorldModel):
    """Members of one family, each with its own state, that share one history.

    In a step all members imagine, and the observation that one elite imagined is taken as real
    (trajectory sampling, arXiv 1805.12114): every other member observes it. So members never drift
    apart, and they disagree about one step only. They imagine with the same noise, so that they
    differ by what they have learned. Members that do not decode cannot share observations: each
    continues on its own, the first one's dream is the ensemble's, and only the disagreement about
    the reward counts.

    Uncertainty: the standard deviation over members of the imagined observation and reward, root
    mean square over the numbers, in units of the spread of deltas and rewards. Images are in units
    of the range of a byte, and a whole image counts as one number.

    In fitting, each member has its own initial weights and its own resample, with replacement, of
    every batch.

    State: the members' leaves (B, members, ...), and with "ts-inf" also `member` (B,), the uniform
    number that selects the elite of the whole dream. Features: the first member's.

    Raises:
        ValueError: ensemble and members both keep a drawn member in their state ("ts-inf"), or the
            members take latent actions.
    """

    config_type = EnsembleConfig
    config: EnsembleConfig
    members: nn.ModuleList
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
        if not lead.takes_data_actions:
            raise ValueError(
                "members that take latent actions cannot be in an ensemble, since each has found "
                "actions of its own: give members that take the data's actions"
            )
        self.feature_dim, self.noise_dim = lead.feature_dim, lead.noise_dim + 1
        if config.propagation == "ts-inf" and "member" in lead.initial(1):
            raise ValueError(
                "members with propagation='ts-inf' cannot be in an ensemble with "
                "propagation='ts-inf': give one of them propagation='ts1'"
            )
        self.register_buffer("elites", torch.arange(config.elites))
        self.register_buffer("reward_spread", torch.ones(()))
        for key, box in observation_boxes(observation_space).items():
            unit = torch.full((), BYTE_RANGE) if box.dtype == "uint8" else torch.ones(box.shape)
            self.register_buffer(_spread_name(key), unit)

    def set_statistics(self, statistics: Statistics) -> None:
        """See `WorldModel.set_statistics`."""
        for member in self._models():
            member.set_statistics(statistics)
        self.reward_spread.copy_(statistics.reward_std)
        for key, moments in statistics.observation.items():
            spread = getattr(self, _spread_name(key))
            if spread.ndim:  # bytes share one spread, their range
                changes = torch.maximum(moments.delta_std, SMALLEST_CHANGE * moments.std)
                spread.copy_(changes.view_as(spread))

    def initial(self, batch_size: int) -> State:
        """See `WorldModel.initial`."""
        state = stack_states([member.initial(batch_size) for member in self._models()])
        if self.config.propagation == "ts-inf":
            state["member"] = self.reward_spread.new_zeros(batch_size)
        return state

    def observe(
        self, state: State, action: Tensor, observation: Observation, noise: Tensor
    ) -> State:
        """See `WorldModel.observe`; every member observes, and the dream's elite is drawn."""
        return self.observe_with(self.call_members, state, action, observation, noise)

    def step(
        self, state: State, action: Tensor, noise: Tensor, temperature: Temperature = 1.0
    ) -> tuple[State, Prediction]:
        """See `WorldModel.step`."""
        return self.step_with(self.call_members, state, action, noise, temperature)

    def features(self, state: State) -> Tensor:
        """Return the first member's features, (B, feature_dim)."""
        return self._lead().features(self._lead_state(state))

    def goal_features(self, state: State) -> Tensor:
        """Return the first member's, (B, n)."""
        return self._lead().goal_features(self._lead_state(state))

    def decode(self, state: State) -> Observation:
        """Return the first member's decoding; the members agree on what has happened."""
        return cast(Decodes, self._lead()).decode(self._lead_state(state))

    def loss(self, segment: Segment, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of the members' losses, and the mean of their terms.

        In training mode each member has its own resample of the rows. In eval mode all members have
        all rows, and the terms include each member's own, as "0/loss" and so on.
        """
        rows = len(segment.mask)
        uniform = hashed_uniforms(noise[:, 0, -1:], self.config.members)
        resamples = (uniform * rows).long().clamp(max=rows - 1)
        losses, terms = [], []
        for member, index in zip(self._models(), resamples, strict=True):
            batch, batch_noise = segment, noise[..., :-1]
            if self.training:
                batch = Segment(
                    map_observation(lambda leaf, index=index: leaf[index], segment.observation),  # type: ignore[misc]
                    *(leaf[index] for leaf in segment[1:]),
                )
                batch_noise = batch_noise[index]
            loss, member_terms = member.loss(batch, batch_noise)
            losses.append(loss)
            terms.append(member_terms)
        result = {name: torch.stack([each[name] for each in terms]).mean() for name in terms[0]}
        if not self.training:
            for k, (loss, member_terms) in enumerate(zip(losses, terms, strict=True)):
                result |= {f"{k}/{name}": term for name, term in member_terms.items()}
                result[f"{k}/loss"] = loss.detach()
        return torch.stack(losses).sum(), result

    def after_evaluation(self, terms: dict[str, Tensor]) -> None:
        """Choose as elites the members with the smallest loss on held-out episodes."""
        losses = torch.stack([terms[f"{k}/loss"] for k in range(self.config.members)])
        self.elites.copy_(losses.argsort()[: self.config.elites])
        for k, member in enumerate(self._models()):
            prefix = f"{k}/"
            own = {
                key.removeprefix(prefix): v for key, v in terms.items() if key.startswith(prefix)
            }
            member.after_evaluation(own)

    def diagnostics(self, segment: Segment, noise: Tensor) -> LatentDiagnostics:
        """Return the members' diagnostics, named by the member's number: "0/" and so on."""
        codes: dict[str, CodeDiagnostic] = {}
        result = LatentDiagnostics({}, {}, codes)
        for k, member in enumerate(self._models()):
            own = member.diagnostics(segment, noise[..., :-1])
            result.divergences.update({f"{k}/{key}": v for key, v in own.divergences.items()})
            result.spreads.update({f"{k}/{key}": v for key, v in own.spreads.items()})
            codes.update({f"{k}/{key}": v for key, v in own.codes.items()})
        return result

    def call_members(self, method: str, state: State, *arguments: Any) -> Any:
        """Call a method of every member, one after the other.

        Args:
            method: name of a method whose first argument is the member's state.
            state: leaves (B, members, ...).
            *arguments: the other arguments, the same for all members.

        Returns:
            The results as one, with leaves (B, members, ...).
        """
        results = [
            getattr(member, method)({key: leaf[:, k] for key, leaf in state.items()}, *arguments)
            for k, member in enumerate(self._models())
        ]
        return torch.utils._pytree.tree_map(lambda *leaves: torch.stack(leaves, 1), *results)

    def observe_with(
        self,
        call: CallMembers,
        state: State,
        action: Tensor,
        observation: Observation,
        noise: Tensor,
    ) -> State:
        """Observe, with the members called by `call` (see `call_members`)."""
        member_states, drawn = self._split(state)
        observed = call("observe", member_states, action, observation, noise[:, :-1])
        return {**observed, **dict.fromkeys(drawn, noise[:, -1])}

    def step_with(
        self,
        call: CallMembers,
        state: State,
        action: Tensor,
        noise: Tensor,
        temperature: Temperature,
    ) -> tuple[State, Prediction]:
        """Step, with the members called by `call` (see `call_members`)."""
        member_states, drawn = self._split(state)
        following, predictions = call("step", member_states, action, noise[:, :-1], temperature)
        if self.decodes:
            member = draw_member(drawn.get("member", noise[:, -1]), self.elites)
            imagined = call("decode", following)
            happened = map_observation(
                lambda leaf: select_member(leaf.transpose(0, 1), member), imagined
            )
            observed = call("observe", member_states, action, happened, noise[:, :-1])
            following = _keep_own(member, following, observed)
        else:
            member, imagined = torch.full(action.shape[:1], LEAD, device=action.device), {}
        prediction = Prediction(
            reward=select_member(predictions.reward.T, member),
            termination=select_member(predictions.termination.T, member),
            uncertainty=self._disagreement(imagined, predictions.reward),
        )
        return {**following, **drawn}, prediction

    def _models(self) -> list[WorldModel]:
        return [cast(WorldModel, member) for member in self.members]

    def _lead(self) -> WorldModel:
        return cast(WorldModel, self.members[LEAD])

    def _lead_state(self, state: State) -> State:
        """Return the first member's state."""
        return {key: leaf[:, LEAD] for key, leaf in self._split(state)[0].items()}

    def _split(self, state: State) -> tuple[State, State]:
        """Split a state into the members' leaves and the ensemble's own."""
        if self.config.propagation != "ts-inf":
            return state, {}
        members = {key: leaf for key, leaf in state.items() if key != "member"}
        return members, {"member": state["member"]}

    def _disagreement(self, imagined: Observation, reward: Tensor) -> Tensor:
        """Return the uncertainty (B,) from imagined observations, leaves (B, members, ...)."""
        variances = [(reward / self.reward_spread).var(1, correction=0).unsqueeze(-1)]
        for key in observation_boxes(self.observation_space) if self.decodes else ():
            spread = getattr(self, _spread_name(key))
            variance = (get_part(imagined, key).float() / spread).var(1, correction=0).flatten(1)
            variances.append(variance if spread.ndim else variance.mean(-1, keepdim=True))
        return torch.cat(variances, -1).mean(-1).sqrt()


def _spread_name(key: str) -> str:
    """Return the name of the buffer with the spread of one part; buffer names may have no dot."""
    return f"spread_{key}".replace("%", "%25").replace(".", "%2E")


def _keep_own(member: Tensor, imagined: State, observed: State) -> State:
    """Keep the imagined state of each row's member, and take the observed states of the others.

    Args:
        member: (B,) int64, the member whose observation happened.
        imagined: leaves (B, members, ...).
        observed: leaves (B, members, ...).
    """
    following = {}
    for key, leaf in observed.items():
        index = torch.arange(leaf.shape[1], device=leaf.device)
        mask = (index == member.unsqueeze(-1)).view(*leaf.shape[:2], *[1] * (leaf.ndim - 2))
        following[key] = torch.where(mask, imagined[key], leaf)
    return following
