"""JEPA: a world model that predicts embeddings, not observations.

The encoder and the predictor are fitted together: the predictor says the embedding of the next
observation from those of the last few and the actions between them, and a regulariser (SIGReg as
in LeWM, VICReg as in PLDM) or a slow target encoder (as in I-JEPA) keeps the embeddings from
collapsing. LeWM is Maes et al. (2026), arXiv 2603.19312.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any, ClassVar

import gymnasium as gym
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.models.base import (
    EmbeddingDiagnostic,
    LatentDiagnostics,
    Prediction,
    Segment,
    State,
    Temperature,
    WorldModel,
)
from dreamgym.models.jepa.config import FITS, PRESETS, JEPAConfig
from dreamgym.models.jepa.loss import Losses, collapse
from dreamgym.models.jepa.modules import (
    ActionEmbedding,
    ObservationCodec,
    Predictor,
    PredictorSizes,
    Probe,
    Projector,
    moments,
)
from dreamgym.models.jepa.pretrained import PREFIX, PretrainedEncoder
from dreamgym.models.nn.actions import ActionEncoder
from dreamgym.models.nn.distributions import normal, per_row
from dreamgym.models.nn.layers import mlp
from dreamgym.models.observations import Observation
from dreamgym.models.statistics import Statistics

HEAD_WIDTH = 128


RESIDUAL_MOMENTUM = 0.01


GROUNDING = 0.3

"""Share of the way back to the embeddings of observations that a step goes."""


class JEPA(WorldModel):
    """A JEPA with a window of frames as its state, and heads for reward and termination.

    State: `embeddings` (B, context, D), the newest last; `actions` (B, context, A), each the one
    that led to the embedding beside it; `seen` (B, context), one where a slot holds a frame; with a
    probe that decodes vectors `unread` (B, n), too, which is added to what it reads. At an
    episode's start fewer frames are seen: the predictor then has that shorter context, its first
    position at the first frame, exactly as LeWM's own rollout; so short contexts are fitted too.
    Features: the newest embedding.

    Real embeddings lie on a thin surface, and a long dream drifts away from it, to where nothing
    was fitted. With vectors alone a step therefore pulls the predicted embedding towards that of
    what the probe reads off it; with images, or without a probe, nothing holds it.

    A step adds noise to the predicted embedding: the spread of the predictor's own errors while it
    was fitted (`residual`), times the square root of the temperature. Where the residual is zero,
    as in a checkpoint of LeWM, the step is certain.
    """

    config_type = JEPAConfig
    presets: ClassVar[Mapping[str, JEPAConfig]] = PRESETS
    preset_fits: ClassVar[Mapping[str, Mapping[str, Any]]] = FITS
    fit_defaults: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 2e-3,
        "batch_size": 64,
        "segment_length": 16,
        "gradient_clip": 10.0,
        "weight_decay": 1e-3,
    }
    config: JEPAConfig
    decode: Callable[[State], Observation]
    residual: Tensor
    reward_mean: Tensor
    reward_std: Tensor
    worst_return: Tensor
    updates: Tensor

    def __init__(
        self, observation_space: gym.Space, action_space: gym.Space, config: JEPAConfig
    ) -> None:
        super().__init__(observation_space, action_space, config)
        width = config.embedding
        self.feature_dim = self.noise_dim = width
        self.encode_action = ActionEncoder(action_space)
        actions = self.encode_action.dim
        self.senses = ObservationCodec(observation_space, config)
        self.projector = Projector(self.senses.dim, config.width, width)
        self.embed_action = ActionEmbedding(actions, width)
        self.predictor = Predictor(
            PredictorSizes(
                width=width,
                context=config.context,
                blocks=config.blocks,
                heads=config.heads,
                head_width=config.head_width,
                mlp=config.mlp,
                dropout=config.dropout,
                gate=config.gate,
            )
        )
        self.project_prediction = Projector(width, config.width, width)
        self.heads = mlp(2 * width + actions, HEAD_WIDTH, 2)
        self.inverse = mlp(2 * width, HEAD_WIDTH, actions) if config.objective.inverse else None
        self.probe = Probe(self.senses, config) if _probes(self.senses, config) else None
        if self.probe is not None and self.probe.whole:
            # Decodes is asked for by whether there is this method, so only then there is one.
            self.decode = self._decode
        self.target = _target(self.senses, self.projector) if config.objective.momentum else None
        self._register(width)
        self._name_revision()

    def _register(self, width: int) -> None:
        values = {
            "residual": torch.ones(width),
            "reward_mean": torch.zeros(()),
            "reward_std": torch.ones(()),
            "worst_return": torch.zeros(()),
            "updates": torch.zeros((), dtype=torch.int64),
        }
        for name, value in values.items():
            self.register_buffer(name, value)

    def _name_revision(self) -> None:
        """Write the exact revision of a pretrained encoder into the config."""
        for encoder in self.senses.images:
            if isinstance(encoder.network, PretrainedEncoder):
                name = f"{PREFIX}{encoder.network.resolved}"
                self.config = replace(self.config, image_encoder=name)

    def set_statistics(self, statistics: Statistics) -> None:
        """See `WorldModel.set_statistics`; the actions of a Box are standardised, as in LeWM."""
        if statistics.action is not None:
            self.encode_action.set_moments(statistics.action.mean, statistics.action.std)
        self.senses.set_moments(statistics.observation)
        self.reward_mean.copy_(statistics.reward_mean)
        self.reward_std.copy_(statistics.reward_std)
        self.worst_return.copy_(statistics.worst_return)

    def initial(self, batch_size: int) -> State:
        """See `WorldModel.initial`; nothing is seen."""
        zeros, context = self.reward_mean.new_zeros, self.config.context
        carried = self.carrier.carried if self.carrier else 0
        unread = {"unread": zeros(batch_size, carried)} if carried else {}
        return {
            "embeddings": zeros(batch_size, context, self.config.embedding),
            "actions": zeros(batch_size, context, self.encode_action.dim),
            "seen": zeros(batch_size, context),
            **unread,
        }

    @property
    def carrier(self) -> Probe | None:
        """The probe, if what it does not read off observations is carried from step to step."""
        return self.probe if self.probe is not None and self.probe.carried else None

    def embed(self, observation: Observation) -> Tensor:
        """Embeddings (..., D) of observations (..., *shape), in the real environment's units."""
        return self.projector(self.senses(observation))

    def observe(
        self, state: State, action: Tensor, observation: Observation, noise: Tensor
    ) -> State:
        """See `WorldModel.observe`; the window moves on by one frame, and noise is not used."""
        embedding = self.embed(observation)
        unread = self.carrier.unread(embedding, observation) if self.carrier else None
        return self._move(state, self.encode_action(action), embedding, unread)

    def step(
        self, state: State, action: Tensor, noise: Tensor, temperature: Temperature = 1.0
    ) -> tuple[State, Prediction]:
        """See `WorldModel.step`."""
        encoded = self.encode_action(action)
        old = state["embeddings"][:, -1]
        spread = self.residual * per_row(temperature, old) ** 0.5
        free = self._next(state, encoded) + spread * normal(noise)
        new = self._ground(free)
        reward, termination = self.judge(old, new, encoded)
        reward, termination = reward * self.reward_std + self.reward_mean, termination.sigmoid()
        if self.probe is not None and self.senses.sizes:
            unknown = self.probe.unknown(free, self.config.range_margin)
            reward = torch.where(unknown, self.worst_return, reward)
            termination = torch.where(unknown, 1.0, termination)
        prediction = Prediction(reward, termination, torch.zeros_like(reward))
        return self._move(state, encoded, new, self._still_unread(state)), prediction

    def features(self, state: State) -> Tensor:
        """The newest embedding, (B, D)."""
        return state["embeddings"][:, -1]

    def _decode(self, state: State) -> Observation:
        """The observation (B, ...): what the probe reads off the newest embedding, and `unread`."""
        if self.probe is None:
            raise AttributeError("this JEPA has no probe to decode with; give probe='all'")
        return self.probe.decode(self.features(state), state["unread"] if self.carrier else None)

    def loss(self, segment: Segment, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See `WorldModel.loss`: prediction, regularisers, heads and probe, by `JEPAObjective`."""
        return Losses(self, segment, noise).total()

    def diagnostics(self, segment: Segment, noise: Tensor) -> LatentDiagnostics:
        """See `WorldModel.diagnostics`: how far the embeddings of observations differ."""
        found = collapse(self.embed(segment.observation), F.pad(segment.mask, (1, 0), value=True))
        remedy = "raise what keeps them apart: objective.sigreg, or objective.std and objective.cov"
        std, rank = found["embedding_std"], found["effective_rank"]
        return LatentDiagnostics(
            {}, {"": EmbeddingDiagnostic(std, rank, self.config.embedding, remedy)}
        )

    def before_fit(self) -> None:
        """See `WorldModel.before_fit`: the momentum rises once more."""
        self.updates.zero_()

    def after_update(self) -> None:
        """Bring the target encoder, if there is one, a little nearer to the encoder."""
        self.updates += 1
        if self.target is None:
            return
        objective = self.config.objective
        done = (self.updates / objective.momentum_updates).clamp(max=1.0)
        share = (1.0 - objective.momentum) * (1.0 - done)
        online = nn.Sequential(self.senses, self.projector).state_dict()
        with torch.no_grad():
            for name, value in self.target.state_dict().items():
                if value.is_floating_point():
                    value.lerp_(online[name], share.to(value.dtype))
                else:
                    value.copy_(online[name])

    def advance(self, old: Tensor, output: Tensor, mask: Tensor | None = None) -> Tensor:
        """The next embeddings (..., D), of these and the predictor's outputs after them."""
        projected = self.project_prediction(output, mask)
        return old + projected if self.config.predicts == "change" else projected

    def judge(self, old: Tensor, new: Tensor, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised reward (...) and termination logit (...) of a transition (..., D)."""
        seen = torch.cat([new, new - old, encoded], -1)
        reward, termination = self.heads(seen).unbind(-1)
        return reward, termination

    @torch.no_grad()
    def remember_residual(self, error: Tensor, mask: Tensor) -> None:
        """Let the residual follow the errors (B, L, D) of predictions where mask (B, L) is true."""
        found = moments(error.flatten(0, 1).float(), mask.flatten())
        square = found.variance + found.mean.square()
        self.residual.copy_(self.residual.square().lerp(square, self.share_of_batch).sqrt())

    @property
    def share_of_batch(self) -> Tensor:
        """Of a batch in what follows the batches of a fit: less and less, to a least."""
        return (1.0 / (self.updates + 1.0)).clamp(min=RESIDUAL_MOMENTUM)

    def _next(self, state: State, encoded: Tensor) -> Tensor:
        """The expected next embedding (B, D) after an encoded action (B, A)."""
        actions = torch.cat([state["actions"][:, 1:], encoded.unsqueeze(1)], 1)
        # The newest slot counts in any case: a step from where nothing was seen is defined, too.
        seen = F.pad(state["seen"][:, :-1] > 0.5, (0, 1), value=True)
        output = self.predictor(state["embeddings"], self.embed_action(actions), seen)
        return self.advance(state["embeddings"][:, -1], output[:, -1])

    def _ground(self, embeddings: Tensor) -> Tensor:
        """Pull predicted embeddings (B, D) towards those that observations have.

        What the probe reads off, embedded again, lies among them, but carries the probe's own
        error. To first order a second pass errs by as much again: twice the first less the second
        is without it, and an embedding of an observation stays where it is.
        """
        if self.probe is None or self.senses.image_keys:
            return embeddings
        once = self.embed(self.probe.decode(embeddings))
        near = 2.0 * once - self.embed(self.probe.decode(once))
        return embeddings + GROUNDING * (near - embeddings)

    def _still_unread(self, state: State) -> Tensor | None:
        """What is unread (B, n) after a step."""
        return state["unread"] * self.carrier.persistence if self.carrier else None

    @staticmethod
    def _move(state: State, encoded: Tensor, embedding: Tensor, unread: Tensor | None) -> State:
        newest = {
            "embeddings": embedding.unsqueeze(1),
            "actions": encoded.unsqueeze(1),
            "seen": torch.ones_like(state["seen"][:, :1]),
        }
        moved = {key: torch.cat([state[key][:, 1:], new], 1) for key, new in newest.items()}
        return moved if unread is None else moved | {"unread": unread}


def _probes(senses: ObservationCodec, config: JEPAConfig) -> bool:
    """Whether there is anything that a probe should read off."""
    return config.probe == "all" or (config.probe == "vectors" and bool(senses.sizes))


def _target(senses: ObservationCodec, projector: Projector) -> nn.Sequential:
    return deepcopy(nn.Sequential(senses, projector)).requires_grad_(False)
