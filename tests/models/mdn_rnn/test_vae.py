"""The VAE of V-M-C: published sizes, published loss, and a short fit."""

from __future__ import annotations

import torch

from dreamgym.models.mdn_rnn.vae import VAE, Posterior


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def small_vae() -> VAE:
    torch.manual_seed(0)
    return VAE(3, (64, 64), latent=4, width=0.125)


def images(batch: int) -> torch.Tensor:
    """Return images of a light square at a random place on a dark ground."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.full((batch, 3, 64, 64), 0.3)
    for frame, (row, column) in zip(
        frames, torch.randint(0, 40, (batch, 2), generator=generator).tolist(), strict=True
    ):
        frame[:, row : row + 24, column : column + 24] = 0.7
    return frames


def test_the_published_sizes():
    assert count(VAE(3, (64, 64), latent=32)) == 4_348_547
    assert count(VAE(3, (64, 64), latent=64)) == 4_446_915


def test_the_loss_is_the_published_one_written_out():
    vae, frames = small_vae(), images(6)
    epsilon = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        mean, log_variance = vae.encode(frames)
        decoded = vae.decode(mean + (log_variance / 2).exp() * epsilon)
        loss = vae.loss(frames, epsilon, tolerance=0.0)
        floor = vae.loss(frames, epsilon, tolerance=0.5)
    error = torch.stack([((frames[k] - decoded[k]) ** 2).sum() for k in range(6)])
    torch.testing.assert_close(loss.reconstruction, error)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(
        normal(mean, (log_variance / 2).exp()), normal(torch.tensor(0.0), torch.tensor(1.0))
    ).sum(-1)
    torch.testing.assert_close(loss.kl, expected)
    torch.testing.assert_close(floor.kl, expected.clamp(min=2.0))


def test_below_the_tolerance_the_divergence_has_no_gradient():
    vae, frames = small_vae(), images(3)
    vae.loss(frames, torch.zeros(3, 4), tolerance=100.0).kl.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in vae.parameters())


def test_the_foreground_is_what_differs_from_the_mean_frame():
    vae, frames = small_vae(), images(1).repeat(4, 1, 1, 1)
    still = vae.loss(frames, torch.zeros(4, 4), tolerance=0.5, foreground=8.0)
    plain = vae.loss(frames, torch.zeros(4, 4), tolerance=0.5)
    torch.testing.assert_close(still.reconstruction, plain.reconstruction)
    moving = images(4)
    weighted = vae.loss(moving, torch.zeros(4, 4), tolerance=0.5, foreground=8.0)
    assert (
        weighted.reconstruction > vae.loss(moving, torch.zeros(4, 4), tolerance=0.5).reconstruction
    ).all()


def test_a_sample_has_the_posteriors_mean_and_spread():
    posterior = Posterior(torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, 1.0]]))
    drawn = posterior.sample(torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(drawn.mean(0), posterior.mean[0], atol=0.05, rtol=0)
    torch.testing.assert_close(drawn.var(0), posterior.log_variance.exp()[0], atol=0.1, rtol=0)


def test_a_short_fit_reconstructs_the_place_of_a_square():
    vae, frames = small_vae(), images(32)
    optimizer = torch.optim.Adam(vae.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(2)
    baseline = ((frames - frames.mean(0)) ** 2).sum((1, 2, 3)).mean()
    for _ in range(150):
        loss = vae.loss(frames, torch.randn(32, 4, generator=generator), tolerance=0.5)
        optimizer.zero_grad()
        (loss.reconstruction + loss.kl).mean().backward()
        optimizer.step()
    with torch.no_grad():
        seen = vae.loss(frames, torch.zeros(32, 4), tolerance=0.5).reconstruction.mean()
    assert seen < 0.75 * baseline
