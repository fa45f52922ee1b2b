"""Baselines of the dream benchmarks: the same steps in plain PyTorch.

Plain is what one writes at first: eager, float32, PyTorch's own layers, one operation after the
other, rows that end taken back to a bank of starts by masks. Nothing in it is slow on purpose.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamgym.world.world import World

LIMIT = 1000
RARE = 5.7
BANK = 256
TINY = 1e-20

Step = Callable[[], Any]


def gumbel(*shape: int, device: Any) -> Tensor:
    """Return Gumbel noise, with which an argmax is a sample."""
    return -torch.log(-torch.log(torch.rand(*shape, device=device) + TINY) + TINY)


class PlainMDNRNN(nn.Module):
    """V-M-C's M with linear heads for reward and termination."""

    z, actions, hidden, mixtures = 32, 3, 256, 5

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(self.z + self.actions, self.hidden)
        self.mdn = nn.Linear(self.hidden, 3 * self.mixtures * self.z)
        self.reward = nn.Linear(self.hidden, 1)
        self.termination = nn.Linear(self.hidden, 1)
        nn.init.constant_(self.termination.bias, -RARE)
        self.register_buffer("bank", torch.randn(BANK, self.z))

    def forward(self, z: Tensor, h: Tensor, c: Tensor, action: Tensor) -> tuple[Tensor, ...]:
        """Return the next z, h and c, the reward, and whether the episode ends."""
        rows, device = len(z), z.device
        h, c = self.cell(torch.cat([z, action], -1), (h, c))
        logits, mean, log_sigma = self.mdn(h).view(rows, 3, self.mixtures, self.z).unbind(1)
        noise = gumbel(rows, self.mixtures, self.z, device=device)
        component = (logits + noise).argmax(1, keepdim=True)
        mean, log_sigma = mean.gather(1, component)[:, 0], log_sigma.gather(1, component)[:, 0]
        z = mean + log_sigma.exp() * torch.randn(rows, self.z, device=device)
        ends = torch.rand(rows, device=device) < torch.sigmoid(self.termination(h)[:, 0])
        return z, h, c, self.reward(h)[:, 0], ends


def plain_mdn_rnn(count: int, device: str = "cpu") -> Step:
    """Return the step of V-M-C with `count` rows."""
    model = quiet(PlainMDNRNN(), device)
    z, h, c = model.bank[:1].repeat(count, 1), *torch.zeros(2, count, 256, device=device)
    age = torch.zeros(count, dtype=torch.long, device=device)
    action = torch.rand(count, model.actions, device=device)

    @torch.no_grad()
    def step() -> tuple[Tensor, ...]:
        nonlocal z, h, c, age
        z, h, c, reward, terminated = model(z, h, c, action)
        age = age + 1
        truncated = age >= LIMIT
        done = terminated | truncated
        keep = (~done).float()[:, None]
        start = model.bank[torch.randint(0, BANK, (count,), device=device)]
        z = torch.where(done[:, None], start, z)
        h, c = h * keep, c * keep
        age = torch.where(done, torch.zeros_like(age), age)
        return z, reward, terminated, truncated

    return step


