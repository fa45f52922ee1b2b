"""A cache of what a frozen encoder makes of images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

MAX_CACHED_IMAGES = 1 << 20
"""Images in an `EncodingCache`: half a gigabyte at 128 numbers each."""

MAX_CACHED_BYTES = 4 << 30
"""Bytes in an `EncodingCache` by default."""


class EncodingCache:
    """Cache of a frozen encoder's outputs, keyed by the bytes that it encodes.

    The authors of V-M-C encode all frames once, before M is fitted. Here the reader gives M's
    segments as images, so a frame that was encoded before is recognised by a digest of its bytes.

    What comes to a full cache is encoded each time; what is in it stays.

    Args:
        max_bytes: bytes of the outputs that are kept.
    """

    def __init__(self, max_bytes: int = MAX_CACHED_BYTES) -> None:
        self.max_bytes = max_bytes
        self._rows: dict[bytes, int] = {}
        self._weights_version: tuple[tuple[int, int], ...] = ()
        self._encoded: Tensor | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __deepcopy__(self, memo: dict[int, object]) -> EncodingCache:
        """Return an empty cache: a copy of the encoder may be moved to another device."""
        return EncodingCache(self.max_bytes)

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
        if version != self._weights_version:
            self._rows, self._encoded, self._weights_version = {}, None, version
        rows = inputs.cpu().contiguous().numpy()
        keys = [hashlib.blake2b(memoryview(row), digest_size=16).digest() for row in rows]
        missing = {key: k for k, key in enumerate(keys) if key not in self._rows}
        if missing:
            new = encode(torch.tensor(list(missing.values()), device=inputs.device))
            if not self._has_room(new):
                return self._with_known(keys, dict(zip(missing, new, strict=True)))
            self._keep(missing, new)
        if self._encoded is None:
            raise ValueError("expected at least one image to encode, got none")
        return self._encoded[torch.tensor([self._rows[key] for key in keys], device=inputs.device)]

    def _has_room(self, new: Tensor) -> bool:
        """Return whether more encodings can be kept."""
        return len(self) + len(new) <= self._most(new)

    def _most(self, new: Tensor) -> int:
        """Return how many encodings of this size can be kept."""
        return min(self.max_bytes // max(1, new[0].nbytes), MAX_CACHED_IMAGES)

    def _keep(self, keys: Iterable[bytes], new: Tensor) -> None:
        """Keep the encodings of keys; the memory grows by doubling, so that each is copied once."""
        start, end = len(self), len(self) + len(new)
        if self._encoded is None or len(self._encoded) < end:
            size = min(self._most(new), max(end, 2 * start))
            grown = new.new_empty(size, *new.shape[1:])
            if self._encoded is not None:
                grown[:start] = self._encoded[:start]
            self._encoded = grown
        self._encoded[start:end] = new
        self._rows |= {key: start + k for k, key in enumerate(keys)}

    def _with_known(self, keys: list[bytes], new: dict[bytes, Tensor]) -> Tensor:
        """Return the encodings of keys, of which some are new and the others kept."""
        known = self._encoded
        return torch.stack(
            [new[key] if known is None or key in new else known[self._rows[key]] for key in keys]
        )
