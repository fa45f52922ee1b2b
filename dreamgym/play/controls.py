"""Controls: an action space as buttons and sliders, and what they give as an action of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from dreamgym.data.frame_skip import FrameSkip
from dreamgym.errors import UnsupportedSpaceError

MAX_BUTTONS = 24
"""Choices up to which each has a button; of more, one is chosen with a slider."""

MAX_CONTROLS = 32
"""Numbers of an action that a person can be asked for at once."""

_UNBOUNDED = 1e6
"""Bounds beyond it are those of a dtype, and no range of a slider."""

_DIRECTIONS = {
    "left": ("ArrowLeft", "a"),
    "right": ("ArrowRight", "d"),
    "up": ("ArrowUp", "w"),
    "main": ("ArrowUp", "w"),
    "forward": ("ArrowUp", "w"),
    "down": ("ArrowDown", "s"),
    "back": ("ArrowDown", "s"),
}
_AXIS_KEYS = (("ArrowLeft", "ArrowRight"), ("ArrowDown", "ArrowUp"), ("a", "d"), ("s", "w"))
_IDLE_WORDS = {"coast", "noop", "nothing", "none", "wait"}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of several, as a row of buttons.

    Attributes:
        name: what is chosen; "" if it is the whole action.
        labels: name of each choice.
        keys: keys of each choice, as browsers name them (`KeyboardEvent.key`).
        rest: choice while no key is pressed; None to keep the last one.
        kind: "choice".
    """

    name: str
    labels: tuple[str, ...]
    keys: tuple[tuple[str, ...], ...]
    rest: int | None
    kind: str = "choice"


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A number in a range, as a slider.

    Attributes:
        name: what it is.
        low: smallest value.
        high: largest value.
        rest: value while no key is pressed.
        keys: keys that hold it at `low` and at `high`; "" for no key.
        integer: whether it is a whole number.
        kind: "axis".
    """

    name: str
    low: float
    high: float
    rest: float
    keys: tuple[str, str] = ("", "")
    integer: bool = False
    kind: str = "axis"


@dataclass(frozen=True, kw_only=True)
class Known:
    """Names of the actions and observations of an environment, for people.

    Attributes:
        actions: of a Discrete space the name of each action; of a Box that of each number. Words
            such as "left" give a choice its arrow key, "coast" is what happens without a key.
        observations: name of each number of a vector.
        keys: of a Box the keys that hold each number at its bounds, where arrows and WASD do not
            suit; "" for no key.
    """

    actions: tuple[str, ...]
    observations: tuple[str, ...] = ()
    keys: tuple[tuple[str, str], ...] = ()


KNOWN: dict[str, Known] = {
    "dreamgym/CarRacing": Known(actions=("steer", "throttle")),
    "Acrobot": Known(
        actions=("torque left", "coast", "torque right"),
        observations=("cos 1", "sin 1", "cos 2", "sin 2", "velocity 1", "velocity 2"),
    ),
    "CarRacing": Known(
        actions=("steer", "gas", "brake"),
        keys=(("ArrowLeft", "ArrowRight"), ("", "ArrowUp"), ("", "ArrowDown")),
    ),
    "CartPole": Known(
        actions=("push left", "push right"),
        observations=("position", "velocity", "angle", "angular velocity"),
    ),
    "CartPoleSwingup": Known(actions=("force",)),
    "InvertedPendulum": Known(
        actions=("force",), observations=("position", "angle", "velocity", "angular velocity")
    ),
    "LunarLander": Known(
        actions=("coast", "left engine", "main engine", "right engine"),
        observations=(
            *("x", "y", "x velocity", "y velocity"),
            *("angle", "angular velocity", "left leg", "right leg"),
        ),
    ),
    "MountainCar": Known(
        actions=("push left", "coast", "push right"), observations=("position", "velocity")
    ),
    "MountainCarContinuous": Known(actions=("push",), observations=("position", "velocity")),
    "Pendulum": Known(actions=("torque",), observations=("cosine", "sine", "angular velocity")),
    # VizDoom numbers the combinations of its buttons from the last one.
    "TakeCover": Known(actions=("coast", "move right", "move left")),
}
"""Names by environment id without version. An id without a namespace stands for those of all
namespaces that have no names of their own. A program may add its own."""


def known_names(env_id: str | None) -> Known:
    """Return the names that belong to an environment's id; empty ones where it is not known."""
    full = (env_id or "").rpartition("-v")[0]
    name = full.rpartition("/")[2]
    return KNOWN.get(full) or KNOWN.get(name) or Known(actions=())