class PlainRSSM(nn.Module):
    """A recurrent state-space model like DreamerV3's, with a dense GRU."""

    deter, stoch, classes, actions, units = 512, 32, 32, 6, 512

    def __init__(self) -> None:
        super().__init__()
        z, width = self.stoch * self.classes, self.units
        self.inputs = nn.Linear(z + self.actions, width, bias=False)
        self.inputs_norm = nn.LayerNorm(width, eps=1e-3)
        self.gru = nn.Linear(width + self.deter, 3 * self.deter, bias=False)
        self.gru_norm = nn.LayerNorm(3 * self.deter, eps=1e-3)
        self.out = nn.Linear(self.deter, width, bias=False)
        self.out_norm = nn.LayerNorm(width, eps=1e-3)
        self.prior = nn.Linear(width, z)
        self.reward, self.goes_on = self._head(255), self._head(1)
        nn.init.constant_(self.goes_on[-1].bias, RARE)
        self.register_buffer("bins", torch.linspace(-20, 20, 255))
        self.register_buffer("bank_h", torch.tanh(torch.randn(BANK, self.deter)))
        classes = torch.randint(0, self.classes, (BANK, self.stoch))
        self.register_buffer("bank_z", F.one_hot(classes, self.classes).float().flatten(1))

    def _head(self, outputs: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        width = self.stoch * self.classes + self.deter
        for _ in range(2):
            layers += [nn.Linear(width, self.units, bias=False)]
            layers += [nn.LayerNorm(self.units, eps=1e-3), nn.SiLU()]
            width = self.units
        return nn.Sequential(*layers, nn.Linear(width, outputs))

    def forward(self, z: Tensor, h: Tensor, action: Tensor) -> tuple[Tensor, ...]:
        """Return the next z and h, the reward, and whether the episode ends."""
        x = F.silu(self.inputs_norm(self.inputs(torch.cat([z, action], -1))))
        gates = self.gru_norm(self.gru(torch.cat([x, h], -1)))
        reset, candidate, update = gates.chunk(3, -1)
        candidate = torch.tanh(torch.sigmoid(reset) * candidate)
        update = torch.sigmoid(update - 1)
        h = update * candidate + (1 - update) * h
        logits = self.prior(F.silu(self.out_norm(self.out(h)))).view(-1, self.stoch, self.classes)
        chances = logits.softmax(-1) * 0.99 + 0.01 / self.classes
        drawn = (chances.log() + gumbel(*chances.shape, device=h.device)).argmax(-1)
        z = F.one_hot(drawn, self.classes).float().flatten(1)
        features = torch.cat([z, h], -1)
        value = (self.reward(features).softmax(-1) * self.bins).sum(-1)
        reward = torch.sign(value) * (torch.exp(value.abs()) - 1)
        chance = torch.sigmoid(self.goes_on(features)[:, 0])
        return z, h, reward, torch.rand(len(h), device=h.device) >= chance


def plain_rssm(count: int, device: str = "cpu") -> Step:
    """Return the step of the RSSM with `count` rows."""
    model = quiet(PlainRSSM(), device)
    z, h = model.bank_z[:1].repeat(count, 1), model.bank_h[:1].repeat(count, 1)
    age = torch.zeros(count, dtype=torch.long, device=device)
    action = torch.randn(count, model.actions, device=device)

    @torch.no_grad()
    def step() -> tuple[Tensor, ...]:
        nonlocal z, h, age
        z, h, reward, terminated = model(z, h, action)
        age = age + 1
        truncated = age >= LIMIT
        done = terminated | truncated
        start = torch.randint(0, BANK, (count,), device=device)
        z = torch.where(done[:, None], model.bank_z[start], z)
        h = torch.where(done[:, None], model.bank_h[start], h)
        age = torch.where(done, torch.zeros_like(age), age)
        return torch.cat([z, h], -1), reward, terminated, truncated

    return step


def plain_family(world: World, action: Tensor) -> Step:
    """Return a family's plain step, with the same masks around it."""
    model, count, device = world.model.to(action.device), len(action), action.device
    bank = {key: leaf.to(device) for key, leaf in world.starts.states.items()}
    state = {key: leaf[:1].repeat(count, *[1] * (leaf.ndim - 1)) for key, leaf in bank.items()}
    age = torch.zeros(count, dtype=torch.long, device=device)

    @torch.no_grad()
    def step() -> tuple[Tensor, ...]:
        nonlocal state, age
        noise = torch.rand(count, model.noise_dim, device=device)
        state, prediction = model.step(state, action, noise)
        age = age + 1
        terminated = torch.rand(count, device=device) < prediction.termination
        truncated = age >= LIMIT
        done = terminated | truncated
        start = torch.randint(0, world.starts.size, (count,), device=device)
        state = {
            key: torch.where(done.view(-1, *[1] * (leaf.ndim - 1)), bank[key][start], leaf)
            for key, leaf in state.items()
        }
        age = torch.where(done, torch.zeros_like(age), age)
        return model.features(state), prediction.reward, terminated, truncated

    return step


def quiet(model: Any, device: str) -> Any:
    """Return the model on a device, for inference."""
    return model.to(device).eval().requires_grad_(False)
