"""TWISTER: a transformer world model with contrastive prediction (arXiv 2503.04416)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

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
    end_outside_data,
)
from dreamgym.models.nn.actions import ActionEncoder
from dreamgym.models.nn.augment import CROP_UNIFORMS, random_resized_crop
from dreamgym.models.nn.dense import linear
from dreamgym.models.nn.latents import Categoricals, kl_loss
from dreamgym.models.nn.layers import at_least_float32, autocast_disabled
from dreamgym.models.nn.observation_codec import ObservationCodec
from dreamgym.models.nn.reward_head import RewardHead
from dreamgym.models.observations import Observation, map_observation
from dreamgym.models.reduction import masked_mean
from dreamgym.models.splitmix import BITS, uniforms
from dreamgym.models.statistics import Statistics
from dreamgym.models.twister.config import PRESET_FITS, PRESETS, TWISTERConfig
from dreamgym.models.twister.modules import Predictors, Transformer, codec_config, head


class Unrolled(NamedTuple):
    """What the model computes from a segment of L transitions.

    Attributes:
        targets: outputs of `ObservationCodec.targets`.
        actions: (B, L, A) encoded.
        posterior: (B, L + 1, parameters) at each observation.
        z: (B, L + 1, stoch x classes) drawn from it.
        h: (B, L + 1, width) from the tokens before each observation.
        prior: (B, L + 1, parameters) from h.
    """

    targets: list[Tensor]
    actions: Tensor
    posterior: Tensor
    z: Tensor
    h: Tensor
    prior: Tensor


class TWISTER(WorldModel):
    """A transformer over categorical latents that learns to tell apart what several steps lead to.

    As in STORM, the latent z of an observation is drawn from a posterior that sees this observation
    alone, and a token mixes z with the action after it. From the tokens so far the transformer
    computes h, which predicts the next z; (z, h) then predict reward and termination. A block
    attends to the last tokens alone, by their distance, so the window slides, and dreams of any
    length stay within what was trained. Besides the losses of STORM there is a contrastive one:
    from (z, h) and the next actions, the latents of later observations are to be told apart from
    those of all others in the batch.

    State: `latents` (B, window, stoch) uint8, the classes of the categoricals, the newest last;
    `actions` (B, window, A), the encoded action after each of them; `length` (B,) int64, how many
    tokens are set (those before are zero); `h` (B, width), the output that predicted the newest
    latent. The window is all that h depends on: `blocks * context + 1` tokens. An episode's first
    token is a learnt one without action, from which the first latent is predicted. Features:
    (z, h) of the newest latent, as in the paper.

    A dream whose vectors leave the range of the training data ends there (`end_outside_data`),
    unless the config turns that off.

    Args:
        observation_space: a Box or a Dict of Boxes.
        action_space: a Box, Discrete or MultiDiscrete space.
        config: sizes and losses.

    Raises:
        TypeError: a space is of another kind.
    """

    config_type = TWISTERConfig
    presets: ClassVar[Mapping[str, TWISTERConfig]] = PRESETS
    preset_fits: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESET_FITS
    fit_defaults: ClassVar[Mapping[str, Any]] = {
        "batch_size": 64,
        "segment_length": 16,
        "learning_rate": 1e-3,
        "gradient_clip": 10.0,
        "clip_by": "norm",
    }
    config: TWISTERConfig
    worst_return: Tensor

    def __init__(
        self, observation_space: gym.Space, action_space: gym.Space, config: TWISTERConfig
    ) -> None:
        super().__init__(observation_space, action_space, config)
        self.latent = Categoricals(config.stoch, config.classes, config.unimix)
        size, outputs = self.latent.size, config.objective.reward_outputs
        self.feature_dim = size + config.width
        self.noise_dim = config.stoch
        self.encode_action = ActionEncoder(action_space)
        actions = self.encode_action.dim
        self.senses = ObservationCodec(observation_space, size, codec_config(config))
        self.posterior = linear(self.senses.dim, self.latent.parameters)
        self.first = nn.Parameter(torch.zeros(config.width))
        self.transformer = Transformer(size, actions, config)
        self.prior = linear(config.width, self.latent.parameters)
        self.reward = RewardHead(head(self.feature_dim, outputs, config), config.objective)
        self.termination = head(self.feature_dim, 1, config)
        if config.objective.contrastive:
            self.predictors = Predictors(self.feature_dim, size, actions, config)
        self.register_buffer("worst_return", torch.zeros(()))

    def set_statistics(self, statistics: Statistics) -> None:
        """See `WorldModel.set_statistics`."""
        self.senses.set_moments(statistics.observation)
        if statistics.action is not None:
            self.encode_action.fit(statistics.action)
        self.reward.set_moments(statistics.reward_mean, statistics.reward_std)
        self.worst_return.copy_(statistics.worst_return)

    def initial(self, batch_size: int) -> State:
        """See `WorldModel.initial`; the window holds the learnt first token alone."""
        config, zeros = self.config, self.worst_return.new_zeros
        first = self.latent.mode(self.prior(self.first)).to(torch.uint8)
        latents = zeros(batch_size, config.window - 1, config.stoch, dtype=torch.uint8)
        return {
            "latents": torch.cat([latents, first.expand(batch_size, 1, -1)], 1),
            "actions": zeros(batch_size, config.window, self.encode_action.dim),
            "length": zeros(batch_size, dtype=torch.int64) + 1,
            "h": self.first.detach().expand(batch_size, -1).clone(),
        }

    def observe(
        self, state: State, action: Tensor, observation: Observation, noise: Tensor
    ) -> State:
        """See `WorldModel.observe`; the latent is drawn from the posterior."""
        window = enter_action(state, self._encode_action(action))
        encoded = self.senses.encode(self.senses.targets(observation))
        classes = self.latent.draw(self.posterior(encoded), noise)
        return push(window, classes, self._output(window))

    def step(
        self, state: State, action: Tensor, noise: Tensor, temperature: Temperature = 1.0
    ) -> tuple[State, Prediction]:
        """See `WorldModel.step`; the latent is drawn from the prior."""
        window = enter_action(state, self._encode_action(action))
        h = self._output(window)
        classes = self.latent.draw(self.prior(h), noise, temperature)
        z = self.latent.one_hot(classes)
        features = torch.cat([z, h], -1)
        reward = self.reward.predict(features)
        termination = self.termination(features).squeeze(-1).sigmoid()
        outside = None
        if self.config.range_margin is not None and self.senses.sizes:
            vectors = self.senses.decode_vectors(z)
            outside = self.senses.outside_data(vectors, self.config.range_margin)
        prediction = Prediction(reward, termination, torch.zeros_like(reward))
        return push(window, classes, h), end_outside_data(prediction, outside, self.worst_return)

    def features(self, state: State) -> Tensor:
        """Return (z, h): (B, stoch x classes + width)."""
        return torch.cat([self.latent.one_hot(state["latents"][:, -1]), state["h"]], -1)

    def decode(self, state: State) -> Observation:
        """Return the expected observation (B, ...) of z, in the dtypes and bounds of its space."""
        return self.senses.decode(self.latent.one_hot(state["latents"][:, -1]))

    def loss(self, segment: Segment, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of arXiv 2503.04416.

        Its terms are the errors of reconstruction, reward and termination, the KL between the
        posterior and the prior from the tokens before, with two gradients, and the contrastive
        loss. What this needs of random numbers beyond `noise` is derived from it.
        """
        objective, unrolled = self.config.objective, self._unroll(segment, noise)
        observed = F.pad(segment.mask, (1, 0), value=True)  # a segment's first is never padding
        free_nats = objective.free_nats, objective.free_nats_of
        dyn = self.latent.kl(unrolled.posterior.detach(), unrolled.prior)
        rep = self.latent.kl(unrolled.posterior, unrolled.prior.detach())
        features = torch.cat([unrolled.z, unrolled.h], -1)[:, 1:]
        logit = self.termination(features).squeeze(-1)
        cross_entropy = F.binary_cross_entropy_with_logits(
            logit, segment.terminated.to(logit.dtype), reduction="none"
        )
        error = self.senses.error(unrolled.z, unrolled.targets, observed)
        terms = {
            "reconstruction": masked_mean(error, observed),
            "reward": masked_mean(self.reward.loss(features, segment.reward), segment.mask),
            "termination": masked_mean(cross_entropy, segment.mask),
            "dyn": kl_loss(dyn, observed, *free_nats),
            "rep": kl_loss(rep, observed, *free_nats),
        }
        if objective.contrastive:
            terms["contrastive"] = self._contrastive(unrolled, observed, noise)
        total = objective.total(terms)
        terms["kl"] = masked_mean(dyn, observed)
        return total, {name: term.detach() for name, term in terms.items()}

    def diagnostics(self, segment: Segment, noise: Tensor) -> LatentDiagnostics:
        """See `WorldModel.diagnostics`; the KL of the observation after the first transition."""
        first = Segment(
            map_observation(lambda leaf: leaf[:, :2], segment.observation),
            *(leaf[:, :1] for leaf in segment[1:]),
        )
        unrolled = self._unroll(first, noise[:, :2])
        nats = self.latent.divergences(unrolled.posterior[:, 1], unrolled.prior[:, 1])
        remedy = "lower objective.dyn and objective.rep, or objective.free_nats where that is large"
        free = self.config.objective.free_nats
        return LatentDiagnostics({"": KLDiagnostic(nats, free, "all", remedy)}, {})

    def _unroll(self, segment: Segment, noise: Tensor) -> Unrolled:
        """Return what the model computes from a segment."""
        targets = self.senses.targets(segment.observation)
        posterior = self.posterior(self.senses.encode(targets))
        z = self.latent.sample(posterior, noise)
        parameters = self.prior(self.first)
        first = self.latent.straight_through(parameters, self.latent.mode(parameters))
        latents = torch.cat([first.expand(len(z), 1, -1).to(z.dtype), z[:, :-1]], 1)
        actions = self._encode_action(segment.action)
        h = self.transformer(latents, F.pad(actions, (0, 0, 1, 0)))
        return Unrolled(targets, actions, posterior, z, h, self.prior(h))

    def _contrastive(self, unrolled: Unrolled, observed: Tensor, noise: Tensor) -> Tensor:
        """Return the action-conditioned contrastive loss of arXiv 2503.04416 (AC-CPC).

        Features with a latent of the prior, and the next actions, predict the latents of random
        parts of later images, or of the vectors as they are. Other latents of the batch are what
        these have to be told apart from.

        Args:
            unrolled: what the model has computed.
            observed: (B, L + 1) bool, false on padding.
            noise: (B, L + 1, noise_dim) uniforms.
        """
        objective, stoch = self.config.objective, self.config.stoch
        keys = (noise[..., 0] * 2.0**BITS).long()
        images = len(self.senses.image_keys)
        drawn = uniforms(keys, 2 * stoch + CROP_UNIFORMS * images).to(noise.dtype)
        imagined, seen, *crops = drawn.split([stoch, stoch, *[CROP_UNIFORMS] * images], -1)
        features = torch.cat([self.latent.sample(unrolled.prior, imagined), unrolled.h], -1)
        views = unrolled.targets[: len(unrolled.targets) - images]
        for image, crop in zip(unrolled.targets[len(views) :], crops, strict=True):
            views = [*views, random_resized_crop(image, crop, objective.smallest_crop)]
        latents = self.latent.sample(self.posterior(self.senses.encode(views)), seen)
        pairs = self.predictors.pairs(features, unrolled.actions, latents)
        losses = [
            weight * masked_mean(info_nce(*pair, observed[:, k:]), observed[:, k:])
            for k, (pair, weight) in enumerate(zip(pairs, objective.step_weights, strict=False))
        ]
        return torch.stack(losses).sum()

    def _encode_action(self, action: Tensor) -> Tensor:
        """Return raw actions (..., *shape) as (..., A)."""
        return self.encode_action(action).to(self.worst_return.dtype)

    def _output(self, window: State) -> Tensor:
        """Return the transformer's output (B, width) at the newest latent of each row."""
        latents = self.latent.one_hot(window["latents"]).to(window["actions"].dtype)
        return self.transformer(latents, window["actions"], known(window))[:, -1]


