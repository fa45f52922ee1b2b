"""The real environment as a world model sees it."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from dreamgym.errors import TransferError
from dreamgym.models.base import zero_action
from dreamgym.models.observations import as_tensors
from dreamgym.train.policy import TrainedPolicy
from dreamgym.world.world import World

_MAX_SEED = 2**31


class LatentObservation(
    gym.Wrapper[NDArray[np.float32], Any, Any, Any], gym.utils.RecordConstructorArgs
):
    """A real environment whose observations are the features of the world model's state.

    After every real observation the state is filtered, `state = model.observe(state, previous
    action, observation, noise)`, and the policy sees `model.features(state)`: what it saw in a
    dream with the "latent" view. An episode begins with the initial state and the zero action.

    The noise of filtering comes from a torch generator of the wrapper's own, seeded at each reset
    from the environment's `np_random`: `reset(seed=)` fixes it, and no global generator is touched.
    """

    def __init__(self, env: gym.Env[Any, Any], world: World) -> None:
        """Wrap `env`.

        Args:
            env: a real environment with the world's observation and action spaces; it is given the
                world's frame skip where it has none.
            world: whose model filters; its model is put into evaluation mode.

        Raises:
            TransferError: the environment's spaces are not the world's.
            WorldError: it has another frame skip.
        """
        # the world itself is recorded, not a copy: it makes the wrapper again from env.spec
        gym.utils.RecordConstructorArgs.__init__(self, world=world, _disable_deepcopy=True)
        env = world.adapted(env)
        gym.Wrapper.__init__(self, env)
        _check_spaces(env, world)
        self.model = world.model.eval()
        self._device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        self.observation_space = gym.spaces.Box(
            -np.inf, np.inf, (self.model.feature_dim,), np.float32
        )
        self._generator = torch.Generator()
        self._state = self.model.initial(1)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin an episode.

        Returns:
            Features (feature_dim,) float32 of the state after the first observation, and the
            environment's info.
        """
        observation, info = self.env.reset(seed=seed, options=options)
        self._generator.manual_seed(self._noise_seed(seed))
        self._state = self.model.initial(1)
        return self._filter(
            zero_action(self.model.action_space, 1, self._device), observation
        ), info

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Act in the real environment and filter what it shows.

        Args:
            action: of the real environment.

        Returns:
            Features (feature_dim,) float32, and the environment's own reward, termination,
            truncation and info.
        """
        observation, reward, terminated, truncated, info = self.env.step(action)
        taken = zero_action(self.model.action_space, 1, self._device)
        taken[0] = torch.as_tensor(np.asarray(action), dtype=taken.dtype)
        return self._filter(taken, observation), float(reward), terminated, truncated, info

    def _noise_seed(self, seed: int | None) -> int:
        # a seeded reset fixes the noise without a draw from the environment's generator, so that
        # the real episode is the same with and without this wrapper
        if seed is not None:
            return int(np.random.SeedSequence((seed, 1)).generate_state(1)[0])
        return int(self._unseeded.integers(_MAX_SEED))

    @property
    def _unseeded(self) -> np.random.Generator:
        return self.env.unwrapped.np_random.spawn(1)[0]

    @torch.no_grad()
    def _filter(self, action: torch.Tensor, observation: Any) -> NDArray[np.float32]:
        noise = torch.rand((1, self.model.noise_dim), generator=self._generator).to(self._device)
        seen = as_tensors(_one_row(observation), self._device)
        self._state = self.model.observe(self._state, action, seen, noise)
        features = self.model.features(self._state)[0]
        return features.to("cpu", torch.float32).numpy().copy()


def _one_row(observation: Any) -> Any:
    if isinstance(observation, dict):
        return {key: np.asarray(part)[None] for key, part in observation.items()}
    return np.asarray(observation)[None]


def _check_spaces(env: gym.Env[Any, Any], world: World) -> None:
    for role in ("observation_space", "action_space"):
        real, wanted = getattr(env, role), getattr(world, role)
        if real != wanted:
            name = env.spec.id if env.spec is not None else str(env)
            raise TransferError(
                f"the {role.replace('_', ' ')} of {name} is {real}, that of the world "
                f"(of {world.env_id}) is {wanted}; pass the environment that the world was fitted "
                "on (world.real_env() makes it), without wrappers that change its spaces"
            )


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
