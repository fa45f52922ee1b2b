"""LeWM's predictor arranged for speed: the same function as `jepa_predictor` has.

Only what follows the newest frame is asked for. What is done otherwise: norms' weights are in the
matrices behind them, and batch norm in the one before it; the last block's queries, MLP and
everything behind it are for the newest frame alone; attention over a few frames is written out,
with time first, so that a frame is one piece of memory; the oldest frame, which attends to itself,
needs no query; and on a CPU rows go through some at a time. Nothing is kept from step to step:
frames move on by one position in every step, and so their keys and values change; and what depends
on an action alone is as quickly computed again as kept.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.models.base import Prediction, State, Temperature
from dreamgym.models.host_sync import host_sync_allowed
from dreamgym.models.jepa.model import GROUNDING, JEPA
from dreamgym.models.jepa.modules import ActionEmbedding, Block, Probe, Projector
from dreamgym.models.nn.distributions import is_one, per_row, quick_normal
from dreamgym.models.nn.packed import Layer, Packing, model_device
from dreamgym.models.observations import join_parts

LONGEST_WRITTEN_OUT = 4

"""Frames over which written-out attention is faster than the library's."""


FRAMES_AT_ONCE = 384

"""On a CPU: as many as its cache holds."""


class FastPredictor:
    """The predictor between the embedding of actions and the projection of what it predicts.

    Args:
        model: whose weights to take.
        packing: of the products.
    """

    def __init__(self, model: JEPA, packing: Packing) -> None:
        config, predictor = model.config, model.predictor
        self.context = config.context
        self.written_out = packing.device.type == "cpu" and self.context <= LONGEST_WRITTEN_OUT
        self.rows = packing.rows
        if packing.device.type == "cpu":
            self.rows = min(packing.rows, max(1, FRAMES_AT_ONCE // self.context))
        one = packing._replace(rows=self.rows)
        every = packing._replace(rows=self.rows * self.context)
        self.position = predictor.position.detach()
        blocks: list[Block] = list(predictor.blocks)  # type: ignore[arg-type]
        self.condition = _condition(model.embed_action, every)
        self.blocks = [FastBlock(block, every, self.written_out) for block in blocks[:-1]]
        self.last = LastBlock(blocks[-1], one, every, self.written_out)
        self.finish = projection(model.project_prediction, one, predictor.norm)
        self.norm_eps = predictor.norm.eps
        index = torch.arange(self.context, device=packing.device)
        self.causal, self.own = index <= index.unsqueeze(1), index == index.unsqueeze(1)

    def __call__(self, embeddings: Tensor, actions: Tensor, seen: Tensor) -> Tensor:
        """The projected output (B, width) for the newest frame.

        Args:
            embeddings: (B, context, width).
            actions: (B, context, A) standardised, that leave these frames.
            seen: (B, context) bool, as in `Predictor.forward`; the newest is true.
        """
        leaves = (embeddings.transpose(0, 1), actions.transpose(0, 1), seen.transpose(0, 1))
        if self.rows >= len(embeddings):
            return self.some(*leaves, mask=self._mask(leaves[-1]))
        cut = zip(*(leaf.split(self.rows, 1) for leaf in leaves), strict=True)
        return torch.cat([self.some(e, a, s, self._mask(s)) for e, a, s in cut])

    def some(
        self, embeddings: Tensor, actions: Tensor, seen: Tensor, mask: Tensor | None
    ) -> Tensor:
        """The same of (T, B, ...) and what is added to scores; asks the device nothing."""
        condition = self.condition(actions)
        places = (seen.cumsum(0) - 1).clamp_(min=0)
        x = embeddings + self.position[places]
        for block in self.blocks:
            x = block(x, condition, mask)
        x = self.last(x, condition, mask)
        return self.finish(F.layer_norm(x, x.shape[-1:], eps=self.norm_eps))

    def _mask(self, seen: Tensor) -> Tensor | None:
        """What is added to scores, (T, T, B), or None: written out, attention never looks ahead."""
        if self.written_out and host_sync_allowed(seen.device) and bool(seen.all()):
            return None
        allowed = (self.causal.unsqueeze(-1) & seen) | self.own.unsqueeze(-1)
        return torch.zeros_like(allowed, dtype=torch.float32).masked_fill_(~allowed, -torch.inf)


class FastBlock:
    """`Block` on all frames.

    Args:
        block: whose weights to take.
        packing: of products over all frames.
        written_out: whether attention is.
    """

    def __init__(self, block: Block, packing: Packing, written_out: bool) -> None:
        self.heads, self.written_out = block.attention.heads, written_out
        self.modulate = packing.linear(*_modulation(block))
        weight, bias = _joint(block)
        inner, out = len(weight) // 3, block.attention.out
        self.query = packing.linear(weight[:inner], bias[:inner])
        self.key_value = packing.linear(weight[inner:], bias[inner:])
        self.out = packing.linear(out.weight, out.bias)
        # The oldest frame sees itself alone: for it, values and output are one matrix.
        value, value_bias = weight[2 * inner :], bias[2 * inner :]
        own_bias = torch.addmv(out.bias, out.weight, value_bias)
        self.oldest = packing.linear(out.weight @ value, own_bias)
        self.mlp = _mlp(block, packing)
        self.norms = _Norms(block)

    def __call__(self, x: Tensor, condition: Tensor, mask: Tensor | None) -> Tensor:
        """One block on (T, B, width), and a condition of the same shape."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.modulate(condition).chunk(6, -1)
        mixed = self._attend(self.norms.before_attention(x, shift, scale), mask)
        x = torch.addcmul(x, gate, mixed)
        mlp = self.mlp(self.norms.before_mlp(x, shift_mlp, scale_mlp))
        return torch.addcmul(x, gate_mlp, mlp)

    def _attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attention, (T, B, width) of the same."""
        if self.written_out and len(x) == 1:
            return self.oldest(x)
        key, value = self.key_value(x).unflatten(-1, (2, self.heads, -1)).unbind(2)
        query = self.query(x[1:] if self.written_out else x).unflatten(-1, (self.heads, -1))
        if not self.written_out:
            return self.out(_by_kernel(query, key, value, mask).flatten(2))
        mixed = torch.empty(query.shape, device=x.device)
        for k in range(1, len(x)):
            some = None if mask is None else mask[k, : k + 1]
            _write_out(mixed[k - 1], query[k - 1], key[: k + 1], value[: k + 1], some)
        return torch.cat([self.oldest(x[:1]), self.out(mixed.flatten(2))])


class LastBlock:
    """`Block` of which only the newest frame is wanted.

    Args:
        block: whose weights to take.
        one: packing of products over the newest frames.
        every: packing of products over all frames.
        written_out: whether attention is.
    """

    def __init__(self, block: Block, one: Packing, every: Packing, written_out: bool) -> None:
        self.heads, self.written_out = block.attention.heads, written_out
        weight, bias = _modulation(block)
        two = len(weight) // 3  # shift and scale of every frame, all else of the newest
        self.modulate = every.linear(weight[:two], bias[:two])
        self.modulate_newest = one.linear(weight[two:], bias[two:])
        weight, bias = _joint(block)
        inner = len(weight) // 3
        self.query = one.linear(weight[:inner], bias[:inner])
        self.key_value = every.linear(weight[inner:], bias[inner:])
        self.out = one.linear(block.attention.out.weight, block.attention.out.bias)
        self.mlp = _mlp(block, one)
        self.norms = _Norms(block)

    def __call__(self, x: Tensor, condition: Tensor, mask: Tensor | None) -> Tensor:
        """The newest frame (B, width), of frames and conditions (T, B, width)."""
        shift, scale = self.modulate(condition).chunk(2, -1)
        gate, shift_mlp, scale_mlp, gate_mlp = self.modulate_newest(condition[-1]).chunk(4, -1)
        normed = self.norms.before_attention(x, shift, scale)
        query = self.query(normed[-1]).unflatten(-1, (self.heads, -1))
        key, value = self.key_value(normed).unflatten(-1, (2, self.heads, -1)).unbind(2)
        mask = None if mask is None else mask[-1]
        if self.written_out:
            mixed = torch.empty_like(query)
            _write_out(mixed, query, key, value, mask)
        else:
            whole = None if mask is None else mask.unsqueeze(0)
            mixed = _by_kernel(query.unsqueeze(0), key, value, whole)[0]
        x = torch.addcmul(x[-1], gate, self.out(mixed.flatten(1)))
        return torch.addcmul(x, gate_mlp, self.mlp(self.norms.before_mlp(x, shift_mlp, scale_mlp)))


class _Norms:
    """A block's norms without the weights that the matrices behind them have taken over."""

    def __init__(self, block: Block) -> None:
        self.attention = block.norm_attention.eps, block.attention.norm.eps
        self.mlp = block.norm_mlp.eps, block.mlp[0].eps

    def before_attention(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return _modulated(x, shift, scale, self.attention)

    def before_mlp(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return _modulated(x, shift, scale, self.mlp)  # type: ignore[arg-type]


def _modulated(x: Tensor, shift: Tensor, scale: Tensor, eps: tuple[float, float]) -> Tensor:
    width = x.shape[-1:]
    x = torch.addcmul(shift, F.layer_norm(x, width, eps=eps[0]), scale)
    return F.layer_norm(x, width, eps=eps[1])


def _write_out(out: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
    """Attention of one query over T frames, into `out`.

    Args:
        out: (B, heads, width).
        query: likewise.
        key: (T, B, heads, width).
        value: likewise.
        mask: (T, B) or None, added to the scores.
    """
    scores = (query * key).sum(-1, keepdim=True)
    if mask is not None:
        scores += mask.unsqueeze(-1).unsqueeze(-1)
    share = scores.softmax(0)
    torch.mul(share[0], value[0], out=out)
    for k in range(1, len(value)):
        out.addcmul_(share[k], value[k])


def _by_kernel(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """The library's attention on (T, B, heads, width); the scale is in the queries."""
    query, key, value = (leaf.permute(1, 2, 0, 3) for leaf in (query, key, value))
    mask = None if mask is None else mask.permute(2, 0, 1).unsqueeze(1)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1.0)
    return mixed.permute(2, 0, 1, 3)


def _condition(embed: ActionEmbedding, packing: Packing) -> Layer:
    """The embedding of actions (N, A), as the modulations see it: (N, width).

    Its convolution over one step and the layer behind it are one matrix.
    """
    first, second = embed.embed[0], embed.embed[2]
    smooth = embed.smooth.weight.squeeze(-1)
    weight = first.weight @ smooth  # type: ignore[operator]
    bias = torch.addmv(first.bias, first.weight, embed.smooth.bias)  # type: ignore[arg-type]
    widen = packing.linear(weight, bias)
    narrow = packing.linear(second.weight, second.bias)  # type: ignore[arg-type]
    return lambda actions: F.silu(narrow(F.silu(widen(actions))))


def _modulation(block: Block) -> tuple[Tensor, Tensor]:
    """Weight and bias of a block's modulation; one is added to every scale."""
    bias = block.modulation.bias.detach().unflatten(0, (6, -1)).clone()
    bias[[1, 4]] += 1.0
    return block.modulation.weight, bias.flatten()


def _joint(block: Block) -> tuple[Tensor, Tensor]:
    """Queries, keys and values behind a norm without weights; the scale is in the queries."""
    attention = block.attention
    weight, bias = behind_norm(attention.joint, attention.norm)
    inner = len(weight) // 3
    factor = torch.ones(len(weight), 1, device=weight.device)
    factor[:inner] = (inner // attention.heads) ** -0.5
    return weight * factor, bias * factor.squeeze(1)


def _mlp(block: Block, packing: Packing) -> Layer:
    """A block's MLP behind a norm without weights."""
    norm, widen, _, _, narrow, _ = block.mlp
    up = packing.product(*behind_norm(widen, norm))  # type: ignore[arg-type]
    down = packing.linear(narrow.weight, narrow.bias)  # type: ignore[arg-type]
    return lambda x: down(F.gelu(up(x)))


def behind_norm(linear: nn.Linear, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of the same layer behind the same norm without weights."""
    weight = linear.weight.detach() * norm.weight.detach()
    bias = linear.weight.detach() @ norm.bias.detach()
    return weight, bias if linear.bias is None else bias + linear.bias.detach()


def projection(projector: Projector, packing: Packing, norm: nn.LayerNorm | None = None) -> Layer:
    """A `Projector` in eval mode, whose batch norm is in the matrix before it.

    Args:
        projector: whose weights to take.
        packing: of the products.
        norm: the norm before it, if it is to be left without weights.
    """
    linear, batch = projector.inwards, projector.norm
    weight, bias = (linear.weight, linear.bias) if norm is None else behind_norm(linear, norm)
    scale = batch.weight * torch.rsqrt(batch.running_var + batch.eps)  # type: ignore[arg-type, operator]
    shift = batch.bias - batch.running_mean * scale  # type: ignore[operator]
    up = packing.product(scale.unsqueeze(1) * weight, scale * bias + shift)
    down = packing.linear(projector.outwards.weight, projector.outwards.bias)
    return lambda x: down(F.gelu(up(x)))


class FastJEPA(JEPA):
    """A JEPA for inference with a fixed number of rows; see `JEPA.prepare`.

    Args:
        model: whose weights to take; they are shared where nothing is rearranged.
        packing: rows of every step, and the products' dtype and device.
    """

    def __init__(self, model: JEPA, num_envs: int, dtype: torch.dtype) -> None:
        packing = Packing(num_envs, dtype, model_device(model))
        super(JEPA, self).__init__(model.observation_space, model.action_space, model.config)
        self.feature_dim, self.noise_dim = model.feature_dim, model.noise_dim
        for name in ("inverse", "probe", "target"):
            setattr(self, name, None)
        for name, part in model.named_children():
            setattr(self, name, part)
        for name, buffer in model.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        if self.probe is not None and self.probe.whole:
            self.decode = self._decode
        self._predict = FastPredictor(model, packing)
        self._kept = None if self.carrier is None else self.carrier.persistence
        self._certain = not bool(model.residual.any())
        self._judge = packing.chain(model.heads)
        self._probed = Probed(model, packing) if model.probe and model.senses.sizes else None
        self.eval()

    def step(
        self, state: State, action: Tensor, noise: Tensor, temperature: Temperature = 1.0
    ) -> tuple[State, Prediction]:
        """See `WorldModel.step`."""
        encoded = self.encode_action(action)
        old = state["embeddings"][:, -1]
        free = new = self._expected(state, encoded)
        if not self._certain:
            spread = self.residual
            if not is_one(temperature):
                spread = spread * per_row(temperature, old) ** 0.5
            free = new = torch.addcmul(free, spread, quick_normal(noise))
        unknown = None
        if self._probed is not None:
            new, unknown = self._probed(free)
        reward, termination = self._judge(torch.cat([new, new - old, encoded], -1)).unbind(-1)
        reward, termination = reward * self.reward_std + self.reward_mean, termination.sigmoid()
        if unknown is not None:
            reward = torch.where(unknown, self.worst_return, reward)
            termination = torch.where(unknown, 1.0, termination)
        prediction = Prediction(reward, termination, torch.zeros_like(reward))
        return self._move(state, encoded, new, self._still_unread(state)), prediction

    def _still_unread(self, state: State) -> Tensor | None:
        """See `JEPA._still_unread`."""
        return None if self._kept is None else state["unread"] * self._kept

    def _expected(self, state: State, encoded: Tensor) -> Tensor:
        """The expected next embedding (B, D) after an encoded action (B, A)."""
        actions = torch.cat([state["actions"][:, 1:], encoded.unsqueeze(1)], 1)
        seen = F.pad(state["seen"][:, :-1] > 0.5, (0, 1), value=True)
        projected = self._predict(state["embeddings"], actions, seen)
        if self.config.predicts == "change":
            return state["embeddings"][:, -1] + projected
        return projected


class Probed:
    """What the probe of a JEPA with vectors has to say of a predicted embedding.

    Args:
        model: whose weights to take.
        packing: of the products.
    """

    def __init__(self, model: JEPA, packing: Packing) -> None:
        if not isinstance(model.probe, Probe):
            raise ValueError("this JEPA has no probe; give probe='vectors' or 'all'")
        self.probe, self.senses, self.margin = model.probe, model.senses, model.config.range_margin
        linear, (widen, _, narrow) = self.probe.linear, self.probe.bent
        self.size = linear.out_features
        weight = torch.cat([linear.weight, widen.weight])  # type: ignore[list-item]
        self.first = packing.linear(weight, torch.cat([linear.bias, widen.bias]))  # type: ignore[list-item]
        self.narrow = packing.linear(narrow.weight, None)  # type: ignore[arg-type]
        self.grounds = not self.senses.image_keys
        if self.grounds:
            self.encode = packing.chain(model.senses.encode_vectors)
            self.project = projection(model.projector, packing)

    def __call__(self, free: Tensor) -> tuple[Tensor, Tensor]:
        """The embeddings (B, D) pulled to those of observations, and where (B,) they left them."""
        read = self._read(free)
        unknown = self.probe.outside(read, self.margin)
        if not self.grounds:
            return free, unknown
        once = self._embed(read)
        near = 2.0 * once - self._embed(self._read(once))
        return free + GROUNDING * (near - free), unknown

    def _read(self, embeddings: Tensor) -> Tensor:
        straight, bent = self.first(embeddings).tensor_split((self.size,), -1)
        return straight + self.narrow(F.silu(bent))

    def _embed(self, vectors: Tensor) -> Tensor:
        """The embedding of the observation that vectors (B, n) stand for."""
        seen = self.senses.standard(join_parts(self.probe.shown(vectors)))
        return self.project(self.encode(seen))
