"""A Gaussian process with one length scale per descriptor: accurate on a thousand crystals, with a spread."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

OUTLIER = 3.5
"""Training points whose leave-one-out residual exceeds this many standard deviations are left out."""

HYPERPARAMETER_POINTS = 700


@dataclass
class GaussianProcess:
    """Matern 5/2 regression (Rasmussen & Williams 2006, equation 4.17 and algorithm 2.1).

    Attributes
    ----------
    inputs
        Standardised training descriptors (m, d).
    targets
        Training targets (m,) with their mean removed.
    scales
        Length scales (d,) in standardised units.
    amplitude, noise
        Standard deviations of the process and of the noise.
    centre, spread, offset
        Mean and standard deviation (d,) of the raw descriptors, mean of the raw targets.
    kept
        Which rows of the descriptors it was given are its inputs; the others were outliers.
    """

    inputs: np.ndarray
    targets: np.ndarray
    scales: np.ndarray
    amplitude: float
    noise: float
    centre: np.ndarray
    spread: np.ndarray
    offset: float
    kept: np.ndarray

    def __post_init__(self) -> None:
        self._factor: torch.Tensor | None = None
        self._weights: torch.Tensor | None = None

    @classmethod
    def fit(cls, descriptors: np.ndarray, targets: np.ndarray, *, seed: int = 0, steps: int = 50) -> Self:
        """Maximise the marginal likelihood, leave out outliers, and condition on the rest.

        Parameters
        ----------
        descriptors
            Raw descriptors (m, d).
        targets
            Raw targets (m,).
        """
        centre, spread = descriptors.mean(0), descriptors.std(0)
        spread = np.where(spread < 1e-9, 1.0, spread)
        inputs, offset = (descriptors - centre) / spread, float(targets.mean())
        residuals = targets - offset
        chosen = np.random.default_rng(seed).permutation(len(inputs))[:HYPERPARAMETER_POINTS]
        start = _HyperParameters.initial(inputs.shape[1], float(residuals.std()) or 0.1)
        rough = start.maximise(inputs[chosen], residuals[chosen], steps)
        kept = np.arange(len(inputs))
        model = cls(inputs, residuals, *rough.values(), centre, spread, offset, kept)
        if len(inputs) >= 50:
            kept = np.flatnonzero(np.abs(model.leave_one_out()) < OUTLIER)
            inputs, residuals = inputs[kept], residuals[kept]
            chosen = np.random.default_rng(seed).permutation(len(inputs))[:HYPERPARAMETER_POINTS]
            rough = rough.maximise(inputs[chosen], residuals[chosen], steps // 2)
            model = cls(inputs, residuals, *rough.values(), centre, spread, offset, kept)
        return model

    def extended(self, descriptors: np.ndarray, targets: np.ndarray) -> GaussianProcess:
        """Return the process conditioned on other data with the same hyperparameters and scaling, outliers left out."""
        inputs, residuals = (descriptors - self.centre) / self.spread, targets - self.offset
        settings = (self.scales, self.amplitude, self.noise, self.centre, self.spread, self.offset)
        model = GaussianProcess(inputs, residuals, *settings, np.arange(len(inputs)))
        if len(inputs) < 50:
            return model
        kept = np.flatnonzero(np.abs(model.leave_one_out()) < OUTLIER)
        return GaussianProcess(inputs[kept], residuals[kept], *settings, kept)

    def predict(self, descriptors: np.ndarray, *, chunk: int = 4096) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation (n,), noise included, for raw descriptors (n, d)."""
        factor, weights = self._solve()
        points = torch.as_tensor((descriptors - self.centre) / self.spread)
        means, deviations = [], []
        for part in points.split(chunk):
            cross = self._kernel(part, torch.as_tensor(self.inputs))
            explained = torch.linalg.solve_triangular(factor, cross.T, upper=False).square().sum(0)
            variance = self.amplitude**2 - explained + self.noise**2
            means.append(cross @ weights)
            deviations.append(variance.clamp_min(1e-8).sqrt())
        if not means:
            return np.zeros(0), np.zeros(0)
        return torch.cat(means).numpy() + self.offset, torch.cat(deviations).numpy()

    def predict_mean(self, descriptors: np.ndarray, *, chunk: int = 4096) -> np.ndarray:
        """Return the mean (n,) alone, at a fraction of the cost of :meth:`predict`."""
        _, weights = self._solve()
        points, inputs = torch.as_tensor((descriptors - self.centre) / self.spread), torch.as_tensor(self.inputs)
        means = [self._kernel(part, inputs) @ weights for part in points.split(chunk)]
        return (torch.cat(means).numpy() if means else np.zeros(0)) + self.offset

    def leave_one_out(self) -> np.ndarray:
        """Return standardised leave-one-out residuals (m,) (Rasmussen & Williams 2006, equation 5.12)."""
        factor, weights = self._solve()
        return (weights / torch.cholesky_inverse(factor).diagonal().sqrt()).numpy()

    def to_tensors(self, prefix: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return (arrays, numbers) that :meth:`from_tensors` takes back, without the descriptors."""
        arrays = {f"{prefix}.{name}": getattr(self, name) for name in _ARRAYS}
        return arrays, {"amplitude": self.amplitude, "noise": self.noise, "offset": self.offset}

    @classmethod
    def from_tensors(
        cls, prefix: str, arrays: dict[str, np.ndarray], numbers: dict[str, Any], descriptors: np.ndarray
    ) -> Self:
        """Return the process that :meth:`to_tensors` described, fitted to these raw descriptors (m, d)."""
        values: dict[str, Any] = {name: arrays[f"{prefix}.{name}"] for name in _ARRAYS}
        inputs = (descriptors[values["kept"]] - values["centre"]) / values["spread"]
        return cls(inputs=inputs, **values, **numbers)

    def _solve(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self._factor is None or self._weights is None:
            inputs = torch.as_tensor(self.inputs)
            covariance = self._kernel(inputs, inputs) + self.noise**2 * torch.eye(len(inputs), dtype=inputs.dtype)
            self._factor = torch.linalg.cholesky(covariance)
            self._weights = torch.cholesky_solve(torch.as_tensor(self.targets)[:, None], self._factor)[:, 0]
        return self._factor, self._weights

    def _kernel(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return self.amplitude**2 * _matern(first, second, torch.as_tensor(self.scales))


_ARRAYS = ("targets", "scales", "centre", "spread", "kept")


def _matern(first: torch.Tensor, second: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    a, b = first / scales, second / scales
    square = a.square().sum(1)[:, None] + b.square().sum(1)[None, :] - 2.0 * a @ b.T
    r = (5.0 * square.clamp_min(0.0) + 1e-10).sqrt()
    return (1.0 + r + r.square() / 3.0) * torch.exp(-r)


@dataclass
class _HyperParameters:
    log_scales: np.ndarray
    log_amplitude: float
    log_noise: float

    @classmethod
    def initial(cls, dimension: int, spread: float) -> _HyperParameters:
        scale = math.log(1.5 * math.sqrt(dimension))
        return cls(np.full(dimension, scale), math.log(2.0 * spread), math.log(0.4 * spread))

    def values(self) -> tuple[np.ndarray, float, float]:
        return np.exp(self.log_scales), math.exp(self.log_amplitude), math.exp(self.log_noise)

    def maximise(self, inputs: np.ndarray, targets: np.ndarray, steps: int) -> _HyperParameters:
        x, y = torch.as_tensor(inputs), torch.as_tensor(targets)
        scales = torch.tensor(self.log_scales, requires_grad=True)
        others = torch.tensor([self.log_amplitude, self.log_noise], dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.Adam([scales, others], lr=0.1)
        identity = torch.eye(len(x), dtype=torch.float64)
        floor = math.log(1e-3)
        for _ in range(steps):
            optimiser.zero_grad()
            kernel = (2 * others[0]).exp() * _matern(x, x, scales.exp())
            factor = torch.linalg.cholesky(kernel + (2 * others[1].clamp_min(floor)).exp() * identity)
            weights = torch.cholesky_solve(y[:, None], factor)[:, 0]
            loss = 0.5 * y @ weights + factor.diagonal().log().sum()
            loss.backward()
            optimiser.step()
        amplitude, noise = others.detach().tolist()
        return _HyperParameters(scales.detach().numpy(), amplitude, max(noise, floor))
