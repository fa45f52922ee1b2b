"""STORM's step arranged for speed: the same function as `STORM.step`.

On a CPU keys and values are kept from step to step, in this form and not in the state. With them it
keeps the tokens that they belong to, and compares them with the state's: a row that was reset, or
whose window has lost its older half, is recomputed, and the state alone decides the result.

Which rows those are is known only after a host sync. So on other devices, and in compiled code, a
step computes the whole window, the last block for the newest token alone.
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
from dreamgym.models.nn.transformer import Block
from dreamgym.models.nn.windows import at
from dreamgym.models.storm.model import STORM, begun, enter_action, push


class Cache(NamedTuple):
    """Keys and values of B rows, and the tokens that they were computed from.

    Attributes:
        latents: (B, context, stoch) uint8.
        actions: (B, context, A).
        length: (B,) int64, tokens whose keys and values are known.
        keys: (B, heads, context, width / heads) of each block.
        values: the same.
    """

    latents: Tensor
    actions: Tensor
    length: Tensor
    keys: list[Tensor]
    values: list[Tensor]


class FastSTORM(FastForm):
    """A STORM for inference with a fixed number of rows; see `STORM.prepare`.

    Args:
        model: the model to arrange.
        num_envs: rows of every step.
        dtype: dtype of the matrix products.
    """

    model: STORM

    def __init__(self, model: STORM, num_envs: int, dtype: torch.dtype) -> None:
        super().__init__(model)
        packing = Packing(num_envs, dtype, model_device(model))
        self._tokens = Tokens(model, packing)
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
        window = enter_action(begun(state), model.encode_action(action))
        newest = window["length"] - 1
        differentiates = torch.is_grad_enabled() and window["actions"].requires_grad
        if host_sync_allowed(newest.device) and not differentiates:
            h = self._extend(self._matching(window, newest), window, newest)
        else:
            h = self._recompute(window, newest)
        classes = model.latent.draw(self._prior(h), noise, temperature)
        reward = model.reward.expected(self._reward(h))
        termination = self._termination(h).squeeze(-1).sigmoid()
        outside = None
        if self._margin is not None:
            vectors = self._decode_vectors(model.latent.one_hot(classes))
            outside = model.senses.outside_data(vectors, self._margin)
        prediction = Prediction(reward, termination, torch.zeros_like(reward))
        following = push(window, classes, h, model.window())
        return following, end_outside_data(prediction, outside, model.worst_return)

    def _recompute(self, window: State, newest: Tensor) -> Tensor:
        """Return the transformer's output (B, width) at the newest tokens, from whole windows."""
        x = self._tokens(window["latents"], window["actions"])
        for block in self._blocks[:-1]:
            query, key, value = block.project(x)
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            x = block.finish(x, mixed.transpose(1, 2).flatten(2))
        last = self._blocks[-1]
        query, key, value = last.project(x)
        index = newest.view(-1, 1, 1, 1).expand(-1, last.heads, 1, query.shape[-1])
        return last.newest(at(x, newest), query.gather(2, index), (key, value), newest)

    def _matching(self, window: State, newest: Tensor) -> Cache:
        """Return the cache, with keys and values of every token before the newest of each row."""
        cache = self._cache
        if cache is None or len(cache.length) != len(newest):
            cache = self._cache = self._empty(len(newest))
        latents, actions = window["latents"], window["actions"]
        same = (cache.latents == latents).all(-1) & (cache.actions == actions).all(-1)
        places = torch.arange(latents.shape[1], device=latents.device)
        same |= places >= newest.unsqueeze(1)
        hit = same.all(1) & (cache.length >= newest)
        if not bool(hit.all()):
            self._fill(cache, window, newest, (~hit).nonzero().squeeze(1))
        return cache

    def _fill(self, cache: Cache, window: State, newest: Tensor, rows: Tensor) -> None:
        """Recompute keys and values of some rows (R,)."""
        count = int(newest[rows].max())
        latents, actions = window["latents"][rows], window["actions"][rows]
        cache.latents[rows], cache.actions[rows] = latents, actions
        if count:
            x = self._tokens(latents[:, :count], actions[:, :count])
            for block, keys, values in zip(self._blocks, cache.keys, cache.values, strict=True):
                query, key, value = block.project(x)
                keys[rows, :, :count], values[rows, :, :count] = key, value
                if block is not self._blocks[-1]:
                    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
                    x = block.finish(x, mixed.transpose(1, 2).flatten(2))

    def _extend(self, cache: Cache, window: State, newest: Tensor) -> Tensor:
        """Return the output (B, width) at the newest tokens, and keep their keys and values."""
        rows = torch.arange(len(newest), device=newest.device)
        count = int(newest.max()) + 1
        latents, actions = at(window["latents"], newest), at(window["actions"], newest)
        cache.latents[rows, newest], cache.actions[rows, newest] = latents, actions
        cache.length.copy_(newest + 1)
        x = self._tokens(latents.unsqueeze(1), actions.unsqueeze(1), newest).squeeze(1)
        for block, keys, values in zip(self._blocks, cache.keys, cache.values, strict=True):
            query, key, value = block.project(x.unsqueeze(1))
            keys[rows, :, newest], values[rows, :, newest] = key.squeeze(2), value.squeeze(2)
            known = keys[:, :, :count], values[:, :, :count]
            x = block.newest(x, query, known, newest)
        return x

    def _empty(self, rows: int) -> Cache:
        """Return a cache in which nothing is known."""
        config, device = self.model.config, self.model.worst_return.device
        shape = (rows, config.heads, config.context, config.width // config.heads)
        # Kept for steps outside of an `inference_mode`, too.
        with torch.inference_mode(mode=False):
            state = self.model.initial(rows)
            return Cache(
                state["latents"],
                state["actions"],
                state["length"],
                [torch.zeros(shape, device=device) for _ in self._blocks],
                [torch.zeros(shape, device=device) for _ in self._blocks],
            )


class Tokens:
    """The mixture of latents and actions for inference, with positions.

    Args:
        model: the model whose weights are used.
        packing: arrangement of the products.
    """

    def __init__(self, model: STORM, packing: Packing) -> None:
        self.mix = PackedMixture(model.transformer.mix, model.latent, packing)
        self.norm = packing.chain([model.transformer.norm])
        self.position = model.transformer.position.detach()

    def __call__(self, latents: Tensor, actions: Tensor, place: Tensor | None = None) -> Tensor:
        """Return tokens (B, T, width).

        Args:
            latents: (B, T, stoch) classes.
            actions: (B, T, A) encoded.
            place: (B,) position of a single token; None if the first has the first position.
        """
        mixed = self.mix(latents, actions)
        if place is None:
            return self.norm(mixed + self.position[: mixed.shape[1]])
        return self.norm(mixed + self.position[place].unsqueeze(1))


class FastBlock(PackedBlock):
    """`Block` for inference."""

    def newest(
        self, x: Tensor, query: Tensor, known: tuple[Tensor, Tensor], place: Tensor
    ) -> Tensor:
        """Return the outputs (B, width) of single tokens.

        Args:
            x: (B, width) inputs of the tokens.
            query: (B, heads, 1, width / heads) their queries.
            known: keys and values (B, heads, T, width / heads) of the tokens up to them, and of
                others after them.
            place: (B,) places of the tokens.
        """
        later = torch.arange(known[0].shape[2], device=x.device) > place.unsqueeze(1)
        bias = torch.zeros_like(later, dtype=query.dtype).masked_fill(later, -torch.inf)
        mixed = attend_once(query, *known, bias[:, None, None])
        return self.finish(x, mixed.flatten(1))
