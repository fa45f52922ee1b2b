"""A cache of what a frozen encoder makes of images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

MAX_CACHED_IMAGES = 1 << 20
"""Images in an `EncodingCache`: half a gigabyte at 128 numbers each."""

MAX_CACHED_BYTES = 4 << 30
"""Bytes in an `EncodingCache`: 14,000 images of 196 patches with 384 numbers each."""


class EncodingCache:
    """Cache of a frozen encoder's outputs, keyed by the bytes that it encodes.

    The authors of V-M-C encode all frames once, before M is fitted. Here the reader gives M's
    segments as images, so a frame that was encoded before is recognised by a digest of its bytes.
    """

    def __init__(self) -> None:
        self._rows: dict[bytes, int] = {}
        self._weights_version: tuple[tuple[int, int], ...] = ()
        self._encoded: Tensor | None = None

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def _is_full(self) -> bool:
        size = 0 if self._encoded is None else self._encoded.nbytes
        return len(self) > MAX_CACHED_IMAGES or size > MAX_CACHED_BYTES

    def __deepcopy__(self, memo: dict[int, object]) -> EncodingCache:
        """Return an empty cache: a copy of the encoder may be moved to another device."""
        return EncodingCache()

    def encode(
        self, inputs: Tensor, weights: Sequence[Tensor], encode: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Return the encoding of every input, (N, ...).

        Args:
            inputs: (N, n) uint8, at least one.
            weights: the encoder's parameters; the cache is cleared if they have changed.
            encode: function from the indices (M,) of some inputs to their encodings (M, ...).
        """
        version = tuple((weight.data_ptr(), weight._version) for weight in weights)
        if version != self._weights_version or self._is_full:
            self._rows, self._encoded, self._weights_version = {}, None, version
        rows = inputs.cpu().contiguous().numpy()
        keys = [hashlib.blake2b(memoryview(row), digest_size=16).digest() for row in rows]
        missing = {key: k for k, key in enumerate(keys) if key not in self._rows}
        if missing:
            new = encode(torch.tensor(list(missing.values()), device=inputs.device))
            self._encoded = new if self._encoded is None else torch.cat([self._encoded, new])
            self._rows |= {key: len(self._rows) + k for k, key in enumerate(missing)}
        if self._encoded is None:
            raise ValueError("expected at least one image to encode, got none")
        return self._encoded[torch.tensor([self._rows[key] for key in keys], device=inputs.device)]
