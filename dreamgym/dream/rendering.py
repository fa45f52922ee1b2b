"""Frames of dreams, each decoded and drawn when it is read."""

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

from dreamgym._device import own_torch_modes
from dreamgym.data.images import image_layout
from dreamgym.errors import WorldError
from dreamgym.models import Decodes, State, WorldModel
from dreamgym.models.observations import Observation, get_part, observation_boxes
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
"""Environments whose renderer can be set to an observed state, by name without version."""


class Frames(Sequence[Frame]):
    """A sequence of one frame (height, width, 3) for each dream, drawn when it is read."""

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

    Images are shown as they are. Vectors of the environments of `STATE_SETTERS` are drawn by the
    environment's own renderer, if it is installed; other vectors are drawn as bars, scaled to the
    range of the start states.

    Args:
        world: world whose model decodes.

    Raises:
        ValueError: the world has no decoder.
    """

    def __init__(self, world: World) -> None:
        if not isinstance(world.model, Decodes):
            raise ValueError(
                f"render_mode='rgb_array' needs a decoder, and a {world.family} world has none; "
                "pass render_mode=None"
            )
        self.env: gym.Env | None = None
        self.set_state: Callable[[Any, NDArray[np.floating]], None] | None = None
        boxes = observation_boxes(world.observation_space)
        layouts = {key: image_layout(box) for key, box in boxes.items()}
        self.image = next((key for key, layout in layouts.items() if layout is not None), None)
        self.layout = None if self.image is None else layouts[self.image]
        if self.image is None:
            name = (world.env_id or "").rpartition("/")[2].rpartition("-v")[0]
            if name in STATE_SETTERS:
                self.env = _make_real_env(world)
            if self.env is not None:
                self.set_state = STATE_SETTERS[name]
            starts = _flatten(world.model.decode(world.starts.states)).cpu()
            self.low, self.high = starts.amin(0).numpy(), starts.amax(0).numpy()

    @property
    def draws_bars(self) -> bool:
        """Whether frames are bars, since nothing here can draw the scene."""
        return self.image is None and self.set_state is None

    def frames(self, model: WorldModel, state: State) -> Frames:
        """Return frames of every row of a state.

        Args:
            model: model that decodes.
            state: leaves (N, ...); kept, so it must not be overwritten later.
        """
        rows = len(next(iter(state.values())))

        def draw(row: int) -> Frame:
            row_state = {key: leaf[row : row + 1] for key, leaf in state.items()}
            with own_torch_modes(grad=False):
                return self.draw(model.decode(row_state))  # type: ignore[operator]

        return Frames(draw, rows)

    def draw(self, observation: Observation) -> Frame:
        """Return a frame (height, width, 3) uint8 of a batch of one observation."""
        if self.image is not None and self.layout is not None:
            images = get_part(observation, self.image)[:1].cpu().numpy()
            return _three_channels(self.layout.channels_last(images)[0])
        values = _flatten(observation)[0].cpu().numpy()
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
        """Draw a bar for each value, its height the position in the range of the start states."""
        pitch = BAR_WIDTH + BAR_GAP
        frame = np.full((BAR_HEIGHT, BAR_GAP + pitch * len(values), 3), 255, np.uint8)
        share = (values - self.low) / np.maximum(self.high - self.low, 1e-9)
        for index, height in enumerate(np.clip(share, 0, 1) * (BAR_HEIGHT - 1)):
            left = BAR_GAP + index * pitch
            frame[BAR_HEIGHT - 1 - int(height) :, left : left + BAR_WIDTH] = (51, 102, 170)
        return frame


def _make_real_env(world: World) -> gym.Env | None:
    """Return the real environment if it can render here; else warn and return None."""
    try:
        env = world.real_env(render_mode="rgb_array")
        env.reset(seed=0)
        env.render()  # Gymnasium imports pygame only here
    except (WorldError, gym.error.Error) as error:
        warnings.warn(
            f"frames are plots, since the real environment cannot render here ({error})",
            RuntimeWarning,
            stacklevel=4,
        )
        return None
    return env


def _three_channels(image: Frame) -> Frame:
    """Return an image with 3 channels: the last 3, or if there are fewer, the last one repeated."""
    channels = image.shape[2]
    if channels < 3:
        return np.repeat(image[..., -1:], 3, axis=2)
    return image if channels == 3 else np.ascontiguousarray(image[..., -3:])


def _flatten(observation: Observation) -> Tensor:
    """Return all numbers of an observation, (B, n)."""
    if isinstance(observation, dict):
        return torch.cat([leaf.flatten(1) for leaf in observation.values()], 1)
    return observation.flatten(1)
