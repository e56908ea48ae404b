"""What a candidate is worth before its label is known: the probability of a hit, and the expected gain in hits.

A positive property is taken as normal in its logarithm, as the predictors are trained and calibrated: the value is the
median, and ``value ± std`` is the half-width of the central 68 % interval (:func:`log_std` inverts it).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from inv_design.objective import Objective

Acquisition = Literal["threshold", "target_probability", "expected_hits"]

PRIOR_STD, PRIOR_WEIGHT = 0.10, 5.0
"""Relative error that a cheaper judge is given before labels have tested it, and for how many labels that counts."""


def log_std(value: float, std: float | None) -> float:
    """Return the standard deviation of ln(property) from the half-width ``std`` of its 68 % interval, same unit.

    0 where there is no uncertainty, or none that is finite.
    """
    return math.asinh(_spread(std) / value)  # std is half of value * (e^s - e^-s)


def interval_probability(
    value: float | None, std: float | None, *, low: float, high: float, logarithmic: bool = True
) -> float:
    """Return the probability that a property lies in [low, high], 0..1.

    Parameters
    ----------
    value, std
        Prediction and its standard deviation in the unit of the bounds. Without a finite value (positive, if
        ``logarithmic``) it is 0; without an uncertainty it is 1 inside and 0 outside, the plain threshold.
    low, high
        Bounds; an infinite one leaves that side open.
    logarithmic
        Whether the logarithm of the property is normal, or the property itself.
    """
    if value is None or not math.isfinite(value) or (logarithmic and value <= 0):
        return 0.0
    spread = log_std(value, std) if logarithmic else _spread(std)
    if spread == 0:
        return float(low <= value <= high)
    lower, upper = ((scaled(bound, logarithmic) - scaled(value, logarithmic)) / spread for bound in (low, high))
    if lower > 0:  # the difference of two numbers near 1 would lose the tail
        lower, upper = -upper, -lower
    return max(_normal_cdf(upper) - _normal_cdf(lower), 0.0)


def target_probability(value: float | None, std: float | None, *, target: float, tolerance: float) -> float:
    """Return the probability that |property - target| / target is within ``tolerance``, 0..1.

    The probability of a hit in an interval (Kushner, J. Basic Eng. 86, 97 (1964), for one bound), log-normal.

    Parameters
    ----------
    value, std
        Prediction and standard deviation, in the target's unit; see :func:`interval_probability`.
    target
        Wanted value, positive.
    tolerance
        Relative deviation that still counts as a hit.
    """
    return interval_probability(value, std, low=target * (1 - tolerance), high=target * (1 + tolerance))


def hit_probability(value: float | None, std: float | None, objective: Objective, *, tolerance: float) -> float:
    """Return the probability that a property is as wanted, 0..1: within ``tolerance`` of a value, or in a range.

    ``value`` and ``std`` in the objective's unit; a direction (``max``, ``min``) is met by every value.
    """
    low, high = objective.bounds(tolerance)
    return interval_probability(value, std, low=low, high=high, logarithmic=objective.logarithmic)


def expected_gains(probabilities: Sequence[float], groups: Sequence[str]) -> list[float]:
    """Return each candidate's expected gain in distinct hits if they are served best first, in the order given (n).

    The expected number of groups (chemical systems) with at least one hit, sum over groups of 1 - prod(1 - p), is
    monotone and submodular, so that taking the largest gain next is within 1 - 1/e of the best choice for every budget
    (Nemhauser, Wolsey & Fisher, Math. Program. 14, 265 (1978)). Within a group the gains are p1, (1 - p1) p2, ... from
    the most probable down; groups do not touch each other.

    Parameters
    ----------
    probabilities
        Probability of a hit of each candidate, 0..1.
    groups
        The chemical system of each.
    """
    if len(probabilities) != len(groups):
        raise ValueError(f"{len(groups)} groups for {len(probabilities)} probabilities; give one for each")
    gains = [0.0] * len(probabilities)
    missed: dict[str, float] = {}
    for i in sorted(range(len(gains)), key=lambda i: -probabilities[i]):
        left = missed.get(groups[i], 1.0)
        gains[i] = left * probabilities[i]
        missed[groups[i]] = left * (1 - probabilities[i])
    return gains


def judge_error(pairs: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Return (bias, standard deviation) of ln(label / judged) of a judge such as the stage-II potential.

    Parameters
    ----------
    pairs
        (judged value, label) of the candidates that have both, positive, same unit. Few labels are drawn to no bias and
        :data:`PRIOR_STD`, as if :data:`PRIOR_WEIGHT` labels had said so.
    """
    logs = [math.log(label / judged) for judged, label in pairs if judged > 0 and label > 0]
    weight = len(logs) + PRIOR_WEIGHT
    bias = sum(logs) / weight
    variance = (PRIOR_WEIGHT * PRIOR_STD**2 + sum((x - bias) ** 2 for x in logs)) / weight
    return bias, math.sqrt(variance)


def combine(estimates: Iterable[tuple[float | None, float | None]]) -> tuple[float | None, float | None]:
    """Return (value, std) of independent estimates of one positive property: the precision-weighted mean of logarithms.

    Estimates without a positive value are left out; one without an uncertainty is taken as exact.
    """
    known = [(v, log_std(v, s)) for v, s in estimates if v is not None and math.isfinite(v) and v > 0]
    if not known:
        return None, None
    exact = [value for value, spread in known if spread == 0]
    if exact:
        return exact[-1], 0.0
    weights = [spread**-2 for _, spread in known]
    value = math.exp(sum(w * math.log(v) for w, (v, _) in zip(weights, known, strict=True)) / sum(weights))
    return value, value * math.sinh(sum(weights) ** -0.5)


def scaled(value: float, logarithmic: bool) -> float:
    """Return the number in which errors are normal: ln(value), minus infinity where there is none, or the value."""
    if not logarithmic:
        return value
    return math.log(value) if value > 0 else -math.inf


def _spread(std: float | None) -> float:
    return std if std is not None and math.isfinite(std) and std > 0 else 0.0


def _normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))
