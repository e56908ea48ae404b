"""The two diffusions: wrapped normal noise on fractional coordinates, variance-preserving noise on latent vectors."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

SIGMA_MIN = 0.01
SIGMA_MAX = 0.5
WINDINGS = torch.arange(-4, 5, dtype=torch.float32)
TABLE_SIZE = 256


def sigma_of(level: Tensor) -> Tensor:
    """Return the noise width, geometric from 0.01 at level 0 to 0.5 at level 1 (Jiao et al. 2023, DiffCSP)."""
    return SIGMA_MIN * (SIGMA_MAX / SIGMA_MIN) ** level


def wrap(x: Tensor) -> Tensor:
    """Return x moved into [-0.5, 0.5)."""
    return x - torch.floor(x + 0.5)


def wrapped_score(delta: Tensor, sigma: Tensor) -> Tensor:
    """Return the gradient of the log density of a wrapped normal at displacements ``delta`` from its centre."""
    d = wrap(delta)[..., None] + WINDINGS
    s = sigma[..., None]
    weight = torch.softmax(-(d**2) / (2 * s**2), dim=-1)
    return -(weight * d).sum(-1) / sigma**2


def score_norm(level: Tensor) -> Tensor:
    """Return the root mean square of :func:`wrapped_score` over the wrapped normal of a noise level, from a table."""
    position = level * (TABLE_SIZE - 1)
    low = position.floor().clamp(0, TABLE_SIZE - 2)
    table = _log_norms()
    index = low.long()
    return torch.exp(torch.lerp(table[index], table[index + 1], position - low))


@cache
def _log_norms() -> Tensor:
    return _norms(sigma_of(torch.linspace(0.0, 1.0, TABLE_SIZE))).log()


def _norms(sigma: Tensor) -> Tensor:
    """Return the root mean square of the score by quadrature."""
    grid = (torch.arange(400, dtype=torch.float32) + 0.5) / 400 - 0.5
    widths = sigma.reshape(-1, 1)
    # below a width of 0.08 the wrapping does not matter and the exact value is 1 / sigma
    density = torch.exp(-((grid[None, :, None] + WINDINGS) ** 2) / (2 * widths[..., None] ** 2)).sum(-1)
    square = (wrapped_score(grid.expand(len(widths), -1), widths.expand(-1, 400)) ** 2 * density).sum(1)
    numeric = (square / density.sum(1).clamp_min(1e-30)).sqrt()
    return torch.where(widths[:, 0] < 0.08, 1.0 / widths[:, 0], numeric).reshape(sigma.shape)


def sample_coordinates(
    score: Callable[[Tensor, Tensor], Tensor],
    start: Tensor,
    calls: int,
    generator: torch.Generator,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """Return coordinates in [0, 1) by ancestral sampling through ``calls`` noise levels.

    Parameters
    ----------
    score
        Maps (coordinates (b, n, 3), level (b,)) to the score of the same shape (not normalised).
    start
        Uniform coordinates (b, n, 3).
    calls
        Number of levels, hence of calls of ``score``.
    temperature
        Factor on the noise that is put back at each step; below 1 it sharpens.
    """
    x = start
    levels = torch.linspace(1.0, 0.0, calls)
    sigmas = sigma_of(levels)
    for index in range(calls):
        sigma = sigmas[index]
        s = score(x, levels[index].expand(len(x)))
        if index + 1 == calls:
            return (x + sigma**2 * s) % 1.0
        following = sigmas[index + 1]
        gap = sigma**2 - following**2
        noise = torch.randn(x.shape, generator=generator)
        x = (x + gap * s + temperature * following * gap.sqrt() / sigma * noise) % 1.0
    return x


@dataclass
class LatentDiffusion:
    """Gaussian diffusion of latent vectors with a cosine schedule (Ho et al. 2020; Nichol & Dhariwal 2021)."""

    steps: int = 100
    retained: Tensor = field(init=False)

    def __post_init__(self) -> None:
        t = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
        curve = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
        self.retained = (curve / curve[0]).clamp(1e-4, 1.0).to(torch.float32)

    def noised(self, z: Tensor, step: Tensor, noise: Tensor) -> Tensor:
        """Return z after ``step`` (b,) in 1 .. steps noising steps."""
        keep = self.retained[step][:, None]
        return keep.sqrt() * z + (1 - keep).sqrt() * noise

    def sample(
        self,
        noise_of: Callable[[Tensor, Tensor], Tensor],
        start: Tensor,
        calls: int,
        generator: torch.Generator,
        *,
        eta: float = 1.0,
        bound: float = 8.0,
    ) -> Tensor:
        """Return latent vectors (b, d) from Gaussian noise ``start`` in ``calls`` steps (Song et al. 2021, DDIM).

        Parameters
        ----------
        noise_of
            Maps (z (b, d), time (b,) in [0, 1]) to the predicted noise.
        eta
            1 for the ancestral sampler, 0 for the deterministic one.
        bound
            Clamp of the predicted clean vector.
        """
        z = start
        steps = torch.linspace(self.steps, 0, calls + 1).round().long()
        for now, following in itertools.pairwise(steps):
            keep, keep_next = self.retained[now], self.retained[following]
            predicted = noise_of(z, (now / self.steps).expand(len(z)).to(z.dtype))
            clean = ((z - (1 - keep).sqrt() * predicted) / keep.sqrt()).clamp(-bound, bound)
            predicted = (z - keep.sqrt() * clean) / (1 - keep).sqrt()
            width = eta * ((1 - keep_next) / (1 - keep) * (1 - keep / keep_next)).clamp_min(0.0).sqrt()
            z = keep_next.sqrt() * clean + (1 - keep_next - width**2).clamp_min(0.0).sqrt() * predicted
            if following > 0:
                z = z + width * torch.randn(z.shape, generator=generator)
        return z
