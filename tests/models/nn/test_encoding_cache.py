"""What a frozen encoder makes of images is kept, within limits."""

from __future__ import annotations

import copy

import pytest
import torch

from dreamgym.models.nn.encoding_cache import EncodingCache

IMAGES = torch.arange(12, dtype=torch.uint8).view(6, 2)
SIZE = 8
"""Bytes of an encoding."""


class Encoder:
    """Counts the images that it encodes."""

    def __init__(self, max_bytes: int) -> None:
        self.cache, self.weights = EncodingCache(max_bytes), [torch.zeros(1)]

    def __call__(self, images: torch.Tensor) -> int:
        """Encode images, and return how many were not known."""
        counted = []

        def encode(rows: torch.Tensor) -> torch.Tensor:
            counted.extend(rows.tolist())
            return images[rows].float()

        assert torch.equal(self.cache.encode(images, self.weights, encode), images.float())
        return len(counted)


@pytest.mark.parametrize(
    ("max_bytes", "counts"),
    [(6 * SIZE, [4, 2, 0]), (5 * SIZE, [4, 2, 2]), (SIZE, [4, 6, 6])],
    ids=["room", "too little", "none"],
)
def test_each_image_is_encoded_once_until_the_cache_is_full(max_bytes, counts):
    encoder = Encoder(max_bytes)
    assert [encoder(part) for part in (IMAGES[:4], IMAGES, IMAGES.flip(0))] == counts


def test_other_weights_encode_anew_and_a_copy_is_empty():
    encoder = Encoder(6 * SIZE)
    assert [encoder(IMAGES), encoder(IMAGES)] == [6, 0]
    copied = copy.deepcopy(encoder.cache)
    assert (len(copied), copied.max_bytes) == (0, 6 * SIZE)
    encoder.weights[0].add_(1)
    assert encoder(IMAGES) == 6
