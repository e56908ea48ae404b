"""The deviation of values from what the campaign wants."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from inv_design.objective import UPPER_BOUNDS, Objective, objectives_of
from inv_design.screening.verdict import Reason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from inv_design.objective import Targets


def relative_error(value: float, target: float) -> float:
    """Return |value - target| / |target| (Li et al. 2025, equation 1, for one crystal); dimensionless."""
    return abs(value - target) / abs(target)


def target_reasons(
    values: Mapping[str, float], targets: Targets, *, tolerance: float, range_tolerance: float | None = None
) -> list[Reason]:
    """Return a reason for each target that a value misses; targets without a value are not checked.

    Parameters
    ----------
    values
        Property -> number, in the unit fixed for the property.
    targets
        Property -> what is wanted, or objectives. ``max`` and ``min`` reject nothing.
    tolerance
        Largest relative deviation from a wanted value.
    range_tolerance
        Largest relative deviation from the nearest bound of a wanted range; ``tolerance`` by default. An
        ``e_above_hull`` bound has none.
    """
    reasons = []
    for objective in objectives_of(targets):
        value = values.get(objective.name)
        if value is None or objective.kind in ("max", "min"):
            continue
        if not math.isfinite(value):
            message = f"{objective.name} is not a finite number"
            reasons.append(Reason("target", None, threshold(objective), message))
            continue
        allowed = tolerance if objective.kind == "value" or range_tolerance is None else range_tolerance
        if objective.name in UPPER_BOUNDS:
            allowed = 0.0
        if (error := objective.deviation(value)) > allowed:
            message = _message(objective, value, error, allowed)
            reasons.append(Reason("target", value, threshold(objective), message))
    return reasons


def threshold(objective: Objective) -> float | list[float | None] | None:
    """Return what a value is compared with: the wanted one, or [lowest, highest] with ``None`` for an open side."""
    if objective.kind != "range":
        return objective.value
    low, high = objective.record()["low"], objective.record()["high"]
    return float(high) if objective.name in UPPER_BOUNDS and low is None else [low, high]


def _message(objective: Objective, value: float, error: float, allowed: float) -> str:
    name, unit = objective.name, objective.unit
    if objective.name in UPPER_BOUNDS and value > objective.high:
        return f"{name} {value:.3g} {unit} is above the wanted {objective.high:g} {unit}"
    if objective.kind == "range":
        return f"{name} {_with_unit(value, unit)} is outside the wanted {objective.text} (allowed {100 * allowed:g} %)"
    off = f"{100 * error:.0f} % off the target {objective.text} (allowed {100 * allowed:g} %)"
    return f"{name} {_with_unit(value, unit)} is {off}"


def _with_unit(value: float, unit: str) -> str:
    return f"{plain_number(value)} {unit}".strip()


def plain_number(value: float) -> str:
    """Return a number with a decimal where it is large and three digits where it is small."""
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"
