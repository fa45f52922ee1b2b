"""The step of IRIS's families arranged for speed: the same function as `TokenModel.step`.

On a CPU keys and values are kept from step to step, in this form and not in the state. With them it
keeps what they were computed from, and compares it with the state's: a row that was reset, or
whose window has lost its older half, is recomputed, and the state alone decides the result.

Which rows those are is known only after a host sync. So on other devices, and in compiled code, a
step computes the whole window once, and then its own entries with the keys and values of that.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamgym.models.base import Prediction, State, Temperature, model_device
from dreamgym.models.fast import FastForm
from dreamgym.models.host_sync import host_sync_allowed
from dreamgym.models.iris.token_model import TokenModel
from dreamgym.models.iris.transformer import (
    Block,
    Known,
    Pair,
    TokenTransformer,
    add,
    draw_tokens,
    look_back,
    start,
)
from dreamgym.models.nn.packed import Packing


class Cache(NamedTuple):
    """Keys and values of B rows, and what they were computed from.

    Attributes:
        content: (B, frames, n) of the state after the last step; see `TokenModel.content`.
        entries: (B,) int64, entries whose keys and values are known.
        pairs: keys and values of each block, (B, heads, T, width / heads) each.
    """

    content: Tensor
    entries: Tensor
    pairs: list[Pair]


class FastTokenModel(FastForm):
    """A model of IRIS's families for inference; see `WorldModel.prepare`.

    Args:
        model: the model to arrange.
        num_envs: rows of every step.
        dtype: dtype of the matrix products.
    """

    model: TokenModel

    def __init__(self, model: TokenModel, num_envs: int, dtype: torch.dtype) -> None:
        super().__init__(model)
        packing = Packing(num_envs, dtype, model_device(model))
        self._net = PackedTransformer(model.transformer, packing)
        self._cache: Cache | None = None

    def step(
        self, state: State, action: Tensor, noise: Tensor, temperature: Temperature = 1.0
    ) -> tuple[State, Prediction]:
        """See `WorldModel.step`."""
        model, net, sampling = self.model, self._net, (noise, temperature)
        window = model.acted(state, action)
        entries, place = model.entries(window)
        differentiates = torch.is_grad_enabled() and entries.requires_grad
        if host_sync_allowed(place.device) and not differentiates:
            places = place.unsqueeze(1) - torch.arange(model.pending - 1, -1, -1)
            first = places[:, 0]
            cache = self._matching(window, entries, first)
            known = _known(cache, places)
            index = places.clamp(min=0).unsqueeze(-1).expand(-1, -1, entries.shape[-1])
            h, added = add(net, entries.gather(1, index), places, known, None)
            tokens, added = draw_tokens(net, (h, place), (known, added), sampling)
            following = model.arrive(window, tokens)
            self._keep(cache, added, first, following, window)
        else:
            h, known = start(net, entries, place)
            tokens, _ = draw_tokens(net, (h, place), (known, None), sampling)
            following = model.arrive(window, tokens)
        reward, termination = net.outcome(h)
        return following, Prediction(reward, termination, torch.zeros_like(reward))

    def _matching(self, window: State, entries: Tensor, first: Tensor) -> Cache:
        """Return the cache, with keys and values of the entries before the first (B,) to add."""
        model, content = self.model, self.model.content(window)
        cache = self._cache
        if cache is None or len(cache.entries) != len(content):
            cache = self._cache = self._empty(content)
        block = torch.arange(content.shape[1]).view(-1, 1)
        number = torch.arange(content.shape[2])
        newest = (window["length"] - 1).view(-1, 1, 1)
        later = (block > newest) | ((block == newest) & (number >= model.held))
        same = ((cache.content == content) | later).flatten(1).all(1)
        stale = ~(same & (cache.entries >= first))
        if bool(stale.any()):
            self._fill(cache, entries, first, stale.nonzero().squeeze(1))
        return cache

    def _fill(self, cache: Cache, entries: Tensor, first: Tensor, rows: Tensor) -> None:
        """Recompute keys and values of some rows (R,)."""
        count = int(first[rows].max())
        if count <= 0:
            return
        x = entries[rows, :count] + self._net.position[:count]
        _, pairs = look_back(self._net.layers, x)
        for kept, new in zip(cache.pairs, pairs, strict=True):
            for leaf, values in zip(kept, new, strict=True):
                leaf[rows, :, :count] = values

    def _keep(
        self, cache: Cache, added: list[Pair], first: Tensor, following: State, window: State
    ) -> None:
        """Enter what a step has added into the cache, from the first (B,) entry on."""
        count = added[0][0].shape[2]
        rows = torch.arange(len(first)).unsqueeze(1)
        places = first.unsqueeze(1) + torch.arange(count)
        for kept, new in zip(cache.pairs, added, strict=True):
            for leaf, values in zip(kept, new, strict=True):
                leaf[rows, :, places] = values.transpose(1, 2)
        # A window that has lost its older half begins again at the first position.
        grown = following["length"] > window["length"]
        cache.entries.copy_(torch.where(grown, first + count, 0))
        cache.content.copy_(self.model.content(following))

    def _empty(self, content: Tensor) -> Cache:
        """Return a cache in which nothing is known."""
        net = self.model.transformer
        width, config = net.position.shape[1], self.model.config.transformer
        shape = (len(content), config.heads, len(net.position), width // config.heads)
        # Kept for steps outside of an `inference_mode`, too.
        with torch.inference_mode(mode=False):
            zeros = net.position.new_zeros
            pairs = [(zeros(shape), zeros(shape)) for _ in self._net.layers]
            entries = zeros(len(content), dtype=torch.int64)
            return Cache(zeros(content.shape), entries, pairs)


def _known(cache: Cache, places: Tensor) -> Known:
    """Return the keys and values of the entries before places (B, n); negative ones are missing."""
    count = max(0, int(places[:, 0].max()))
    pairs = [(keys[:, :, :count], values[:, :, :count]) for keys, values in cache.pairs]
    return Known(pairs, torch.arange(count) < places[:, :1], places < 0)


class PackedTransformer:
    """`TokenTransformer` for inference.

    Args:
        net: the transformer whose weights are used.
        packing: arrangement of the products.
    """

    def __init__(self, net: TokenTransformer, packing: Packing) -> None:
        self.layers = [PackedBlock(block, packing) for block in net.layers]
        self.position, self.table = net.position.detach(), net.embed_token.weight.detach()
        self.norm = packing.chain([net.norm])
        self.logits = packing.chain(net.token)
        self._reward, self._rewards = packing.chain(net.reward.net), net.reward
        self._termination = packing.chain(net.termination)

    def embed(self, tokens: Tensor) -> Tensor:
        """See `TokenTransformer.embed`."""
        return F.embedding(tokens.long(), self.table)

    def outcome(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """See `TokenTransformer.outcome`."""
        termination = self._termination(h).softmax(-1)[..., 1]
        return self._rewards.expected(self._reward(h)), termination


class PackedBlock:
    """`Block` for inference.

    Args:
        block: the block whose weights are used.
        packing: arrangement of the products.
    """

    def __init__(self, block: Block, packing: Packing) -> None:
        self.heads = block.heads
        self.joint = packing.chain([block.norm_attention, block.joint])
        self.out = packing.chain([block.out])
        self.mlp = packing.chain([block.norm_mlp, block.widen, torch.nn.GELU(), block.narrow])

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `BlockForm.project`."""
        joint = self.joint(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        query, key, value = joint.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return query, key, value

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """See `BlockForm.finish`."""
        flat = x.flatten(0, 1)
        flat = flat + self.out(mixed.transpose(1, 2).flatten(2).flatten(0, 1))
        return (flat + self.mlp(flat)).unflatten(0, x.shape[:2])
