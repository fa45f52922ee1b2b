"""The MDN-RNN of the plain baseline in TorchRL's `WorldModelEnv`; needs TorchRL."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Normal
from torchrl.data import Binary, Composite, Unbounded
from torchrl.envs import EnvBase, WorldModelEnv
from torchrl.modules import WorldModel

from support.baselines import PlainMDNRNN, Step, quiet

WIDTHS = {"z": PlainMDNRNN.z, "h": PlainMDNRNN.hidden, "c": PlainMDNRNN.hidden}


class Specs(EnvBase):
    """An environment that only provides specs; it is never stepped."""

    def __init__(self, count: int) -> None:
        super().__init__(batch_size=[count])
        self.observation_spec = Composite(
            {key: Unbounded((count, width)) for key, width in WIDTHS.items()}, shape=(count,)
        )
        self.action_spec = Unbounded((count, PlainMDNRNN.actions))
        self.reward_spec = Unbounded((count, 1))
        self.done_spec = Binary(1, (count, 1), dtype=torch.bool)

    def _reset(self, *_: Any, **__: Any) -> TensorDict:
        raise NotImplementedError

    _step = _set_seed = _reset


class Restarting(WorldModelEnv):
    """Resets rows that are done to a start state of the bank, as TorchRL's collectors require."""

    bank: Tensor

    def _reset(self, tensordict: TensorDict | None = None, **_: Any) -> TensorDict:
        # TorchRL asks for all rows, and takes those that are done.
        count = self.batch_size[0]
        leaves = {key: torch.zeros(count, width) for key, width in WIDTHS.items()}
        leaves["z"] = self.bank[torch.randint(0, len(self.bank), (count,))]
        return TensorDict(leaves, batch_size=self.batch_size)


class Distributed(PlainMDNRNN):
    """The same model, sampled with PyTorch's distributions, as TorchRL's modules do."""

    def forward(self, z: Tensor, h: Tensor, c: Tensor, action: Tensor) -> tuple[Tensor, ...]:
        """See `PlainMDNRNN.forward`."""
        h, c = self.cell(torch.cat([z, action], -1), (h, c))
        logits, mean, log_sigma = self.mdn(h).view(len(z), 3, self.mixtures, self.z).unbind(1)
        component = Categorical(logits=logits.transpose(1, 2)).sample()[:, None]
        mean, log_sigma = mean.gather(1, component)[:, 0], log_sigma.gather(1, component)[:, 0]
        z = Normal(mean, log_sigma.exp()).sample()
        ends = Bernoulli(logits=self.termination(h)[:, 0]).sample().bool()
        return z, h, c, self.reward(h)[:, 0], ends


def torchrl_mdn_rnn(count: int, kind: type[PlainMDNRNN] = PlainMDNRNN) -> Step:
    """Return its step with `count` rows, as TorchRL's collectors call it; without a time limit."""
    model: PlainMDNRNN = quiet(kind(), "cpu")

    def transition(z: Tensor, h: Tensor, c: Tensor, action: Tensor) -> tuple[Tensor, ...]:
        z, h, c, reward, ends = model(z, h, c, action)
        return z, h, c, reward[:, None], ends[:, None]

    out_keys = [("next", key) for key in (*WIDTHS, "reward", "done")]
    dynamics = TensorDictModule(transition, in_keys=[*WIDTHS, "action"], out_keys=out_keys)
    # The model's one call gives rewards and ends as well: other modules have nothing to do.
    nothing: TensorDictModuleBase = TensorDictModule(
        lambda reward: reward, in_keys=[("next", "reward")], out_keys=[("next", "reward")]
    )
    encoder = TensorDictModule(lambda z: z, in_keys=["z"], out_keys=["z"])
    env = Restarting(WorldModel(encoder, dynamics, nothing), Specs(count), latent_key="z")
    env.bank = model.bank
    now = env.reset()
    action = torch.rand(count, PlainMDNRNN.actions)

    @torch.no_grad()
    def step() -> TensorDict:
        nonlocal now
        now.set("action", action)
        _, now = env.step_and_maybe_reset(now)
        return now

    return step
