"""Heads of the MDN-RNN: what a step pays, and whether it ends the episode."""

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
    zero_action,
)
from dreamgym.models.mdn_rnn.config import LOG_SIGMA_MAX, MDNRNNConfig
from dreamgym.models.mdn_rnn.vae import ImageVAESizes, ObservationEncoder, diagnostics
from dreamgym.models.nn.actions import ActionEncoder
from dreamgym.models.nn.distributions import Mixture
from dreamgym.models.nn.layers import LSTM, Linear, mlp
from dreamgym.models.observations import Observation
from dreamgym.models.reduction import masked_mean
from dreamgym.models.statistics import Statistics


class TransitionOutput(NamedTuple):
    """Of a step; leaves (...).

    Attributes:
        reward: standardised, of a step after which the episode goes on.
        at_end: what is added to it where the episode ends.
        logit: of the probability that it does.
    """

    reward: Tensor
    at_end: Tensor
    logit: Tensor

    def paid(self, ends: Tensor) -> Tensor:
        """The standardised reward, (...), where the episode ends with probability `ends`."""
        return self.reward + ends * self.at_end


class LinearHeads(nn.Module):
    """Both heads read h, as in the published code.

    Args:
        hidden: width of h.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.reward: nn.Module = Linear(hidden, 1)
        self.termination: nn.Module = Linear(hidden, 1)

    def forward(self, h: Tensor, new: Tensor, change: Tensor, encoded: Tensor) -> TransitionOutput:
        """Judge steps from h (..., hidden) alone."""
        reward = self.reward(h).squeeze(-1)
        return TransitionOutput(reward, torch.zeros_like(reward), self.termination(h).squeeze(-1))


class TransitionHeads(nn.Module):
    """Heads of two hidden layers, which judge the transition that was dreamt.

    The reward is blind to h, which foretells a reward before its cause is drawn: a dream would pay
    for what its noise undoes, and a policy learns to live on that. It is r + p d, with p the
    probability that the episode ends, which h does help to tell, and d what an end adds: +100 for
    a landing, say, that looks as every moment before it.

    Args:
        hidden: width of h.
        size: width of z.
        actions: width of an encoded action.
        width: of the hidden layers.
    """

    def __init__(self, hidden: int, size: int, actions: int, width: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.reward = mlp(2 * size + actions, width, 2)
        self.termination = mlp(hidden + 2 * size, width, 1)
        # Where no episode of the data ends, an end pays what any step pays.
        last = self.reward[-1]
        with torch.no_grad():
            last.weight[1].zero_()  # type: ignore[index]
            last.bias[1].zero_()  # type: ignore[index]

    def forward(self, h: Tensor, new: Tensor, change: Tensor, encoded: Tensor) -> TransitionOutput:
        """Judge steps.

        Args:
            h: (..., hidden).
            new: (..., size) the z that the step led to.
            change: (..., size) to it, in units of the deltas' spread.
            encoded: (..., actions).
        """
        reward, at_end = self.reward(torch.cat([new, change, encoded], -1)).unbind(-1)
        logit = self.termination(torch.cat([h, new, change], -1)).squeeze(-1)
        return TransitionOutput(reward, at_end, logit)


Layers = dict[str, tuple[Tensor, Tensor]]


def linear_layer(
    heads: LinearHeads, reward_mean: Tensor, reward_std: Tensor
) -> tuple[Tensor, Tensor]:
    """Weight (2, hidden) and bias (2,) of reward and termination logit, the reward in its units."""
    both = [layer for layer in (heads.reward, heads.termination) if isinstance(layer, nn.Linear)]
    weight = torch.cat([layer.weight for layer in both]).detach().clone()
    bias = torch.cat([layer.bias for layer in both]).detach().clone()
    weight[0] *= reward_std
    bias[0] = bias[0] * reward_std + reward_mean
    return weight, bias


def transition_layers(heads: TransitionHeads, reward_mean: Tensor, reward_std: Tensor) -> Layers:
    """Both heads side by side as one, of (h, new z, change, action): zeros keep them apart.

    Args:
        heads: whose weights to take.
        reward_mean: () of the standardised reward.
        reward_std: () likewise.

    Returns:
        Weight and bias of `head0`, `head1` and `head2`, which gives the reward and what an end
        adds to it, in the reward's own units, and the termination's logit.
    """
    pay, end = (
        [layer for layer in head if isinstance(layer, nn.Linear)]
        for head in (heads.reward, heads.termination)
    )
    width, hidden = pay[0].out_features, heads.hidden
    first = pay[0].weight.new_zeros(2 * width, hidden + pay[0].in_features)
    first[:width, hidden:] = pay[0].weight.detach()
    first[width:, : end[0].in_features] = end[0].weight.detach()
    later = [
        torch.block_diag(a.weight, b.weight).detach() for a, b in zip(pay[1:], end[1:], strict=True)
    ]
    weights = [first, *later]
    biases = [torch.cat([a.bias, b.bias]).detach() for a, b in zip(pay, end, strict=True)]
    # What an end adds is a difference: the mean belongs to the first output alone.
    scale = torch.stack([reward_std, reward_std, torch.ones_like(reward_std)])
    shift = reward_mean * torch.tensor([1.0, 0.0, 0.0], device=scale.device)
    weights[-1], biases[-1] = weights[-1] * scale[:, None], biases[-1] * scale + shift
    return {f"head{k}": layer for k, layer in enumerate(zip(weights, biases, strict=True))}


PUBLISHED_FIT: Mapping[str, Any] = {
    "optimizer": "adam",
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "gradient_clip": 1.0,
    "clip_by": "value",
    "schedule": "constant",
    "warm_up": 0,
    "batch_size": 100,
}

"""How the authors fit M: batches of 100 sequences. Theirs are whole episodes (999 steps of
CarRacing, 500 of Doom) of frames that V, fitted before with 1e-4, has encoded once and for all;
here V encodes every batch, and sequences are as long as `segment_length` says."""


class MDNRNN(WorldModel):
    """The MDN-RNN, with heads for reward and termination.

    Outside the range of its data a model knows nothing, and a policy would be rewarded for finding
    that out. There a dream halts with the worst return seen, as in MOReL (Kidambi et al. 2020,
    arXiv 2005.05951, definition 2), whose unknown states these are. Latents have no such range.

    The published code sets M's first input in an episode, (z, action, restart flag), apart: the
    flag is one, h and c are zero. Here an episode's first *observation* comes with the zero action
    in the initial state, so M's first input is (0, zero action), and there the flag is one: a leaf
    of the initial state, zero in all that follow. A segment that begins within an episode is
    filtered, and fitted, in the same way: the flag says that nothing was seen before.

    State: `z` (B, n) standardised numbers and latents; `h`, `c` (B, hidden) of the LSTM, which has
    seen everything up to the action that led to `z`; with a restart flag, `restart` (B, 1).
    Features: (z, h).
    """

    config_type = MDNRNNConfig
    presets: ClassVar[Mapping[str, MDNRNNConfig]] = {
        "carracing": MDNRNNConfig(hidden=256, trunk=0, head=0, latent=32, width=1.0),
        "doom": MDNRNNConfig(hidden=512, trunk=0, head=0, latent=64, width=1.0, restart_flag=True),
    }
    preset_fits: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "carracing": PUBLISHED_FIT,
        "doom": PUBLISHED_FIT,
    }
    config: MDNRNNConfig
    reward_mean: Tensor
    reward_std: Tensor
    worst_return: Tensor
    updates: Tensor

    def __init__(
        self, observation_space: gym.Space, action_space: gym.Space, config: MDNRNNConfig
    ) -> None:
        super().__init__(observation_space, action_space, config)
        self.vision = ObservationEncoder(
            observation_space, ImageVAESizes(config.image_size, config.latent, config.width)
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
        for name, value in {"reward_mean": 0.0, "reward_std": 1.0, "worst_return": 0.0}.items():
            self.register_buffer(name, torch.tensor(value))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def set_statistics(self, statistics: Statistics) -> None:
        """See `WorldModel.set_statistics`."""
        self.vision.set_statistics(statistics, self.config.range_margin)
        for name in ("reward_mean", "reward_std", "worst_return"):
            getattr(self, name).copy_(getattr(statistics, name))

    @property
    def phase_starts(self) -> tuple[int, ...]:
        """See `WorldModel.phase_starts`: M's turn comes after V's."""
        return (self.config.vision_updates,) if self.config.vision_updates else ()

    def before_fit(self) -> None:
        """See `WorldModel.before_fit`: V's turn comes first again."""
        self.updates.zero_()

    def after_fit(self) -> None:
        """See `WorldModel.after_fit`: what V made of each frame."""
        self.vision.forget()

    def after_update(self) -> None:
        """Count: fitting V ends after `vision_updates`."""
        self.updates += 1

    def initial(self, batch_size: int) -> State:
        """See `WorldModel.initial`."""
        weight = self.mixture.weight
        shapes = {"z": self.size, "h": self.config.hidden, "c": self.config.hidden}
        state = {key: weight.new_zeros(batch_size, width) for key, width in shapes.items()}
        if self.config.restart_flag:
            state["restart"] = weight.new_ones(batch_size, 1)
        return state

    def observe(
        self, state: State, action: Tensor, observation: Observation, noise: Tensor
    ) -> State:
        """See `WorldModel.observe`; latents are sampled, for M and C were fitted on samples."""
        after = self._advance(state, self.encode_action(action))
        return {"z": self.vision.encode(observation, noise[..., : self.size]), **after}

    def step(
        self, state: State, action: Tensor, noise: Tensor, temperature: Temperature = 1.0
    ) -> tuple[State, Prediction]:
        """See `WorldModel.step`."""
        encoded, vision = self.encode_action(action), self.vision
        after, (choose, spread) = self._advance(state, encoded), noise.chunk(2, -1)
        drawn = self._mixture(after["h"], state["z"], encoded).sample(choose, spread, temperature)
        # What the space forbids cannot happen; what the data never showed can, and is unknown.
        free = vision.within_space(state["z"] * vision.carried + drawn * vision.delta_std)
        z = torch.clamp(free, vision.low, vision.high)
        unknown = (free != z).any(-1)
        judgement = self._judge(after["h"], state["z"], z, encoded)
        termination = judgement.logit.sigmoid()
        reward = judgement.paid(termination) * self.reward_std + self.reward_mean
        prediction = Prediction(
            reward=torch.where(unknown, self.worst_return, reward),
            termination=torch.where(unknown, 1.0, termination),
            uncertainty=torch.zeros_like(reward),
        )
        return {"z": z, **after}, prediction

    def features(self, state: State) -> Tensor:
        """(z, h), as the controller of V-M-C sees them: (B, n + hidden)."""
        return torch.cat([state["z"], state["h"]], -1)

    def decode(self, state: State) -> Observation:
        """The observation (B, *shape), or a dict of such, within the bounds of its space."""
        return self.vision.decode(state["z"])

    def loss(self, segment: Segment, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The VAE's loss on some of the frames, and M's on all, through which no gradient meets V.

        M's: negative log likelihood, squared reward error, termination cross-entropy. With
        `vision_updates` V's comes first and M's after, so that M sees a V that stands still; what
        is held out is always judged by both.
        """
        turn = self.config.vision_updates
        vision_first = bool(turn and self.training and self.updates < turn)
        vision_done = bool(turn and self.training and not vision_first)
        noise = noise[..., : self.size]
        terms = {} if vision_done else self._vision_terms(segment, noise)
        if not vision_first:
            encode = self.vision.recall if vision_done else self.vision.encode
            terms |= self._dynamics_terms(segment, encode(segment.observation, noise))
        weighed = [v * self.config.kl_scale if k.startswith("kl") else v for k, v in terms.items()]
        return torch.stack(weighed).sum(), {name: term.detach() for name, term in terms.items()}

    def diagnostics(self, segment: Segment, noise: Tensor) -> LatentDiagnostics:
        """See `WorldModel.diagnostics`; of the VAE."""
        count, free = self.config.vision_frames, self.config.kl_tolerance
        return diagnostics(self.vision.frames(segment, noise[..., : self.size], count), free)

    def _vision_terms(self, segment: Segment, noise: Tensor) -> dict[str, Tensor]:
        """V's own terms, for each part that is an image; padding is left out."""
        settings = {"tolerance": self.config.kl_tolerance, "foreground": self.config.foreground}
        terms = {}
        batches = self.vision.frames(segment, noise, self.config.vision_frames)
        for key, batch in batches.items():
            loss = batch.vae.loss(batch.images, batch.standard, **settings)
            suffix = f"_{key}" if key else ""
            for name, values in loss._asdict().items():
                terms[name + suffix] = masked_mean(
                    values, torch.ones_like(values, dtype=torch.bool)
                )
        return terms

    def _dynamics_terms(self, segment: Segment, z: Tensor) -> dict[str, Tensor]:
        """M's terms, teacher-forced: one call of the fused LSTM, which begins as `filter` does."""
        encoded = self.encode_action(segment.action)
        now, new = z[:, :-1], z[:, 1:]
        h = self.lstm.unroll(self._inputs(now, encoded))[:, 1:]
        target = (new - now * self.vision.carried) / self.vision.delta_std
        likelihood = self._mixture(h, now, encoded).log_prob(target)
        judgement = self._judge(h, now, new, encoded)
        reward = judgement.paid(segment.terminated)
        wanted = (segment.reward - self.reward_mean) / self.reward_std
        ends = F.binary_cross_entropy_with_logits(
            judgement.logit, segment.terminated.float(), reduction="none"
        )
        return {
            "nll": -masked_mean(likelihood, segment.mask),
            "reward": masked_mean((reward - wanted).square(), segment.mask),
            "termination": masked_mean(ends, segment.mask),
        }

    def _inputs(self, z: Tensor, encoded: Tensor) -> Tensor:
        """What the LSTM sees (B, L + 1, ...): the initial state with the zero action, then all."""
        zero = self.encode_action(zero_action(self.action_space, len(encoded), encoded.device))
        first = torch.cat([torch.zeros_like(z[:, :1]), zero.unsqueeze(1)], -1)
        inputs = torch.cat([first, torch.cat([z, encoded], -1)], 1)
        if not self.config.restart_flag:
            return inputs
        restart = torch.zeros_like(inputs[..., :1])
        restart[:, 0] = 1.0
        return torch.cat([inputs, restart], -1)

    def _advance(self, state: State, encoded: Tensor) -> State:
        """The leaves of the next state that the LSTM gives."""
        inputs = [state["z"], encoded]
        if self.config.restart_flag:
            inputs.append(state["restart"])
        h, c = self.lstm.step(torch.cat(inputs, -1), state["h"], state["c"])
        after = {"h": h, "c": c}
        if self.config.restart_flag:
            after["restart"] = torch.zeros_like(state["restart"])
        return after

    def _mixture(self, h: Tensor, z: Tensor, encoded: Tensor) -> Mixture:
        hidden = F.silu(self.trunk(torch.cat([h, z, encoded], -1))) if self.config.trunk else h
        parameters = self.mixture(hidden).unflatten(-1, (3, self.size, self.config.mixtures))
        logits, mean, raw = parameters.unbind(-3)
        low = self.config.log_sigma_min
        return Mixture(logits, mean, (low + F.softplus(raw - low)).clamp(max=LOG_SIGMA_MAX))

    def _judge(self, h: Tensor, z: Tensor, new: Tensor, encoded: Tensor) -> TransitionOutput:
        """What the heads say of the step to `new`."""
        return self.heads(h, new, (new - z) / self.vision.delta_std, encoded)
