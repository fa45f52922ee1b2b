"""The RSSM's observation codec: vectors, images, bytes and Dicts of them."""

from __future__ import annotations

from typing import get_args

import gymnasium as gym
import numpy as np
import pytest
import torch

from dreamgym.models import RSSM, RSSMConfig, Segment
from dreamgym.models.nn.codecs import Units, VectorCodec
from dreamgym.models.nn.observation_codec import ObservationCodec
from dreamgym.models.observations import as_tensors, get_part
from dreamgym.models.rssm import RSSMObjective
from dreamgym.models.rssm.modules import codec_config, image_stacks
from dreamgym.models.statistics import measure_statistics

IMAGE = gym.spaces.Box(0, 255, (20, 24, 3), np.uint8)
FLOATS = gym.spaces.Box(np.float32([-1, -1, -8]), np.float32([1, 1, 8]))
BYTES = gym.spaces.Box(0, 255, (5,), np.uint8)
INTEGERS = gym.spaces.Box(-3, 7, (2, 2), np.int32)
SPACES = {
    "floats": FLOATS,
    "image": IMAGE,
    "bytes": BYTES,
    "integers": INTEGERS,
    "scalar": gym.spaces.Box(-1.0, 1.0, (), np.float32),
    "all": gym.spaces.Dict({"a.b": FLOATS, "camera": IMAGE, "ram": BYTES, "wrist": IMAGE}),
}
BATCH, LENGTH = 3, 2


def config(units: str, blocks: int = 2) -> RSSMConfig:
    size = 16 if blocks else 64
    objective = RSSMObjective(vectors=units, image_size=size, free_nats=0.0)
    return RSSMConfig(
        deter=16, hidden=12, stoch=3, classes=5, blocks=blocks, units=10, image_depth=2,
        norm="rms" if blocks else "none", objective=objective,
    )  # fmt: skip


def observations(space: gym.Space, count: int):
    space.seed(0)
    drawn = [space.sample() for _ in range(count)]
    if isinstance(space, gym.spaces.Dict):
        return {key: np.stack([row[key] for row in drawn]) for key in space.spaces}
    return np.stack(drawn)


@pytest.mark.parametrize("name", sorted(SPACES))
@pytest.mark.parametrize(("units", "blocks"), [("standard", 2), ("symlog", 2), ("raw", 0)])
def test_every_space_is_fitted_with_every_weight_and_decoded_within_the_space(name, units, blocks):
    space = SPACES[name]
    torch.manual_seed(0)
    model = RSSM(space, gym.spaces.Discrete(2), config(units, blocks))
    seen = observations(space, BATCH * (LENGTH + 1))
    model.set_statistics(measure_statistics([(seen, np.zeros(BATCH * (LENGTH + 1) - 1))]))
    cut = lambda leaf: leaf.unflatten(0, (BATCH, LENGTH + 1))  # noqa: E731
    tensors = as_tensors(seen)
    segment = Segment(
        {k: cut(v) for k, v in tensors.items()} if isinstance(tensors, dict) else cut(tensors),
        torch.zeros(BATCH, LENGTH, dtype=torch.int64),
        torch.zeros(BATCH, LENGTH),
        torch.zeros(BATCH, LENGTH, dtype=torch.bool),
        torch.ones(BATCH, LENGTH, dtype=torch.bool),
    )
    loss, _ = model.loss(segment, torch.rand(BATCH, LENGTH + 1, model.noise_dim))
    loss.backward()
    assert loss.isfinite()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without
    state, _ = model.step(
        model.initial(BATCH), torch.zeros(BATCH, dtype=torch.int64), torch.rand(BATCH, 3)
    )
    decoded = model.decode(state)
    for row in range(BATCH):
        value = (
            {key: get_part(decoded, key)[row].detach().numpy() for key in space.spaces}
            if isinstance(space, gym.spaces.Dict)
            else decoded[row].detach().numpy()
        )
        assert space.contains(value)


@pytest.mark.parametrize("units", get_args(Units))
@pytest.mark.parametrize("box", [FLOATS, BYTES, INTEGERS])
def test_vectors_come_out_as_they_went_in(units, box):
    codec = VectorCodec(box, units)
    seen = torch.from_numpy(observations(box, 50))
    if box is not BYTES:
        codec.set_moments(measure_statistics([(seen.numpy(), np.zeros(49))]).observation[""])
    back = codec.to_space(codec.decode(codec.encode(seen)))
    assert back.dtype == seen.dtype
    torch.testing.assert_close(back, seen, rtol=1e-5, atol=1e-5)


def test_standard_vectors_have_the_moments_of_the_training_data():
    codec = VectorCodec(FLOATS, "standard")
    seen = observations(FLOATS, 200)
    codec.set_moments(measure_statistics([(seen, np.zeros(199))]).observation[""])
    standard = codec.encode(torch.from_numpy(seen))
    torch.testing.assert_close(standard.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(standard.std(0, correction=0), torch.ones(3))


def test_unknown_is_what_lies_beyond_the_widened_range():
    codec = VectorCodec(FLOATS, "standard")
    codec.low.copy_(torch.tensor([-0.5, -0.5, -2.0]))
    codec.high.copy_(torch.tensor([0.5, 0.5, 2.0]))
    at = torch.tensor([[0.0, 0.0, 0.0], [0.69, 0.0, 0.0], [0.71, 0.0, 0.0], [0.0, 0.0, -2.81]])
    assert codec.outside_data(at, 0.2).tolist() == [False, False, True, True]


def test_the_error_of_images_is_the_sum_of_squares_of_pixels_in_zero_to_one():
    senses = ObservationCodec(IMAGE, 8, codec_config(config("standard")))
    images = torch.from_numpy(observations(IMAGE, 6)).unflatten(0, (2, 3))
    targets = senses.targets(images)
    features = torch.randn(2, 3, 8)
    predicted = senses.predict(features)[0]
    assert predicted.abs().max() < 0.5
    expected = ((predicted + 0.5) - senses.pixels[0].to_float(images)).square().flatten(2).sum(-1)
    torch.testing.assert_close(senses.error(features, targets), expected)


def test_the_convolutions_are_the_published_ones():
    down, up = image_stacks(RSSM.presets["dreamer-v3-12m"])
    assert down.depths == (32, 48, 64, 64)  # depth 16 times (2, 3, 4, 4) of danijar/dreamerv3
    assert up.depths == (64, 64, 48, 32)
    assert down.encoded_size(64) == 4
    down, up = image_stacks(RSSM.presets["dreamer-v2"])
    assert down.depths == (48, 96, 192, 384)
    assert up.depths == (1536, 192, 96, 48)
    assert image_stacks(RSSM.presets["planet"])[0].depths == (32, 64, 128, 256)
