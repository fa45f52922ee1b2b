"""Frames of a dream: decoded and drawn one by one, when somebody reads them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, overload

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dreamgym.dream.inference import leave_inference_mode
from dreamgym.errors import WorldError
from dreamgym.models import Decodes, State, WorldModel
from dreamgym.models.observations import Observation, get_part, is_image, observation_boxes
from dreamgym.world.world import World

Frame = NDArray[np.uint8]


BAR_HEIGHT, BAR_WIDTH, BAR_GAP = 120, 24, 8


def _set_cartpole(env: Any, observation: NDArray[np.floating]) -> None:
    env.state = tuple(float(value) for value in observation)


def _set_pendulum(env: Any, observation: NDArray[np.floating]) -> None:
    cosine, sine, velocity = (float(value) for value in observation)
    env.state, env.last_u = np.array([math.atan2(sine, cosine), velocity]), None


def _set_mountain_car(env: Any, observation: NDArray[np.floating]) -> None:
    env.state = np.array(observation, np.float64)


def _set_acrobot(env: Any, observation: NDArray[np.floating]) -> None:
    cosine_1, sine_1, cosine_2, sine_2, *velocities = (float(value) for value in observation)
    angles = math.atan2(sine_1, cosine_1), math.atan2(sine_2, cosine_2)
    env.state = np.array([*angles, *velocities])


STATE_SETTERS: dict[str, Callable[[Any, NDArray[np.floating]], None]] = {
    "Acrobot": _set_acrobot,
    "CartPole": _set_cartpole,
    "MountainCar": _set_mountain_car,
    "MountainCarContinuous": _set_mountain_car,
    "Pendulum": _set_pendulum,
}

"""Environments, by name without version, whose own renderer can be put into an observed state."""


class Frames(Sequence[Frame]):
    """A frame (height, width, 3) for each dream, drawn when it is read."""

    def __init__(self, draw: Callable[[int], Frame], count: int) -> None:
        self._draw, self._count = draw, count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Frame: ...
    @overload
    def __getitem__(self, index: slice) -> list[Frame]: ...
    def __getitem__(self, index: int | slice) -> Frame | list[Frame]:
        if isinstance(index, slice):
            return [self._draw(row) for row in range(*index.indices(self._count))]
        row = index + self._count if index < 0 else index
        if not 0 <= row < self._count:
            raise IndexError(f"frame {index} of {self._count}")
        return self._draw(row)


class Renderer:
    """Draws decoded observations.

    Images as they are, known vectors by their environment's own renderer where it can be had, other
    vectors as bars within the range of the starts.

    Raises:
        ValueError: the world has no decoder.
    """

    def __init__(self, world: World) -> None:
        if not isinstance(world.model, Decodes):
            raise ValueError(
                f"render_mode='rgb_array' needs a decoder, which a {world.family} world has not; "
                "pass render_mode=None"
            )
        self.env: gym.Env | None = None
        self.set_state: Callable[[Any, NDArray[np.floating]], None] | None = None
        boxes = observation_boxes(world.observation_space)
        self.image = next((key for key, box in boxes.items() if is_image(box)), None)
        if self.image is None:
            name = (world.env_id or "").rpartition("/")[2].rpartition("-v")[0]
            if name in STATE_SETTERS:
                self.env = _own_renderer(world)
            if self.env is not None:
                self.set_state = STATE_SETTERS[name]
            begun = _flat(world.model.decode(world.starts.states))
            self.low, self.high = begun.amin(0).numpy(), begun.amax(0).numpy()

    def frames(self, model: WorldModel, state: State) -> Frames:
        """Frames of every row of a state, which is kept as it is now."""
        rows = len(next(iter(state.values())))

        def draw(row: int) -> Frame:
            one = {key: leaf[row : row + 1] for key, leaf in state.items()}
            with leave_inference_mode(traced=False):
                return self.draw(model.decode(one))  # type: ignore[operator]

        return Frames(draw, rows)

    def draw(self, observation: Observation) -> Frame:
        """A batch of one observation as a frame (height, width, 3) uint8."""
        if self.image is not None:
            return _three_channels(get_part(observation, self.image)[0].cpu().numpy())
        values = _flat(observation)[0].cpu().numpy()
        if self.env is not None and self.set_state is not None:
            self.set_state(self.env.unwrapped, values)
            frame: Any = self.env.render()
            return frame
        return self._bars(values)

    def close(self) -> None:
        """Close the real environment's renderer."""
        if self.env is not None:
            self.env.close()

    def _bars(self, values: NDArray[Any]) -> Frame:
        """A bar for each value, its height the place between the starts' extremes."""
        pitch = BAR_WIDTH + BAR_GAP
        frame = np.full((BAR_HEIGHT, BAR_GAP + pitch * len(values), 3), 255, np.uint8)
        share = (values - self.low) / np.maximum(self.high - self.low, 1e-9)
        for index, height in enumerate(np.clip(share, 0, 1) * (BAR_HEIGHT - 1)):
            left = BAR_GAP + index * pitch
            frame[BAR_HEIGHT - 1 - int(height) :, left : left + BAR_WIDTH] = (51, 102, 170)
        return frame


def _own_renderer(world: World) -> gym.Env | None:
    """The real environment, having drawn once; None and a warning where it cannot be had here."""
    try:
        env = world.real_env(render_mode="rgb_array")
        env.reset(seed=0)
        env.render()  # only now does Gymnasium look for pygame
    except (WorldError, gym.error.Error) as error:
        warnings.warn(
            f"frames are plots, for the real environment's own cannot be had ({error})",
            RuntimeWarning,
            stacklevel=4,
        )
        return None
    return env


def _three_channels(image: Frame) -> Frame:
    """An image (height, width, channels) in three: the last ones, or the last one three times."""
    channels = image.shape[2]
    if channels < 3:
        return np.repeat(image[..., -1:], 3, axis=2)
    return image if channels == 3 else np.ascontiguousarray(image[..., -3:])


def _flat(observation: Observation) -> Tensor:
    """Every number of an observation, (B, n)."""
    if isinstance(observation, dict):
        return torch.cat([leaf.flatten(1) for leaf in observation.values()], 1)
    return observation.flatten(1)
