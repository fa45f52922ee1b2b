"""DreamVectorEnv: a world as a Gymnasium vector environment."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from dreamgym._device import limit_threads_after_fork, resolve_device
from dreamgym.dream import validation
from dreamgym.dream.compile import Stepper
from dreamgym.dream.engine import Engine
from dreamgym.dream.episodes import Episodes, find_sources
from dreamgym.dream.inference import leave_inference_mode
from dreamgym.dream.memory import check_memory, check_states, keep_freed_memory
from dreamgym.dream.options import is_array, parse_options
from dreamgym.dream.output import OutputAdapter, StepResult
from dreamgym.dream.rendering import Frames, Renderer
from dreamgym.dream.rollout import Rollout, roll_out
from dreamgym.dream.state import Dreams, requires_grad
from dreamgym.dream.validation import ActionValidator
from dreamgym.models.observations import Observation
from dreamgym.world.world import World, load

SEED_RANGE = 2**63


class DreamVectorEnv(VectorEnv):
    """N dreams of one world, stepped together.

    Args:
        world: a world, its folder, or the name of one that ships.
        num_envs: how many dreams.
        **options: see `DreamOptions`.

    Attributes:
        world: the world that is dreamt.
        horizon: greatest number of steps after which a dream is truncated.
        view: "observation" or "latent".
        device: where the dreams are.
        dreams: where they stand; None before the first reset. A step may overwrite them:
            `get_state` gives a copy.

    Raises:
        TypeError: an unknown option; the message has the nearest right one.
        ValueError: an option's value that is not allowed, that this world cannot give, or more
            environments than there is memory for.
        WorldError: the world cannot be loaded.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - each instance gets its own
        "render_modes": ["rgb_array"],
        "render_fps": 30,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(self, world: World | str | None = None, num_envs: int = 1, **options: Any) -> None:
        # Closing works also after a refusal below.
        self.dreams: Dreams | None = None
        self.renderer: Renderer | None = None
        limit_threads_after_fork()  # before anything is computed
        parsed = parse_options(options)
        if world is None:
            raise TypeError("a dream needs a world: give world=, a folder or a name that ships")
        if isinstance(num_envs, bool) or int(num_envs) != num_envs or num_envs < 1:
            raise ValueError(f"num_envs={num_envs!r}: give a whole number of at least 1")
        with leave_inference_mode():
            self.world = world if isinstance(world, World) else load(world)
        self.num_envs = int(num_envs)
        self.device = resolve_device(parsed.device)
        validation.check_noise(self.device)
        self.view = parsed.view or self.world.default_view
        validation.check_view(self.world, self.view)
        ends = self.world.termination if parsed.termination is None else parsed.termination
        self.options = replace(parsed, view=self.view, termination=ends)
        self.horizon = parsed.horizon_range(self.world.horizon)[1]
        self.render_mode = parsed.render_mode
        self.autoreset_mode = parsed.mode
        self.metadata = {**self.metadata, "autoreset_mode": parsed.mode}
        check_states(self.world.model, self.num_envs, self.device)
        self._set_spaces()
        if self.device.type == "cpu":
            keep_freed_memory()
        with leave_inference_mode():
            self.engine = self._engine()
        check_memory(self.engine)
        self.stepper = Stepper(self.engine)
        if parsed.render_mode:
            self.renderer = Renderer(self.world)
        self.looks = parsed.debug or self.device.type == "cpu"
        self.intake = ActionValidator(
            self.single_action_space, self.num_envs, self.device, looks=self.looks
        )
        self.giver = OutputAdapter(self.options, self.single_observation_space)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin new episodes.

        Args:
            seed: begins the run anew: the same seed and actions give the same run, bit for bit.
            options: `{"reset_mask": (N,) bool}` begins new episodes in those rows only.

        Returns:
            Observations (N, ...) and an empty info.

        Raises:
            ValueError: an unknown option, a mask of another shape, or a mask before any reset.
        """
        self._check_open()
        mask = validation.reset_mask(options or {}, self.dreams, self.num_envs, self.device)
        if seed is not None and mask is not None:
            raise ValueError("a seed begins all rows anew: give a seed or a reset_mask, not both")
        if seed is not None and not isinstance(seed, int | np.integer):
            raise TypeError(
                f"seed={seed!r}: give one whole number; the rows' own noise is keyed by their index"
            )
        super().reset(seed=None if seed is None else int(seed))
        with leave_inference_mode(traced=False):
            if self.dreams is None or seed is not None:
                self.dreams, seen = self.engine.begin(int(self.np_random.integers(SEED_RANGE)))
            else:
                rows = torch.ones_like(self.dreams.done) if mask is None else mask
                self.dreams, seen = self.engine.restart(self.dreams, rows)
        return self.giver.observation(seen), {}

    def step(self, actions: Any) -> StepResult:
        """One step of every dream.

        Gradients flow through it, from rewards and observations to the actions, where the actions
        are a tensor that requires them.

        Args:
            actions: (N, ...) in the real environment's action space, tensor or array.

        Returns:
            Observations (N, ...), rewards (N,), terminated (N,), truncated (N,), and infos:
            `final_obs` with its mask `_final_obs` (in SameStep), `episode` ("r" return, "l"
            length, so far) with the mask `_episode` of rows that ended, and `uncertainty`.

        Raises:
            RuntimeError: the environment was not reset, or is closed.
            ValueError: actions of another shape, kind or device, or outside the space (the last
                on a CPU, where looking costs nothing, and elsewhere with `debug=True`).
        """
        dreams = self._standing()
        traced = torch.is_grad_enabled() and requires_grad(actions, dreams)
        with leave_inference_mode(traced=traced):
            taken = self.intake(actions)
            if self.looks and self.autoreset_mode is AutoresetMode.DISABLED:
                validation.check_not_done(dreams)
            self.dreams, outcome = self.stepper.step(dreams, taken)
            return self.giver.step(outcome)

    def rollout(self, policy: Callable[[Observation], Tensor], steps: int) -> Rollout:
        """Let a torch policy act for some steps; everything stays on the device.

        Under `torch.no_grad()` nothing is traced. Else gradients flow from the rewards to the
        policy's parameters; the dreams themselves are cut off from them at the end.

        Args:
            policy: from observations (N, ...) on the device to actions (N, ...).
            steps: how many.

        Raises:
            RuntimeError: the environment was not reset, or is closed; or in Disabled mode, in
                which nobody would reset the rows.
            ValueError: fewer than one step, or actions that `step` would refuse.
        """
        dreams = self._standing()
        if self.autoreset_mode is not AutoresetMode.SAME_STEP:
            raise RuntimeError(
                f"a rollout needs autoreset_mode='SameStep', not {self.options.autoreset_mode!r}"
            )

        def act(seen: Observation) -> Tensor:
            return self.intake(policy(seen))

        with leave_inference_mode():
            self.dreams, rolled = roll_out(self.stepper, dreams, act, steps)
        return rolled

    def get_state(self) -> Dreams:
        """Where the dreams stand, copied: `set_state` brings them back there, bit for bit."""
        with leave_inference_mode():
            return self._standing().clone()

    def set_state(self, dreams: Dreams) -> Any:
        """Go on from where dreams stood: these, or those of another environment of this world.

        They go on under this environment's options: where its temperature is one number, that one
        holds for what is left of their episodes too.

        Args:
            dreams: N rows, of `get_state` or `Dreams.rows`.

        Returns:
            What the policy sees of them, (N, ...).

        Raises:
            TypeError: no dreams, such as a dict of their tensors.
            ValueError: another number of rows, the state of another model, or of another dtype.
        """
        self._check_open()
        validation.check_compatible(dreams, self.dreams or self.engine.begin(0)[0])
        # Of inference mode, tensors could never again be stepped under gradients.
        with leave_inference_mode():
            moved = {key: leaf.to(self.device).clone() for key, leaf in dreams.tensors().items()}
        self.dreams = Dreams.from_tensors(moved)
        with leave_inference_mode(traced=False):
            return self.giver.observation(self.engine.view(self.dreams.model))

    def branch(self, rows: Any) -> Any:
        """Fork dreams, mid-episode: every environment goes on from where row `rows[i]` stands.

        Each keeps its own noise, so the forks of one row part. To give them one future under the
        same actions, use `set_state(get_state().rows(rows))`.

        Args:
            rows: (N,) whole numbers below N.

        Returns:
            What the policy sees, (N, ...).

        Raises:
            ValueError: another shape, or a row that there is not.
        """
        dreams = self._standing()
        index = validation.row_index(rows, self.num_envs, self.device)
        with leave_inference_mode():
            copied = dreams.rows(index)
            # An episode that the row has not been in: its old noise must not come again.
            episode = torch.maximum(copied.episode, dreams.episode) + 1
        return self.set_state(copied._replace(env=dreams.env, episode=episode))

    def render(self) -> Frames | None:  # type: ignore[override]
        """Frames (height, width, 3) uint8 of every dream, decoded one by one as they are read."""
        if self.renderer is None or self.dreams is None:
            return None
        # Frames are drawn when they are read, which may be after the next step.
        return self.renderer.frames(self.engine.model, self.stepper.owned(self.dreams).model)

    def close_extras(self, **kwargs: Any) -> None:
        """Let go of the renderer and of the dreams."""
        if self.renderer is not None:
            self.renderer.close()
        self.dreams = None

    def _engine(self) -> Engine:
        model = self.world.model
        if self.device.type != "cpu" or self.options.compile is True:
            # The world keeps its own, for other dreams of it; what is compiled trusts in this one.
            model = copy.deepcopy(model).to(self.device)
        episodes = Episodes(
            sources=find_sources(self.world, self.options.starts, self.device),
            horizon=self.options.horizon_range(self.world.horizon),
            temperature=self._temperature(),
        )
        return Engine(model, episodes, self.options, self.num_envs)

    def _temperature(self) -> tuple[float, float] | Tensor:
        given = self.options.temperature
        if not is_array(given):
            return self.options.temperature_range()
        return validation.temperature_rows(given, self.num_envs, self.device)

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

    def _standing(self) -> Dreams:
        """Where the dreams stand, if they do."""
        self._check_open()
        if self.dreams is None:
            raise RuntimeError("this dream has not begun: call reset() first")
        return self.dreams

    def _check_open(self) -> None:
        if self.closed:
            raise RuntimeError("this dream is closed: make a new one")
