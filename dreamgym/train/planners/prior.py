"""A trained policy as value and proposal of a planner."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dreamgym.errors import TrainingError
from dreamgym.models import Decodes, State
from dreamgym.models.observations import Observation
from dreamgym.train.network import ActorCritic
from dreamgym.train.policy import TrainedPolicy
from dreamgym.train.registry import LEARNERS
from dreamgym.world.world import World, as_world


class PolicyPrior:
    """The value function and the actions of a policy that was trained in the dream of a world.

    It is both `Values` and `Acts`. The value is in the real environment's units, and discounted by
    the policy's own `discount`, which the planner should have, too.

    Args:
        policy: the policy.
        world: the world that it was trained in.

    Attributes:
        discount: discount factor that the policy was trained with.

    Raises:
        TrainingError: the policy sees observations, and the world's model does not decode them.
    """

    def __init__(self, policy: TrainedPolicy, world: World | str | Path) -> None:
        self._policy, self._model = policy, as_world(world).model
        if policy.view == "observation" and not isinstance(self._model, Decodes):
            raise TrainingError(
                f"the policy sees observations, and a {type(self._model).__name__} does not decode "
                "its states; pass a policy of the latent view"
            )
        self.discount = float(policy.card.hyperparameters.get("gamma", 1.0))

    def value(self, state: State) -> Tensor:
        """See `Values.value`.

        Raises:
            TrainingError: the learner library of the policy offers no values.
        """
        network, seen = self._policy.network, self._view(state)
        if isinstance(network, ActorCritic):  # needs no learner library
            if not isinstance(seen, Tensor):
                raise TrainingError("the policy sees a Dict; a value needs a Box")
            values = network.value(seen)
        else:
            library = LEARNERS[self._policy.card.learner].library()
            if not hasattr(library, "values"):
                raise TrainingError(
                    f"values of a policy of {self._policy.card.learner} cannot be read; use a "
                    "policy of PPO, or plan without a value"
                )
            values = library.values(self._policy, seen)
        return values / self._policy.card.reward_scale

    def policy(self, state: State, noise: Tensor) -> Tensor:
        """See `Acts.policy`; the most likely actions, so the noise does not matter."""
        seen = self._view(state)
        if not isinstance(seen, Tensor):
            raise TrainingError("the policy sees a Dict; a proposal needs a Box")
        actions, _ = self._policy.predict(seen.detach().cpu().numpy(), deterministic=True)
        return torch.as_tensor(actions, device=seen.device)

    def _view(self, state: State) -> Observation:
        if self._policy.view == "observation" and isinstance(self._model, Decodes):
            return self._model.decode(state)
        return self._model.features(state)
