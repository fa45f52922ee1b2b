"""An actor-critic network on tensors, which several learners train, and its file.

The file is safetensors with the policy's card as JSON in its metadata, so a policy needs no learner
library to act.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dreamgym._files import atomic_file
from dreamgym.data.spaces import is_float, space_from_json
from dreamgym.errors import PolicyFileError, TrainingError
from dreamgym.models.weights import not_finite, shape_mismatch, tensor_shapes
from dreamgym.train.policy import (
    PolicyCard,
    TrainedPolicy,
    not_finite_error,
    policy_space_limit,
)

SUFFIX = ".safetensors"
_CARD = "dreamgym"
_CLIP = 10.0  # standard deviations
_LOG_SQRT_2PI = 0.5 * float(np.log(2 * np.pi))


class ActionCodec(nn.Module):
    """What a network acts in, and its conversion to actions of the environment.

    For a Box the network acts in real numbers, of which [-1, 1] are the bounds, and what lies
    outside is clipped. For Discrete and MultiDiscrete it chooses classes counted from 0.

    Args:
        space: action space of one environment.

    Attributes:
        sizes: number of classes of each choice; empty for a Box.
        outputs: numbers that the network gives for one action.

    Raises:
        TrainingError: a Box with an infinite bound, or another kind of space.
    """

    center: Tensor
    half_width: Tensor
    start: Tensor

    def __init__(self, space: gym.Space[Any]) -> None:
        super().__init__()
        self.space = space
        self.continuous = isinstance(space, gym.spaces.Box)
        self.rounds = False
        center = half_width = np.zeros(())
        start = np.zeros((), np.int64)
        self.sizes: list[int] = []
        if isinstance(space, gym.spaces.Box):
            if not space.is_bounded():
                raise TrainingError(
                    f"the world's action space {space} has an infinite bound, and this learner "
                    "scales actions to the bounds; record the environment inside "
                    "gymnasium.wrappers.TransformAction with a bounded space"
                )
            low, high = space.low.astype(np.float64), space.high.astype(np.float64)
            center, half_width = (low + high) / 2, (high - low) / 2
            self.outputs, self.rounds = int(center.size), not is_float(space)
        elif isinstance(space, gym.spaces.Discrete):
            self.sizes, start = [int(space.n)], np.asarray(space.start)
        elif isinstance(space, gym.spaces.MultiDiscrete):
            self.sizes = [int(size) for size in space.nvec.reshape(-1)]
            start = np.asarray(space.start)
        else:
            raise TrainingError(f"expected a Box, Discrete or MultiDiscrete space, got {space}")
        if self.sizes:
            self.outputs = sum(self.sizes)
        for name, value in (("center", center), ("half_width", half_width)):
            self.register_buffer(name, torch.as_tensor(value).float(), persistent=False)
        self.register_buffer("start", torch.as_tensor(start).long(), persistent=False)

    def learner_space(self) -> gym.Space[Any]:
        """Return the space in which an agent acts: [-1, 1] for a Box, classes from 0 for others."""
        if self.continuous:
            return gym.spaces.Box(-1.0, 1.0, (self.outputs,))
        sizes = self.sizes
        return gym.spaces.Discrete(sizes[0]) if len(sizes) == 1 else gym.spaces.MultiDiscrete(sizes)

    def forward(self, action: Tensor) -> Tensor:
        """Convert what the network chose, (B, outputs) or (B, choices), to (B, *space.shape)."""
        shape = (len(action), *(self.space.shape or ()))
        if not self.continuous:
            return action.reshape(shape) + self.start
        scaled = self.center + self.half_width * action.reshape(shape).clamp(-1.0, 1.0)
        return scaled.round().long() if self.rounds else scaled

    def inverse(self, action: Tensor) -> Tensor:
        """Convert actions (B, *space.shape) to what a network chooses: the inverse of `forward`."""
        if not self.continuous:
            return (action - self.start).reshape(len(action), -1).long()
        width = torch.where(self.half_width > 0, self.half_width, 1.0)
        return ((action.float() - self.center) / width).reshape(len(action), -1)


class Standardise(nn.Module):
    """Flatten observations, subtract a fixed mean, divide by a standard deviation, and clip.

    Args:
        mean: (n,) mean of each entry of the flattened observation.
        std: (n,) standard deviation of each entry, above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def forward(self, observation: Tensor) -> Tensor:
        """Return (B, n) standardised observations of raw ones (B, ...)."""
        flat = observation.reshape(len(observation), -1).float()
        return ((flat - self.mean) / self.std).clamp(-_CLIP, _CLIP)


