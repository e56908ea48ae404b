"""How good predictions are, and how honest their uncertainties."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    Values = Sequence[float] | np.ndarray


def prediction_metrics(true: Values, predicted: Values, std: Values | None = None) -> dict[str, Any]:
    """Return the errors of ``n`` predictions.

    Parameters
    ----------
    true, predicted
        Values (n,) in the property's unit; pairs that are not finite are left out and counted.
    std
        Standard deviations (n,), same unit.

    Returns
    -------
    dict
        ``n``, ``n_left_out``, ``mae``, ``rmse``, ``bias`` (predicted - true) in the unit, ``mape`` (relative),
        ``mae_log10`` (Matbench's error of log10 moduli; over pairs that are positive), and with ``std`` ``coverage_1s``
        and ``coverage_2s``: shares of errors within one and two standard deviations (0.683 and 0.954 if honest).

    Raises
    ------
    ValueError
        If the lengths differ.
    """
    y, f = np.asarray(true, float), np.asarray(predicted, float)
    if y.shape != f.shape or y.ndim != 1:
        raise ValueError(f"{y.shape} true and {f.shape} predicted values; give two lists of equal length")
    finite = np.isfinite(y) & np.isfinite(f)
    result: dict[str, Any] = {"n": int(finite.sum()), "n_left_out": int((~finite).sum())}
    if not finite.any():
        return result
    error = f[finite] - y[finite]
    result |= {
        "mae": mae(y[finite], f[finite]),
        "rmse": rmse(y[finite], f[finite]),
        "bias": float(error.mean()),
    }
    if (y[finite] != 0).all():
        result["mape"] = float(np.mean(np.abs(error / y[finite])))
    positive = finite & (y > 0) & (f > 0)
    if positive.any():
        result["mae_log10"] = mae_log10(y[positive], f[positive])
    if std is not None:
        s = np.asarray(std, float)
        if s.shape != y.shape:
            raise ValueError(f"{s.shape} std for {y.shape} values; give one for each")
        known = finite & np.isfinite(s) & (s > 0)
        if known.any():
            result["coverage_1s"] = coverage(y[known], f[known], s[known], 1.0)
            result["coverage_2s"] = coverage(y[known], f[known], s[known], 2.0)
    return result


def mae(true: Values, predicted: Values) -> float:
    """Return the mean absolute error, in the unit of the values (n,)."""
    return float(np.mean(np.abs(np.asarray(predicted) - np.asarray(true))))


def rmse(true: Values, predicted: Values) -> float:
    """Return the root mean square error, in the unit of the values (n,)."""
    return float(np.sqrt(np.mean((np.asarray(predicted) - np.asarray(true)) ** 2)))


def mae_log10(true: Values, predicted: Values) -> float:
    """Return the mean absolute error of log10 of positive values (n,), as ``matbench_log_kvrh`` has it."""
    return mae(np.log10(np.asarray(true)), np.log10(np.asarray(predicted)))


def coverage(true: Values, predicted: Values, std: Values, factor: float = 1.0) -> float:
    """Return the share of values (n,) that lie within ``factor`` standard deviations of their prediction."""
    return float(np.mean(np.abs(np.asarray(predicted) - np.asarray(true)) <= factor * np.asarray(std)))
