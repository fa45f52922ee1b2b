"""MDN-RNN: an LSTM whose output is a mixture density over the next z.

Ha and Schmidhuber, "World Models" (2018), arXiv 1803.10122: V turns an observation into z, and M,
the LSTM, predicts the next z. On vectors V is the identity with a normaliser, on images a VAE.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium as gym
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.models.actions import ActionEncoder
from dreamgym.models.base import Prediction, Segment, State, Temperature, WorldModel, zero_action
from dreamgym.models.exact import Linear
from dreamgym.models.lstm import LSTM
from dreamgym.models.masked import masked_mean
from dreamgym.models.mdn_rnn_config import LOG_SIGMA_MAX, MDNRNNConfig
from dreamgym.models.mdn_rnn_heads import Judgement, LinearHeads, TransitionHeads
from dreamgym.models.mixture import Mixture
from dreamgym.models.observations import Observation
from dreamgym.models.perception import Perception, VisionSizes, vitals
from dreamgym.models.statistics import Statistics
from dreamgym.models.vitals import Vitals

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
        self.vision = Perception(
            observation_space, VisionSizes(config.image_size, config.latent, config.width)
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
    def turns(self) -> tuple[int, ...]:
        """See `WorldModel.turns`: M's turn comes after V's."""
        return (self.config.vision_updates,) if self.config.vision_updates else ()

    def begin_fit(self) -> None:
        """See `WorldModel.begin_fit`: V's turn comes first again."""
        self.updates.zero_()

    def end_fit(self) -> None:
        """See `WorldModel.end_fit`: what V made of each frame."""
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

    def vitals(self, segment: Segment, noise: Tensor) -> Vitals:
        """See `WorldModel.vitals`; of the VAE."""
        count, free = self.config.vision_frames, self.config.kl_tolerance
        return vitals(self.vision.frames(segment, noise[..., : self.size], count), free)

    def prepare(self, num_envs: int, device: torch.device, dtype: torch.dtype) -> WorldModel:
        """See `WorldModel.prepare`: weights packed, products fused, float32 or bfloat16."""
        from dreamgym.models.mdn_rnn_arranged import ArrangedMDNRNN

        return ArrangedMDNRNN(self.to(device), num_envs, dtype)

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

    def _judge(self, h: Tensor, z: Tensor, new: Tensor, encoded: Tensor) -> Judgement:
        """What the heads say of the step to `new`."""
        return self.heads(h, new, (new - z) / self.vision.delta_std, encoded)
