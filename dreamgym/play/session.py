"""PlaySession: one dream that is played step by step, with its past, its branches and its edits.

The state of a dream is a value (`dreamgym.dream.Dreams`), so a session is a list of moments. Going
back is choosing an earlier one, a branch is a copy of the list, and an edit replaces a moment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dreamgym._device import own_torch_modes
from dreamgym._settings import check_choice
from dreamgym.data.layout import index_rows
from dreamgym.data.policies import PolicyLike
from dreamgym.dream.episodes import resolve_starts
from dreamgym.dream.noise import draw_noise, env_keys
from dreamgym.dream.rendering import Renderer
from dreamgym.dream.state import Dreams
from dreamgym.dream.vector_env import DreamVectorEnv, OutputAdapter
from dreamgym.errors import TrainingError
from dreamgym.models import Decodes, State
from dreamgym.models.base import zero_action
from dreamgym.models.observations import (
    as_tensors,
    is_image,
    join_parts,
    observation_boxes,
)
from dreamgym.play.controls import Controls, Known, known_names
from dreamgym.play.pictures import encode
from dreamgym.play.players import Player, make_player
from dreamgym.play.real_side import Reality, RealMoment
from dreamgym.transfer.real import EnvSource
from dreamgym.world.world import World, as_world

PERSON = "you"
"""Name of the player that is a person."""

REAL = "real"
"""Start: the reset of the real environment, whose observation the world takes in."""

MOST_MOMENTS, MOST_BYTES = 4096, 256 << 20
"""Moments that are kept, and bytes of their states and pictures; the oldest ones go first."""

FRAME_BYTES = 64 << 10
"""Size of a moment's pictures at the most, about."""

MOST_BRANCHES = 32

PLOTTED = 32
"""Numbers of a vector observation that are plotted and can be edited."""

MAX_TEMPERATURE = 10.0

P = ParamSpec("P")
R = TypeVar("R")


