"""JEPA: a world model that predicts embeddings instead of observations.

The encoder and the predictor are trained together: the predictor estimates the embedding of the
next observation from those of the last few and the actions between them. A regulariser (SIGReg as
in LeWM, VICReg as in PLDM) or a slow target encoder (as in I-JEPA) prevents the embeddings from
collapsing. LeWM is Maes et al. (2026), arXiv 2603.19312.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    end_outside_data,
)
from dreamgym.models.jepa.config import PRESET_FITS, PRESETS, REGULARISERS, JEPAConfig
from dreamgym.models.jepa.goal_value import GoalValue
from dreamgym.models.jepa.loss import (
    SegmentEncoding,
    Transitions,
    longest_context,
    regularisation_terms,
    reward_termination_error,
    rollout_error,
    window_error,
    windows,
)
from dreamgym.models.jepa.modules import (
    ActionEmbedding,
    ObservationCodec,
    Predictor,
    Probe,
    Projector,
)
from dreamgym.models.jepa.pretrained import PREFIX, PretrainedEncoder
from dreamgym.models.jepa.regularisers import collapse_metrics
from dreamgym.models.nn.actions import ActionEncoder
from dreamgym.models.nn.batch_norm import moments
from dreamgym.models.nn.distributions import normal, per_row
from dreamgym.models.nn.layers import mlp
from dreamgym.models.observations import Observation, map_observation
from dreamgym.models.reduction import masked_mean
from dreamgym.models.statistics import Statistics

HEAD_WIDTH = 128

PROBE_RESIDUAL = "unread"
"""State leaf of the probe's residual. Saved start states have this name, so it cannot change."""

SMALLEST_MOMENTUM = 0.01
"""Final weight of one batch in the running statistics of a fit."""

CORRECTION = 0.3
"""Fraction of the distance to the embeddings of observations that a step moves towards them."""


