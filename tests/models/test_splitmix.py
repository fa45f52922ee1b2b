"""SplitMix64 against the published generator, and its uniforms."""

from __future__ import annotations

import torch

from dreamgym.models import splitmix

PUBLISHED = [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
]
"""First outputs of the published generator, seeded with 1234567."""


def test_words_are_the_published_stream():
    words = splitmix.words(torch.tensor(1234567), 5)
    assert [value % 2**64 for value in words.tolist()] == PUBLISHED


def test_uniforms_are_the_bits_of_the_words():
    key = torch.tensor([1234567])
    halves = [half & 0xFFFFFF for word in PUBLISHED for half in (word & 0xFFFFFFFF, word >> 32)]
    expected = torch.tensor([[half / 2**24 for half in halves]])
    assert torch.equal(splitmix.uniforms(key, 10), expected)
    assert torch.equal(splitmix.uniforms(key, 3), expected[:, :3])
    upper = splitmix.uniforms_of_words(splitmix.words(key, 5))
    assert torch.equal(upper, torch.tensor([[(word >> 40) / 2**24 for word in PUBLISHED]]))


def test_mix_leaves_its_argument_unchanged():
    value = torch.arange(5)
    splitmix.mix(value)
    assert torch.equal(value, torch.arange(5))


def test_compiled_on_a_cpu_the_numbers_are_the_same():
    keys = torch.arange(7) * 10**15
    torch._dynamo.reset()
    compiled = torch.compile(splitmix.uniforms, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(keys, 5), splitmix.uniforms(keys, 5))
