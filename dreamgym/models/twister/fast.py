"""TWISTER's step arranged for speed: the same function as `TWISTER.step`.

On a CPU keys and values are kept from step to step, in this form and not in the state. With them it
keeps the last states that it returned: a row whose state is another one, as after a reset, is
recomputed, and the state alone decides the result.

Which rows those are is known only after a host sync. So on other devices, and in compiled code, a
step computes the window, in each block the tokens alone that the next one attends to.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamgym.models.base import Prediction, State, Temperature, end_outside_data, model_device
from dreamgym.models.fast import FastForm
from dreamgym.models.host_sync import host_sync_allowed
from dreamgym.models.nn.packed import Packing
from dreamgym.models.nn.packed_transformer import PackedBlock, PackedMixture, attend_once
from dreamgym.models.nn.transformer import Block, band
from dreamgym.models.twister.model import TWISTER, enter_action, known, push
from dreamgym.models.twister.modules import RelativeAttention

TOKENS = ("latents", "actions", "length")
"""Leaves of a state that keys and values depend on."""


class Cache(NamedTuple):
    """Keys and values of the last tokens of B rows, in rings of `context + 1` places.

    Attributes:
        state: the `TOKENS` of the states in which these are the tokens before the newest.
        place: (B,) int64, where the token before the newest is; the one before it precedes it.
        keys: (B, heads, context + 1, width / heads) of each block.
        values: the same.
    """

    state: State
    place: Tensor
    keys: list[Tensor]
    values: list[Tensor]


class FastTWISTER(FastForm):
    """A TWISTER for inference with a fixed number of rows; see `TWISTER.prepare`.

    Args:
        model: the model to arrange.
        num_envs: rows of every step.
        dtype: dtype of the matrix products.
    """

    model: TWISTER

    def __init__(self, model: TWISTER, num_envs: int, dtype: torch.dtype) -> None:
        super().__init__(model)
        packing = Packing(num_envs, dtype, model_device(model))
        self._mix = PackedMixture(model.transformer.mix, model.latent, packing)
        blocks: list[Block] = list(model.transformer.blocks)  # type: ignore[arg-type]
        self._blocks = [FastBlock(block, packing) for block in blocks]
        self._prior = packing.chain([model.prior])
        self._reward = packing.chain(model.reward.net)
        self._termination = packing.chain(model.termination)
        self._margin = model.config.range_margin if model.senses.sizes else None
        if self._margin is not None:
            self._decode_vectors = packing.chain(model.senses.decode_vectors)
        self._cache: Cache | None = None

    def step(
        self, state: State, action: Tensor, noise: Tensor, temperature: Temperature = 1.0
    ) -> tuple[State, Prediction]:
        """See `WorldModel.step`."""
        model = self.model
        window = enter_action(state, model.encode_action(action))
        differentiates = torch.is_grad_enabled() and window["actions"].requires_grad
        caches = host_sync_allowed(action.device) and not differentiates
        h = self._extend(self._matching(state), window) if caches else self._recompute(window)
        classes = model.latent.draw(self._prior(h), noise, temperature)
        z = model.latent.one_hot(classes)
        features = torch.cat([z, h], -1)
        reward = model.reward.expected(self._reward(features))
        termination = self._termination(features).squeeze(-1).sigmoid()
        outside = None
        if self._margin is not None:
            outside = model.senses.outside_data(self._decode_vectors(z), self._margin)
        prediction = Prediction(reward, termination, torch.zeros_like(reward))
        following = push(window, classes, h)
        if caches and self._cache is not None:
            for key, leaf in self._cache.state.items():
                leaf.copy_(following[key])
        return following, end_outside_data(prediction, outside, model.worst_return)

    def _recompute(self, window: State) -> Tensor:
        """Return the transformer's output (B, width) at the newest tokens, from whole windows."""
        x, present = self._mix(window["latents"], window["actions"]), known(window)
        for block in self._blocks:
            query, key, value = block.project(x)
            x, present = self._attend(block, x, (query, key, value), present)
        return x.squeeze(1)

    def _attend(
        self, block: FastBlock, x: Tensor, projected: tuple[Tensor, Tensor, Tensor], present: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return a block's outputs for all but the first `context` tokens, and which are set.

        Args:
            block: the block.
            x: (B, T, width) tokens.
            projected: their queries, keys and values.
            present: (B, T) bool, which are set.
        """
        context, (query, key, value) = self.model.config.context, projected
        distance, within, alone = band(x.shape[1] - context, x.shape[1], context, x.device)
        allowed = (within & (present.unsqueeze(1) | alone)).unsqueeze(1)
        mixed = block.mix(query[:, :, context:], (key, value), distance, allowed)
        return block.finish(x[:, context:], mixed.transpose(1, 2).flatten(2)), present[:, context:]

    def _matching(self, state: State) -> Cache:
        """Return the cache, with keys and values of every token before the newest of each row."""
        cache, length = self._cache, state["length"]
        if cache is None or len(cache.place) != len(length):
            cache = self._cache = self._empty(len(length))
        hit = cache.state["length"] == length
        for leaf in ("latents", "actions"):
            hit &= (cache.state[leaf] == state[leaf]).flatten(1).all(1)
        if not bool(hit.all()):
            self._fill(cache, state, (~hit).nonzero().squeeze(1))
        return cache

    def _fill(self, cache: Cache, state: State, rows: Tensor) -> None:
        """Recompute keys and values of some rows (R,)."""
        context = self.model.config.context
        latents, actions = state["latents"][rows, :-1], state["actions"][rows, :-1]
        x, present = self._mix(latents, actions), known(state)[rows, :-1]
        for block, keys, values in zip(self._blocks, cache.keys, cache.values, strict=True):
            projected = block.project(x)
            keys[rows, :, :context] = projected[1][:, :, -context:]
            values[rows, :, :context] = projected[2][:, :, -context:]
            if block is not self._blocks[-1]:
                x, present = self._attend(block, x, projected, present)
        cache.place[rows] = context - 1

    def _extend(self, cache: Cache, window: State) -> Tensor:
        """Return the output (B, width) at the newest tokens, and keep their keys and values."""
        ring = self.model.config.context + 1
        rows = torch.arange(len(cache.place), device=cache.place.device)
        place = (cache.place + 1) % ring
        cache.place.copy_(place)
        distance = (place.unsqueeze(1) - torch.arange(ring, device=place.device)) % ring
        allowed = (distance < window["length"].unsqueeze(1))[:, None, None]
        x = self._mix(window["latents"][:, -1:], window["actions"][:, -1:])
        for block, keys, values in zip(self._blocks, cache.keys, cache.values, strict=True):
            query, key, value = block.project(x)
            keys[rows, :, place], values[rows, :, place] = key.squeeze(2), value.squeeze(2)
            mixed = block.mix(query, (keys, values), distance[:, None, None], allowed)
            x = block.finish(x, mixed.transpose(1, 2).flatten(2))
        return x.squeeze(1)

    def _empty(self, rows: int) -> Cache:
        """Return a cache in which nothing is known."""
        config, device = self.model.config, self.model.worst_return.device
        shape = (rows, config.heads, config.context + 1, config.width // config.heads)
        # Kept for steps outside of an `inference_mode`, too.
        with torch.inference_mode(mode=False):
            state = self.model.initial(rows)
            return Cache(
                {key: torch.zeros_like(state[key]) for key in TOKENS},
                torch.zeros(rows, dtype=torch.int64, device=device),
                [torch.zeros(shape, device=device) for _ in self._blocks],
                [torch.zeros(shape, device=device) for _ in self._blocks],
            )


class FastBlock(PackedBlock):
    """`Block` with `RelativeAttention` for inference.

    Args:
        block: the block whose weights are used.
        packing: arrangement of the products.
    """

    def __init__(self, block: Block, packing: Packing) -> None:
        super().__init__(block, packing)
        attention: RelativeAttention = block.attention  # type: ignore[assignment]
        with torch.no_grad():
            distances = attention.distances()
            self.distances = distances.mT.contiguous()
            self.by_content = attention.by_content.detach().unsqueeze(1)
            self.of_distance = attention.by_distance.detach().unsqueeze(1) @ self.distances

    def mix(
        self, query: Tensor, known: tuple[Tensor, Tensor], distance: Tensor, allowed: Tensor
    ) -> Tensor:
        """Return mixed values (B, heads, T, width / heads); see `RelativeAttention.mix`.

        Args:
            query: (B, heads, T, width / heads).
            known: keys and values (B, heads, S, width / heads).
            distance: (..., T, S) int64 from each key to each query.
            allowed: (..., T, S) bool, where a query may attend to a key.
        """
        near = query @ self.distances + self.of_distance
        near = near.gather(-1, distance.expand(*near.shape[:3], -1)) * query.shape[-1] ** -0.5
        bias = near.masked_fill(~allowed, -torch.inf)
        query = query + self.by_content
        if query.shape[2] == 1:
            return attend_once(query, *known, bias)
        return F.scaled_dot_product_attention(query, *known, bias)
