"""Acting on a world model's latent state in the real environment: two wrappers and a policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from dreamgym._device import float32_by_default
from dreamgym.data import FrameSkip
from dreamgym.data.bounds import covers
from dreamgym.data.episodes import reward_to_float
from dreamgym.data.frame_skip import frame_skip_of
from dreamgym.data.policies import as_batch, as_rows
from dreamgym.errors import TransferError
from dreamgym.models.base import State, model_device, select, zero_action
from dreamgym.models.observations import as_tensors
from dreamgym.train.policy import TrainedPolicy
from dreamgym.world.world import World, as_world

_MAX_SEED = 2**31


class LatentObservation(
    gym.Wrapper[NDArray[np.float32], Any, Any, Any], gym.utils.RecordConstructorArgs
):
    """A real environment whose observations are the features of the world model's state.

    Each real observation updates the state, `state = model.observe(state, previous action,
    observation, noise)`, and the policy sees `model.features(state)`, as in a dream with the
    "latent" view. An episode starts with the initial state and the zero action.

    The filter noise comes from a private torch generator, which `reset(seed=)` seeds; without a
    seed it is derived from the environment's `np_random`. No global generator is used.
    """

    @float32_by_default()
    def __init__(self, env: gym.Env[Any, Any], world: World | str | Path) -> None:
        """Wrap `env`.

        Args:
            env: a real environment with the world's observation and action spaces. If it has no
                frame skip, it gets the world's.
            world: the world whose model filters: a world, its folder, or the name of one that
                ships. The model is put into evaluation mode.

        Raises:
            TransferError: the environment's spaces are not the world's.
            WorldError: the environment has another frame skip.
        """
        world = as_world(world)
        # the world itself, not a copy, is stored: env.spec makes the wrapper again from it
        gym.utils.RecordConstructorArgs.__init__(self, world=world, _disable_deepcopy=True)
        env = world.adapted(env)
        gym.Wrapper.__init__(self, env)
        check_env_spaces(env, world)
        self.model = world.model.eval()
        self._device = model_device(self.model)
        self.observation_space = gym.spaces.Box(
            -np.inf, np.inf, (self.model.feature_dim,), np.float32
        )
        self._generator = torch.Generator()
        self._state = self.model.initial(1)

    @float32_by_default()
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode.

        Returns:
            Features (feature_dim,) float32 of the state after the first observation, and the
            environment's info.
        """
        observation, info = self.env.reset(seed=seed, options=options)
        self._generator.manual_seed(self._noise_seed(seed))
        self._state = self.model.initial(1)
        action = zero_action(self.model.action_space, 1, self._device)
        return self._filter(action, observation), info

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Step the real environment and filter its observation.

        Args:
            action: an action of the real environment.

        Returns:
            Features (feature_dim,) float32, and the environment's own reward, termination,
            truncation and info.
        """
        observation, reward, terminated, truncated, info = self.env.step(action)
        taken = zero_action(self.model.action_space, 1, self._device)
        taken[0] = torch.as_tensor(np.asarray(action), dtype=taken.dtype)
        value = reward_to_float(reward)
        return self._filter(taken, observation), value, terminated, truncated, info

    def _noise_seed(self, seed: int | None) -> int:
        # a seeded reset fixes the noise without a draw from the environment's generator, so that
        # the real episode is the same with and without this wrapper
        if seed is not None:
            return _noise_seed(seed)
        return int(self._unseeded.integers(_MAX_SEED))

    @property
    def _unseeded(self) -> np.random.Generator:
        return self.env.unwrapped.np_random.spawn(1)[0]

    @float32_by_default()
    @torch.no_grad()
    def _filter(self, action: torch.Tensor, observation: Any) -> NDArray[np.float32]:
        noise = torch.rand((1, self.model.noise_dim), generator=self._generator).to(self._device)
        observed = as_tensors(as_batch([observation]), self._device)
        self._state = self.model.observe(self._state, action, observed, noise)
        return _as_numpy(self.model.features(self._state))[0]


class LatentVectorObservation(gym.vector.VectorWrapper):
    """The same for a vector of real environments, whose rows are filtered side by side.

    A row's features are those of `LatentObservation`, up to the rounding of products with several
    rows. All autoreset modes of Gymnasium are supported: where an episode begins, the row starts
    again from the initial state. With "SameStep", `info["final_obs"]` holds features as well.

    Each row has its own noise generator: `reset(seed=s)` seeds that of row k as
    `LatentObservation.reset(seed=s + k)` does, and it goes on from episode to episode.
    """

    @float32_by_default()
    def __init__(self, env: gym.vector.VectorEnv[Any, Any, Any], world: World | str | Path) -> None:
        """Wrap `env`.

        Args:
            env: real environments with the world's observation and action spaces and its frame
                skip, such as `gym.vector.SyncVectorEnv([world.real_env] * 8)`.
            world: the world whose model filters; it is put into evaluation mode.

        Raises:
            TransferError: the spaces or the frame skip are not the world's, or the environment does
                not say how it resets itself.
        """
        super().__init__(env)
        world = as_world(world)
        check_env_spaces(env, world, "single_")
        _check_frame_skips(env, world)
        self._mode = env.metadata.get("autoreset_mode")
        if not isinstance(self._mode, AutoresetMode):
            raise TransferError(
                f"the metadata of {env} have autoreset_mode={self._mode!r}; expected one of "
                "gymnasium.vector.AutoresetMode, which says where episodes begin"
            )
        self.model = world.model.eval()
        self._device = model_device(self.model)
        width = self.model.feature_dim
        self.single_observation_space = gym.spaces.Box(-np.inf, np.inf, (width,), np.float32)
        self.observation_space = gym.vector.utils.batch_space(
            self.single_observation_space, env.num_envs
        )
        seeds = np.random.SeedSequence().generate_state(env.num_envs)
        self._generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        self._state = self.model.initial(env.num_envs)
        self._over = np.zeros(env.num_envs, bool)

    @float32_by_default()
    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode in every environment, or in those of `options["reset_mask"]`.

        Returns:
            Features (N, feature_dim) float32, and the environments' info.
        """
        mask = np.ones(self.num_envs, bool)
        if options is not None and "reset_mask" in options:
            mask = np.asarray(options["reset_mask"], bool)
        observation, info = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        before = self.model.features(self._state)
        drawing: list[int] = np.flatnonzero(mask).tolist()
        for row in drawing:
            if seed is None:
                continue
            own = seed + row if isinstance(seed, int) else seed[row]
            if own is not None:
                self._generators[row].manual_seed(_noise_seed(own))
        state = self._filtered(self._zero_actions(), observation, mask, drawing)
        rows = torch.from_numpy(mask).to(self._device)
        self._state = select(rows, state, self._state)
        self._over &= ~mask
        features = torch.where(rows.unsqueeze(-1), self.model.features(self._state), before)
        return _as_numpy(features), info

    @float32_by_default()
    def step(self, actions: Any) -> tuple[NDArray[np.float32], Any, Any, Any, dict[str, Any]]:
        """Step the real environments and filter their observations.

        Args:
            actions: (N, ...) actions of the real environments.

        Returns:
            Features (N, feature_dim) float32, and the environments' own rewards, terminations,
            truncations and info.
        """
        taken = self._zero_actions()
        taken[:] = torch.as_tensor(np.asarray(actions), dtype=taken.dtype)
        observation, reward, terminated, truncated, info = self.env.step(actions)
        over = np.asarray(terminated) | np.asarray(truncated)
        starting = np.zeros_like(over)
        if self._mode is AutoresetMode.NEXT_STEP:
            starting = self._over
        elif self._mode is AutoresetMode.SAME_STEP and over.any():
            starting, info = over, self._with_final_features(taken, info, over)
        self._over = over
        self._state = self._filtered(taken, observation, starting, range(self.num_envs))
        return _as_numpy(self.model.features(self._state)), reward, terminated, truncated, info

    def _with_final_features(
        self, actions: torch.Tensor, info: dict[str, Any], over: NDArray[np.bool_]
    ) -> dict[str, Any]:
        """Return the info with features in place of the last observations of episodes."""
        final = np.full(self.num_envs, None, object)
        for row in np.flatnonzero(over).tolist():
            state = {name: leaf[row : row + 1] for name, leaf in self._state.items()}
            observed = as_tensors(as_batch([info["final_obs"][row]]), self._device)
            with torch.no_grad():
                state = self.model.observe(
                    state, actions[row : row + 1], observed, self._noise([row])
                )
                final[row] = _as_numpy(self.model.features(state))[0]
        return {**info, "final_obs": final}

    @torch.no_grad()
    def _filtered(
        self,
        actions: torch.Tensor,
        observation: Any,
        starting: NDArray[np.bool_],
        drawing: Sequence[int],
    ) -> State:
        """Return the state after an observation.

        Args:
            actions: (N, ...) actions that led to it.
            observation: (N, ...) observations, or a dict of such.
            starting: (N,) rows that begin an episode with it.
            drawing: rows whose noise is drawn; the state of others is not used.
        """
        rows = torch.from_numpy(np.asarray(starting)).to(self._device)
        state = select(rows, self.model.initial(self.num_envs), self._state)
        actions[rows] = 0
        noise = torch.full((self.num_envs, self.model.noise_dim), 0.5, device=self._device)
        noise[list(drawing)] = self._noise(drawing)
        return self.model.observe(state, actions, as_tensors(observation, self._device), noise)

    def _noise(self, rows: Sequence[int]) -> torch.Tensor:
        drawn = torch.empty(0, self.model.noise_dim)
        for row in rows:
            uniforms = torch.rand((1, self.model.noise_dim), generator=self._generators[row])
            drawn = torch.cat([drawn, uniforms])
        return drawn.to(self._device)

    def _zero_actions(self) -> torch.Tensor:
        return zero_action(self.model.action_space, self.num_envs, self._device)


