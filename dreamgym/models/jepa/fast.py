"""A JEPA arranged for fast inference: the same function as `JEPA.step`.

Only the prediction after the newest frame is computed. What differs from the plain form:

- The affine weights of layer norms and batch norms are folded into the adjacent matrices.
- The last block computes queries, MLP and everything after it for the newest frame only.
- On a CPU, attention over few frames is unrolled, with time as the first dimension so that a frame
  is contiguous; and rows are processed in chunks whose activations fit into the cache.
- In unrolled attention the oldest frame attends only to itself, and needs no query.

Keys and values are not cached between single steps: frames move by one position in every step,
which changes them. They do not move while a window grows from its first frame, so `unroll` caches
them there. Embedded actions are as fast to recompute as to store.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.models.base import Prediction, State, Temperature, end_outside_data, model_device
from dreamgym.models.fast import FastForm
from dreamgym.models.host_sync import host_sync_allowed
from dreamgym.models.jepa.model import (
    CORRECTION,
    JEPA,
    PROBE_RESIDUAL,
    predictor_inputs,
    push_frame,
)
from dreamgym.models.jepa.modules import ActionEmbedding, Block, Probe, Projector
from dreamgym.models.nn.distributions import is_one, per_row, quick_normal
from dreamgym.models.nn.packed import Layer, Packing

MAX_UNROLLED_FRAMES = 4
"""Largest context for which unrolled attention is faster than the library's kernel."""

Kept = list[tuple[Tensor, Tensor]]
"""Keys and values (B, heads, width) of a block at each frame so far."""

FRAMES_PER_CHUNK = 1536
"""Frames that a CPU processes at a time, so that their activations stay in its cache."""


class FastJEPA(FastForm):
    """A JEPA for inference with a fixed number of rows; see `WorldModel.prepare`.

    Args:
        model: the model to arrange, on the device where it will run.
        num_envs: rows of every step.
        dtype: dtype of matrix products.
    """

    model: JEPA

    def __init__(self, model: JEPA, num_envs: int, dtype: torch.dtype) -> None:
        super().__init__(model)
        packing = Packing(num_envs, dtype, model_device(model))
        self._predictor = FastPredictor(model, packing)
        self._heads = packing.chain(model.heads)
        probe = model.probe
        self._probe = None
        if probe is not None and probe.vector_size:
            self._probe = FastProbe(model, probe, packing)
        residual_probe = model.residual_probe
        self._residual_ar1 = None if residual_probe is None else residual_probe.residual_ar1
        self._deterministic = not bool(model.residual.any())

    def step(
        self, state: State, action: Tensor, noise: Tensor, temperature: Temperature = 1.0
    ) -> tuple[State, Prediction]:
        """See `WorldModel.step`."""
        model = self.model
        encoded = model.encode_action(action)
        actions, seen = predictor_inputs(state, encoded)
        new = self._predictor(state["embeddings"], actions, seen)
        return self._following(state, encoded, new, noise, temperature)

    def unroll(
        self, state: State, actions: Tensor, noise: Tensor, temperature: Temperature = 1.0
    ) -> Iterator[tuple[State, Prediction]]:
        """See `WorldModel.unroll`.

        After the first observation of an episode, only the newest frame is computed in each step
        until the window is full.
        """
        length, growing = actions.shape[1], 0
        if host_sync_allowed(actions.device) and _has_one_frame(state["seen"]):
            growing = min(self._predictor.context, length)
        kept: list[list[Kept]] = self._predictor.nothing_kept(len(actions))
        for t in range(growing):
            encoded = self.model.encode_action(actions[:, t])
            new = self._predictor.extend(self.model.features(state), encoded, kept)
            state, prediction = self._following(state, encoded, new, noise[:, t], temperature)
            yield state, prediction
        del kept
        for t in range(growing, length):
            state, prediction = self.step(state, actions[:, t], noise[:, t], temperature)
            yield state, prediction

    def _following(
        self,
        state: State,
        encoded: Tensor,
        new: Tensor,
        noise: Tensor,
        temperature: Temperature,
    ) -> tuple[State, Prediction]:
        """Return the state and the prediction after a step.

        Args:
            state: the state before the step.
            encoded: (B, A) the encoded action.
            new: (B, D) the predictor's output.
            noise: (B, noise_dim).
            temperature: as in `step`.
        """
        model = self.model
        old = model.features(state)
        if model.config.predicts == "change":
            new = old + new
        if not self._deterministic:
            std = model.residual
            if not is_one(temperature):
                std = std * per_row(temperature, old) ** 0.5
            new = torch.addcmul(new, std, quick_normal(noise))
        outside = None
        if self._probe is not None:
            new, outside = self._probe(new)
        reward, logit = self._heads(torch.cat([new, new - old, encoded], -1)).unbind(-1)
        probe_residual = None
        if self._residual_ar1 is not None:
            probe_residual = state[PROBE_RESIDUAL] * self._residual_ar1
        state = push_frame(state, encoded, new, probe_residual)
        prediction = model.to_prediction(reward, logit)
        return state, end_outside_data(prediction, outside, model.worst_return)


