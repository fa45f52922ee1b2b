"""Optimizers and clipping, compared with the papers' equations in float64."""

from __future__ import annotations

import pytest
import torch

from dreamgym import OptimizerConfig, default_config
from dreamgym.fitting.optimizer import WeightAverage, clip_gradients, optimizer_for


def parameters(*shapes: tuple[int, ...], seed: int = 0) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def gradients(count: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(7))


def test_laprop_normalises_before_it_takes_the_momentum():
    """Ziyin et al. (2020), algorithm 1, as DreamerV3's code has it."""
    (weight,) = parameters((5, 3))
    config = OptimizerConfig(name="laprop", learning_rate=0.01, eps=1e-20, weight_decay=0.0)
    optimizer, truth = optimizer_for([weight], config), weight.detach().double()
    square, momentum = torch.zeros(5, 3).double(), torch.zeros(5, 3).double()
    for k, gradient in enumerate(gradients(20, (5, 3)), 1):
        weight.grad = gradient.clone()
        optimizer.step()
        square = 0.999 * square + 0.001 * gradient.double() ** 2
        normal = gradient.double() / ((square / (1 - 0.999**k)).sqrt() + 1e-20)
        momentum = 0.9 * momentum + 0.1 * normal
        truth = truth - 0.01 * momentum / (1 - 0.9**k)
        torch.testing.assert_close(weight.detach(), truth.float(), rtol=1e-5, atol=1e-6)


def test_names_select_the_optimizers():
    weights = parameters((2,))
    types = {
        name: type(optimizer_for(weights, OptimizerConfig(name=name)))
        for name in ("adam", "adamw", "laprop")
    }
    assert types["adam"] is torch.optim.Adam
    assert types["adamw"] is torch.optim.AdamW
    assert types["laprop"].__name__ == "LaProp"
    group = optimizer_for(weights, OptimizerConfig(betas=(0.5, 0.6), eps=0.1)).param_groups[0]
    assert (group["betas"], group["eps"]) == ((0.5, 0.6), 0.1)


def test_agc_limits_each_tensor_by_its_own_norm():
    weights = parameters((4, 4), (3,), (2, 2))
    with torch.no_grad():
        weights[2].zero_()  # counts for 1e-3
    original = [torch.full((4, 4), 9.0), torch.full((3,), 1e-4), torch.full((2, 2), 5.0)]
    for weight, gradient in zip(weights, original, strict=True):
        weight.grad = gradient.clone()
    without_gradient = parameters((2,))
    clip_gradients([*weights, *without_gradient], OptimizerConfig(clip_by="agc", gradient_clip=0.3))
    for weight, gradient in zip(weights, original, strict=True):
        limit = 0.3 * max(1e-3, float(weight.detach().norm()))
        share = 1 / max(1.0, float(gradient.norm()) / limit)
        torch.testing.assert_close(weight.grad, gradient * share)
    assert without_gradient[0].grad is None
    clip_gradients(without_gradient, OptimizerConfig(clip_by="agc", gradient_clip=0.3))


def test_a_sharp_likelihoods_gradient_does_not_shrink_those_of_the_heads():
    likelihood, head = parameters((8, 8), (8,))
    likelihood.grad, head.grad = torch.full((8, 8), 1e5), torch.full((8,), 1e-2)
    clip_gradients([likelihood, head], default_config("pets").optimizer)
    assert likelihood.grad.norm() <= 1.001 * likelihood.norm()
    torch.testing.assert_close(head.grad, torch.full((8,), 1e-2))


def test_clipping_by_norm_and_by_value():
    for clip_by, expected in (("norm", [0.6, 0.8]), ("value", [1.0, 1.0])):
        weights = parameters((1,), (1,))
        weights[0].grad, weights[1].grad = torch.tensor([3.0]), torch.tensor([4.0])
        clip_gradients(weights, OptimizerConfig(clip_by=clip_by, gradient_clip=1.0))
        assert [float(weight.grad) for weight in weights] == pytest.approx(expected, rel=1e-5)


def test_a_weight_average_follows_and_swaps():
    weights = parameters((3,))
    mean = WeightAverage(weights, 0.9)
    truth = weights[0].detach().clone()
    for k in range(1, 200):
        with torch.no_grad():
            weights[0].add_(0.01 * k)
        mean.update(k)
        keep = min(0.9, (1 + k) / (10 + k))
        truth = keep * truth + (1 - keep) * weights[0].detach()
    torch.testing.assert_close(mean.means[0], truth)
    now = weights[0].detach().clone()
    mean.swap()
    torch.testing.assert_close(weights[0].detach(), truth)
    mean.swap()
    assert torch.equal(weights[0].detach(), now)


def test_a_parameter_may_have_a_share_of_the_learning_rate():
    weights = parameters((2,), (2,), (2,))
    weights[1].learning_rate_scale = 0.3
    groups = optimizer_for(weights, OptimizerConfig()).param_groups
    scales = {id(each): group["rate_scale"] for group in groups for each in group["params"]}
    assert [scales[id(weight)] for weight in weights] == [1.0, 0.3, 1.0]
