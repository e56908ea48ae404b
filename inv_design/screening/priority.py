"""Which candidates get the labels of a round when there are fewer labels than candidates."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from inv_design.objective import Objective
from inv_design.screening.acquisition import expected_gains, hit_probability
from inv_design.screening.predictor import SCREENED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from inv_design.screening.acquisition import Acquisition


def priority(*, value: float | None, std: float | None, target: float | Objective) -> float:
    """Return how early a candidate is served, at most 0 and the higher the earlier.

    The deviation of its best value from the target decides (0 inside a wanted range); a certain prediction breaks near
    ties: minus the relative error, minus a thousandth of the relative standard deviation (dimensionless). Without a
    value it is the lowest.

    Parameters
    ----------
    value
        Best available value (by MLIP, before that by the predictor), in the target's unit.
    std
        The predictor's standard deviation, same unit.
    """
    if value is None or not math.isfinite(value):
        return -math.inf
    wanted = target if isinstance(target, Objective) else Objective(SCREENED, "value", value=target)
    doubt = std if std is not None and math.isfinite(std) else abs(wanted.centre)
    return -wanted.deviation(value) - 1e-3 * doubt / abs(wanted.centre)


def rank(
    candidates: Iterable[Mapping[str, Any]],
    *,
    target: float | Objective,
    acquisition: Acquisition = "threshold",
    tolerance: float = 0.20,
    others: Sequence[Objective] = (),
) -> list[dict[str, Any]]:
    """Return candidates best first, each with its ``priority``; equal ones in the order of their ids.

    Parameters
    ----------
    candidates
        Records with ``candidate_id``, ``value`` and ``std`` in the target's unit; for ``expected_hits`` also
        ``chemsys``, and for ``others`` also ``properties`` (property -> number).
    target
        The bulk modulus wanted: a number in GPa, or its objective.
    acquisition
        ``threshold``: by the deviation from the target (:func:`priority`); ``target_probability``: by that of
        a hit; ``expected_hits``: by the expected gain in chemical systems with a hit.
    tolerance
        Relative deviation from the target that counts as a hit.
    others
        Further objectives: candidates are then ordered by Pareto front (Deb et al., IEEE Trans. Evol. Comput. 6, 182
        (2002), non-dominated sorting) of the worth above and of each objective, within a front by the worth above; the
        priority is minus the front's number and a fraction that keeps the order. An unknown value is the worst.
    """
    records = [dict(c) for c in candidates]
    wanted = target if isinstance(target, Objective) else Objective(SCREENED, "value", value=target)
    near = [priority(value=c.get("value"), std=c.get("std"), target=wanted) for c in records]
    if acquisition == "threshold":
        worth = near
    else:
        worth = [hit_probability(c.get("value"), c.get("std"), wanted, tolerance=tolerance) for c in records]
        if acquisition == "expected_hits":
            worth = expected_gains(worth, [str(c.get("chemsys") or c["candidate_id"]) for c in records])
    order = sorted(range(len(records)), key=lambda i: (-worth[i], -near[i], str(records[i]["candidate_id"])))
    if others and records:
        front = _fronts(records, worth, others)
        order.sort(key=lambda i: front[i])
        return [{**records[i], "priority": -front[i] - place / len(order)} for place, i in enumerate(order)]
    return [{**records[i], "priority": worth[i]} for i in order]


def _fronts(records: Sequence[Mapping[str, Any]], worth: Sequence[float], others: Sequence[Objective]) -> list[int]:
    from inv_design.metrics.pareto import pareto_ranks

    columns = [[-w for w in worth]]
    for objective in others:
        values = [(c.get("properties") or {}).get(objective.name) for c in records]
        columns.append([math.nan if v is None else objective.badness(float(v)) for v in values])
    return pareto_ranks(list(zip(*map(_finite, columns), strict=True)))


def _finite(column: Sequence[float]) -> list[float]:
    """Return a column with what is not finite replaced by something worse than the rest."""
    worst = max((x for x in column if math.isfinite(x)), default=0.0) + 1.0
    return [x if math.isfinite(x) else worst for x in column]
