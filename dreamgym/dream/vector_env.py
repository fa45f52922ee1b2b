"""DreamVectorEnv: a world as a Gymnasium vector environment."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from dreamgym._device import (
    float32_by_default,
    limit_threads_after_fork,
    own_torch_modes,
    resolve_device,
)
from dreamgym.dream import validation
from dreamgym.dream.compile import Stepper
from dreamgym.dream.engine import Engine
from dreamgym.dream.episodes import Episodes, resolve_starts
from dreamgym.dream.memory import check_memory, check_state_memory, keep_freed_memory
from dreamgym.dream.options import DreamOptions, is_array, parse_options
from dreamgym.dream.rendering import Frames, Renderer
from dreamgym.dream.rollout import Rollout, roll_out
from dreamgym.dream.state import Dreams, Outcome, requires_grad
from dreamgym.dream.validation import ActionValidator
from dreamgym.models.base import model_device
from dreamgym.models.observations import Observation
from dreamgym.world.world import World, as_world

SEED_RANGE = 2**63

StepResult = tuple[Any, Any, Any, Any, dict[str, Any]]
"""Observations, rewards, terminated, truncated and infos."""


class DreamVectorEnv(VectorEnv):
    """N dreams of one world, stepped together.

    Args:
        world: world, its folder, or the name of one that ships.
        num_envs: number of dreams.
        **options: see `DreamOptions`.

    Attributes:
        world: world of the dreams.
        horizon: largest number of steps after which a dream is truncated.
        view: "observation" or "latent".
        device: device of the dreams.
        dreams: their state; None before the first reset. A step may overwrite it: `get_state`
            returns a copy.

    Raises:
        TypeError: unknown option; the message names the nearest known one.
        ValueError: value that is not allowed, that this world does not support, or more
            environments than fit into memory.
        WorldError: the world cannot be loaded.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - each instance gets its own
        "render_modes": ["rgb_array"],
        "render_fps": 30,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    @float32_by_default()
    def __init__(self, world: World | str | None = None, num_envs: int = 1, **options: Any) -> None:
        # `close` must work also where one of the checks below raises.
        self.dreams: Dreams | None = None
        self.renderer: Renderer | None = None
        self._spec: EnvSpec | None = None
        limit_threads_after_fork()  # before anything is computed
        parsed = parse_options(options)
        if world is None:
            raise TypeError("a dream needs a world: give world=, a folder or a name that ships")
        if isinstance(num_envs, bool) or int(num_envs) != num_envs or num_envs < 1:
            raise ValueError(f"num_envs={num_envs!r}: give an integer of at least 1")
        with own_torch_modes():
            self.world = as_world(world)
        self.num_envs = int(num_envs)
        self.device = resolve_device(parsed.device)
        validation.check_noise(self.device)
        self.view = parsed.view or self.world.default_view
        validation.check_view(self.world, self.view)
        termination = self.world.termination if parsed.termination is None else parsed.termination
        self.options = replace(parsed, view=self.view, termination=termination)
        self.horizon = parsed.horizon_range(self.world.horizon)[1]
        self.render_mode = parsed.render_mode
        self.autoreset_mode = parsed.mode
        self.metadata = {**self.metadata, "autoreset_mode": parsed.mode}
        check_state_memory(self.world.model, self.num_envs, self.device)
        self._set_spaces()
        if self.device.type == "cpu":
            keep_freed_memory()
        with own_torch_modes():
            self.engine = self._make_engine()
        check_memory(self.engine)
        self.stepper = Stepper(self.engine)
        if parsed.render_mode:
            self.renderer = Renderer(self.world)
        # On a CPU a host sync costs nothing.
        self.checks_values = parsed.debug or self.device.type == "cpu"
        self.validate_actions = ActionValidator(
            self.single_action_space, self.num_envs, self.device, check_bounds=self.checks_values
        )
        self._output = OutputAdapter(self.options, self.single_observation_space)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Start new episodes.

        Args:
            seed: restarts the run: the same seed and actions give the same run, bit for bit. A list
                has one seed for each row, of which alone its dream depends; None draws one.
            options: `{"reset_mask": (N,) bool}` starts new episodes in those rows only.

        Returns:
            Observations (N, ...) and an empty info.

        Raises:
            TypeError: a seed is not an integer.
            ValueError: unknown option, mask of another shape, a mask before the first reset, or
                a list of another number of seeds.
        """
        self._check_open()
        mask = validation.parse_reset_mask(options or {}, self.dreams, self.num_envs, self.device)
        if seed is not None and mask is not None:
            raise ValueError("a seed restarts all rows: give a seed or a reset_mask, not both")
        common, rows_keys = validation.parse_seeds(seed, self.num_envs, self.device, self._draw_key)
        super().reset(seed=common)
        with own_torch_modes(grad=False):
            if rows_keys is not None:
                self.dreams, observation = self.engine.begin(0, rows_keys)
            elif self.dreams is None or seed is not None:
                self.dreams, observation = self.engine.begin(self._draw_key())
            else:
                rows = torch.ones_like(self.dreams.done) if mask is None else mask
                self.dreams, observation = self.engine.restart(self.dreams, rows)
        return self._output.observation(observation), {}

    def step(self, actions: Any) -> StepResult:
        """Take one step in every dream.

        Where the actions are a tensor that requires gradients, these flow through the step, from
        rewards and observations to the actions.

        Args:
            actions: (N, ...) actions of the real environment's action space, tensor or array.

        Returns:
            Observations (N, ...), rewards (N,), terminated (N,), truncated (N,), and infos:
            `final_obs` with its mask `_final_obs` (in SameStep), `uncertainty`, and, with
            `DreamOptions.episode_statistics`, `episode` ("r" return, "l" length; zero in the other
            rows) with the mask `_episode` of rows that ended. NumPy infos have it only in steps in
            which a row ended, as Gymnasium's do; tensors always, since looking is a host sync.

        Raises:
            RuntimeError: the environment was not reset, or is closed.
            ValueError: actions of another shape, kind of numbers or device, or outside the space
                (the last is checked on a CPU, and elsewhere with `debug=True`; without it, actions
                are clipped to the space there).
        """
        dreams = self._current_dreams()
        grad = torch.is_grad_enabled() and requires_grad(actions, dreams)
        with own_torch_modes(grad=grad):
            validated = self.validate_actions(actions)
            if self.checks_values and self.autoreset_mode is AutoresetMode.DISABLED:
                validation.check_not_done(dreams)
            self.dreams, outcome = self.stepper.step(dreams, validated)
            return self._output.step(outcome)

    def with_options(self, **changes: Any) -> DreamVectorEnv:
        """Return another environment of this world and size, with some options changed.

        Args:
            **changes: see `DreamOptions`.

        Returns:
            An environment that has not been reset.

        Raises:
            TypeError: unknown option.
            ValueError: value that is not allowed.
        """
        made = type(self)(self.world, self.num_envs, **{**self._keywords(), **changes})
        spec = self.spec
        made.spec = spec and replace(spec, kwargs={**spec.kwargs, **changes})
        return made

    def rollout(self, policy: Callable[[Observation], Tensor], steps: int) -> Rollout:
        """Step under a torch policy, with everything on the device.

        Gradients flow from the rewards to the policy's parameters, unless called under
        `torch.no_grad()`. The dreams are detached at the end.

        Args:
            policy: function from observations (N, ...) on the device to actions (N, ...).
            steps: number of steps.

        Raises:
            RuntimeError: the environment was not reset, is closed, or is not in SameStep mode.
            ValueError: `steps` is below 1, or the policy returns actions that `step` would refuse.
        """
        dreams = self._current_dreams()
        if self.autoreset_mode is not AutoresetMode.SAME_STEP:
            raise RuntimeError(
                f"a rollout needs autoreset_mode='SameStep', not {self.options.autoreset_mode!r}"
            )

        def act(observation: Observation) -> Tensor:
            return self.validate_actions(policy(observation))

        with own_torch_modes():
            self.dreams, rollout = roll_out(self.stepper, dreams, act, steps)
        return rollout

    def get_state(self) -> Dreams:
        """Return a copy of the dreams' state; `set_state` restores it, bit for bit."""
        with own_torch_modes():
            return self._current_dreams().clone()

    def set_state(self, dreams: Dreams) -> Any:
        """Continue from a state of this or of another environment of this world.

        The options of this environment apply: where its temperature is one number, that number
        also holds for the rest of the restored episodes.

        Args:
            dreams: N rows, from `get_state` or `Dreams.rows`; copied.

        Returns:
            What the policy sees of them, (N, ...).

        Raises:
            TypeError: not a `Dreams`, such as a dict of tensors.
            ValueError: another number of rows, or states of another model or dtype.
        """
        self._check_open()
        validation.check_compatible(dreams, self.dreams or self.engine.begin(0)[0])
        with own_torch_modes():
            moved = {key: leaf.to(self.device).clone() for key, leaf in dreams.tensors().items()}
        self.dreams = Dreams.from_tensors(moved)
        with own_torch_modes(grad=False):
            return self._output.observation(self.engine.view(self.dreams.model))

    def branch(self, rows: Any) -> Any:
        """Fork dreams in mid-episode: environment i continues from the state of row `rows[i]`.

        Each environment keeps its own noise, so that the forks of one row diverge. For forks with
        one future under equal actions, use `set_state(get_state().rows(rows))`.

        Args:
            rows: (N,) integers below N.

        Returns:
            What the policy sees, (N, ...).

        Raises:
            ValueError: another shape, or a row number outside [0, N).
        """
        dreams = self._current_dreams()
        index = validation.parse_row_index(rows, self.num_envs, self.device)
        with own_torch_modes():
            copied = dreams.rows(index)
            # An episode number that is new to the row, so that no noise is drawn twice.
            episode = torch.maximum(copied.episode, dreams.episode) + 1
        return self.set_state(copied._replace(env=dreams.env, episode=episode))

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method, or get an attribute, once, and return the result for each row.

        The rows are one environment, so this is what `gymnasium.vector.SyncVectorEnv` returns for
        whatever is the same in all of its environments.
        """
        value = getattr(self, name)
        return (value(*args, **kwargs) if callable(value) else value,) * self.num_envs

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Return an attribute, once for each row."""
        return (getattr(self, name),) * self.num_envs

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute, which all rows share.

        Args:
            name: name of the attribute.
            values: the value, or a list or tuple of N times the same value.

        Raises:
            ValueError: the values differ, or are not N.
        """
        if isinstance(values, list | tuple):
            if len(values) != self.num_envs or any(each != values[0] for each in values):
                raise ValueError(
                    f"set_attr({name!r}, ...) got {len(values)} values: the {self.num_envs} rows "
                    "are one environment, so give one value"
                )
            values = values[0]
        setattr(self, name, values)

    @property
    def spec(self) -> EnvSpec | None:
        """Gymnasium's specification; its `max_episode_steps` is the horizon."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        # A copy: it may be the one from which Gymnasium makes other environments.
        self._spec = with_horizon(spec, self.horizon)

    def render(self) -> Frames | None:  # type: ignore[override]
        """Return frames (height, width, 3) uint8 of all dreams, each decoded when it is read."""
        if self.renderer is None or self.dreams is None:
            return None
        # Frames may be read after the next step, which may overwrite the dreams.
        return self.renderer.frames(self.engine.model, self.stepper.owned(self.dreams).model)

    def close_extras(self, **kwargs: Any) -> None:
        """Release the renderer and the dreams."""
        if self.renderer is not None:
            self.renderer.close()
        self.dreams = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy by value: the world, the options and the state of the dreams.

        Compiled code, caches and captured graphs are made again.
        """
        kept = {name: value for name, value in self.__dict__.items() if name in _PICKLED}
        if self.dreams is not None:
            kept["dreams"] = self.get_state()
        return _restore, (type(self), self.world, self.num_envs, self._keywords(), kept)

    def _keywords(self) -> dict[str, Any]:
        return {each.name: getattr(self.options, each.name) for each in fields(self.options)}

    def _make_engine(self) -> Engine:
        model = self.world.model
        on_cpu = self.device.type == model_device(model).type == "cpu"
        if not on_cpu or self.options.compile is True:
            # A copy: the world's own model stays where it is for other dreams of it, and a
            # compiled step relies on a model that nobody changes.
            model = copy.deepcopy(model).to(self.device)
        episodes = Episodes(
            starts=resolve_starts(self.world, self.options.starts, self.device),
            horizon=self.options.horizon_range(self.world.horizon),
            temperature=self._temperature(),
        )
        return Engine(model, episodes, self.options, self.num_envs)

    def _temperature(self) -> tuple[float, float] | Tensor:
        temperature = self.options.temperature
        if not is_array(temperature):
            return self.options.temperature_range()
        return validation.parse_temperatures(temperature, self.num_envs, self.device)

    def _set_spaces(self) -> None:
        model = self.world.model
        self.single_action_space = model.action_space
        if self.view == "latent":
            self.single_observation_space: gym.Space = gym.spaces.Box(
                -np.inf, np.inf, (model.feature_dim,), np.float32
            )
        else:
            self.single_observation_space = model.observation_space
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)

    def _current_dreams(self) -> Dreams:
        self._check_open()
        if self.dreams is None:
            raise RuntimeError("this dream has not been reset: call reset() first")
        return self.dreams

    def _draw_key(self) -> int:
        return int(self.np_random.integers(SEED_RANGE))

    def _check_open(self) -> None:
        if self.closed:
            raise RuntimeError("this dream is closed: make a new one")


_PICKLED = ("_spec", "closed", "_np_random", "_np_random_seed")
"""Attributes of a `DreamVectorEnv` that its constructor does not set."""


def _restore(
    kind: type[DreamVectorEnv],
    world: World,
    num_envs: int,
    options: dict[str, Any],
    kept: dict[str, Any],
) -> DreamVectorEnv:
    """Make a pickled environment again; see `DreamVectorEnv.__reduce__`."""
    env = kind(world, num_envs, **options)
    dreams = kept.pop("dreams", None)
    if dreams is not None:
        env.set_state(dreams)
    env.__dict__.update(kept)
    return env


def with_horizon(spec: EnvSpec | None, horizon: int) -> EnvSpec | None:
    """Return a copy of an environment's specification that tells its horizon."""
    return None if spec is None else replace(spec, max_episode_steps=horizon)