def _without_gradients(
    method: Callable[Concatenate[PlaySession, P], R],
) -> Callable[Concatenate[PlaySession, P], R]:
    """Decorate a method: compute as in a dream, whatever modes the caller has set."""

    @wraps(method)
    def wrapper(self: PlaySession, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with own_torch_modes(grad=False):
            return method(self, *args, **kwargs)

    return wrapper


class Origin(NamedTuple):
    """How an episode began.

    Attributes:
        seed: seed of the dream and of the real environment.
        start: a name of `PlaySession.starts`.
        row: number of the start state; None where it began with the real environment.
    """

    seed: int
    start: str
    row: int | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Moment:
    """A dream after one step, and the real environment beside it.

    Attributes:
        step: steps since the episode began.
        origin: how it began.
        dreams: state of the dream, one row.
        observation: decoded observation, an array or a dict of such; None without a decoder.
        frame: picture as PNG or JPEG; None where nothing can draw it.
        action: action that led here; None at the start.
        reward: predicted reward of the step that led here.
        termination: predicted probability that this step ended the episode.
        uncertainty: epistemic uncertainty of the step; 0 where the model has none.
        terminated: whether the dream has terminated.
        truncated: whether the horizon has been reached.
        edited: whether the state was edited here, so that no step leads to it.
        real: the real environment after the same actions; None where there is none.
    """

    step: int
    origin: Origin
    dreams: Dreams = field(repr=False)
    observation: Any
    frame: bytes | None = field(repr=False)
    action: Any = None
    reward: float = 0.0
    termination: float = 0.0
    uncertainty: float = 0.0
    terminated: bool = False
    truncated: bool = False
    edited: bool = False
    real: RealMoment | None = None

    @property
    def done(self) -> bool:
        """Whether the dream has ended."""
        return self.terminated or self.truncated

    @property
    def episode_return(self) -> float:
        """Sum of predicted rewards since the episode began."""
        return float(self.dreams.episode_return[0])


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """A leaf of the state that can be edited.

    Attributes:
        name: its name.
        low: smallest value of each number among the start states, flat.
        high: largest value of each.
    """

    name: str
    low: NDArray[np.float32] = field(repr=False)
    high: NDArray[np.float32] = field(repr=False)


class PlaySession:
    """Plays one dream of a world, with the real environment beside it where it can be made.

    Equal seeds, starts and actions give equal dreams, bit for bit.

    Args:
        world: world, its folder, or the name of one that ships.
        env: the real environment, if it is not the one that the world names.
        policies: further players by name: anything that `dreamgym.evaluate` takes, or the name of a
            planner (`plan:icem`).
        data: dataset from whose episodes dreams can start, too.
        device: device of the dream.

    Attributes:
        world: the world.
        controls: buttons and sliders of the action space.
        known: names of actions and observations.
        starts: start states by source, leaves (S, ...); of `REAL` None.
        leaves: leaves of the state that can be edited, by name.
        players: names of who can play.
        moments: the past, the present and, after `go_to`, the future that was played before.
        branches: what `branch` kept.
        reality: the real environment; None where there is none.
        without_reality: why there is none; "" where there is one.

    Raises:
        UnsupportedSpaceError: the action space cannot be played by hand.
        WorldError: the world cannot be loaded.
        TransferError: `env` is not an environment of the world's spaces, or a policy cannot act.
        ValueError: the dataset's spaces are not the world's.
    """

    @_without_gradients
    def __init__(
        self,
        world: World | str | Path,
        *,
        env: EnvSource | None = None,
        policies: Mapping[str, PolicyLike] | None = None,
        data: str | Path | None = None,
        device: str = "auto",
    ) -> None:
        self.world = as_world(world)
        self.known: Known = known_names(self.world.env_id)
        self.controls = Controls(self.world.action_space, self.world.frame_skip, self.known)
        # A temperature for each row is read from the state, where it can be changed.
        self.env = DreamVectorEnv(
            self.world,
            1,
            view="latent",
            output="torch",
            autoreset_mode="Disabled",
            temperature=np.ones(1),
            device=device,
        )
        model = self.env.engine.model
        self.renderer = Renderer(self.world) if isinstance(model, Decodes) else None
        self.reality, self.without_reality = self._make_reality(env)
        sources: dict[str, Any] = {"episode_starts": "episode_starts", "anywhere": "anywhere"}
        if data is not None:
            sources[Path(data).name] = data
        self.starts: dict[str, State | None] = {REAL: None} if self.reality is not None else {}
        for name, source in sources.items():
            self.starts[name] = resolve_starts(self.world, source, self.env.device).states
        self.leaves = _editable_leaves(self.world)
        boxes = observation_boxes(self.world.observation_space).values()
        numbers = sum(int(np.prod(box.shape)) for box in boxes)
        decoded = self.renderer is not None and not any(map(is_image, boxes))
        self.plotted = min(numbers, PLOTTED) if decoded else 0
        state_bytes = sum(leaf[0].nbytes for leaf in self.world.starts.states.values())
        self._most_moments = max(2, min(MOST_MOMENTS, MOST_BYTES // (state_bytes + FRAME_BYTES)))
        self._players: dict[str, Player | None] = {PERSON: None}
        self._policies: dict[str, Any] = {**(policies or {}), "random": "random"}
        self._policies.update(self._planners())
        for name in policies or {}:
            self._player(name)  # report one that cannot act at once
        self.players = (PERSON, *self._policies)
        self._playing = PERSON
        self._temperature, self._horizon = 1.0, self.env.horizon
        self.branches: list[tuple[Moment, ...]] = []
        self.moments: list[Moment] = []
        self._position, self._episode = 0, 0
        self.reset()

    # ------------------------------------------------------------------ settings

    @property
    def temperature(self) -> float:
        """Sampling temperature of the next steps, in (0, 10]."""
        return self._temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        if not 0 < value <= MAX_TEMPERATURE:
            raise ValueError(
                f"the temperature is {value}; expected a number above 0 and up to {MAX_TEMPERATURE}"
            )
        self._temperature = float(value)

    @property
    def horizon(self) -> int:
        """Steps after which the dream is truncated."""
        return self._horizon

    @horizon.setter
    def horizon(self, value: int) -> None:
        if not 1 <= value <= 10**9 or int(value) != value:
            raise ValueError(f"the horizon is {value}; expected a whole number of at least 1")
        self._horizon = int(value)

    @property
    def player(self) -> str:
        """Who plays: a name of `players`."""
        return self._playing

    @player.setter
    def player(self, name: str) -> None:
        check_choice("player", name, self.players)
        player = self._player(name)
        if player is not None:
            player.restart(self.now.origin.seed)
        self._playing = name

    # ------------------------------------------------------------------ time

    @property
    def now(self) -> Moment:
        """The present."""
        return self.moments[self._position]

    @property
    def past(self) -> list[Moment]:
        """The moments from the start, or the first that is kept, to the present."""
        return self.moments[: self._position + 1]

    @_without_gradients
    def reset(self, seed: int = 0, start: str | None = None, row: int | None = None) -> Moment:
        """Start an episode.

        Args:
            seed: seed of the dream and of the real environment.
            start: where it begins: `"real"`, the reset of the real environment with this seed;
                `"episode_starts"` or `"anywhere"`, states of real episodes that the world was
                fitted to; or the name of the dataset. None for the first of these that there is.
            row: number of the start state; None for one that the seed draws.

        Raises:
            ValueError: there is no such start, or no such row.
        """
        if not 0 <= seed < 2**62:
            raise ValueError(f"the seed is {seed}; expected a number from 0 to 2**62 - 1")
        start = next(iter(self.starts)) if start is None else start
        check_choice("start", start, self.starts)
        dreams, _ = self.env.engine.begin(seed)
        states, real = self.starts[start], None
        if states is None and self.reality is not None:
            real = self.reality.start(seed)
            state = self._filtered(real.observation, dreams)
            row = None
        elif states is not None:
            row = self._start_row(states, seed, row)
            state = {name: leaf[row : row + 1].clone() for name, leaf in states.items()}
        dreams = dreams._replace(model={name: state[name] for name in dreams.model})
        moment = replace(self._moment(0, Origin(seed, start, row), dreams), real=real)
        if real is None and self.reality is not None and self.reality.can_be_placed:
            moment = replace(moment, real=self.reality.start(seed, moment.observation))
        return self._become([moment])

    @_without_gradients
    def step(self, action: Any = None) -> Moment:
        """Take a step, in the dream and in the real environment.

        Args:
            action: action of the world's action space; None for that of `player`.

        Raises:
            ValueError: the dream has ended, the action is not in the space, or there is none and a
                person plays.
        """
        now = self.now
        if now.done:
            raise ValueError("the dream has ended; start a new one, go back, or return to a branch")
        if action is None:
            player = self._player(self._playing)
            if player is None:
                raise ValueError("a person plays, and no action was given; give one")
            action = player.act(now)
        batch = self.env.validate_actions(np.asarray(action)[np.newaxis])
        before = now.dreams._replace(
            temperature=torch.full_like(now.dreams.temperature, self._temperature),
            horizon=torch.full_like(now.dreams.horizon, self._horizon),
        )
        after = self.env.engine.advance(before, batch)
        moment = replace(
            self._moment(now.step + 1, now.origin, after.dreams.clone()),
            action=np.asarray(action),
            reward=float(after.reward[0]),
            termination=float(after.termination[0]),
            uncertainty=float(after.uncertainty[0]),
            terminated=bool(after.terminated[0]),
            truncated=bool(after.truncated[0]),
        )
        if now.real is not None and self.reality is not None:
            moment = replace(moment, real=self.reality.step(now.real, action))
        self.moments[self._position + 1 :] = [moment]
        del self.moments[: -self._most_moments]
        self._position = len(self.moments) - 1
        return moment

    def go_to(self, step: int) -> Moment:
        """Go to a moment of the past, or back to the future that was played before.

        The noise of a step belongs to the step: equal actions lead to the same future again.

        Args:
            step: its step.

        Raises:
            ValueError: there is no such moment, or no longer.
        """
        first, last = self.moments[0].step, self.moments[-1].step
        if not first <= step <= last:
            raise ValueError(f"there is no step {step}; the moments kept are {first} to {last}")
        self._position = step - first
        self._restart_player()
        return self.now

    def branch(self) -> int:
        """Keep the present as a branch, to which `return_to` leads back.

        Returns:
            The number of the branch.

        Raises:
            ValueError: there are too many branches.
        """
        if len(self.branches) >= MOST_BRANCHES:
            raise ValueError(f"there are {MOST_BRANCHES} branches; drop one first")
        self.branches.append(tuple(self.past))
        return len(self.branches) - 1

    def drop(self, branch: int) -> None:
        """Forget a branch.

        Raises:
            ValueError: there is no such branch.
        """
        self._check_branch(branch)
        del self.branches[branch]

    def return_to(self, branch: int, *, same_noise: bool = False) -> Moment:
        """Return to a branch: another future begins there, even with the same actions.

        Args:
            branch: number of the branch.
            same_noise: whether the same actions lead to the same future.

        Raises:
            ValueError: there is no such branch.
        """
        self._check_branch(branch)
        moments = list(self.branches[branch])
        if not same_noise:
            self._episode += 1  # its number is what keys the noise
            dreams = moments[-1].dreams
            dreams = dreams._replace(episode=torch.full_like(dreams.episode, self._episode))
            moments[-1] = replace(moments[-1], dreams=dreams)
        return self._become(moments)

    # ------------------------------------------------------------------ edits

    def latent(self, leaf: str) -> NDArray[np.float32]:
        """Return the values of a leaf of the state, flat.

        Raises:
            ValueError: there is no such leaf, or it does not hold floating-point numbers.
        """
        check_choice("leaf", leaf, self.leaves)
        values = self.now.dreams.model[leaf][0].reshape(-1).cpu().numpy()
        return np.array(values, np.float32)

    @_without_gradients
    def edit_latent(self, leaf: str, index: int, value: float) -> Moment:
        """Change one number of the state.

        Args:
            leaf: name of the leaf.
            index: number within the leaf, flat.
            value: new value.

        Raises:
            ValueError: there is no such number, or the value is not finite.
        """
        values = self.latent(leaf)
        if not 0 <= index < len(values):
            raise ValueError(f"{leaf!r} has the numbers 0 to {len(values) - 1}, not {index}")
        if not np.isfinite(value):
            raise ValueError(f"the value is {value}; expected a finite number")
        dreams = self.now.dreams
        edited = dreams.model[leaf].clone(memory_format=torch.contiguous_format)
        edited.view(-1)[index] = value
        return self._edited(dreams._replace(model={**dreams.model, leaf: edited}))

    @_without_gradients
    def edit_observation(self, index: int, value: float) -> Moment:
        """Change one number of the decoded vector: the world takes it in as what it has observed.

        The state becomes what the model's filter makes of that observation after the state before.

        Args:
            index: number within the vector, flat.
            value: new value; clipped to the bounds of the space.

        Raises:
            ValueError: observations are images or are not decoded, or there is no such number.
        """
        if not 0 <= index < self.plotted:
            known = f"expected 0 to {self.plotted - 1}" if self.plotted else "it is not a vector"
            raise ValueError(f"there is no number {index} of the observation; {known}")
        if not np.isfinite(value):
            raise ValueError(f"the value is {value}; expected a finite number")
        now, parts = self.now, {}
        boxes = observation_boxes(self.world.observation_space)
        for key, box in boxes.items():
            part = np.array(now.observation[key] if key else now.observation)
            size = part.size
            if 0 <= index < size:
                part.reshape(-1)[index] = value
                part = np.clip(part, box.low, box.high).astype(part.dtype)
            index -= size
            parts[key] = part
        before = self.moments[self._position - 1] if self._position else None
        model = self._filtered(join_parts(parts), now.dreams, before, now.action)
        ordered = {name: model[name] for name in now.dreams.model}
        return self._edited(now.dreams._replace(model=ordered))

    @_without_gradients
    def place_reality(self) -> Moment:
        """Set the real environment to what the dream believes now.

        Raises:
            ValueError: it cannot be set (`dreamgym.dream.rendering.STATE_SETTERS` names which can).
        """
        if self.reality is None or not self.reality.can_be_placed:
            raise ValueError(
                "the real environment cannot be set to an observation; add a function for it to "
                "dreamgym.dream.rendering.STATE_SETTERS"
            )
        moment = replace(
            self.now, real=self.reality.start(self.now.origin.seed, self.now.observation)
        )
        self.moments[self._position :] = [moment]
        return moment

    def close(self) -> None:
        """Close the environments."""
        if self.reality is not None:
            self.reality.close()
        if self.renderer is not None:
            self.renderer.close()
        self.env.close()

    # ------------------------------------------------------------------ inside

    def _make_reality(self, env: EnvSource | None) -> tuple[Reality | None, str]:
        """Return the real environment, or None and why there is none."""
        try:
            if env is None and self.world.env_spec is None:
                return None, "the world names no environment; give one with env= (--env)"
            return Reality(self.world, env, self.renderer), ""
        except Exception as error:  # whatever its constructor raises, the dream can be played
            if env is not None:
                raise
            return None, " ".join(str(error).split())

    def _planners(self) -> dict[str, str]:
        """Return planners that can search the action space, by name."""
        box = isinstance(self.world.action_space, gym.spaces.Box)
        name = "plan:icem" if box else "plan:categorical-cem"
        try:
            self._players[name] = make_player(name, self.env)
        except (TypeError, ValueError, TrainingError):
            return {}
        return {name: name}

    def _player(self, name: str) -> Player | None:
        if name not in self._players:
            self._players[name] = make_player(self._policies[name], self.env)
        return self._players[name]

    def _restart_player(self) -> None:
        player = self._player(self._playing)
        if player is not None:
            # What a policy remembers is of the course that was left.
            player.restart(self.now.origin.seed + self.now.step)

    def _start_row(self, states: State, seed: int, row: int | None) -> int:
        count = len(next(iter(states.values())))
        if row is None:
            return int(np.random.default_rng([seed, 0x91A7]).integers(count))
        if not 0 <= row < count:
            raise ValueError(f"there is no start {row}; expected 0 to {count - 1}")
        return row

    def _filtered(
        self,
        observation: Any,
        dreams: Dreams,
        before: Moment | None = None,
        action: Any = None,
    ) -> State:
        """Return the state after an observation, and after the moment before it if there is one."""
        model, device = self.env.engine.plain, self.env.device
        if before is None:
            state, taken = model.initial(1), zero_action(model.action_space, 1, device)
        else:
            state = before.dreams.model
            taken = self.env.validate_actions(np.asarray(action)[np.newaxis])
        batch = index_rows(observation, np.newaxis)
        keys = env_keys(dreams.seed, dreams.env)
        noise = draw_noise(keys, dreams.episode, dreams.age, model.noise_dim)
        return model.observe(state, taken, as_tensors(batch, device), noise.model)

    def _moment(self, step: int, origin: Origin, dreams: Dreams) -> Moment:
        """Return a moment with what is decoded from the state."""
        model = self.env.engine.model
        if self.renderer is None or not isinstance(model, Decodes):
            return Moment(step=step, origin=origin, dreams=dreams, observation=None, frame=None)
        decoded = model.decode(dreams.model)
        frame = None if self.renderer.draws_bars else encode(self.renderer.draw(decoded))
        output = OutputAdapter(
            replace(self.env.options, output="numpy"), self.world.observation_space
        )
        observation = index_rows(output.observation(decoded), 0)
        return Moment(step=step, origin=origin, dreams=dreams, observation=observation, frame=frame)

    def _edited(self, dreams: Dreams) -> Moment:
        now = self.now
        shown = self._moment(
            now.step, now.origin, dreams._replace(done=torch.zeros_like(dreams.done))
        )
        moment = replace(
            now,
            dreams=shown.dreams,
            observation=shown.observation,
            frame=shown.frame,
            terminated=False,
            truncated=False,
            edited=True,
        )
        self.moments[self._position :] = [moment]
        self._restart_player()
        return moment

    def _become(self, moments: list[Moment]) -> Moment:
        self.moments = moments
        self._position = len(moments) - 1
        self._restart_player()
        return self.now

    def _check_branch(self, branch: int) -> None:
        if not 0 <= branch < len(self.branches):
            raise ValueError(f"there is no branch {branch}; there are {len(self.branches)}")


def _editable_leaves(world: World) -> dict[str, Leaf]:
    """Return the floating-point leaves of a world's states, with their range in its bank."""
    leaves = {}
    for name in world.model.initial(1):
        leaf = world.starts.states[name]
        if leaf.is_floating_point():
            flat: Tensor = leaf.reshape(len(leaf), -1).float().cpu()
            low, high = flat.amin(0).numpy(), flat.amax(0).numpy()
            leaves[name] = Leaf(name=name, low=low, high=high)
    return leaves