def _noise_seed(seed: int) -> int:
    """Return the seed of the filter's noise for the seed of an episode."""
    return int(np.random.SeedSequence((seed, 1)).generate_state(1)[0])


def _as_numpy(features: torch.Tensor) -> NDArray[np.float32]:
    return features.to("cpu", torch.float32).numpy().copy()


def _check_frame_skips(env: gym.vector.VectorEnv[Any, Any, Any], world: World) -> None:
    """Check the frame skips of environments in this process; of others, the spaces have to do."""
    for each in getattr(env.unwrapped, "envs", ()):
        if frame_skip_of(each) != world.frame_skip:
            raise TransferError(
                f"the environments have {frame_skip_of(each)}, but world {world.name!r} was fitted "
                f"with {world.frame_skip}; make them with world.real_env() or world.adapted(env)"
            )


def check_env_spaces(env: Any, world: World, prefix: str = "") -> None:
    """Check that a real environment has the spaces of a world; bounds of the world may be wider.

    Args:
        env: single environment, or a vector environment with the prefix "single_".
        world: world to compare with.
        prefix: what the names of the spaces begin with.

    Raises:
        TransferError: a space is another one, or the world is played in latent actions.
    """
    world.check_takes_data_actions(TransferError)
    for role in ("observation_space", "action_space"):
        real, expected = getattr(env, prefix + role), getattr(world, role)
        if not covers(expected, real):
            name = env.spec.id if env.spec is not None else str(env)
            raise TransferError(
                f"the {role.replace('_', ' ')} of {name} is {real}, that of the world "
                f"(of {world.env_id}) is {expected}; pass the environment that the world was "
                "fitted to (world.real_env() makes it), without wrappers that change its spaces"
            )


