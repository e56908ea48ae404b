"""Which candidates get the labels of a round when there are fewer labels than candidates."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from inv_design.screening.acquisition import expected_gains, target_probability
from inv_design.screening.target import relative_error

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from inv_design.screening.acquisition import Acquisition


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


def rank(
    candidates: Iterable[Mapping[str, Any]],
    *,
    target: float,
    acquisition: Acquisition = "threshold",
    tolerance: float = 0.20,
) -> list[dict[str, Any]]:
    """Return candidates best first, each with its ``priority``; equal ones in the order of their ids.

    Parameters
    ----------
    candidates
        Records with ``candidate_id``, ``value`` (target's unit) and ``std``; for ``expected_hits`` also ``chemsys``.
    acquisition
        ``threshold``: by the deviation from the target (:func:`priority`); ``target_probability``: by that of
        a hit; ``expected_hits``: by the expected gain in chemical systems with a hit.
    tolerance
        Relative deviation from the target that counts as a hit.
    """
    records = [dict(c) for c in candidates]
    near = [priority(value=c.get("value"), std=c.get("std"), target=target) for c in records]
    if acquisition == "threshold":
        worth = near
    else:
        worth = [target_probability(c.get("value"), c.get("std"), target=target, tolerance=tolerance) for c in records]
        if acquisition == "expected_hits":
            worth = expected_gains(worth, [str(c.get("chemsys") or c["candidate_id"]) for c in records])
    order = sorted(range(len(records)), key=lambda i: (-worth[i], -near[i], str(records[i]["candidate_id"])))
    return [{**records[i], "priority": worth[i]} for i in order]
