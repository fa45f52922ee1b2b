"""A held-out episode beside dreams of the same actions: curves of numbers, or frames of images."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dreamgym.data import AnyDataset
from dreamgym.data.html_report import png
from dreamgym.data.images import image_layout
from dreamgym.metrics.forecasts import vector_keys
from dreamgym.metrics.windows import BURN_IN, uniform_noise
from dreamgym.models import Decodes, State, filter_states
from dreamgym.models.base import as_segment, model_device
from dreamgym.models.observations import get_part, observation_boxes
from dreamgym.models.reduction import float64_on_host
from dreamgym.world.world import World

SAMPLES = 8
MAX_STEPS = 100
MAX_CHANNELS = 8
FRAMES = (0, 1, 2, 5, 10, 15, 25, 50)
"""Steps ahead at which frames are shown."""


@torch.no_grad()
def examples(
    world: World, dataset: AnyDataset, held_out: NDArray[np.integer], seed: int
) -> dict[str, Any]:
    """Return the longest held-out episode beside dreams of its actions, JSON-plain.

    Args:
        world: the world; one that does not decode has no examples.
        dataset: source of the episodes.
        held_out: (E,) their indices.
        seed: seed of the dreams.
    """
    model = world.model
    if not isinstance(model, Decodes):
        return {}
    lengths = np.asarray(dataset.lengths)[held_out]
    episode = int(held_out[int(lengths.argmax())])
    steps = min(int(lengths.max()) - BURN_IN, MAX_STEPS, world.horizon)
    if steps < 1:
        return {}
    window = as_segment(dataset.windows([episode], [0], BURN_IN + steps), model_device(model))
    rng = np.random.default_rng([seed, 0xE5])
    burn_in = window._replace(
        observation=_head(window.observation, BURN_IN + 1), action=window.action[:, :BURN_IN]
    )
    noise = uniform_noise(rng, (1, BURN_IN + 1, model.noise_dim), model_device(model))
    states = filter_states(model, burn_in, noise)
    start = {k: leaf[:, BURN_IN].repeat_interleave(SAMPLES, 0) for k, leaf in states.items()}
    dreamt = _dream(model, start, window.action[:, BURN_IN:], rng)
    figures: dict[str, Any] = {"episode": episode, "steps": steps}
    keys = vector_keys(model)
    if keys:
        figures["real"] = _numbers(
            [_at(window.observation, BURN_IN + t) for t in range(steps + 1)], keys
        )[0]
        figures["dreamt"] = _numbers(dreamt, keys)
    figures["frames"] = _frames(world, window.observation, dreamt, steps)
    return figures


def _dream(model: Any, state: State, actions: torch.Tensor, rng: np.random.Generator) -> list[Any]:
    """Return the decoded observations before and after each action."""
    observations = [model.decode(state)]
    for t in range(actions.shape[1]):
        action = actions[:, t].repeat_interleave(SAMPLES, 0)
        noise = uniform_noise(rng, (SAMPLES, model.noise_dim), action.device)
        state, _ = model.step(state, action, noise)
        observations.append(model.decode(state))
    return observations


def _head(observation: Any, rows: int) -> Any:
    if isinstance(observation, dict):
        return {key: leaf[:, :rows] for key, leaf in observation.items()}
    return observation[:, :rows]


def _at(observation: Any, step: int) -> Any:
    if isinstance(observation, dict):
        return {key: leaf[:, step] for key, leaf in observation.items()}
    return observation[:, step]


def _numbers(observations: list[Any], keys: list[str]) -> list[list[list[float]]]:
    """Return (samples, channels, steps) of the first channels."""
    steps = [
        torch.cat([float64_on_host(get_part(each, key).flatten(1)) for key in keys], 1)
        for each in observations
    ]
    stacked = torch.stack(steps, 2)[:, :MAX_CHANNELS]
    return [[[float(f"{x:.5g}") for x in row] for row in sample] for sample in stacked.tolist()]


def _frames(world: World, real: Any, dreamt: list[Any], steps: int) -> list[dict[str, Any]]:
    """Return real and dreamt frames of every image, as PNG in base64."""
    frames = []
    for key, box in observation_boxes(world.observation_space).items():
        layout = image_layout(box)
        if layout is None:
            continue
        for t in (step for step in FRAMES if step <= steps):
            pair = (
                get_part(_at(real, BURN_IN + t), key)[0],
                get_part(dreamt[t], key)[0],
            )
            images = [_encoded(layout, each) for each in pair]
            frames.append({"key": key, "step": t, "real": images[0], "dreamt": images[1]})
    return frames


def _encoded(layout: Any, image: torch.Tensor) -> str:
    pixels = layout.channels_last(image[None].cpu().numpy())[0]
    if pixels.dtype != np.uint8:
        span = float(pixels.max()) or 1.0
        pixels = np.clip(255 * pixels / span, 0, 255).astype(np.uint8)
    return base64.b64encode(png(np.ascontiguousarray(pixels))).decode()