def info_nce(predicted: Tensor, actual: Tensor, mask: Tensor) -> Tensor:
    """Return InfoNCE (B, T): the cross-entropy of finding one's own among all of a batch.

    arXiv 1807.03748, equation 4; the batch is that of this process.

    Args:
        predicted: (B, T, width).
        actual: (B, T, width); similarity is the product.
        mask: (B, T) bool, false on padding, which nothing is told apart from.
    """
    with autocast_disabled(predicted):
        predicted, actual = at_least_float32(predicted), at_least_float32(actual)
        similarity = predicted.flatten(0, 1) @ actual.flatten(0, 1).T
        # The least number, not infinity: where all is padding, the loss stays finite.
        least = torch.finfo(similarity.dtype).min
        every = similarity.masked_fill(~mask.flatten(), least).logsumexp(-1)
        return (every - similarity.diagonal()).view(mask.shape)


def known(state: State) -> Tensor:
    """Return which tokens (B, window) of a state are set."""
    window = state["latents"].shape[1]
    places = torch.arange(window, device=state["length"].device)
    return places >= window - state["length"].unsqueeze(-1)


def enter_action(state: State, encoded: Tensor) -> State:
    """Return a state with the encoded action (B, A) after its newest latent.

    An episode's first token, which is alone, has none.
    """
    alone = (state["length"] == 1).unsqueeze(-1)
    newest = torch.where(alone, torch.zeros_like(encoded), encoded)
    return state | {"actions": torch.cat([state["actions"][:, :-1], newest.unsqueeze(1)], 1)}


def push(state: State, classes: Tensor, h: Tensor) -> State:
    """Return the state after a new latent; a full window loses its oldest token.

    Args:
        state: leaves (B, ...), with an action after the newest latent.
        classes: (B, stoch) classes of the latent.
        h: (B, width) the output that predicted it.
    """
    latents, actions = state["latents"], state["actions"]
    new = classes.to(latents.dtype).unsqueeze(1)
    return {
        "latents": torch.cat([latents[:, 1:], new], 1),
        "actions": torch.cat([actions[:, 1:], torch.zeros_like(actions[:, :1])], 1),
        "length": (state["length"] + 1).clamp(max=latents.shape[1]),
        "h": h,
    }
