"""Channels that keep one value most of the time, such as contact forces, in likelihoods."""

from __future__ import annotations

import pytest
import torch

from dreamgym.models import Segment
from dreamgym.models.nn.codecs import SPARSE_WEIGHT, TransitionCodec
from tests.small_worlds import MOMENTS, STATISTICS, small_model


@pytest.mark.parametrize("family", ["mdn-rnn", "pets"])
def test_sparse_channels_do_not_decide_what_a_model_learns(family):
    model = small_model(family).eval()
    jumps = torch.tensor([1.4, 0.1, 0.1, 0.1], dtype=torch.float64)
    still = torch.tensor([0.9, 0.0, 0.0, 0.0], dtype=torch.float64)
    moments = MOMENTS._replace(delta_std=jumps * MOMENTS.std, still=still)
    model.set_statistics(STATISTICS._replace(observation={"": moments}))
    codec = next(part for part in model.modules() if isinstance(part, TransitionCodec))
    generator = torch.Generator().manual_seed(0)
    segment = Segment(
        torch.randn(4, 7, 4, generator=generator),
        torch.randint(0, 3, (4, 6), generator=generator),
        torch.randn(4, 6, generator=generator),
        torch.zeros(4, 6, dtype=torch.bool),
        torch.ones(4, 6, dtype=torch.bool),
    )
    noise = torch.rand(4, 7, model.noise_dim, generator=generator)

    def likelihood() -> float:
        return float(model.loss(segment, noise)[1]["nll"])

    weighted = likelihood()
    codec.weight.fill_(1.0)
    whole = likelihood()
    codec.weight[0] = 0.0
    without = likelihood()
    assert whole != without
    assert weighted == pytest.approx(without + SPARSE_WEIGHT * (whole - without), rel=1e-4)
