"""How a predictor did on crystals it was not trained on: the pairs of a parity plot, and the reliability of its std."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from inv_design.predictors import calibration

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from inv_design.predictors.target import Target

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, calibration.ONE_SIGMA, 0.8, 0.9, 0.95, 0.99)
TENSOR = "validation"
PARTS = 5


@dataclass(frozen=True)
class Validation:
    """Labels of ``n`` crystals with out-of-sample predictions, in the unit of ``target``.

    A model file holds it as one float32 tensor ``validation`` (3, n) of rows value, prediction and std, beside
    ``config["validation"] = {"origin": ...}``; a loaded predictor has it as ``predictor.validation`` (or ``None``).
    ``predictor.metrics["reliability"]`` is :meth:`reliability`, ready to be drawn.

    Attributes
    ----------
    target
        The property, its unit and scale.
    values, predictions, std
        Labels, predictions and their standard deviations (n,), in the target's unit. No prediction comes from a model
        that was trained on the crystal or on its group, and no std is scaled by the crystal's own error.
    origin
        Such as ``"5 folds, chemical systems kept together"``.
    """

    target: Target
    values: np.ndarray
    predictions: np.ndarray
    std: np.ndarray
    origin: str

    def __post_init__(self) -> None:
        if not len(self.values) == len(self.predictions) == len(self.std):
            raise ValueError(
                f"{len(self.values)} values, {len(self.predictions)} predictions and {len(self.std)} std; "
                "give equal numbers"
            )

    def __len__(self) -> int:
        return len(self.values)

    @classmethod
    def of(
        cls,
        target: Target,
        values: np.ndarray,
        encoded: np.ndarray,
        spreads: np.ndarray,
        *,
        parts: Sequence[np.ndarray],
        scale: float,
        origin: str,
    ) -> Self:
        """Return the validation of learned numbers ``encoded`` (n,) with raw ``spreads`` (n,).

        Parameters
        ----------
        parts
            Indices of disjoint parts of the crystals, groups kept whole. The spreads of each part are scaled with the
            errors of the others (:func:`cross_scaled`), so that the reliability is one of new crystals.
        scale
            The factor on the spreads where the others are too few to calibrate.
        """
        errors = encoded - target.encode(values)
        std = target.deviation(encoded, cross_scaled(errors, spreads, parts, scale))
        return cls(target, np.asarray(values, dtype=float), target.decode(encoded), std, origin)

    def errors(self) -> np.ndarray:
        """Return prediction - value (n,) on the learned scale."""
        return self.target.encode(self.predictions) - self.target.encode(self.values)

    def scores(self) -> np.ndarray:
        """Return the errors (n,) in standard deviations, both on the learned scale."""
        return self.errors() / self.target.encoded_deviation(self.predictions, self.std)

    def reliability(self, levels: Sequence[float] = LEVELS) -> dict[str, list[float]]:
        """Return ``nominal`` and ``observed``: what share of the labels lies in the central normal interval of a level.

        Kuleshov, Fenner and Ermon, ICML 2018, section 3, for central intervals.
        """
        scores = np.abs(self.scores())
        widths = [NormalDist().inv_cdf(0.5 + level / 2.0) for level in levels]
        observed = [float((scores <= width + 1e-12).mean()) for width in widths]
        return {"nominal": [round(level, 4) for level in levels], "observed": [round(x, 4) for x in observed]}

    def metrics(self) -> dict[str, Any]:
        """Return the errors on the learned scale (``mae_log10`` or ``mae``, ...), coverage and reliability."""
        errors = self.errors()
        return {
            self.target.metric("mae"): float(np.abs(errors).mean()),
            self.target.metric("rmse"): float(math.sqrt((errors**2).mean())),
            "coverage_68": float((np.abs(self.scores()) <= 1.0).mean()),
            "reliability": self.reliability(),
        }

    def as_tensor(self) -> np.ndarray:
        """Return the rows value, prediction and std (3, n) in single precision, for a model file."""
        return np.stack([self.values, self.predictions, self.std]).astype(np.float32)

    @classmethod
    def from_file(cls, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any], target: Target) -> Self | None:
        """Return the validation of an unpacked model file, or ``None`` if it has none."""
        if TENSOR not in tensors:
            return None
        values, predictions, std = np.asarray(tensors[TENSOR], dtype=float)
        return cls(target, values, predictions, std, str(config["validation"]["origin"]))


def cross_scaled(errors: np.ndarray, spreads: np.ndarray, parts: Sequence[np.ndarray], scale: float) -> np.ndarray:
    """Return standard deviations (n,): the ``spreads`` of each part scaled with the other parts' ``errors`` (n,)."""
    std = scale * spreads
    for own in parts:
        others = np.setdiff1d(np.concatenate(list(parts)), own)
        if len(others) >= calibration.ENOUGH:
            std[own] = calibration.scale_factor(errors[others], spreads[others]) * spreads[own]
    return std
