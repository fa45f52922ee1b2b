"""Batch norms in convolutional encoders and decoders: of real images only, and as torch's own."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from dreamgym.models.nn.batch_norm import BatchNorm
from dreamgym.models.nn.conv import ConvDecoder, ConvEncoder, ConvStack, ImageBatchNorm

STACK = ConvStack(depths=(3, 5), kernels=(4, 4), padding="same", norm="batch")
UP = ConvStack(depths=(5, 3), kernels=(4, 4), padding="same", norm="batch")


def test_without_padding_it_is_the_batch_norm_of_torch():
    ours, theirs = ImageBatchNorm(3), nn.BatchNorm2d(3)
    for seed in range(2):
        images = torch.randn(6, 3, 4, 5, generator=torch.Generator().manual_seed(seed))
        mask = torch.ones(6, dtype=torch.bool)
        torch.testing.assert_close(ours(images, mask), theirs(images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("network", "shape"),
    [(ConvEncoder(2, (8, 8), STACK), (2, 8, 8)), (ConvDecoder(7, 2, (8, 8), UP), (7,))],
    ids=["encoder", "decoder"],
)
def test_padding_has_no_influence_and_norms_follow_layers_without_biases(network, shape):
    mask = torch.tensor([[True, True, False], [True, False, False]])
    images = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    others = torch.where(mask.view(2, 3, *[1] * len(shape)), images, 9.0)
    first, second = network(images, mask), network(others, mask)
    assert torch.equal(first[mask], second[mask])
    layers = [*network.modules()]
    for layer, following in itertools.pairwise(layers):
        if isinstance(following, BatchNorm) and isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            assert layer.bias is None
    # In eval mode every image is normalised alike.
    network.eval()
    torch.testing.assert_close(network(images)[0, :1], network(images[:1, :1])[0])
