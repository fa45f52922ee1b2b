"""Genie: generative interactive environments (Bruce et al. 2024, arXiv 2402.15391)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import gymnasium as gym
import torch
import torch.nn.functional as F
from torch import Tensor

from dreamgym.models.base import (
    CodeDiagnostic,
    LatentDiagnostics,
    Prediction,
    Segment,
    State,
    Temperature,
)
from dreamgym.models.genie.config import PRESET_FITS, PRESETS, GenieConfig
from dreamgym.models.genie.modules import Dynamics, LatentActions, cross_entropy
from dreamgym.models.genie.sampling import draw_frame
from dreamgym.models.nn.actions import ActionEncoder
from dreamgym.models.nn.block_causal import BlockCausalModel, Keys
from dreamgym.models.nn.conv import Pixels
from dreamgym.models.nn.distributions import categorical, per_row
from dreamgym.models.nn.encoding_cache import EncodingCache
from dreamgym.models.nn.image_tokens import (
    Tokeniser,
    autoencoder_terms,
    frame_tokens,
    token_use,
)
from dreamgym.models.nn.layers import at_least_float32, mlp
from dreamgym.models.nn.quantisers import quantise
from dreamgym.models.nn.reward_head import RewardHead
from dreamgym.models.observations import Observation, get_part, join_parts, only_part
from dreamgym.models.reduction import evenly_spaced, masked_mean
from dreamgym.models.statistics import Statistics

BYTE = 255.0
"""Value of the brightest pixel."""

EFFECT_STEPS = 4
"""Steps after which dreams under inferred and random latent actions are compared, as published."""

SMALLEST_ERROR = (0.5 / BYTE) ** 2 / 3
"""Mean squared error of rounding to bytes, with pixels in [0, 1]: no PSNR is higher."""

DISTINCT_ACTIONS = 1.2
"""Perplexity of the latent actions below which one of them stands for nearly all changes."""


class Genie(BlockCausalModel):
    """Latent actions inferred from video, and dynamics that draw a frame's tokens in few steps.

    A tokeniser makes tokens of a frame. The latent action model infers which of a few latent
    actions led from frame to frame, from frames alone. The dynamics predict the tokens of the next
    frame from those of the frames before and the latent action: all of them are masked at first,
    and in each of a few steps the most confident are drawn (MaskGIT).

    Dreams are in real actions, whose latent action is drawn from a distribution that is fitted to
    the data, given the summary of the newest frame and the real action; or in latent actions
    (`in_latent_actions`), Discrete. With data whose actions are all the same (video), a dream in
    real actions draws what happens next, and one in latent actions is controlled.

    The summary h of a frame sees it, those before, and their real actions; it predicts reward and
    termination, which the authors' model does not have. In fitting, the real actions after a random
    frame of each sequence are left out, so that it can do without them.

    State: `tokens` (B, window, tokens) int16, the frames, the newest last; `latents` (B, window)
    int16, the latent action that led to each; `actions` (B, window, A + 1), the encoded real one,
    and whether it is known; `length` (B,) int64, how many frames are set (those before are zero);
    `h` (B, width) of the newest. The window is all that an output depends on. Features: the codes
    of the newest frame's tokens, and h.

    Args:
        observation_space: a Box of images.
        action_space: a Box, Discrete or MultiDiscrete space, that of the data.
        config: sizes and losses.

    Raises:
        TypeError: a space is of another kind.
    """

    config_type = GenieConfig
    presets: ClassVar[Mapping[str, GenieConfig]] = PRESETS
    preset_fits: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESET_FITS
    fit_defaults: ClassVar[Mapping[str, Any]] = {
        "batch_size": 16,
        "segment_length": 8,
        "learning_rate": 1e-3,
        "gradient_clip": 1.0,
        "clip_by": "norm",
    }
    given = ("tokens", "latents", "actions", "length")
    config: GenieConfig
    places: Tensor
    updates: Tensor

    def __init__(
        self, observation_space: gym.Space, action_space: gym.Space, config: GenieConfig
    ) -> None:
        super().__init__(observation_space, action_space, config)
        self.key, box = only_part(observation_space, "genie")
        self.pixels = Pixels(box, (config.image_size, config.image_size))
        self.encode_action = ActionEncoder(action_space)
        self.tokeniser = Tokeniser(self.pixels.channels, config)
        codes, width = self.tokeniser.quantiser.count, config.width
        self.latent_actions = LatentActions(self.pixels.channels, config)
        count, action = self.latent_actions.count, self.encode_action.dim
        self.dynamics = Dynamics(codes, count, action + 1, config)
        self.action_map = mlp(width + action, width, count)
        objective = config.objective
        self.reward = RewardHead(mlp(width, width, objective.reward_outputs), objective)
        self.termination = mlp(width, width, 1)
        self._data_action_space = action_space
        if config.action_space == "latent":
            self.action_space = gym.spaces.Discrete(count)
        self.noise_dim = 1 + config.steps * config.tokens
        self.feature_dim = config.tokens * self.tokeniser.quantiser.width + width
        # Saved with the weights, so that a file cannot ask for a window that it has not.
        self.register_buffer("places", torch.arange(config.window))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.after_fit()

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.tokeniser.dtype

    @property
    def data_action_space(self) -> gym.Space:
        """See `WorldModel.data_action_space`."""
        return self._data_action_space

    @property
    def takes_data_actions(self) -> bool:
        """See `WorldModel.takes_data_actions`."""
        return self.config.action_space == "real"

    def in_latent_actions(self) -> Genie:
        """Return a model with the same weights whose dreams take latent actions.

        `world.with_model(world.model.in_latent_actions())` is a world to play in them. A latent
        action means the same as in the fit: it is what the latent action model infers.
        """
        return self._with_actions("latent")

    def in_real_actions(self) -> Genie:
        """Return a model with the same weights whose dreams take the data's actions."""
        return self._with_actions("real")

    def _with_actions(self, kind: Any) -> Genie:
        config = replace(self.config, action_space=kind)
        with torch.random.fork_rng(devices=[]):
            model = type(self)(self.observation_space, self.data_action_space, config)
        model.to(self.places.device, self.dtype).load_state_dict(self.state_dict())
        return model.train(self.training)

    # ------------------------------------------------------------ states

    def initial(self, batch_size: int) -> State:
        """See `WorldModel.initial`; an empty window."""
        config, zeros = self.config, self.tokeniser.before.weight.new_zeros
        window = (batch_size, config.window)
        return {
            "tokens": zeros(*window, config.tokens, dtype=torch.int16),
            "latents": zeros(window, dtype=torch.int16),
            "actions": zeros(*window, self.encode_action.dim + 1),
            "length": zeros(batch_size, dtype=torch.int64),
            "h": zeros(batch_size, config.width),
        }

    def observe(
        self, state: State, action: Tensor, observation: Observation, noise: Tensor
    ) -> State:
        """See `WorldModel.observe`; the latent action is inferred, or else it is the action."""
        tokens = self._encode(get_part(observation, self.key))
        if not self.takes_data_actions:
            latents = action
        else:
            latents = self.latent_actions.infer(self._shown(self._last(state, tokens)))
        begins = state["length"] == 0
        latents = torch.where(begins, self.latent_actions.count, latents)
        actions = torch.where(begins.unsqueeze(-1), 0.0, self._acted(action))
        h, _ = self._clean(tokens, latents, actions, self._seen(state), self.before(state))
        return push(state, tokens, latents, actions, h)

    def features(self, state: State) -> Tensor:
        """Return the codes of the newest frame's tokens, and h; zeros if there is no frame."""
        codes = self.tokeniser.quantiser.lookup(state["tokens"][:, -1]).flatten(1)
        codes = torch.where((state["length"] > 0).unsqueeze(-1), codes, 0.0)
        return torch.cat([codes, state["h"]], -1)

    def decode(self, state: State) -> Observation:
        """Return the newest frame (B, ...) as decoded from its tokens."""
        images = self._images(state["tokens"][:, -1])
        return join_parts({self.key: self.pixels.to_bytes(images)})

    # ------------------------------------------------------------ steps

    def before(self, state: State) -> list[Keys]:
        """See `BlockCausalModel.before`."""
        _, keys = self.dynamics(
            state["tokens"], state["latents"], state["actions"], self._known(state)
        )
        return self.dynamics.kept(keys)

    def imagine(
        self,
        state: State,
        action: Tensor,
        noise: Tensor,
        temperature: Temperature,
        before: list[Keys],
    ) -> tuple[State, Prediction, list[Keys]]:
        """See `BlockCausalModel.imagine`; the latent action is drawn, then the tokens are."""
        if not self.takes_data_actions:
            latents = action
        else:
            logits = self._map(state["h"], self._encode_action(action))
            latents = categorical(logits / per_row(temperature, logits), noise[:, 0])
        following, kept = self._advance(
            state, (latents, self._acted(action)), noise[:, 1:], temperature, before
        )
        h = following["h"]
        reward = self.reward.predict(h)
        termination = self.termination(h).squeeze(-1).sigmoid()
        return following, Prediction(reward, termination, torch.zeros_like(reward)), kept

    def _advance(
        self,
        state: State,
        acted: tuple[Tensor, Tensor],
        noise: Tensor,
        temperature: Temperature,
        before: list[Keys],
    ) -> tuple[State, list[Keys]]:
        """Return the state after a latent action, and keys and values of it.

        Args:
            state: leaves (B, ...).
            acted: latent actions (B,), and real ones (B, A + 1) as in the state.
            noise: (B, steps x tokens) uniforms.
            temperature: a number or (B,).
            before: outputs of `before` for this state.
        """
        (latents, actions), seen = acted, self._seen(state)
        one = latents.unsqueeze(1), actions.unsqueeze(1), seen, before

        def logits(tokens: Tensor) -> Tensor:
            outputs, _ = self.dynamics(tokens.unsqueeze(1), *one)
            return self.dynamics.logits(outputs).squeeze(1)

        shape = (self.config.steps, self.config.tokens)
        tokens = draw_frame(
            logits, self.dynamics.mask_token, noise.unflatten(1, shape), temperature
        )
        h, kept = self._clean(tokens, latents, actions, seen, before)
        return push(state, tokens, latents, actions, h), kept

    def _clean(
        self, tokens: Tensor, latents: Tensor, actions: Tensor, seen: Tensor, before: list[Keys]
    ) -> tuple[Tensor, list[Keys]]:
        """Return h (B, width) of a frame, and keys and values with it among the last."""
        frame = tokens.unsqueeze(1), latents.unsqueeze(1), actions.unsqueeze(1)
        outputs, keys = self.dynamics(*frame, seen, before)
        return at_least_float32(outputs[:, 0, -1]), self.dynamics.kept(keys)

    def _known(self, state: State) -> Tensor:
        """Return (B, window) which frames of a state are there."""
        return self.places >= self.config.window - state["length"].unsqueeze(-1)

    def _seen(self, state: State) -> Tensor:
        """Return which of the last `context` frames, and the next one, are there."""
        return F.pad(self._known(state)[:, -self.config.context :], (0, 1), value=True)

    def _encode_action(self, action: Tensor) -> Tensor:
        """Return raw real actions (..., *shape) as (..., A)."""
        return self.encode_action(action).to(self.dtype)

    def _acted(self, action: Tensor) -> Tensor:
        """Return actions of a dream as the real ones (B, A + 1) of a state; zeros if unknown."""
        if not self.takes_data_actions:
            return self.places.new_zeros(
                (len(action), self.encode_action.dim + 1), dtype=self.dtype
            )
        return F.pad(self._encode_action(action), (0, 1), value=1.0)

    def _last(self, state: State, tokens: Tensor) -> Tensor:
        """Return tokens (B, frames + 1, N) of the last frames of a state and of the next one.

        Args:
            state: leaves (B, ...); the oldest frame stands for those before it.
            tokens: (B, N) of the next frame.
        """
        window, count = self.config.window, self.config.action_frames
        oldest = (window - state["length"]).clamp(max=window - 1)
        places = torch.maximum(self.places[window - count :], oldest.unsqueeze(-1))
        index = places.unsqueeze(-1).expand(-1, -1, self.config.tokens)
        return torch.cat([state["tokens"].gather(1, index).long(), tokens.unsqueeze(1)], 1)

    def _map(self, h: Tensor, encoded: Tensor) -> Tensor:
        """Return logits (..., latent actions) for real actions (..., A)."""
        logits: Tensor = self.action_map(torch.cat([h, encoded.to(h.dtype)], -1))
        return logits

    def _encode(self, frames: Tensor, *, cached: bool = False) -> Tensor:
        """Return the tokens (..., tokens) of frames; see `frame_tokens`."""
        return frame_tokens(self.tokeniser, self.pixels, frames, self.cache if cached else None)

    def _images(self, tokens: Tensor) -> Tensor:
        """Return images (B, channels, side, side), around [0, 1], of tokens (B, tokens)."""
        return self.tokeniser.decode(self.tokeniser.quantiser.lookup(tokens))

    @torch.no_grad()
    def _shown(self, tokens: Tensor, *, cached: bool = False) -> Tensor:
        """Return what tokens (..., N) show, images (..., channels, side, side) of bytes in [0, 1].

        The latent action model sees these and not the frames as they are, since a state has the
        tokens of the past alone.

        Args:
            tokens: the tokens.
            cached: whether frames that were decoded before are looked up.
        """
        flat = tokens.flatten(0, -2)

        def decode(rows: Tensor | slice) -> Tensor:
            return (self._images(flat[rows]).clamp(0, 1) * BYTE).round().to(torch.uint8)

        weights = [*self.tokeniser.parameters(), *self.tokeniser.buffers()]
        shown = (
            self.decoded.encode(as_bytes(flat), weights, decode) if cached else decode(slice(None))
        )
        return shown.unflatten(0, tokens.shape[:-1]).to(self.dtype) / BYTE

    def _infer(self, tokens: Tensor, mask: Tensor, *, cached: bool = False) -> Tensor:
        """Return the latent actions (B, L) of the changes between frames.

        Args:
            tokens: (B, L + 1, N).
            mask: (B, L) bool, false for padding; batch norms count the others in fitting.
            cached: whether the latent action model is frozen, so that changes that were inferred
                before are looked up.
        """
        lead = tokens.shape[0], tokens.shape[1] - 1
        if not cached:
            shown = self._changes(self._shown(tokens)).flatten(0, 1)
            return self.latent_actions.infer(shown, mask.flatten()).unflatten(0, lead)
        flat = self._changes(tokens).flatten(0, 1)
        modules = (self.tokeniser, self.latent_actions)
        weights = [leaf for module in modules for leaf in module.state_dict().values()]
        inferred = self.inferred.encode(
            as_bytes(flat), weights, lambda rows: self.latent_actions.infer(self._shown(flat[rows]))
        )
        return inferred.unflatten(0, lead)

    def _changes(self, frames: Tensor) -> Tensor:
        """Return the frames before each next one, and it: (B, T - 1, frames + 1, ...).

        Args:
            frames: (B, T, ...); the first stands for those before it.
        """
        before = self.config.action_frames
        next_ones = torch.arange(1, frames.shape[1], device=frames.device).unsqueeze(-1)
        places = next_ones + torch.arange(-before, 1, device=frames.device)
        return frames[:, places.clamp(min=0)]

    # ------------------------------------------------------------ fitting

    def set_statistics(self, statistics: Statistics) -> None:
        """See `WorldModel.set_statistics`."""
        if statistics.action is not None:
            self.encode_action.fit(statistics.action)
        self.reward.set_moments(statistics.reward_mean, statistics.reward_std)

    @property
    def _starts(self) -> tuple[int, int]:
        """Updates at which the latent action model and the dynamics begin to be fitted."""
        first = self.config.tokeniser_updates
        return first, first + self.config.action_updates

    @property
    def phase_starts(self) -> tuple[int, ...]:
        """See `WorldModel.phase_starts`: tokeniser, latent action model, dynamics."""
        return tuple(sorted({*self._starts} - {0}))

    @property
    def selects_by_loss(self) -> bool:
        """See `WorldModel.selects_by_loss`; only if tokens and latent actions are frozen first."""
        return bool(self.config.action_updates)

    def before_fit(self) -> None:
        """See `WorldModel.before_fit`: the tokeniser is fitted first again."""
        self.updates.zero_()

    def after_fit(self) -> None:
        """See `WorldModel.after_fit`: release the cached tokens, images and latent actions."""
        self.cache, self.decoded, self.inferred = (EncodingCache() for _ in range(3))

    def after_update(self) -> None:
        """Count the updates, by which the phases change."""
        self.updates += 1

    def loss(self, segment: Segment, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the losses of the tokeniser, the latent action model, the dynamics and the heads.

        None has a gradient in what another one fits, but for the heads, which share the dynamics.
        With `tokeniser_updates` and `action_updates` they are fitted one after another; in eval
        mode all terms are there.

        Raises:
            ValueError: the model is played in latent actions.
        """
        if not self.takes_data_actions:
            raise ValueError(
                "action_space='latent' is for dreams of a fitted model: fit with "
                "action_space='real', then world.with_model(world.model.in_latent_actions())"
            )
        first, last = self._starts
        done = int(self.updates) if self.training and last else last
        terms: dict[str, Tensor] = {}
        if not first or done < first or not self.training:
            terms |= self._tokeniser_terms(segment)
        if done >= first:
            cached = bool(first and self.training)
            tokens = self._encode(get_part(segment.observation, self.key), cached=cached)
            if first == last or done < last or not self.training:
                terms |= self._action_terms(segment, tokens, cached=cached)
            if done >= last:
                frozen = cached and first < last
                inferred = self._infer(tokens, segment.mask, cached=frozen)
                terms |= self._dynamics_terms(segment, (tokens, inferred), noise)
        objective = self.config.objective
        weights = {**vars(objective), "action_commitment": objective.commitment}
        total = sum((weights.get(k, 1.0) * v for k, v in terms.items()), torch.zeros(()))
        return total, {name: term.detach() for name, term in terms.items()}

    def _tokeniser_terms(self, segment: Segment) -> dict[str, Tensor]:
        """Return the terms of the tokeniser on some of the frames."""
        frames = get_part(segment.observation, self.key).flatten(0, 1)
        observed = F.pad(segment.mask, (1, 0), value=True).flatten()
        chosen = frames[evenly_spaced(observed, self.config.tokeniser_frames)]
        images = self.pixels.to_float(chosen).to(self.dtype)
        of = self.tokeniser.quantiser
        quantised = quantise(of, self.tokeniser.latents(images), follow=self.training)
        decoded = self.tokeniser.decode(quantised.vectors)
        return autoencoder_terms(decoded, images, quantised, self.config.objective, of)

    def _action_terms(self, segment: Segment, tokens: Tensor, *, cached: bool) -> dict[str, Tensor]:
        """Return the terms of the latent action model on some of the transitions.

        Args:
            segment: B segments of L transitions.
            tokens: (B, L + 1, N).
            cached: whether the tokeniser is frozen, so that what tokens show can be kept.
        """
        chosen = evenly_spaced(segment.mask.flatten(), self.config.tokeniser_frames)
        changes = self._changes(tokens).flatten(0, 1)[chosen]
        shown = self._shown(changes, cached=cached)
        return self.latent_actions.terms(shown, self.config.objective)

    def _dynamics_terms(
        self, segment: Segment, of: tuple[Tensor, Tensor], noise: Tensor
    ) -> dict[str, Tensor]:
        """Return the terms of masked tokens, of the map of actions, and of rewards and ends.

        The rate at which a frame's tokens are masked is uniform from `min_mask_rate` to 1, as
        published. The frames before it are not masked, as they are not in dreams.

        Args:
            segment: B segments of L transitions.
            of: their tokens (B, L + 1, N), and latent actions (B, L).
            noise: (B, L + 1, noise_dim) uniforms.
        """
        tokens, inferred = of
        observed = F.pad(segment.mask, (1, 0), value=True)
        latents = F.pad(inferred, (1, 0), value=self.latent_actions.count)
        encoded = self._encode_action(segment.action)
        # Real actions are left out after a random transition; in half of the segments after none.
        length = encoded.shape[1]
        told = torch.arange(length, device=encoded.device) < 2 * length * noise[:, :1, 0]
        given = F.pad(encoded, (0, 1), value=1.0) * told.unsqueeze(-1)
        outputs, keys = self.dynamics(tokens, latents, F.pad(given, (0, 0, 1, 0)), observed)
        h = at_least_float32(outputs[:, :, -1])

        smallest = self.config.min_mask_rate
        rate = smallest + (1 - smallest) * noise[:, 1:, :1]
        masked = noise[:, 1:, 1 : 1 + self.config.tokens] < rate
        shown = torch.where(masked, self.dynamics.mask_token, tokens[:, 1:])
        rows = (leaf.flatten(0, 1).unsqueeze(1) for leaf in (shown, inferred, given))
        outputs, _ = self.dynamics(
            *rows, self.dynamics.known_to_each(observed), self.dynamics.of_each(keys)
        )
        logits = self.dynamics.logits(outputs).view(*masked.shape, -1)
        counted = masked & segment.mask.unsqueeze(-1)
        ended = segment.terminated.to(h.dtype)
        end = self.termination(h[:, 1:]).squeeze(-1)
        of_end = F.binary_cross_entropy_with_logits(end, ended, reduction="none")
        mapped = cross_entropy(self._map(h[:, :-1], encoded), inferred)
        return {
            "tokens": masked_mean(cross_entropy(logits, tokens[:, 1:]), counted),
            "action_map": masked_mean(mapped, segment.mask),
            "reward": masked_mean(self.reward.loss(h[:, 1:], segment.reward), segment.mask),
            "termination": masked_mean(of_end, segment.mask),
        }

    # ------------------------------------------------------------ diagnostics

    def diagnostics(self, segment: Segment, noise: Tensor) -> LatentDiagnostics:
        """Return how the codes of tokens and of latent actions are used.

        The effect of latent actions is the published Delta_t PSNR: by how much dreams are closer
        to the real frame `EFFECT_STEPS` later under the inferred ones than under random ones.
        """
        tokens = self._encode(get_part(segment.observation, self.key))
        observed = F.pad(segment.mask, (1, 0), value=True)
        inferred = self._infer(tokens, segment.mask)
        codes = {
            "tokens": token_use(self.tokeniser.quantiser, tokens[observed]),
            "latent_actions": CodeDiagnostic.of(
                inferred[segment.mask],
                self.latent_actions.count,
                DISTINCT_ACTIONS,
                "fit with more action_updates, with fewer latent actions, or on data in which more "
                "happens from frame to frame",
                self._effect(segment, (tokens, inferred), noise),
            ),
        }
        return LatentDiagnostics({}, {}, codes)

    def _effect(self, segment: Segment, of: tuple[Tensor, Tensor], noise: Tensor) -> Tensor:
        """Return Delta_t PSNR (N,) in dB, of the segments that are long enough.

        Args:
            segment: B segments.
            of: tokens (B, L + 1, N), and inferred latent actions (B, L).
            noise: (B, L + 1, noise_dim) uniforms.
        """
        steps = min(EFFECT_STEPS, segment.action.shape[1])
        rows = segment.mask[:, steps - 1].nonzero().squeeze(1)
        tokens, inferred, noise = of[0][rows], of[1][rows], noise[rows]
        random = (noise[:, :steps, 0] * self.latent_actions.count).long()
        frames = get_part(segment.observation, self.key)[rows, steps]
        images = self.pixels.to_float(frames)
        psnr = []
        for latents in (inferred, random):
            state = self._first(tokens[:, 0])
            for t in range(steps):
                acted = latents[:, t], torch.zeros_like(state["actions"][:, 0])
                before = self.before(state)
                state, _ = self._advance(state, acted, noise[:, t, 1:], 1.0, before)
            error = (self._images(state["tokens"][:, -1]).clamp(0, 1) - images).square()
            psnr.append(-10 * error.flatten(1).mean(1).clamp(min=SMALLEST_ERROR).log10())
        return psnr[0] - psnr[1]

    def _first(self, tokens: Tensor) -> State:
        """Return the state at an episode's first frame of tokens (B, N)."""
        state = self.initial(len(tokens))
        latents = torch.full_like(tokens[:, 0], self.latent_actions.count)
        actions = torch.zeros_like(state["actions"][:, 0])
        h, _ = self._clean(tokens, latents, actions, self._seen(state), self.before(state))
        return push(state, tokens, latents, actions, h)


def push(state: State, tokens: Tensor, latents: Tensor, actions: Tensor, h: Tensor) -> State:
    """Return the state after a frame; a full window loses its oldest.

    Args:
        state: leaves (B, ...).
        tokens: (B, N) of the frame.
        latents: (B,) the latent action that led to it.
        actions: (B, A + 1) the real one.
        h: (B, width) its summary.
    """
    news = {"tokens": tokens, "latents": latents, "actions": actions}
    pushed = {
        name: torch.cat([state[name][:, 1:], new.unsqueeze(1).to(state[name].dtype)], 1)
        for name, new in news.items()
    }
    length = (state["length"] + 1).clamp(max=state["tokens"].shape[1])
    return {**pushed, "length": length, "h": h}


def as_bytes(tokens: Tensor) -> Tensor:
    """Return tokens (N, ...) as rows of bytes (N, n)."""
    return tokens.to(torch.int16).flatten(1).contiguous().view(torch.uint8)
