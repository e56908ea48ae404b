"""The deviation of a value from what the campaign wants."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from inv_design.config import PROPERTY_UNITS
from inv_design.screening.verdict import Reason

if TYPE_CHECKING:
    from collections.abc import Mapping

UPPER_BOUNDS = frozenset({"e_above_hull"})
"""Targets that are a largest wanted value: a relative deviation from an energy near zero says nothing."""


def relative_error(value: float, target: float) -> float:
    """Return |value - target| / |target| (Li et al. 2025, equation 1, for one crystal); dimensionless."""
    return abs(value - target) / abs(target)


def target_reasons(values: Mapping[str, float], targets: Mapping[str, float], *, tolerance: float) -> list[Reason]:
    """Return a reason for each target that a value misses; targets without a value are not checked.

    Parameters
    ----------
    values, targets
        Property -> number, in the unit fixed for the property.
    tolerance
        Largest relative deviation. An ``e_above_hull`` target is the largest wanted value instead.
    """
    reasons = []
    for name, target in targets.items():
        value = values.get(name)
        if value is None:
            continue
        unit = PROPERTY_UNITS.get(name, "")
        if not math.isfinite(value):
            reasons.append(Reason("target", None, target, f"{name} is not a finite number"))
        elif name in UPPER_BOUNDS:
            if value > target:
                message = f"{name} {value:.3g} {unit} is above the wanted {target:g} {unit}"
                reasons.append(Reason("target", value, target, message))
        elif (error := relative_error(value, target)) > tolerance:
            message = (
                f"{name} {value:.1f} {unit} is {100 * error:.0f} % off the target {target:g} {unit} "
                f"(allowed {100 * tolerance:g} %)"
            )
            reasons.append(Reason("target", value, target, message))
    return reasons