class JEPA(WorldModel):
    """A JEPA with a window of frames as its state, and heads for reward and termination.

    State: `embeddings` (B, context, D), newest last; `actions` (B, context, A), the encoded action
    that led to each embedding; `seen` (B, context), 1 where a slot holds a frame. A model that
    decodes vectors adds `unread` (B, n), the probe's residual: what was observed minus what the
    probe decodes, which decays from step to step (see `Probe`). At the start of an episode fewer
    frames are seen. The predictor then has a shorter context, whose first position is the first
    frame, exactly as in LeWM's own rollout; short contexts are therefore part of the training loss.
    Features: the newest embedding.

    A step adds noise to the predicted embedding: the standard deviation of the predictor's errors
    in training (`residual`) times the square root of the temperature. With a residual of zero, as
    in a LeWM checkpoint, the step is deterministic.

    Embeddings of observations lie on a low-dimensional manifold, and a long dream drifts off it to
    where the model was not trained. With vectors only, a step corrects the predicted embedding
    towards the embedding of what the probe decodes from it; with images, or without a probe, there
    is no correction.

    Training: every window of `context` frames predicts the embedding after each of its frames from
    this frame and those before it in the window; for segments of a single window this is LeWM's
    loss. Prediction and target both receive a gradient, unless there is a target encoder. Heads and
    probe are trained on real and predicted embeddings, without a gradient into these.
    """

    config_type = JEPAConfig
    presets: ClassVar[Mapping[str, JEPAConfig]] = PRESETS
    preset_fits: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESET_FITS
    fit_defaults: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 2e-3,
        "batch_size": 64,
        "segment_length": 16,
        "gradient_clip": 10.0,
        "clip_by": "norm",
        "weight_decay": 1e-3,
    }
    config: JEPAConfig
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
        self.predictor = Predictor(config)
        self.project_prediction = Projector(width, config.width, width)
        self.heads = mlp(2 * width + actions, HEAD_WIDTH, 2)
        self.inverse = mlp(2 * width, HEAD_WIDTH, actions) if config.objective.inverse else None
        has_probe = config.probe == "all" or (config.probe == "vectors" and self.senses.vector_keys)
        self.probe = Probe(self.senses, config) if has_probe else None
        self.goal_value = GoalValue(width, config) if config.goal_value else None
        encoder = nn.Sequential(self.senses, self.projector)
        self.target = deepcopy(encoder).requires_grad_(False) if config.objective.momentum else None
        self.register_buffer("residual", torch.ones(width))
        self.register_buffer("reward_mean", torch.zeros(()))
        self.register_buffer("reward_std", torch.ones(()))
        self.register_buffer("worst_return", torch.zeros(()))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        # Save the exact revision of a pretrained encoder with the config.
        for image_encoder in self.senses.image_encoders.values():
            if isinstance(image_encoder.network, PretrainedEncoder):
                name = f"{PREFIX}{image_encoder.network.resolved}"
                self.config = replace(self.config, image_encoder=name)

    def set_statistics(self, statistics: Statistics) -> None:
        """See `WorldModel.set_statistics`; the actions of a Box are standardised, as in LeWM."""
        if statistics.action is not None:
            self.encode_action.fit(statistics.action, standardise=True)
        self.senses.set_moments(statistics.observation)
        self.reward_mean.copy_(statistics.reward_mean)
        self.reward_std.copy_(statistics.reward_std)
        self.worst_return.copy_(statistics.worst_return)

    # ------------------------------------------------------------ filtering and dreaming

    def initial(self, batch_size: int) -> State:
        """See `WorldModel.initial`; an empty window."""
        zeros, context = self.reward_mean.new_zeros, self.config.context
        state = {
            "embeddings": zeros(batch_size, context, self.config.embedding),
            "actions": zeros(batch_size, context, self.encode_action.dim),
            "seen": zeros(batch_size, context),
        }
        if self.residual_probe is not None:
            state[PROBE_RESIDUAL] = zeros(batch_size, self.residual_probe.residual_size)
        return state

    def observe(
        self, state: State, action: Tensor, observation: Observation, noise: Tensor
    ) -> State:
        """See `WorldModel.observe`; appends a frame to the window, and uses no noise."""
        embedding = self.embed(observation)
        probe_residual = None
        if self.residual_probe is not None:
            decoded = self.residual_probe.vectors(embedding)
            probe_residual = self.senses.standardise(observation) - decoded
        return push_frame(state, self.encode_action(action), embedding, probe_residual)

    def step(
        self, state: State, action: Tensor, noise: Tensor, temperature: Temperature = 1.0
    ) -> tuple[State, Prediction]:
        """See `WorldModel.step`."""
        encoded = self.encode_action(action)
        old = self.features(state)
        std = self.residual * per_row(temperature, old) ** 0.5
        sampled = self._expected_embedding(state, encoded) + std * normal(noise)
        new = self._corrected(sampled)
        reward, logit = self.predict_reward_termination(old, new, encoded)
        outside = None
        if self.probe is not None and self.probe.vector_size:
            vectors = self.probe.vectors(sampled)
            outside = self.senses.outside_data(vectors, self.config.range_margin)
        probe_residual = None
        if self.residual_probe is not None:
            probe_residual = state[PROBE_RESIDUAL] * self.residual_probe.residual_ar1
        state = push_frame(state, encoded, new, probe_residual)
        prediction = self.to_prediction(reward, logit)
        return state, end_outside_data(prediction, outside, self.worst_return)

    def features(self, state: State) -> Tensor:
        """Return the newest embedding, (B, D)."""
        return state["embeddings"][:, -1]

    def goal_features(self, state: State) -> Tensor:
        """See `WorldModel.goal_features`; the goal value's embedding where there is one."""
        embedding = self.features(state)
        return embedding if self.goal_value is None else self.goal_value(embedding)

    @property
    def pretrained_weights(self) -> str | None:
        """See `WorldModel.pretrained_weights`; those of a pretrained image encoder."""
        networks = (each.network for each in self.senses.image_encoders.values())
        encoders = (each for each in networks if isinstance(each, PretrainedEncoder))
        return next((each.published for each in encoders), None)

    @property
    def selects_by_loss(self) -> bool:
        """See `WorldModel.selects_by_loss`; a goal value is its own target."""
        return self.goal_value is None

    @property
    def decodes(self) -> bool:
        """See `WorldModel.decodes`; true if the probe covers the whole observation."""
        return self.probe is not None and self.probe.decodes_all

    def decode(self, state: State) -> Observation:
        """See `Decodes.decode`; the newest embedding as the probe decodes it, plus the residual.

        Raises:
            AttributeError: the probe does not cover the whole observation.
        """
        if self.probe is None or not self.probe.decodes_all:
            raise AttributeError(
                f"this JEPA cannot decode with probe={self.config.probe!r}; pass probe='all'"
            )
        vectors, images = self.probe.decode(self.features(state))
        if vectors is not None:
            vectors = vectors + state[PROBE_RESIDUAL]
        return self.senses.to_observation(vectors, images)

    @property
    def residual_probe(self) -> Probe | None:
        """The probe, if states carry its residual."""
        return self.probe if self.probe is not None and self.probe.residual_size else None

    def embed(self, observation: Observation) -> Tensor:
        """Embed observations (..., *shape), in the real environment's units, as (..., D)."""
        return self.projector(self.senses(observation))

    def next_embedding(self, old: Tensor, output: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the expected next embeddings (..., D).

        Args:
            old: (..., D) current embeddings.
            output: (..., D) the predictor's outputs at them.
            mask: (...) bool, false on padding; needed in training mode only.
        """
        projected = self.project_prediction(output, mask)
        return old + projected if self.config.predicts == "change" else projected

    def predict_reward_termination(
        self, old: Tensor, new: Tensor, encoded: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the standardised reward (...) and the termination logit (...) of transitions.

        Args:
            old: (..., D) embeddings before.
            new: (..., D) embeddings after.
            encoded: (..., A) encoded actions.
        """
        inputs = torch.cat([new, new - old, encoded], -1)
        reward, logit = self.heads(inputs).unbind(-1)
        return reward, logit

    def to_prediction(self, reward: Tensor, logit: Tensor) -> Prediction:
        """Convert a standardised reward and a termination logit, (B,) each, to a prediction."""
        reward = reward * self.reward_std + self.reward_mean
        return Prediction(reward, logit.sigmoid(), torch.zeros_like(reward))

    def _expected_embedding(self, state: State, encoded: Tensor) -> Tensor:
        """Return the expected next embedding (B, D) after an encoded action (B, A)."""
        actions, seen = predictor_inputs(state, encoded)
        output = self.predictor(state["embeddings"], self.embed_action(actions), seen)
        return self.next_embedding(self.features(state), output[:, -1])

    def _corrected(self, embeddings: Tensor) -> Tensor:
        """Move predicted embeddings (B, D) towards the embeddings of observations.

        Decoding and embedding again (a pass) leads to the embedding of an observation, but adds the
        probe's own error. To first order a second pass adds the same error again, so twice the
        first result minus the second is free of it, and embeddings of observations stay in place.
        """
        if self.probe is None or self.senses.image_keys:
            return embeddings
        once = self._reembed(self.probe, embeddings)
        on_manifold = 2.0 * once - self._reembed(self.probe, once)
        return embeddings + CORRECTION * (on_manifold - embeddings)

    def _reembed(self, probe: Probe, embeddings: Tensor) -> Tensor:
        return self.embed(self.senses.to_observation(*probe.decode(embeddings)))

    # ------------------------------------------------------------ fitting

    def loss(self, segment: Segment, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See `WorldModel.loss`; the named terms are unweighted, and include `collapse_metrics`."""
        encoding = self.encode_segment(segment)
        terms = self.loss_terms(segment, encoding, noise)
        weights = {name: getattr(self.config.objective, name) for name in REGULARISERS}
        total = torch.stack([weights.get(name, 1.0) * term for name, term in terms.items()]).sum()
        metrics = {**terms, **collapse_metrics(encoding.embeddings, encoding.observed)}
        return total, {name: term.detach() for name, term in metrics.items()}

    def encode_segment(self, segment: Segment) -> SegmentEncoding:
        """Encode the observations and actions of a segment, and the targets of its predictions."""
        # A segment begins with a real observation; each later one is as real as its transition.
        observed = F.pad(segment.mask, (1, 0), value=True)
        embeddings = self.projector(self.senses(segment.observation), observed)
        targets = embeddings
        if self.target is not None:
            senses, projector = self.target
            with torch.no_grad():
                targets = projector(senses(segment.observation), observed)
        actions = self.encode_action(segment.action)
        return SegmentEncoding(embeddings, targets, actions, self.embed_action(actions), observed)

    def loss_terms(
        self, segment: Segment, encoding: SegmentEncoding, noise: Tensor
    ) -> dict[str, Tensor]:
        """Return the unweighted terms of the loss by name, with their gradients.

        In training mode this also updates `residual` and the moments of the probe's residual.

        Args:
            segment: B segments of L transitions.
            encoding: output of `encode_segment` on it.
            noise: (B, L + 1, noise_dim) uniforms.
        """
        windowed = self.predict_windows(encoding)
        real = Transitions(encoding.embeddings[:, :-1], encoding.embeddings[:, 1:], 0)
        one_step = Transitions(encoding.embeddings[:, :-1], longest_context(windowed), 0)
        if self.training:
            self._update_residual(one_step.after - encoding.targets[:, 1:], segment.mask)
        rollout = self.rollout(encoding, windowed[:, :, -1], noise)
        terms = {"prediction": window_error(windowed, encoding)}
        if rollout:
            terms["rollout"] = rollout_error(rollout, encoding)
        terms |= regularisation_terms(self.config.objective, encoding, noise)
        if self.inverse is not None:
            pairs = torch.cat([real.before, real.after], -1)
            error = (self.inverse(pairs) - encoding.actions).square().mean(-1)
            terms["inverse"] = masked_mean(error, segment.mask)
        terms |= self._head_terms(segment, encoding.actions, [real, one_step, *rollout])
        if self.goal_value is not None:
            embeddings = encoding.embeddings.detach()
            terms["goal_value"] = self.goal_value.error(embeddings, encoding.observed, noise)
        if self.residual_probe is not None and self.training:
            self._update_probe_residual(self.residual_probe, segment, one_step)
        return terms

    def predict_windows(self, encoding: SegmentEncoding) -> Tensor:
        """Predict the embedding after each frame of every window.

        Returns:
            (B, W, size, D) for the W = L - size + 1 windows of `size` frames, where `size` is the
            context, or L if that is shorter.
        """
        size = min(self.config.context, encoding.actions.shape[1])
        embeddings = windows(encoding.embeddings[:, :-1], size)
        output = self._predict(embeddings, windows(encoding.conditions, size))
        mask = windows(encoding.observed[:, 1:], size)
        return self.next_embedding(embeddings, output, mask)

    def rollout(
        self, encoding: SegmentEncoding, newest: Tensor, noise: Tensor
    ) -> list[Transitions]:
        """Continue predictions open-loop, each from the last one with the noise of a step.

        Args:
            encoding: encoded segments.
            newest: (B, W, D) prediction after the last frame of each window.
            noise: (B, L + 1, noise_dim) uniforms.

        Returns:
            The transitions at depth 2, 3, ... up to the objective's `rollout`, or as far as the
            segment reaches.
        """
        length = encoding.actions.shape[1]
        size = length - newest.shape[1] + 1
        window = windows(encoding.embeddings[:, :-1], size)
        steps = []
        for depth in range(1, min(self.config.objective.rollout, length - size + 1)):
            count = length - size + 1 - depth
            start = size - 1 + depth  # of the first window's newest frame, which is predicted
            noisy = newest[:, :count] + self.residual * normal(noise[:, start : start + count])
            window = torch.cat([window[:, :count, 1:], noisy.unsqueeze(2)], 2)
            output = self._predict(window, windows(encoding.conditions[:, depth:], size))
            mask = encoding.observed[:, start + 1 :]
            newest = self.next_embedding(noisy, output[:, :, -1], mask)
            steps.append(Transitions(noisy, newest, start))
        return steps

    def diagnostics(self, segment: Segment, noise: Tensor) -> LatentDiagnostics:
        """See `WorldModel.diagnostics`; the spread of the embeddings of observations."""
        observed = F.pad(segment.mask, (1, 0), value=True)
        metrics = collapse_metrics(self.embed(segment.observation), observed)
        embedding = EmbeddingDiagnostic(
            std=metrics["embedding_std"],
            effective_rank=metrics["effective_rank"],
            width=self.config.embedding,
            remedy="increase the regularisation: objective.sigreg, or objective.std and "
            "objective.cov",
        )
        return LatentDiagnostics({}, {"": embedding})

    def before_fit(self) -> None:
        """See `WorldModel.before_fit`; restarts the schedule of the momentum."""
        self.updates.zero_()

    def after_update(self) -> None:
        """See `WorldModel.after_update`; moves the target encoder towards the encoder."""
        self.updates += 1
        if self.target is None:
            return
        objective = self.config.objective
        progress = (self.updates / objective.momentum_updates).clamp(max=1.0)
        weight = (1.0 - objective.momentum) * (1.0 - progress)
        online = nn.Sequential(self.senses, self.projector).state_dict()
        with torch.no_grad():
            for name, value in self.target.state_dict().items():
                if value.is_floating_point():
                    value.lerp_(online[name], weight.to(value.dtype))
                else:
                    value.copy_(online[name])

    def _predict(self, embeddings: Tensor, conditions: Tensor) -> Tensor:
        """Return the predictor's outputs (B, W, size, D) on windows (B, W, size, D)."""
        output = self.predictor(embeddings.flatten(0, 1), conditions.flatten(0, 1))
        return output.unflatten(0, embeddings.shape[:2])

    def _head_terms(
        self, segment: Segment, actions: Tensor, predictions: list[Transitions]
    ) -> dict[str, Tensor]:
        """Return the losses of heads and probe, without a gradient into the embeddings."""
        standard_reward = (segment.reward - self.reward_mean) / self.reward_std
        rewards, terminations, probes = [], [], []
        for transitions in predictions:
            before, after, steps = transitions.before, transitions.after, transitions.steps
            reward, logit = self.predict_reward_termination(
                before.detach(), after.detach(), actions[:, steps]
            )
            errors = reward_termination_error(reward, logit, standard_reward, segment, steps)
            rewards.append(errors[0])
            terminations.append(errors[1])
            if self.probe is not None:
                observation = _at(segment.observation, transitions.arrivals)
                vectors = self.senses.standardise(observation) if self.probe.vector_size else None
                images = self.senses.float_images(observation) if self.probe.images else []
                error = self.probe.error(after, vectors, images)
                probes.append(masked_mean(error, segment.mask[:, steps]))
        terms = {
            "reward": torch.stack(rewards).mean(),
            "termination": torch.stack(terminations).mean(),
        }
        if probes:
            terms["probe"] = torch.stack(probes).mean()
        return terms

    @torch.no_grad()
    def _update_residual(self, error: Tensor, mask: Tensor) -> None:
        """Update the predictor's running error with errors (B, L, D) where mask (B, L) is true."""
        batch = moments(error.flatten(0, 1).float(), mask.flatten())
        square = batch.variance + batch.mean.square()
        self.residual.copy_(self.residual.square().lerp(square, self._momentum).sqrt())

    @torch.no_grad()
    def _update_probe_residual(self, probe: Probe, segment: Segment, one_step: Transitions) -> None:
        """Update the probe with its residuals at real embeddings and at predictions from them."""
        standard = self.senses.standardise(segment.observation)
        before = standard[:, one_step.steps] - probe.vectors(one_step.before)
        after = standard[:, one_step.arrivals] - probe.vectors(one_step.after)
        probe.update_residual_moments(before, after, segment.mask, self._momentum)

    @property
    def _momentum(self) -> Tensor:
        """Weight of one batch in running statistics: a mean at first, then an EMA."""
        return (1.0 / (self.updates + 1.0)).clamp(min=SMALLEST_MOMENTUM)


def predictor_inputs(state: State, encoded: Tensor) -> tuple[Tensor, Tensor]:
    """Return the predictor's inputs in a step, other than the embeddings.

    Args:
        state: leaves (B, ...).
        encoded: (B, A) the encoded action taken now.

    Returns:
        (B, context, A), the action taken at each frame, and (B, context) bool, the slots that hold
        a frame.
    """
    # A state keeps the action that led to a frame; the predictor takes the one that leaves it.
    actions = torch.cat([state["actions"][:, 1:], encoded.unsqueeze(1)], 1)
    # The newest slot is always used, so that a step from the initial state is defined too.
    seen = F.pad(state["seen"][:, :-1] > 0.5, (0, 1), value=True)
    return actions, seen


def push_frame(
    state: State, encoded: Tensor, embedding: Tensor, probe_residual: Tensor | None
) -> State:
    """Return the state after a new frame, without its oldest frame.

    Args:
        state: leaves (B, ...).
        encoded: (B, A) the encoded action that led to the frame.
        embedding: (B, D) the frame.
        probe_residual: (B, n) the probe's residual at the frame; None where states carry none.
    """
    newest = {
        "embeddings": embedding.unsqueeze(1),
        "actions": encoded.unsqueeze(1),
        "seen": torch.ones_like(state["seen"][:, :1]),
    }
    pushed = {key: torch.cat([state[key][:, 1:], new], 1) for key, new in newest.items()}
    return pushed if probe_residual is None else pushed | {PROBE_RESIDUAL: probe_residual}


def _at(observation: Observation, times: slice) -> Observation:
    return map_observation(lambda leaf: leaf[:, times], observation)
