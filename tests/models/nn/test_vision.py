"""Convolutional encoders and decoders: published shapes, and sizes that fit or do not."""

from __future__ import annotations

import pytest
import torch

from dreamgym.models.nn.conv import (
    VMC_DECODER,
    VMC_ENCODER,
    ConvDecoder,
    ConvEncoder,
    ConvStack,
    halvings,
)

V3 = {"stride": 2, "padding": "same", "activation": "silu", "norm": "rms"}


def test_the_published_encoder_maps_64_pixels_to_two_by_two_and_1024_numbers():
    encoder = ConvEncoder(3, (64, 64), VMC_ENCODER)
    assert encoder.grid == (2, 2)
    assert encoder.dim == 1024
    sides = [64]
    images = torch.zeros(1, 3, 64, 64)
    for layer in encoder.layers:
        images = layer(images)
        sides.append(images.shape[-1])
    assert sides[1::2] == [31, 14, 6, 2]


def test_the_published_decoder_starts_from_one_by_one():
    decoder = ConvDecoder(32, 3, (64, 64), VMC_DECODER)
    assert decoder.grid == (1024, 1, 1)
    assert decoder(torch.zeros(2, 32)).shape == (2, 3, 64, 64)
    assert isinstance(decoder.layers[-1], torch.nn.ConvTranspose2d)


def test_any_leading_shape_is_kept_and_rows_are_independent():
    encoder = ConvEncoder(3, (64, 64), VMC_ENCODER.scaled(0.25))
    decoder = ConvDecoder(encoder.dim, 3, (64, 64), VMC_DECODER.scaled(0.25))
    images = torch.rand(2, 3, 3, 64, 64)
    codes = encoder(images)
    assert codes.shape == (2, 3, 256)
    assert decoder(codes).shape == images.shape
    torch.testing.assert_close(encoder(images[1, 2][None])[0], codes[1, 2])


@pytest.mark.parametrize(("size", "kernel"), [(64, 5), (32, 4), (48, 6), (96, 3)])
def test_same_padding_halves_and_doubles(size, kernel):
    encoder = ConvEncoder(3, (size, size), ConvStack(depths=(4,) * 3, kernels=(kernel,) * 3, **V3))
    assert encoder.grid == (size // 8, size // 8)
    decoder = ConvDecoder(
        6, 3, (size, size), ConvStack(depths=(4,) * 3, kernels=(kernel,) * 3, **V3)
    )
    assert decoder(torch.randn(2, 6)).shape == (2, 3, size, size)


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_a_norm_is_over_the_channels_of_each_pixel(norm):
    stack = ConvStack(depths=(8,), kernels=(4,), padding="same", norm=norm)
    encoder = ConvEncoder(1, (8, 8), stack)
    normed = encoder.layers[:2](torch.rand(2, 1, 8, 8) * 100)
    centred = normed - normed.mean(1, keepdim=True) if norm == "layer" else normed
    torch.testing.assert_close(centred.square().mean(1), torch.ones(2, 4, 4), rtol=0.02, atol=0.02)


def test_sizes_need_not_be_square():
    stack = ConvStack(depths=(4, 8), kernels=(4, 4), padding="same")
    assert ConvEncoder(1, (16, 32), stack).grid == (4, 8)
    assert ConvDecoder(3, 1, (16, 32), stack)(torch.zeros(1, 3)).shape == (1, 1, 16, 32)


def test_a_size_that_does_not_fit_is_refused_with_one_that_does():
    with pytest.raises(ValueError, match=r"40 x 40 are too small.*work at 46 x 46"):
        ConvEncoder(3, (40, 40), VMC_ENCODER)
    ConvEncoder(3, (46, 46), VMC_ENCODER)
    with pytest.raises(ValueError, match=r"84 pixels.*work at 80 or 96 pixels"):
        ConvDecoder(32, 3, (84, 84), VMC_DECODER)
    ConvDecoder(32, 3, (80, 96), VMC_DECODER)
    with pytest.raises(ValueError, match="work at 64 or 128"):
        halvings(84)
    assert halvings(64) == 4
    assert halvings(96, smallest=6) == 4


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"depths": (4,), "kernels": (4, 4)}, "one kernel for each depth"),
        ({"depths": (), "kernels": ()}, "at least one"),
        ({"depths": (0,), "kernels": (4,)}, "at least 1"),
        ({"depths": (4,), "kernels": (1,), "padding": "same"}, "leave gaps"),
        ({"depths": (4,), "kernels": (4,), "activation": "sulu"}, "is not valid"),
        ({"depths": (4,), "kernels": (4,), "norm": "group"}, "is not valid"),
    ],
)
def test_invalid_stacks_are_refused(wrong, match):
    with pytest.raises(ValueError, match=match):
        ConvStack(**wrong)
