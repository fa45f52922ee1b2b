"""A policy of the latent view as an agent that acts on real observations."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dreamgym.models import as_tensors, zero_action
from dreamgym.train.policy import TrainedPolicy
from dreamgym.world import World


class LatentAgent:
    """Filters real observations through a world's model and asks a policy for sampled actions.

    It is a policy of `dreamgym.record`: what it lives through can be fitted to in the next round
    (Dyna). Filter noise and actions come from generators of its own, seeded at each episode; the
    global ones are left as they were.

    Attributes:
        name: what the dataset says of who acted.
    """

    def __init__(self, policy: TrainedPolicy, world: World, *, name: str) -> None:
        """Make an agent.

        Args:
            policy: of the latent view.
            world: in whose dream it was trained.
            name: for the dataset: another policy, another name.

        Raises:
            ValueError: the policy sees observations; it needs no filter.
        """
        if policy.view != "latent":
            raise ValueError(
                f"the policy sees the {policy.view} view; LatentAgent is for policies of the "
                "latent view, others act on observations as they are"
            )
        self.name = name
        self._policy, self._model = policy, world.model.eval()
        self._generator = torch.Generator()
        self.begin(0)

    def begin(self, seed: int) -> None:
        """Begin an episode: forget the last one, and seed everything random."""
        self._generator.manual_seed(seed)
        self._state = self._model.initial(1)
        self._action = zero_action(self._model.action_space, 1, self._device)

    def act(self, observation: Any) -> Any:
        """A sampled action for the next real observation of the episode."""
        with torch.no_grad():
            row = _one_row(observation)
            noise = torch.rand((1, self._model.noise_dim), generator=self._generator)
            self._state = self._model.observe(
                self._state, self._action, as_tensors(row, self._device), noise.to(self._device)
            )
            features = self._model.features(self._state).to("cpu", torch.float32).numpy()
        action = self._sampled(features)
        self._action[0] = torch.as_tensor(np.asarray(action), dtype=self._action.dtype)
        return action

    def _sampled(self, features: NDArray[np.float32]) -> Any:
        seed = int(torch.randint(2**62, (), generator=self._generator))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            actions, _ = self._policy.predict(features, deterministic=False)
        return np.asarray(actions[0], self._model.action_space.dtype)[()]

    @property
    def _device(self) -> torch.device:
        return next(self._model.parameters()).device


def _one_row(observation: Any) -> Any:
    if isinstance(observation, dict):
        return {key: np.asarray(part)[None] for key, part in observation.items()}
    return np.asarray(observation)[None]