class LatentAgent:
    """A policy of the latent view as a `Policy` of real observations.

    It filters the observations of each row through the world's model and gives the policy the
    features. Pass it to `dreamgym.record` to record with a latent policy, and fit to the result in
    the next round (Dyna). Each row has its own generator for filter noise and actions, seeded at
    the start of an episode; the global generators are not changed.

    Attributes:
        name: name of the policy in datasets.
        view: the view of real observations, "observation".
    """

    view = "observation"

    def __init__(
        self,
        policy: TrainedPolicy,
        world: World | str | Path,
        *,
        name: str | None = None,
        deterministic: bool = False,
    ) -> None:
        """Make an agent.

        Args:
            policy: a policy of the latent view.
            world: the world that it was trained in.
            name: name for datasets; by default the policy's own.
            deterministic: whether to take the most likely action; else actions are sampled.

        Raises:
            ValueError: the policy sees observations and needs no filter.
        """
        if policy.view != "latent":
            raise ValueError(
                f"the policy sees the {policy.view} view; LatentAgent is for policies of the "
                "latent view, others act on observations as they are"
            )
        self.name = name or f"{policy.name} {'deterministic' if deterministic else 'sampled'}"
        self._deterministic = deterministic
        self._policy, self._model = policy, as_world(world).model.eval()
        self._rows: dict[int, _FilteredRow] = {}

    @property
    def action_space(self) -> gym.Space[Any]:
        """Action space of the real environment, with the frame skip."""
        return self._policy.action_space

    @property
    def frame_skip(self) -> FrameSkip:
        """Frame skip of the real environment that one action is for."""
        return self._policy.frame_skip

    @float32_by_default()
    def reset(self, rows: Sequence[int], seeds: Sequence[int]) -> None:
        """See `Policy.reset`."""
        for row, seed in zip(rows, seeds, strict=True):
            self._rows[row] = _FilteredRow(
                state=self._model.initial(1),
                action=zero_action(self._model.action_space, 1, self._device),
                generator=torch.Generator().manual_seed(seed),
            )

    def act(self, observations: Any, rows: Sequence[int]) -> list[Any]:
        """See `Policy.act`; rows are filtered one by one, so none depends on another."""
        listed = as_rows(observations)
        return [
            self._act_in(self._rows[row], observation)
            for row, observation in zip(rows, listed, strict=True)
        ]

    @float32_by_default()
    def _act_in(self, row: _FilteredRow, observation: Any) -> Any:
        with torch.no_grad():
            noise = torch.rand((1, self._model.noise_dim), generator=row.generator)
            observed = as_tensors(as_batch([observation]), self._device)
            row.state = self._model.observe(row.state, row.action, observed, noise.to(self._device))
            features = self._model.features(row.state).to("cpu", torch.float32).numpy()
        seed = int(torch.randint(2**62, (), generator=row.generator))
        with self._policy.seeded(seed):
            actions, _ = self._policy.predict(features, deterministic=self._deterministic)
        action = np.asarray(actions[0], self._model.action_space.dtype)[()]
        row.action[0] = torch.as_tensor(np.asarray(action), dtype=row.action.dtype)
        return action

    @property
    def _device(self) -> torch.device:
        return model_device(self._model)

    def __getstate__(self) -> dict[str, Any]:
        # for processes that record: their episodes start with a reset
        return {**self.__dict__, "_rows": {}}


@dataclass
class _FilteredRow:
    """The episode of one row.

    Attributes:
        state: filtered state of the world's model, batch size 1.
        action: (1, ...) previous action, zero at the start.
        generator: source of filter noise and action seeds.
    """

    state: State
    action: torch.Tensor
    generator: torch.Generator
