"""DreamVectorEnv: a world as a Gymnasium vector environment."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from dreamgym.device import resolve_device
from dreamgym.dream.acting import ActionIntake
from dreamgym.dream.engine import Dreams, Engine, Outcome
from dreamgym.dream.options import DTYPES, DreamOptions, parse_options
from dreamgym.dream.rendering import Renderer
from dreamgym.models import Decodes, Observation
from dreamgym.world import World, load

SEED_RANGE = 2**63


class DreamVectorEnv(VectorEnv):
    """N dreams of one world, stepped together.

    Args:
        world: a world, its folder, or the name of one that ships.
        num_envs: how many dreams.
        **options: see `DreamOptions`.

    Attributes:
        world: the world that is dreamt.
        horizon: steps after which a dream is truncated.
        view: "observation" or "latent".
        device: where the dreams are.
        dreams: where they stand; None before the first reset.

    Raises:
        TypeError: an unknown option; the message has the nearest right one.
        ValueError: an option's value that is not allowed, or that this world cannot give.
        WorldError: the world cannot be loaded.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - each instance gets its own
        "render_modes": ["rgb_array"],
        "render_fps": 30,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(self, world: World | str, num_envs: int = 1, **options: Any) -> None:
        parsed = parse_options(options)
        if isinstance(num_envs, bool) or int(num_envs) != num_envs or num_envs < 1:
            raise ValueError(f"num_envs={num_envs!r}: give a whole number of at least 1")
        self.world = world if isinstance(world, World) else load(world)
        self.device = resolve_device(parsed.device)
        self.view = parsed.view or self.world.default_view
        _check_view(self.world, self.view)
        self.options = parsed = DreamOptions(**{**vars(parsed), "view": self.view})
        self.num_envs = int(num_envs)
        self.horizon = int(parsed.max_episode_steps or self.world.horizon)
        self.render_mode = parsed.render_mode
        self.autoreset_mode = parsed.mode
        self.metadata = {**self.metadata, "autoreset_mode": parsed.mode}
        self._set_spaces()
        self.engine = self._engine()
        self.renderer = Renderer(self.world) if parsed.render_mode else None
        self.intake = ActionIntake(self.single_action_space, self.num_envs, self.device)
        self.dreams: Dreams | None = None

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
        mask = self._reset_mask(options or {})
        if seed is not None and not isinstance(seed, int | np.integer):
            raise TypeError(
                f"seed={seed!r}: give one whole number; the rows' own noise is keyed by their index"
            )
        super().reset(seed=None if seed is None else int(seed))
        with torch.inference_mode(False), torch.no_grad():
            if mask is not None and self.dreams is not None and seed is None:
                self.dreams, seen = self.engine.restart(self.dreams, mask)
            elif self.dreams is None or seed is not None:
                self.dreams, seen = self.engine.begin(int(self.np_random.integers(SEED_RANGE)))
            else:
                self.dreams, seen = self.engine.restart(
                    self.dreams, torch.ones_like(self.dreams.done)
                )
        return self._give_observation(seen), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """One step of every dream.

        Args:
            actions: (N, ...) in the real environment's action space, tensor or array.

        Returns:
            Observations (N, ...), rewards (N,), terminated (N,), truncated (N,), and infos:
            `final_obs` with its mask `_final_obs` (in SameStep), `episode` ("r" return, "l"
            length, so far) with the mask `_episode` of rows that ended, and `uncertainty`.

        Raises:
            RuntimeError: the environment was not reset, or is closed.
            ValueError: actions of another shape, kind or device, or outside the space (the last
                on a CPU only, where looking costs nothing).
        """
        self._check_open()
        if self.dreams is None:
            raise RuntimeError("step before reset: call reset() first")
        with torch.inference_mode(False), torch.no_grad():
            taken = self.intake(actions)
            if self.autoreset_mode is AutoresetMode.DISABLED:
                self._check_none_done()
            self.dreams, outcome = self.engine.step(self.dreams, taken)
        return (
            self._give_observation(outcome.observation),
            self._give(outcome.reward),
            self._give(outcome.terminated),
            self._give(outcome.truncated),
            self._info(outcome),
        )

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Frames (height, width, 3) uint8 of every dream, decoded one by one as they are read."""
        if self.renderer is None or self.dreams is None:
            return None
        return self.renderer.frames(self.engine.model, self.dreams.model)  # type: ignore[return-value]

    def close_extras(self, **kwargs: Any) -> None:
        """Let go of the renderer and of the dreams."""
        if self.renderer is not None:
            self.renderer.close()
        self.dreams = None

    def _engine(self) -> Engine:
        model = self.world.model
        if self.device.type != "cpu":
            model = _copy_to(model, self.device)
        prepared = model.prepare(self.num_envs, self.device, DTYPES[self.options.dtype])
        starts = self.world.starts.to(self.device)
        return Engine(prepared, starts, self.options, horizon=self.horizon, num_envs=self.num_envs)

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

    def _info(self, outcome: Outcome) -> dict[str, Any]:
        done = self._give(outcome.terminated | outcome.truncated)
        info = {
            "uncertainty": self._give(outcome.uncertainty),
            "episode": {
                "r": self._give(outcome.episode_return),
                "l": self._give(outcome.episode_length),
            },
            "_episode": done,
        }
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            info["final_obs"] = self._give_observation(outcome.final_observation)
            info["_final_obs"] = done.clone() if isinstance(done, Tensor) else done.copy()
        return info

    def _give(self, tensor: Tensor) -> Any:
        return tensor if self.options.output == "torch" else tensor.cpu().numpy()

    def _give_observation(self, observation: Observation) -> Any:
        space = self.single_observation_space
        if isinstance(observation, dict):
            boxes: Any = space
            return {key: self._give_part(part, boxes[key]) for key, part in observation.items()}
        return self._give_part(observation, space)

    def _give_part(self, part: Tensor, space: gym.Space) -> Any:
        given = self._give(part)
        # Models compute in float32; NumPy callers are promised the dtype of the space.
        return given.astype(space.dtype, copy=False) if isinstance(given, np.ndarray) else given

    def _reset_mask(self, options: dict[str, Any]) -> Tensor | None:
        unknown = sorted(set(options) - {"reset_mask"})
        if unknown:
            raise ValueError(f"reset has no option {unknown[0]!r}; known: reset_mask")
        if options.get("reset_mask") is None:
            return None
        mask = torch.as_tensor(options["reset_mask"], device=self.device)
        if mask.dtype != torch.bool or mask.shape != (self.num_envs,):
            raise ValueError(
                f"reset_mask has dtype {mask.dtype} and shape {tuple(mask.shape)}; "
                f"give bools of shape ({self.num_envs},)"
            )
        if self.dreams is None:
            raise ValueError("reset_mask before the first reset: reset all rows first")
        return mask

    def _check_none_done(self) -> None:
        """On a CPU, where looking costs nothing, refuse to go on with an episode that ended."""
        assert_state = self.dreams
        if self.device.type == "cpu" and assert_state is not None and bool(assert_state.done.any()):
            rows = assert_state.done.nonzero().flatten().tolist()
            raise RuntimeError(
                f"step after the end of rows {rows[:8]} with autoreset_mode='Disabled': call "
                "reset(options={'reset_mask': mask}) with those rows true first"
            )

    def _check_open(self) -> None:
        if self.closed:
            raise RuntimeError("this dream is closed: make a new one")


def _check_view(world: World, view: str) -> None:
    if view == "observation" and not isinstance(world.model, Decodes):
        raise ValueError(
            f"view='observation' needs a decoder, which a {world.family} world has not; "
            "pass view='latent'"
        )


def _copy_to(model: Any, device: torch.device) -> Any:
    """A copy on another device: the world keeps its own, for other dreams of it."""
    import copy

    return copy.deepcopy(model).to(device)
