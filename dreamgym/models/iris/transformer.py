"""A causal transformer over tokens and actions, one step of which draws several tokens.

The layers are those of GPT, with learnt positions and norms before attention and MLP, as in IRIS.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.models.base import Temperature
from dreamgym.models.iris.config import TransformerConfig
from dreamgym.models.nn.distributions import categorical, per_row
from dreamgym.models.nn.layers import LayerNorm, Linear, at_least_float32
from dreamgym.models.nn.objective import RewardObjective
from dreamgym.models.nn.reward_head import RewardHead
from dreamgym.models.nn.windows import at

INITIAL_STD = 0.02
"""Standard deviation of all weights at first, as in GPT."""

Pair = tuple[Tensor, Tensor]
"""Keys and values of a block, (B, heads, T, width / heads) each."""


class Known(NamedTuple):
    """What a step has computed of the entries before those that it adds.

    Attributes:
        pairs: keys and values of each block, of T places.
        seen: (B, T) bool, which of these places count.
        missing: (B, n) bool, which of the first entries that the step adds do not exist, because
            the sequence of that row begins after them; None if all do.
    """

    pairs: list[Pair]
    seen: Tensor
    missing: Tensor | None = None


class BlockForm(Protocol):
    """What the functions of this module need of a block, plain or packed."""

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values (B, heads, T, width / heads) of x (B, T, width)."""
        ...

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Return the outputs (B, T, width) for inputs x, and mixed values as `project` has them."""
        ...


class Block(nn.Module):
    """Causal self-attention and an MLP, both pre-norm and residual."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, self.heads, self.dropout = config.width, config.heads, config.dropout
        self.norm_attention, self.norm_mlp = LayerNorm(width), LayerNorm(width)
        self.joint, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = nn.Dropout(config.dropout)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `BlockForm.project`."""
        joint = self.joint(self.norm_attention(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = joint.permute(2, 0, 3, 1, 4)
        return query, key, value

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """See `BlockForm.finish`."""
        x = x + self.drop(self.out(mixed.transpose(1, 2).flatten(2)))
        return x + self.drop(self.narrow(F.gelu(self.widen(self.norm_mlp(x)))))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to x (B, T, width)."""
        query, key, value = self.project(x)
        rate = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, None, rate, is_causal=True)
        return self.finish(x, mixed)


