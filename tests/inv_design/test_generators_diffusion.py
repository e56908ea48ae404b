"""The samplers against exact scores: what they cannot do with the truth, no network will do for them."""

from __future__ import annotations

import math

import pytest
import torch

from inv_design.generators.diffusion import (
    LatentDiffusion,
    sample_coordinates,
    score_norm,
    sigma_of,
    wrap,
    wrapped_score,
)


def test_the_sampler_with_an_oracle_score_returns_the_data():
    data = torch.rand((40, 6, 3), generator=torch.Generator().manual_seed(1))

    def score(x, level):
        return wrapped_score(x - data, sigma_of(level)[:, None, None].expand_as(x))

    generator = torch.Generator().manual_seed(0)
    for calls in (10, 50):
        found = sample_coordinates(score, torch.rand(data.shape, generator=generator), calls, generator)
        assert float(wrap(found - data).abs().max()) < 1e-3


def test_the_sampler_covers_a_mixture():
    # two equally likely positions: the exact posterior score must reach both, about equally often
    centres = torch.tensor([0.2, 0.6])

    def score(x, level):
        sigma = sigma_of(level)[:, None, None, None]
        delta = x[..., None] - centres
        image = torch.arange(-4, 5)
        energy = (-((wrap(delta)[..., None] + image) ** 2) / (2 * sigma[..., None] ** 2)).logsumexp(-1)
        weight = energy.softmax(-1)
        return (weight * wrapped_score(delta, sigma.expand_as(delta))).sum(-1)

    generator = torch.Generator().manual_seed(0)
    found = sample_coordinates(score, torch.rand((500, 1, 1), generator=generator), 60, generator)
    near = wrap(found - 0.2).abs() < 0.03
    far = wrap(found - 0.6).abs() < 0.03
    assert float((near | far).float().mean()) > 0.97
    assert 0.4 < float(near.float().mean()) < 0.6


def test_wrapped_score_is_the_gradient_of_the_log_density():
    delta = torch.linspace(-0.49, 0.49, 41, dtype=torch.float64, requires_grad=True)
    for sigma in (0.05, 0.2, 0.5):
        images = torch.arange(-6, 7, dtype=torch.float64)
        density = torch.exp(-((delta[:, None] + images) ** 2) / (2 * sigma**2)).sum(1)
        (expected,) = torch.autograd.grad(density.log().sum(), delta)
        found = wrapped_score(delta.detach().float(), torch.full((41,), sigma))
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)


def test_score_norm_is_the_root_mean_square():
    generator = torch.Generator().manual_seed(0)
    for level in (0.1, 0.5, 0.8, 1.0):
        sigma = float(sigma_of(torch.tensor(level)))
        width = torch.full((200_000,), sigma)
        noise = sigma * torch.randn(200_000, generator=generator)
        measured = wrapped_score(wrap(noise), width).square().mean().sqrt()
        assert float(score_norm(torch.tensor([level]))) == pytest.approx(float(measured), rel=0.02)


def test_latent_sampler_with_an_oracle_returns_the_distribution():
    diffusion, mean, width = LatentDiffusion(), 1.5, 0.3

    def noise_of(z, time):
        keep = diffusion.retained[(time * diffusion.steps).round().long()][:, None]
        variance = keep * width**2 + 1 - keep
        return (1 - keep).sqrt() * (z - keep.sqrt() * mean) / variance  # exact for a normal distribution

    generator = torch.Generator().manual_seed(0)
    for eta in (0.0, 1.0):
        z = diffusion.sample(noise_of, torch.randn((4000, 1), generator=generator), 50, generator, eta=eta)
        assert float(z.mean()) == pytest.approx(mean, abs=0.03)
        assert float(z.std()) == pytest.approx(width, rel=0.12)


def test_noise_levels_are_geometric():
    sigmas = sigma_of(torch.linspace(0, 1, 5))
    ratios = sigmas[1:] / sigmas[:-1]
    assert float(ratios.std()) < 1e-5
    assert math.isclose(float(sigmas[-1]), 0.5, rel_tol=1e-6)