class Controls:
    """Buttons and sliders for an action space.

    Where a step of the world takes a block of several actions, the controls are those of one, which
    is repeated.

    Args:
        space: action space of the world: Discrete, MultiDiscrete or Box.
        frame_skip: frame skip of the world.
        known: names of the actions.

    Attributes:
        items: a `Choice` or an `Axis` for each number of an action.

    Raises:
        UnsupportedSpaceError: another space, or one of more numbers than a person can control.
    """

    def __init__(
        self, space: gym.Space[Any], frame_skip: FrameSkip | None = None, known: Known | None = None
    ) -> None:
        self.space = space
        skip, known = frame_skip or FrameSkip(), known or Known(actions=())
        self.repeats = skip.steps if skip.actions == "blocks" else 1
        if isinstance(space, gym.spaces.Discrete):
            self.items: tuple[Choice | Axis, ...] = (
                _choice("", int(space.n), int(space.start), known.actions),
            )
        elif isinstance(space, gym.spaces.MultiDiscrete):
            self.items = self._choices(space, known)
        elif isinstance(space, gym.spaces.Box):
            self.items = self._axes(space, known)
        else:
            raise UnsupportedSpaceError(
                f"actions of the space {space} cannot be played; expected Discrete, MultiDiscrete "
                "or Box. Wrap the environment so that its actions are one of these, and fit a "
                "world to that"
            )

    def describe(self) -> list[dict[str, Any]]:
        """Return the controls as JSON-plain values."""
        return [asdict(each) for each in self.items]

    def action(self, values: Sequence[float]) -> Any:
        """Return the action that the controls give.

        Args:
            values: one number for each control: of a choice its index, of an axis its value.

        Returns:
            An action of the space, in its dtype; numbers of a Box are clipped to their bounds.

        Raises:
            ValueError: another number of values, or no such choice.
        """
        try:
            numbers = [float(value) for value in values]
        except (TypeError, ValueError):
            raise ValueError(f"the action is {values!r}; expected a list of numbers") from None
        if len(numbers) != len(self.items) or not all(map(math.isfinite, numbers)):
            raise ValueError(
                f"the action has the values {numbers}; expected {len(self.items)} finite numbers, "
                "one for each control"
            )
        for number, item in zip(numbers, self.items, strict=True):
            if isinstance(item, Choice) and not (
                number.is_integer() and 0 <= number < len(item.labels)
            ):
                raise ValueError(
                    f"there is no choice {number:g}; expected 0 to {len(item.labels) - 1}"
                )
        flat = np.tile(np.asarray(numbers), self.repeats)
        space = self.space
        if isinstance(space, gym.spaces.Discrete):
            first = 0 if isinstance(self.items[0], Axis) else space.start
            action = min(max(round(flat[0]) + first, space.start), space.start + space.n - 1)
            return np.int64(action)
        if isinstance(space, gym.spaces.MultiDiscrete):
            choices = flat.round().astype(space.dtype).reshape(space.shape)
            return choices + space.start.astype(space.dtype)
        array = np.asarray(flat if np.dtype(space.dtype).kind == "f" else flat.round())
        box: Any = space
        # Bounds in float64: of a wide integer they do not fit into float32.
        low, high = np.asarray(box.low, np.float64), np.asarray(box.high, np.float64)
        return np.clip(array.reshape(space.shape), low, high).astype(space.dtype)

    def values(self, action: Any) -> list[float]:
        """Return the values of the controls that give an action, the first of a block."""
        flat = np.asarray(action, np.float64).reshape(-1)[: len(self.items)]
        if isinstance(self.space, gym.spaces.Discrete) and isinstance(self.items[0], Choice):
            flat = flat - self.space.start
        elif isinstance(self.space, gym.spaces.MultiDiscrete):
            flat = flat - self.space.start.reshape(-1)[: len(self.items)]
        return [float(value) for value in flat]

    def _count(self, numbers: int) -> int:
        """Return the numbers of one action of a block, if a person can control so many."""
        count = numbers // self.repeats
        if count > MAX_CONTROLS:
            raise UnsupportedSpaceError(
                f"actions of the space {self.space} cannot be played by hand: they have {count} "
                f"numbers, and {MAX_CONTROLS} are the most that the page has controls for. Fit a "
                "world to an environment with fewer, for instance behind a wrapper that controls "
                "the others"
            )
        return count

    def _choices(self, space: gym.spaces.MultiDiscrete, known: Known) -> tuple[Choice | Axis, ...]:
        sizes = space.nvec.reshape(-1)
        count = self._count(len(sizes))
        if count == 1:  # a block of Discrete actions
            return (_choice("", int(sizes[0]), 0, known.actions, sliders=False),)
        names = known.actions if len(known.actions) == count else _numbered("choice", count)
        return tuple(
            _choice(name, int(size), 0, (), sliders=False, number=index)
            for index, (name, size) in enumerate(zip(names, sizes, strict=False))
        )

    def _axes(self, space: gym.spaces.Box, known: Known) -> tuple[Axis, ...]:
        lows, highs = space.low.reshape(-1), space.high.reshape(-1)
        count = self._count(len(lows))
        names = known.actions if len(known.actions) == count else _numbered("action", count)
        axes = []
        for index in range(count):
            low, high = _finite_range(float(lows[index]), float(highs[index]))
            rest = min(max(0.0, low), high)
            keys = _AXIS_KEYS[index] if index < len(_AXIS_KEYS) else ("", "")
            keys = known.keys[index] if index < len(known.keys) else keys
            integer = np.dtype(space.dtype).kind in "iu"
            axes.append(
                Axis(name=names[index], low=low, high=high, rest=rest, keys=keys, integer=integer)
            )
        return tuple(axes)


