"""The checksum of a module's weights."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def weights_sha256(module: nn.Module) -> bytes:
    """Return the SHA-256 of a module's parameters and buffers, names included: 32 bytes.

    It depends neither on the device nor on the order in which the module registers them.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        # As bytes, because NumPy has no bfloat16.
        flat = tensor.detach().cpu().contiguous().view(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.digest()