class FastPredictor:
    """Action embedding, predictor and projection of its output, in one function.

    Args:
        model: the model whose weights are used.
        packing: rows of every step, dtype and device of the products.
    """

    def __init__(self, model: JEPA, packing: Packing) -> None:
        predictor = model.predictor
        on_cpu = packing.device.type == "cpu"
        self.context = model.config.context
        self.unrolled = on_cpu and self.context <= MAX_UNROLLED_FRAMES
        self.rows = packing.rows
        if on_cpu:
            self.rows = min(packing.rows, max(1, FRAMES_PER_CHUNK // self.context))
        self.rows_of_newest = self.rows * self.context
        """Rows of a chunk of which only the newest frame is computed."""
        newest = packing._replace(rows=self.rows)
        all_frames = packing._replace(rows=self.rows * self.context)
        self.position = predictor.position.detach()
        blocks = cast(list[Block], list(predictor.blocks))
        self.embed_action = _action_embedding(model.embed_action, all_frames)
        self.blocks = [FastBlock(block, all_frames, self.unrolled) for block in blocks[:-1]]
        self.last = LastBlock(blocks[-1], newest, all_frames, self.unrolled)
        self.project = _projector(model.project_prediction, newest, predictor.norm)
        self.norm_eps = predictor.norm.eps
        index = torch.arange(self.context, device=packing.device)
        self.causal, self.diagonal = index <= index.unsqueeze(1), index == index.unsqueeze(1)

    def __call__(self, embeddings: Tensor, actions: Tensor, seen: Tensor) -> Tensor:
        """Return the projected output (B, width) at the newest frame.

        Args:
            embeddings: (B, context, width).
            actions: (B, context, A) encoded actions taken at these frames.
            seen: (B, context) bool, as in `Predictor.forward`; true at the newest frame.
        """
        leaves = (embeddings.transpose(0, 1), actions.transpose(0, 1), seen.transpose(0, 1))
        if self.rows >= len(embeddings):
            return self._predict(*leaves)
        chunks = zip(*(leaf.split(self.rows, 1) for leaf in leaves), strict=True)
        return torch.cat([self._predict(*chunk) for chunk in chunks])

    def nothing_kept(self, rows: int) -> list[list[Kept]]:
        """Return what `extend` takes at the first frame, for each chunk of rows and each block."""
        chunks = -(-rows // self.rows_of_newest)
        return [[[] for _ in range(len(self.blocks) + 1)] for _ in range(chunks)]

    def extend(self, embedding: Tensor, action: Tensor, kept: list[list[Kept]]) -> Tensor:
        """Return the projected output (B, width) at the next frame of a growing window.

        Args:
            embedding: (B, width) the newest frame.
            action: (B, A) encoded action taken at this frame.
            kept: keys and values of the frames before; those of this one are added.
        """
        rows = self.rows_of_newest
        chunks = zip(embedding.split(rows), action.split(rows), kept, strict=True)
        return torch.cat([self._extend(*chunk) for chunk in chunks])

    def _extend(self, embedding: Tensor, action: Tensor, kept: list[Kept]) -> Tensor:
        condition = self.embed_action(action)
        x = embedding + self.position[len(kept[0])]
        blocks: list[FastBlock | LastBlock] = [*self.blocks, self.last]
        for block, of_block in zip(blocks, kept, strict=True):
            x = block.extend(x, condition, of_block)
        return self.project(F.layer_norm(x, x.shape[-1:], eps=self.norm_eps))

    def _predict(self, embeddings: Tensor, actions: Tensor, seen: Tensor) -> Tensor:
        """Compute the output for one chunk of rows, with leaves (T, B, ...)."""
        mask = self._score_mask(seen)
        condition = self.embed_action(actions)
        position = (seen.cumsum(0) - 1).clamp_(min=0)
        x = embeddings + self.position[position]
        for block in self.blocks:
            x = block(x, condition, mask)
        x = self.last(x, condition, mask)
        return self.project(F.layer_norm(x, x.shape[-1:], eps=self.norm_eps))

    def _score_mask(self, seen: Tensor) -> Tensor | None:
        """Return what is added to attention scores, (T, T, B): zero or minus infinity.

        None if unrolled attention, which is causal by itself, needs no mask.
        """
        if self.unrolled and host_sync_allowed(seen.device) and bool(seen.all()):
            return None
        allowed = (self.causal.unsqueeze(-1) & seen) | self.diagonal.unsqueeze(-1)
        return torch.zeros_like(allowed, dtype=torch.float32).masked_fill_(~allowed, -torch.inf)


class FastBlock:
    """`Block` on all frames.

    Args:
        block: the block whose weights are used.
        packing: packing of products over all frames.
        unrolled: whether attention is unrolled.
    """

    def __init__(self, block: Block, packing: Packing, unrolled: bool) -> None:
        self.heads, self.unrolled = block.attention.heads, unrolled
        self.modulate = packing.linear(*_modulation(block))
        weight, bias = _query_key_value(block)
        inner, out = len(weight) // 3, block.attention.out
        self.query = packing.linear(weight[:inner], bias[:inner])
        self.key_value = packing.linear(weight[inner:], bias[inner:])
        self.out = packing.linear(out.weight, out.bias)
        # The oldest frame attends only to itself: its value and output matrices become one.
        value, value_bias = weight[2 * inner :], bias[2 * inner :]
        oldest_bias = torch.addmv(out.bias, out.weight, value_bias)
        self.oldest = packing.linear(out.weight @ value, oldest_bias)
        self.mlp = _mlp(block, packing)
        self.norms = _ModulatedNorms(block)

    def __call__(self, x: Tensor, condition: Tensor, mask: Tensor | None) -> Tensor:
        """Apply the block to x and condition (T, B, width); mask (T, T, B) is added to scores."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.modulate(condition).chunk(6, -1)
        mixed = self._attend(self.norms.before_attention(x, shift, scale), mask)
        x = torch.addcmul(x, gate, mixed)
        mlp = self.mlp(self.norms.before_mlp(x, shift_mlp, scale_mlp))
        return torch.addcmul(x, gate_mlp, mlp)

    def extend(self, x: Tensor, condition: Tensor, kept: Kept) -> Tensor:
        """Apply the block to the newest frame (B, width); add its keys and values to `kept`."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.modulate(condition).chunk(6, -1)
        normed = self.norms.before_attention(x, shift, scale)
        kept.append(_heads(self.key_value(normed), self.heads))
        mixed = _attend_kept(self.query(normed).unflatten(-1, (self.heads, -1)), kept)
        x = torch.addcmul(x, gate, self.out(mixed))
        return torch.addcmul(x, gate_mlp, self.mlp(self.norms.before_mlp(x, shift_mlp, scale_mlp)))

    def _attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return the attention's output (T, B, width) on normalised frames of the same shape."""
        if self.unrolled and len(x) == 1:
            return self.oldest(x)
        key, value = self.key_value(x).unflatten(-1, (2, self.heads, -1)).unbind(2)
        query = self.query(x[1:] if self.unrolled else x).unflatten(-1, (self.heads, -1))
        if not self.unrolled:
            return self.out(_kernel_attention(query, key, value, mask).flatten(2))
        mixed = torch.empty(query.shape, device=x.device)
        for k in range(1, len(x)):
            own_mask = None if mask is None else mask[k, : k + 1]
            _unrolled_attention(mixed[k - 1], query[k - 1], key[: k + 1], value[: k + 1], own_mask)
        return torch.cat([self.oldest(x[:1]), self.out(mixed.flatten(2))])


class LastBlock:
    """`Block` for the newest frame only.

    Args:
        block: the block whose weights are used.
        newest: packing of products over the newest frames.
        all_frames: packing of products over all frames.
        unrolled: whether attention is unrolled.
    """

    def __init__(self, block: Block, newest: Packing, all_frames: Packing, unrolled: bool) -> None:
        self.heads, self.unrolled = block.attention.heads, unrolled
        weight, bias = _modulation(block)
        two = len(weight) // 3  # shift and scale for all frames, the rest for the newest
        self.modulate = all_frames.linear(weight[:two], bias[:two])
        self.modulate_newest = newest.linear(weight[two:], bias[two:])
        weight, bias = _query_key_value(block)
        inner = len(weight) // 3
        self.query = newest.linear(weight[:inner], bias[:inner])
        self.key_value = all_frames.linear(weight[inner:], bias[inner:])
        self.out = newest.linear(block.attention.out.weight, block.attention.out.bias)
        self.mlp = _mlp(block, newest)
        self.norms = _ModulatedNorms(block)

    def __call__(self, x: Tensor, condition: Tensor, mask: Tensor | None) -> Tensor:
        """Return the newest frame (B, width); arguments as for `FastBlock`."""
        shift, scale = self.modulate(condition).chunk(2, -1)
        gate, shift_mlp, scale_mlp, gate_mlp = self.modulate_newest(condition[-1]).chunk(4, -1)
        normed = self.norms.before_attention(x, shift, scale)
        query = self.query(normed[-1]).unflatten(-1, (self.heads, -1))
        key, value = self.key_value(normed).unflatten(-1, (2, self.heads, -1)).unbind(2)
        mask = None if mask is None else mask[-1]
        if self.unrolled:
            mixed = torch.empty_like(query)
            _unrolled_attention(mixed, query, key, value, mask)
        else:
            mask = None if mask is None else mask.unsqueeze(0)
            mixed = _kernel_attention(query.unsqueeze(0), key, value, mask)[0]
        x = torch.addcmul(x[-1], gate, self.out(mixed.flatten(1)))
        return torch.addcmul(x, gate_mlp, self.mlp(self.norms.before_mlp(x, shift_mlp, scale_mlp)))

    def extend(self, x: Tensor, condition: Tensor, kept: Kept) -> Tensor:
        """Apply the block to the newest frame (B, width); add its keys and values to `kept`."""
        shift, scale = self.modulate(condition).chunk(2, -1)
        gate, shift_mlp, scale_mlp, gate_mlp = self.modulate_newest(condition).chunk(4, -1)
        normed = self.norms.before_attention(x, shift, scale)
        kept.append(_heads(self.key_value(normed), self.heads))
        mixed = _attend_kept(self.query(normed).unflatten(-1, (self.heads, -1)), kept)
        x = torch.addcmul(x, gate, self.out(mixed))
        return torch.addcmul(x, gate_mlp, self.mlp(self.norms.before_mlp(x, shift_mlp, scale_mlp)))


class FastProbe:
    """What a step derives from a vector probe: the correction, and where the data's range is left.

    Args:
        model: the model whose weights are used.
        probe: its probe, which decodes vectors.
        packing: rows of every step, dtype and device of the products.
    """

    def __init__(self, model: JEPA, probe: Probe, packing: Packing) -> None:
        self.senses, self.margin = model.senses, model.config.range_margin
        linear, (widen, _, narrow) = probe.linear, probe.bent
        self.size = linear.out_features
        weight = torch.cat([linear.weight, widen.weight])  # type: ignore[list-item]
        self.first = packing.linear(weight, torch.cat([linear.bias, widen.bias]))  # type: ignore[list-item]
        self.narrow = packing.linear(narrow.weight, None)  # type: ignore[arg-type]
        self.corrects = not self.senses.image_keys
        if self.corrects:
            self.encode = packing.chain(model.senses.encode_vectors)
            self.project = _projector(model.projector, packing)

    def __call__(self, sampled: Tensor) -> tuple[Tensor, Tensor]:
        """Return corrected embeddings (B, D), and where (B,) `sampled` (B, D) leaves the range."""
        vectors = self._decode(sampled)
        outside = self.senses.outside_data(vectors, self.margin)
        if not self.corrects:
            return sampled, outside
        once = self._embed(vectors)
        on_manifold = 2.0 * once - self._embed(self._decode(once))
        return sampled + CORRECTION * (on_manifold - sampled), outside

    def _decode(self, embeddings: Tensor) -> Tensor:
        linear, hidden = self.first(embeddings).tensor_split((self.size,), -1)
        return linear + self.narrow(F.silu(hidden))

    def _embed(self, vectors: Tensor) -> Tensor:
        """Embed the observation of standardised vectors (B, n), within the space's bounds."""
        within = self.senses.standardise(self.senses.to_observation(vectors, []))
        return self.project(self.encode(within))


class _ModulatedNorms:
    """A block's norms, whose affine weights are folded into the matrices after them."""

    def __init__(self, block: Block) -> None:
        self.attention_eps = block.norm_attention.eps, block.attention.norm.eps
        self.mlp_eps = block.norm_mlp.eps, cast(nn.LayerNorm, block.mlp[0]).eps

    def before_attention(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return _modulated_norm(x, shift, scale, self.attention_eps)

    def before_mlp(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return _modulated_norm(x, shift, scale, self.mlp_eps)


def _modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, eps: tuple[float, float]) -> Tensor:
    width = x.shape[-1:]
    x = torch.addcmul(shift, F.layer_norm(x, width, eps=eps[0]), scale)
    return F.layer_norm(x, width, eps=eps[1])


def _unrolled_attention(
    out: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> None:
    """Write the attention of one query over T frames into `out`.

    Args:
        out: (B, heads, width).
        query: (B, heads, width), scaled.
        key: (T, B, heads, width).
        value: (T, B, heads, width).
        mask: (T, B), added to the scores; None adds nothing.
    """
    scores = (query * key).sum(-1, keepdim=True)
    if mask is not None:
        scores += mask.unsqueeze(-1).unsqueeze(-1)
    share = scores.softmax(0)
    torch.mul(share[0], value[0], out=out)
    for k in range(1, len(value)):
        out.addcmul_(share[k], value[k])


def _has_one_frame(seen: Tensor) -> bool:
    """Return whether the newest frame, and no other, is there in every row (B, context)."""
    frames = seen > 0.5
    return bool(frames[:, -1].all()) and not bool(frames[:, :-1].any())


def _heads(joint: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Split joint keys and values (B, 2 x heads x width) into two tensors (B, heads, width)."""
    key, value = joint.unflatten(-1, (2, heads, -1)).unbind(1)
    return key, value


def _attend_kept(query: Tensor, kept: Kept) -> Tensor:
    """Return the attention (B, heads x width) of one scaled query (B, heads, width) per row."""
    if len(kept) == 1:
        return kept[0][1].flatten(1)
    scores = torch.stack([(query * key).sum(-1, keepdim=True) for key, _ in kept])
    share = scores.softmax(0)
    mixed = share[0] * kept[0][1]
    for k in range(1, len(kept)):
        mixed.addcmul_(share[k], kept[k][1])
    return mixed.flatten(1)


def _kernel_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Apply the library's attention to (T, B, heads, width), with scaled queries."""
    query, key, value = (leaf.permute(1, 2, 0, 3) for leaf in (query, key, value))
    mask = None if mask is None else mask.permute(2, 0, 1).unsqueeze(1)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1.0)
    return mixed.permute(2, 0, 1, 3)


def _action_embedding(embed: ActionEmbedding, packing: Packing) -> Layer:
    """Arrange the embedding of actions, and the SiLU that every modulation applies to it.

    The convolution of kernel size one and the linear layer after it become one matrix.
    """
    first, second = cast(nn.Linear, embed.embed[0]), cast(nn.Linear, embed.embed[2])
    smooth_bias = cast(Tensor, embed.smooth.bias)
    weight = first.weight @ embed.smooth.weight.squeeze(-1)
    bias = torch.addmv(first.bias, first.weight, smooth_bias)
    widen = packing.linear(weight, bias)
    narrow = packing.linear(second.weight, second.bias)
    return lambda actions: F.silu(narrow(F.silu(widen(actions))))


def _modulation(block: Block) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a block's modulation, with one added to every scale."""
    bias = block.modulation.bias.detach().unflatten(0, (6, -1)).clone()
    bias[[1, 4]] += 1.0
    return block.modulation.weight, bias.flatten()


def _query_key_value(block: Block) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the joint projection: norm folded in, queries scaled."""
    attention = block.attention
    weight, bias = _fold_norm(attention.joint, attention.norm)
    inner = len(weight) // 3
    factor = torch.ones(len(weight), 1, device=weight.device)
    factor[:inner] = (inner // attention.heads) ** -0.5
    return weight * factor, bias * factor.squeeze(1)


def _mlp(block: Block, packing: Packing) -> Layer:
    """Arrange a block's MLP, with the affine weights of its norm folded in."""
    norm, widen, _, _, narrow, _ = block.mlp
    up = packing.product(*_fold_norm(widen, norm), gelu=True)  # type: ignore[arg-type]
    down = packing.linear(narrow.weight, narrow.bias)  # type: ignore[arg-type]
    return lambda x: down(up(x))


def _fold_norm(linear: nn.Linear, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a linear layer with the affine weights of the norm before it."""
    weight = linear.weight.detach() * norm.weight.detach()
    bias = linear.weight.detach() @ norm.bias.detach()
    return weight, bias if linear.bias is None else bias + linear.bias.detach()


def _projector(projector: Projector, packing: Packing, norm: nn.LayerNorm | None = None) -> Layer:
    """Arrange a `Projector` in eval mode, with its batch norm folded into its first matrix.

    Args:
        projector: the projector whose weights are used.
        packing: rows, dtype and device of the products.
        norm: a layer norm before it, whose affine weights are folded in too.
    """
    linear, batch = projector.inwards, projector.norm
    weight, bias = (linear.weight, linear.bias) if norm is None else _fold_norm(linear, norm)
    scale = batch.weight * torch.rsqrt(batch.running_var + batch.eps)  # type: ignore[arg-type, operator]
    shift = batch.bias - batch.running_mean * scale  # type: ignore[operator]
    up = packing.product(scale.unsqueeze(1) * weight, scale * bias + shift, gelu=True)
    down = packing.linear(projector.outwards.weight, projector.outwards.bias)
    return lambda x: down(up(x))