def _choice(
    name: str,
    count: int,
    start: int,
    labels: tuple[str, ...],
    *,
    sliders: bool = True,
    number: int = 0,
) -> Choice | Axis:
    """Return the control of one of `count` choices.

    Args:
        name: its name.
        count: number of choices.
        start: number of the first one, where it is a slider.
        labels: names of the choices; ignored where there are not `count` of them.
        sliders: whether many choices become a slider.
        number: which control of the action it is; only the first two have keys.
    """
    if count > MAX_BUTTONS and sliders:
        low, high = float(start), float(start + count - 1)
        name = name or "action"
        return Axis(name=name, low=low, high=high, rest=low, keys=_AXIS_KEYS[0], integer=True)
    if len(labels) != count:
        labels = tuple(str(index + start) for index in range(count))
    keys: list[tuple[str, ...]] = [()] * count
    if number < 2:
        keys = [_direction_keys(label) for label in labels]
    if number < 2 and count == 2 and not any(keys):
        keys = [(key,) for key in _AXIS_KEYS[number]]
    if number == 0:  # digits choose, too
        keys = [(*k, str(i + 1)) if i < 9 else k for i, k in enumerate(keys)]
    rest = next((i for i, label in enumerate(labels) if label.lower() in _IDLE_WORDS), None)
    return Choice(name=name, labels=labels, keys=tuple(keys), rest=rest)


def _direction_keys(label: str) -> tuple[str, ...]:
    words = label.lower().replace("_", " ").split()
    return tuple(key for word, keys in _DIRECTIONS.items() if word in words for key in keys)


def _numbered(word: str, count: int) -> tuple[str, ...]:
    return tuple(f"{word} {index}" for index in range(count))


def _finite_range(low: float, high: float) -> tuple[float, float]:
    """Return the range of a slider: two units wide where there is no bound."""
    if low > -_UNBOUNDED:
        return low, high if high < _UNBOUNDED else low + 2.0
    return (high - 2.0, high) if high < _UNBOUNDED else (-1.0, 1.0)
