"""Which candidates get the labels of a round when there are fewer labels than candidates."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from inv_design.screening.target import relative_error

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def priority(*, value: float | None, std: float | None, target: float) -> float:
    """Return how early a candidate is served, at most 0 and the higher the earlier.

    The deviation of its best value from the target decides; a certain prediction breaks near ties: minus the relative
    error, minus a thousandth of the relative standard deviation (dimensionless). Without a value it is the lowest.

    Parameters
    ----------
    value
        Best available value (by MLIP, before that by the predictor), in the target's unit.
    std
        The predictor's standard deviation, same unit.
    """
    if value is None or not math.isfinite(value):
        return -math.inf
    doubt = std if std is not None and math.isfinite(std) else abs(target)
    return -relative_error(value, target) - 1e-3 * doubt / abs(target)


def rank(candidates: Iterable[Mapping[str, Any]], *, target: float) -> list[dict[str, Any]]:
    """Return candidates best first, each with its ``priority``; equal ones in the order of their ids.

    Parameters
    ----------
    candidates
        Records with ``candidate_id``, ``value`` (target's unit) and ``std``.
    """
    ranked = [
        {**c, "priority": priority(value=c.get("value"), std=c.get("std"), target=target)} for c in candidates
    ]  # fmt: skip
    return sorted(ranked, key=lambda c: (-c["priority"], str(c["candidate_id"])))
