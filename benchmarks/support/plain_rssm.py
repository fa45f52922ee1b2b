"""DreamerV3's world model in plain PyTorch, unrolled step by step.

The sizes, the losses and the parameters are those of `dreamgym`'s RSSM; what is taken together for
a whole segment there is taken step by step here, with torch's own distributions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Independent, OneHotCategoricalStraightThrough, kl_divergence

from dreamgym.models import RSSMConfig


def dense(inputs: int, layers: int, width: int, outputs: int | None = None) -> nn.Sequential:
    made: list[nn.Module] = []
    for _ in range(layers):
        made += [nn.Linear(inputs, width), nn.RMSNorm(width, eps=1e-4), nn.SiLU()]
        inputs = width
    return nn.Sequential(*made, *([nn.Linear(inputs, outputs)] if outputs else []))


class BlockLinear(nn.Module):
    """A block-diagonal layer."""

    def __init__(self, blocks: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(blocks, inputs, outputs) * inputs**-0.5)
        self.bias = nn.Parameter(torch.zeros(blocks, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, blocks, inputs) to (B, blocks, outputs)."""
        return torch.einsum("bgi,gio->bgo", x, self.weight) + self.bias


class BlockGRU(nn.Module):
    """The recurrent cell of DreamerV3."""

    def __init__(self, latent: int, action: int, config: RSSMConfig) -> None:
        super().__init__()
        deter, hidden, self.blocks = config.deter, config.hidden, config.blocks
        self.enter_h = dense(deter, 1, hidden)
        self.enter_z = dense(latent, 1, hidden)
        self.enter_action = dense(action, 1, hidden)
        own = deter // config.blocks
        self.mix = BlockLinear(config.blocks, own + 3 * hidden, own)
        self.norm = nn.RMSNorm(deter, eps=1e-4)
        self.gates = BlockLinear(config.blocks, own, 3 * own)

    def forward(self, h: Tensor, z: Tensor, action: Tensor) -> Tensor:
        """Return the next h."""
        action = action / action.abs().clamp(min=1.0)
        entered = torch.cat([self.enter_h(h), self.enter_z(z), self.enter_action(action)], -1)
        groups = entered.unsqueeze(1).expand(-1, self.blocks, -1)
        own = h.unflatten(-1, (self.blocks, -1))
        mixed = F.silu(self.norm(self.mix(torch.cat([own, groups], -1)).flatten(1)))
        reset, candidate, update = self.gates(mixed.unflatten(-1, (self.blocks, -1))).chunk(3, -1)
        reset, update = reset.flatten(1).sigmoid(), (update.flatten(1) - 1.0).sigmoid()
        candidate = (reset * candidate.flatten(1)).tanh()
        return update * candidate + (1.0 - update) * h


class PlainRSSM(nn.Module):
    """The plain RSSM, unrolled step by step.

    Args:
        encoder: from an observation (B, ...) to (B, embedded).
        decoder: from features to an observation.
        embedded: width.
        actions: numbers in an action.
        config: sizes.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        embedded: int,
        actions: int,
        config: RSSMConfig,
    ) -> None:
        super().__init__()
        self.config, size = config, config.stoch * config.classes
        features = config.deter + size
        self.encoder, self.decoder = encoder, decoder
        self.gru = BlockGRU(size, actions, config)
        self.prior = dense(config.deter, config.prior_layers, config.hidden, size)
        self.posterior = dense(config.deter + embedded, 1, config.hidden, size)
        self.reward = dense(features, config.head_layers, config.units, config.objective.bins)
        self.continuation = dense(features, config.head_layers, config.units, 1)
        half = torch.linspace(0.0, 20.0, config.objective.bins // 2 + 1).expm1()
        self.register_buffer("bins", torch.cat([-half.flip(0)[:-1], half]))

    def loss(self, seen: Tensor, actions: Tensor, rewards: Tensor, ended: Tensor) -> Tensor:
        """Return the loss of segments: seen (B, L + 1, ...), actions (B, L, A), others (B, L)."""
        batch, length = rewards.shape
        h = actions.new_zeros(batch, self.config.deter)
        z = actions.new_zeros(batch, self.config.stoch * self.config.classes)
        action, total = torch.zeros_like(actions[:, 0]), torch.zeros(batch)
        for t in range(length + 1):
            h = self.gru(h, z, action)
            prior = self.distribution(self.prior(h))
            now = self.inwards(seen[:, t])
            embedded = self.encoder(now)
            posterior = self.distribution(self.posterior(torch.cat([h, embedded], -1)))
            z = posterior.rsample().flatten(1)
            features = torch.cat([h, z], -1)
            error = (self.decoder(features) - now).square().flatten(1).sum(-1)
            total = total + (error + self.divergence(posterior, prior)) / (length + 1)
            if t:
                total = total + self.judged(features, rewards[:, t - 1], ended[:, t - 1]) / length
            if t < length:
                action = actions[:, t]
        return total.mean()

    @staticmethod
    def inwards(seen: Tensor) -> Tensor:
        """Convert images (B, H, W, C) to floats around 0, vectors (B, n) to symlog."""
        if seen.dtype == torch.uint8:
            return seen.movedim(-1, -3).float() / 255.0 - 0.5
        return seen.sign() * seen.abs().log1p()

    def distribution(self, logits: Tensor) -> Independent:
        """Categoricals with one percent of the uniform distribution."""
        logits = logits.unflatten(-1, (self.config.stoch, self.config.classes))
        chances = 0.99 * logits.softmax(-1) + 0.01 / self.config.classes
        return Independent(OneHotCategoricalStraightThrough(probs=chances), 1)

    def divergence(self, posterior: Independent, prior: Independent) -> Tensor:
        """Return both KL terms, weighted, with free nats."""

        def fixed(one: Independent) -> Independent:
            chances = one.base_dist.probs.detach()
            return Independent(OneHotCategoricalStraightThrough(probs=chances), 1)

        free = self.config.objective.free_nats
        dyn = kl_divergence(fixed(posterior), prior).clamp(min=free)
        rep = kl_divergence(posterior, fixed(prior)).clamp(min=free)
        return self.config.objective.dyn * dyn + self.config.objective.rep * rep

    def judged(self, features: Tensor, reward: Tensor, ended: Tensor) -> Tensor:
        """Return the two-hot loss of the reward plus the loss of the termination."""
        bins: Tensor = self.bins  # type: ignore[assignment]
        above = torch.searchsorted(bins, reward.contiguous()).clamp(1, len(bins) - 1)
        share = ((reward - bins[above - 1]) / (bins[above] - bins[above - 1])).unsqueeze(-1)
        two_hot = F.one_hot(above, len(bins)) * share
        two_hot = two_hot + F.one_hot(above - 1, len(bins)) * (1.0 - share)
        reward_loss = -(two_hot * self.reward(features).log_softmax(-1)).sum(-1)
        continuation = self.continuation(features).squeeze(-1)
        ends = F.binary_cross_entropy_with_logits(continuation, 1.0 - ended, reduction="none")
        return reward_loss + ends