class ActorCritic(nn.Module):
    """A policy and a value function, each an MLP of the standardised observation.

    Args:
        observation_space: a Box; observations are flattened.
        action_space: Box, Discrete or MultiDiscrete.
        net_arch: widths of the hidden layers.
        mean: (n,) mean of each entry of the flattened observation.
        std: (n,) standard deviation of each entry, above 0.

    Attributes:
        standardise: layer before both networks.
        actor: network from standardised observations to means (Box) or logits.
        critic: network from standardised observations to values (B, 1).
        log_std: logarithm of the standard deviation of each number of an action (Box).

    Raises:
        TrainingError: the network cannot act in the action space.
    """

    def __init__(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        *,
        net_arch: Sequence[int] = (64, 64),
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.observation_space, self.action_space = observation_space, action_space
        self.codec = ActionCodec(action_space)
        self.standardise = Standardise(mean, std)
        self.actor = tanh_mlp(len(mean), net_arch, self.codec.outputs, gain=0.01)
        self.critic = tanh_mlp(len(mean), net_arch, 1, gain=1.0)
        self.log_std = nn.Parameter(torch.zeros(self.codec.outputs if self.codec.continuous else 0))

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.standardise.mean.device

    def forward(self, observation: Tensor) -> Tensor:
        """Return the most likely actions (B, *shape) for raw observations (B, ...)."""
        return self.codec(self.mode(self.actor(self.standardise(observation))))

    def value(self, observation: Tensor) -> Tensor:
        """Return values (B,) of raw observations (B, ...)."""
        return self.critic(self.standardise(observation)).squeeze(-1)

    def noise(self, rows: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw the noise (rows, outputs) of which `sample` makes actions."""
        noise = torch.empty(rows, self.codec.outputs, device=self.device)
        if self.codec.continuous:
            return noise.normal_(generator=generator)
        return noise.exponential_(generator=generator)

    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Return actions by the actor's outputs, (B, outputs) floats or (B, choices) integers."""
        if self.codec.continuous:
            return outputs + self.log_std.exp() * noise
        sizes = self.codec.sizes
        # As in torch.multinomial: of clocks with rates p, the first that rings is the class drawn.
        drawn = [
            (logits.softmax(-1) / clocks).argmax(-1, keepdim=True)
            for logits, clocks in zip(outputs.split(sizes, -1), noise.split(sizes, -1), strict=True)
        ]
        return torch.cat(drawn, -1)

    def mode(self, outputs: Tensor) -> Tensor:
        """Return the most likely actions."""
        if self.codec.continuous:
            return outputs
        chosen = [part.argmax(-1, keepdim=True) for part in outputs.split(self.codec.sizes, -1)]
        return torch.cat(chosen, -1)

    def log_prob(self, outputs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log probability of actions and the entropy, each (B,)."""
        if self.codec.continuous:
            scaled = (action - outputs) * (-self.log_std).exp()
            normaliser = self.log_std + _LOG_SQRT_2PI
            entropy = (normaliser + 0.5).sum().expand(len(outputs))
            return (-0.5 * scaled.square() - normaliser).sum(-1), entropy
        log_prob = entropy = torch.zeros(len(outputs), device=outputs.device)
        for index, logits in enumerate(outputs.split(self.codec.sizes, -1)):
            logs = logits.log_softmax(-1)
            log_prob = log_prob + logs.gather(-1, action[:, index : index + 1]).squeeze(-1)
            entropy = entropy - (logs.exp() * logs).sum(-1)
        return log_prob, entropy

    def log_prob_gradients(
        self, outputs: Tensor, action: Tensor, by_log_prob: Tensor, by_entropy: float
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients of a loss by the outputs, (B, outputs), and by `log_std`.

        In closed form, a third of autograd's time for batches this small.

        Args:
            outputs: (B, outputs) of the actor.
            action: actions as `log_prob` takes them.
            by_log_prob: (B,) gradient of the loss by each action's log probability.
            by_entropy: gradient of the loss by each row's entropy.
        """
        by_log_prob = by_log_prob.unsqueeze(-1)
        if self.codec.continuous:
            precision = (-self.log_std).exp()
            scaled = (action - outputs) * precision
            by_log_std = ((scaled.square() - 1) * by_log_prob).sum(0) + by_entropy * len(outputs)
            return scaled * precision * by_log_prob, by_log_std
        parts = []
        for index, logits in enumerate(outputs.split(self.codec.sizes, -1)):
            logs = logits.log_softmax(-1)
            chances = logs.exp()
            entropy = -(logs * chances).sum(-1, keepdim=True)
            part = chances * (-by_entropy * (logs + entropy) - by_log_prob)
            parts.append(part.scatter_add_(-1, action[:, index : index + 1], by_log_prob))
        return torch.cat(parts, -1), torch.zeros_like(self.log_std)

    @torch.no_grad()
    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[Any], Any]:
        """Return actions of the environment's space, as `TrainedPolicy.predict` does."""
        array = np.asarray(observation)
        single = array.shape == self.observation_space.shape
        batch = torch.as_tensor(array[None] if single else array, device=self.device)
        outputs = self.actor(self.standardise(batch))
        chosen = (
            self.mode(outputs) if deterministic else self.sample(outputs, self.noise(len(batch)))
        )
        actions = self.codec(chosen)
        result = actions.cpu().numpy().astype(self.action_space.dtype, copy=False)
        return (result[0] if single else result), state


def tanh_mlp(inputs: int, hidden: Sequence[int], outputs: int, gain: float) -> nn.Sequential:
    """Return an MLP with tanh and orthogonal weights.

    Args:
        inputs: numbers in.
        hidden: widths of the hidden layers.
        outputs: numbers out.
        gain: gain of the last layer; of the others it is the root of two.
    """
    widths = [inputs, *hidden]
    layers: list[nn.Module] = []
    for width, following in zip(widths, hidden, strict=False):
        layers += [_orthogonal(nn.Linear(width, following), float(np.sqrt(2))), nn.Tanh()]
    return nn.Sequential(*layers, _orthogonal(nn.Linear(widths[-1], outputs), gain))


def _orthogonal(layer: nn.Linear, gain: float) -> nn.Linear:
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def actor(policy: TrainedPolicy) -> nn.Module:
    """See `LearnerLibrary.actor`."""
    return policy.network


def save(policy: TrainedPolicy, path: Path) -> None:
    """See `LearnerLibrary.save`."""
    weights = {
        name: leaf.detach().cpu().contiguous() for name, leaf in policy.network.state_dict().items()
    }
    try:
        with atomic_file(path) as temporary:
            save_file(weights, temporary, {_CARD: json.dumps(policy.card.as_dict())})
    except OSError as error:
        raise PolicyFileError(f"the policy cannot be written to {path}: {error}") from error


def load(path: Path, *, algo: str | None, env: gym.Env[Any, Any] | None) -> TrainedPolicy:
    """See `LearnerLibrary.load`."""
    try:
        with safe_open(path, "pt") as file:
            values = json.loads((file.metadata() or {})[_CARD])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise PolicyFileError(
            f"{path} is not a policy of dreamgym ({error}); expected a file of dreamgym train"
        ) from None
    if not isinstance(values, dict):
        raise PolicyFileError(f"the card in {path} is not a JSON object; the file is damaged")
    card = PolicyCard.from_dict(values)
    try:
        limit = policy_space_limit(path)
        observation_space = space_from_json(card.observation_space, limit)
        action_space = space_from_json(card.action_space, limit)
        settings = {name: card.policy[name] for name in ("net_arch", "mean", "std")}

        def build() -> ActorCritic:
            return ActorCritic(observation_space, action_space, **settings)

        mismatch = shape_mismatch(build, tensor_shapes(path))
        if mismatch:
            raise PolicyFileError(
                f"no policy can be built from {path}: its card and its weights do not fit: "
                f"{mismatch}"
            )
        with torch.random.fork_rng(devices=[]):
            network = build()
        network.load_state_dict(load_file(path))
    except PolicyFileError:
        raise
    except (TypeError, ValueError, KeyError, RuntimeError, TrainingError) as error:
        raise PolicyFileError(f"no policy can be built from {path}: {error}") from error
    name = not_finite(network)
    if name is not None:
        raise not_finite_error(path, name)
    return TrainedPolicy(network=network.eval(), card=replace(card, algo=algo or card.algo))
