"""Networks of any origin as policies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from dreamgym.models.observations import as_tensors, map_observation


class TensorPolicy:
    """A network on tensors as a policy: a module, a TorchScript or `torch.export` program.

    dreamgym reads neither TorchScript files nor those of `torch.export` itself: the first hold a
    program, which `torch.jit.load` runs, and `torch.export.load` unpickles. Load a file that you
    trust with torch, and pass what it gives:

        policy = TensorPolicy(torch.jit.load("policy.pt"))
        policy = TensorPolicy(torch.export.load("policy.pt2").module())

    A file of unknown origin is safe as ONNX; see `ExportedPolicy`.

    Attributes:
        name: name of the policy in datasets.
        view: what the network sees, "observation" or "latent".
        frame_skip: None, because the world or the environment decides.
        observation_space: space of what it sees; None where it does not say.
        action_space: space of its actions; None where it does not say.
    """

    def __init__(
        self,
        network: Callable[..., Any],
        *,
        name: str | None = None,
        view: str = "observation",
        observation_space: gym.Space[Any] | None = None,
        action_space: gym.Space[Any] | None = None,
        batched: bool = True,
    ) -> None:
        """Make a policy.

        Args:
            network: maps raw observations (B, ...) of the view, or a dict of such, to raw actions
                (B, ...) of the environment, or to a tuple that begins with them.
            name: name for datasets; by default the class of the network.
            view: what it sees.
            observation_space: space of one observation of the view, to check environments by.
            action_space: space of one action; numbers of a Box are clipped to it.
            batched: whether the network takes any number of rows. Programs of `torch.export` and
                traced ones often take one; they are then called row by row.

        Raises:
            ValueError: there is no such view.
        """
        if view not in ("observation", "latent"):
            raise ValueError(f"view={view!r}; expected 'observation' or 'latent'")
        self.name = name or f"tensors:{type(network).__qualname__}"
        self.view, self.frame_skip = view, None
        self.observation_space, self.action_space = observation_space, action_space
        self._network, self._batched = network, batched

    @property
    def spaces(self) -> tuple[gym.Space[Any], gym.Space[Any]] | None:
        """Both spaces; None where one is not known."""
        if self.observation_space is None or self.action_space is None:
            return None
        return self.observation_space, self.action_space

    def actor(self) -> nn.Module:
        """Return a module from raw observations (B, ...) to raw actions (B, ...).

        It holds what the policy was made of, if that is a module.
        """
        return _Actor(self._network, self.action_space)

    @torch.no_grad()
    def predict(self, observation: Any, deterministic: bool = True) -> tuple[Any, None]:
        """Return the actions (B, ...) of a batch of observations.

        Args:
            observation: (B, ...) NumPy, or a dict of such.
            deterministic: the network decides by itself whether it samples.
        """
        tensors, actor = as_tensors(observation, _device(self._network)), self.actor()
        if self._batched:
            return actor(tensors).cpu().numpy(), None
        rows = len(next(iter(tensors.values()))) if isinstance(tensors, dict) else len(tensors)
        singles = [map_observation(lambda x, k=k: x[k : k + 1], tensors) for k in range(rows)]  # type: ignore[misc]
        return torch.cat([actor(single) for single in singles]).cpu().numpy(), None


class _Actor(nn.Module):
    def __init__(self, network: Callable[..., Any], space: gym.Space[Any] | None) -> None:
        super().__init__()
        self.network = network
        self._bounds = None
        if isinstance(space, gym.spaces.Box):
            self._bounds = torch.as_tensor(space.low), torch.as_tensor(space.high)

    def forward(self, observation: Any) -> Tensor:
        outputs = self.network(observation)
        action: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
        if self._bounds is None:
            return action
        low, high = (bound.to(action.device) for bound in self._bounds)
        return torch.clamp(action, low, high)


def _device(network: Any) -> torch.device:
    """Return the device of a network's parameters; the CPU where it has none."""
    parameters = getattr(network, "parameters", None)
    first = next(iter(parameters()), None) if callable(parameters) else None
    return torch.device("cpu") if first is None else first.device
