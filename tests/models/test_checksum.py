"""The checksum of weights, which checkpoints and worlds with a pretrained encoder store."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from dreamgym.models.checksum import weights_sha256


def a_module() -> nn.Module:
    module = nn.Linear(2, 2)
    module.register_buffer("count", torch.tensor(3))  # a number, and not of floats
    return module


def test_it_is_that_of_names_and_bytes_in_the_order_of_the_names():
    """Files store it: another order or form would make them differ from unchanged weights."""
    module = a_module()
    state = module.state_dict()
    written = b"".join(
        name.encode() + state[name].numpy().tobytes() for name in ("bias", "count", "weight")
    )
    assert weights_sha256(module) == hashlib.sha256(written).digest()


def test_it_depends_on_every_value_and_not_on_the_layout_in_memory():
    module = a_module()
    before = weights_sha256(module)
    module.weight.data = module.weight.data.t().contiguous().t()
    assert weights_sha256(module) == before
    module.get_buffer("count").add_(1)
    assert weights_sha256(module) != before


def test_bfloat16_has_one_too():
    assert weights_sha256(a_module().bfloat16()) != weights_sha256(a_module().bfloat16())
