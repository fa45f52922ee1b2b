"""The real environment beside a dream: it takes the same actions, and can go back."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from dreamgym.data.episodes import reward_to_float
from dreamgym.data.policies import as_batch
from dreamgym.dream.rendering import Renderer
from dreamgym.errors import TransferError, WorldError
from dreamgym.models.observations import as_tensors
from dreamgym.play.pictures import encode
from dreamgym.transfer.latent import check_env_spaces
from dreamgym.transfer.real import EnvSource, make_env, world_env_maker
from dreamgym.world.world import World


@dataclass(frozen=True, eq=False)
class Trace:
    """How the real environment came to where it is: a reset and actions, the last one first.

    Attributes:
        before: what came before the last action; None at the start.
        action: the last action; None at the start.
        seed: seed of the reset; of a start only.
        placed: observation that the environment was set to after the reset; None for its own.
    """

    before: Trace | None = None
    action: Any = None
    seed: int = 0
    placed: NDArray[Any] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class RealMoment:
    """The real environment after one step.

    Attributes:
        observation: observation, an array or a dict of such.
        frame: picture as PNG or JPEG; None where there is none.
        reward: reward of the step that led here.
        episode_return: sum of rewards since the start.
        terminated: whether the episode has terminated.
        truncated: whether it has been truncated.
        trace: how it came here.
    """

    observation: Any
    frame: bytes | None = field(repr=False)
    reward: float
    episode_return: float
    terminated: bool
    truncated: bool
    trace: Trace = field(repr=False)

    @property
    def done(self) -> bool:
        """Whether the episode has ended."""
        return self.terminated or self.truncated


class Reality:
    """One real environment. Going back means a reset with the same seed and the same actions.

    So an environment whose seed does not fix its course comes back to another place.

    Args:
        world: the world beside which it stands.
        env: the environment; None for the one that the world names.
        renderer: draws observations; None where the world has no decoder.

    Attributes:
        env: the environment, with the world's frame skip and observation keys.

    Raises:
        WorldError: the environment that the world names cannot be made.
        TransferError: its spaces are not the world's.
    """

    def __init__(self, world: World, env: EnvSource | None, renderer: Renderer | None) -> None:
        self._renderer = None if renderer is None or renderer.draws_bars else renderer
        self.env = _make(world, env, rendered=self._renderer is None)
        try:
            check_env_spaces(self.env, world)
        except TransferError:
            self.env.close()
            raise
        self._set_state = None if renderer is None else renderer.set_state
        self._at: Trace | None = None

    @property
    def can_be_placed(self) -> bool:
        """Whether it can be set to an observation (`dreamgym.dream.rendering.STATE_SETTERS`)."""
        return self._set_state is not None

    @property
    def has_pictures(self) -> bool:
        """Whether something can draw it."""
        return self._renderer is not None or self.env.render_mode == "rgb_array"

    def start(self, seed: int, placed: NDArray[Any] | None = None) -> RealMoment:
        """Reset.

        Args:
            seed: seed of the reset.
            placed: vector observation to set it to; None for the start that the seed gives.
        """
        trace = Trace(seed=seed, placed=placed)
        return self._moment(self._restart(trace), trace)

    def step(self, moment: RealMoment, action: Any) -> RealMoment:
        """Take a step from a moment, or return the moment if its episode has ended."""
        if moment.done:
            return moment
        if moment.trace is not self._at:
            self._replay(moment.trace)
        observation, reward, terminated, truncated, _ = self.env.step(action)
        trace, value = Trace(before=moment.trace, action=action), reward_to_float(reward)
        return self._moment(
            observation,
            trace,
            reward=value,
            episode_return=moment.episode_return + value,
            terminated=bool(terminated),
            truncated=bool(truncated),
        )

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def _restart(self, start: Trace) -> Any:
        observation, _ = self.env.reset(seed=start.seed)
        if start.placed is None or self._set_state is None:
            return observation
        self._set_state(self.env.unwrapped, start.placed)
        return start.placed

    def _replay(self, trace: Trace) -> None:
        actions = []
        while trace.before is not None:
            actions.append(trace.action)
            trace = trace.before
        self._restart(trace)
        for action in reversed(actions):
            self.env.step(action)

    def _moment(
        self,
        observation: Any,
        trace: Trace,
        *,
        reward: float = 0.0,
        episode_return: float = 0.0,
        terminated: bool = False,
        truncated: bool = False,
    ) -> RealMoment:
        self._at = trace
        return RealMoment(
            observation=observation,
            frame=self._frame(observation),
            reward=reward,
            episode_return=episode_return,
            terminated=terminated,
            truncated=truncated,
            trace=trace,
        )

    def _frame(self, observation: Any) -> bytes | None:
        if self._renderer is not None:
            return encode(self._renderer.draw(as_tensors(as_batch([observation]))))
        if self.env.render_mode != "rgb_array":
            return None
        frame: Any = self.env.render()
        return encode(np.asarray(frame, np.uint8))


def _make(world: World, env: EnvSource | None, *, rendered: bool) -> gym.Env[Any, Any]:
    """Return the environment, with frames if it has them and `rendered` asks for them."""
    plain: Callable[[], gym.Env[Any, Any]] = world_env_maker(world, env)
    if not rendered:
        return make_env(plain)
    made = None
    try:
        made = make_env(world_env_maker(world, env, render_mode="rgb_array"))
        made.reset(seed=0)
        made.render()  # a library that draws may be imported only here, and be missing
        return made
    except (WorldError, TransferError):
        raise
    except Exception as error:  # whatever a library that draws raises without a screen
        if made is not None:
            made.close()
        warnings.warn(
            f"the real environment cannot be drawn here ({' '.join(str(error).split())}); its "
            "observations are plotted",
            RuntimeWarning,
            stacklevel=3,
        )
        return make_env(plain)
