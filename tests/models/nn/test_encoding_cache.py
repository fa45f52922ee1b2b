"""What a frozen encoder makes of images is kept, within limits."""

from __future__ import annotations

import torch

from dreamgym.models.nn import encoding_cache
from dreamgym.models.nn.encoding_cache import EncodingCache


def test_each_image_is_encoded_once_until_the_cache_is_full(monkeypatch):
    images = torch.arange(12, dtype=torch.uint8).view(6, 2)
    encoded: list[int] = []

    def encode(rows: torch.Tensor) -> torch.Tensor:
        encoded.extend(rows.tolist())
        return images[rows].float()

    cache, weights = EncodingCache(), [torch.zeros(1)]
    monkeypatch.setattr(encoding_cache, "MAX_CACHED_BYTES", 6 * 2 * 4)
    for _ in range(2):
        assert torch.equal(cache.encode(images, weights, encode), images.float())
    assert encoded == [*range(6)]
    monkeypatch.setattr(encoding_cache, "MAX_CACHED_BYTES", 6 * 2 * 4 - 1)
    cache.encode(images[:2], weights, encode)
    assert len(cache) == 2, "a cache that is too large starts anew"