def look_back(blocks: Sequence[BlockForm], x: Tensor) -> tuple[Tensor, list[Pair]]:
    """Return the blocks' outputs (B, T, width) for x (B, T, width), and all keys and values."""
    pairs = []
    for block in blocks:
        query, key, value = block.project(x)
        pairs.append((key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = block.finish(x, mixed)
    return x, pairs


def extend(
    blocks: Sequence[BlockForm], x: Tensor, known: Known, added: list[Pair] | None
) -> tuple[Tensor, list[Pair]]:
    """Apply the blocks to entries that come after known ones.

    Args:
        blocks: the blocks.
        x: (B, T, width) entries to add.
        known: what they attend to, each row its own places.
        added: keys and values that were added before in this step, which they attend to as well;
            None if there are none.

    Returns:
        The blocks' outputs (B, T, width), and all keys and values that were added in this step.
    """
    before = 0 if added is None else added[0][0].shape[2]
    hidden, later = ~known.seen[:, None, None], _later(x, before, known.missing)
    pairs = []
    for index, block in enumerate(blocks):
        query, key, value = block.project(x)
        if added is not None:
            key, value = (
                torch.cat(parts, 2) for parts in zip(added[index], (key, value), strict=True)
            )
        pairs.append((key, value))
        # Attention to both parts, without a copy of the known one, which is much the larger.
        keys, values = known.pairs[index]
        query = query * query.shape[-1] ** -0.5
        scores = [
            (query @ keys.mT).masked_fill(hidden, -torch.inf),
            (query @ key.mT).masked_fill(later, -torch.inf),
        ]
        weights = torch.cat(scores, -1).softmax(-1)
        count = keys.shape[2]
        mixed = weights[..., :count] @ values + weights[..., count:] @ value
        x = block.finish(x, mixed)
    return x, pairs


def _later(x: Tensor, before: int, missing: Tensor | None) -> Tensor:
    """Return which of a step's entries (B or 1, 1, T, before + T) the last T do not attend to.

    Args:
        x: (B, T, width) these entries.
        before: entries of the step before them.
        missing: see `Known`.
    """
    entries, total = x.shape[1], before + x.shape[1]
    later = torch.ones(entries, total, dtype=torch.bool, device=x.device).triu(before + 1)
    if missing is None:
        return later[None, None]
    # A missing one sees itself, since a softmax over nothing is not a number.
    itself = torch.eye(total, dtype=torch.bool, device=x.device)[before:]
    absent = F.pad(missing, (0, total - missing.shape[1]))[:, None, None] & ~itself
    return later | absent


class TokenTransformer(nn.Module):
    """The transformer with its embeddings, and heads for tokens, reward and termination.

    Args:
        codes: number of different tokens.
        action: width of an encoded action.
        places: entries of the longest sequence.
        config: sizes.
        objective: units of the rewards.
    """

    def __init__(
        self,
        codes: int,
        action: int,
        places: int,
        config: TransformerConfig,
        objective: RewardObjective,
    ) -> None:
        super().__init__()
        width = config.width
        self.position = nn.Parameter(INITIAL_STD * torch.randn(places, width))
        self.embed_token = nn.Embedding(codes, width)
        self.embed_action = nn.Linear(action, width, bias=False)
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.norm = LayerNorm(width)
        self.token, self.termination = head(width, codes), head(width, 2)
        self.apply(_initialise)
        reward = head(width, objective.reward_outputs).apply(_initialise)
        self.reward = RewardHead(reward, objective)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (B, T, width) for embedded entries (B, T, width) from the first on."""
        x = self.drop(x + self.position[: x.shape[1]])
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    @property
    def layers(self) -> list[Block]:
        """The blocks."""
        return list(self.blocks)  # type: ignore[arg-type]

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the embeddings (..., width) of tokens (...)."""
        return self.embed_token(tokens.long())

    def logits(self, h: Tensor) -> Tensor:
        """Return the logits (..., codes) of the next token from an output (..., width)."""
        return self.token(h)

    def outcome(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Return reward and probability of termination (B,) from an action's output (B, width)."""
        return self.reward.predict(h), self.termination(h).softmax(-1)[..., 1]


def head(width: int, outputs: int) -> nn.Sequential:
    """Return a head with one hidden layer."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), Linear(width, outputs))


class TokenNet(Protocol):
    """What a step needs of a transformer, plain or packed; see `TokenTransformer`."""

    @property
    def layers(self) -> Sequence[BlockForm]:
        """The blocks."""
        ...

    @property
    def position(self) -> Tensor:
        """Positions (places, width), which are added to entries."""
        ...

    @property
    def norm(self) -> Callable[[Tensor], Tensor]:
        """The norm of the outputs."""
        ...

    def embed(self, tokens: Tensor) -> Tensor:
        """See `TokenTransformer.embed`."""
        ...

    def logits(self, h: Tensor) -> Tensor:
        """See `TokenTransformer.logits`."""
        ...


def start(net: TokenNet, x: Tensor, place: Tensor) -> tuple[Tensor, Known]:
    """Compute a step's newest output from all entries.

    Args:
        net: the transformer.
        x: (B, T, width) embedded entries; those after a row's newest one do not count.
        place: (B,) place of the newest one.

    Returns:
        The output (B, width) there, and what later entries attend to.
    """
    x, pairs = look_back(net.layers, x + net.position[: x.shape[1]])
    places = torch.arange(x.shape[1], device=x.device)
    return net.norm(at(x, place)), Known(pairs, places <= place.unsqueeze(1))


def add(
    net: TokenNet, x: Tensor, places: Tensor, known: Known, added: list[Pair] | None
) -> tuple[Tensor, list[Pair]]:
    """Add entries to a step.

    Args:
        net: the transformer.
        x: (B, T, width) embedded entries.
        places: (B, T) their places.
        known: what they attend to.
        added: keys and values of the step so far, which they attend to as well; None if there are
            none.

    Returns:
        The output (B, width) of the last of them, and all keys and values of the step.
    """
    x, pairs = extend(net.layers, x + net.position[places], known, added)
    return net.norm(x[:, -1]), pairs


def draw_tokens(
    net: TokenNet,
    newest: tuple[Tensor, Tensor],
    before: tuple[Known, list[Pair] | None],
    sampling: tuple[Tensor, Temperature],
) -> tuple[Tensor, list[Pair]]:
    """Draw tokens one after another, each from the output of the one before.

    Args:
        net: the transformer.
        newest: output (B, width) from which the first token is drawn, and its place (B,).
        before: what the tokens attend to, and keys and values of the step so far, if any.
        sampling: uniforms (B, tokens), and the temperature that divides the logits.

    Returns:
        The tokens (B, tokens), and all keys and values of the step, those of the last token not
        among them.
    """
    (h, place), (known, added), (noise, temperature) = newest, before, sampling
    tokens: list[Tensor] = []
    for k in range(noise.shape[1]):
        if tokens:
            entry, there = net.embed(tokens[-1]).unsqueeze(1), (place + k).unsqueeze(1)
            h, added = add(net, entry, there, known, added)
        logits = at_least_float32(net.logits(h))
        tokens.append(categorical(logits / per_row(temperature, logits), noise[:, k]))
    return torch.stack(tokens, 1), added or []


def _initialise(module: nn.Module) -> None:
    """Initialise a layer as GPT does."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INITIAL_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