class OutputAdapter:
    """Converts outcomes to what Gymnasium's vector environments return, as tensors or in NumPy.

    Args:
        options: options of the dream; `output` and the autoreset mode are read.
        space: observation space of one environment.
    """

    def __init__(self, options: DreamOptions, space: gym.Space) -> None:
        self.numpy, self.mode, self.space = options.output == "numpy", options.mode, space
        self.has_statistics = options.episode_statistics

    def observation(self, observation: Observation) -> Any:
        """Convert observations (N, ...), or a dict of them."""
        if isinstance(observation, dict):
            boxes: Any = self.space
            return {key: self._part(part, boxes[key]) for key, part in observation.items()}
        return self._part(observation, self.space)

    def step(self, outcome: Outcome) -> StepResult:
        """Convert the outcome of a step."""
        info: dict[str, Any] = {"uncertainty": self._array(outcome.uncertainty)}
        if self.has_statistics and not (self.numpy and not outcome.done.any()):
            info["episode"] = {
                "r": self._array(outcome.episode_return * outcome.done),
                "l": self._array(outcome.episode_length * outcome.done),
            }
            info["_episode"] = self._array(outcome.done)
        if self.mode is AutoresetMode.SAME_STEP:
            info["final_obs"] = self.observation(outcome.final_observation)
            info["_final_obs"] = self._array(outcome.done.clone())
        return (
            self.observation(outcome.observation),
            self._array(outcome.reward),
            self._array(outcome.terminated),
            self._array(outcome.truncated),
            info,
        )

    def _part(self, part: Tensor, space: gym.Space) -> Any:
        array = self._array(part)
        # Models compute in float32; NumPy callers expect the dtype of the space.
        return array.astype(space.dtype, copy=False) if self.numpy else array

    def _array(self, tensor: Tensor) -> Any:
        return np.asarray(tensor.detach().cpu()) if self.numpy else tensor
