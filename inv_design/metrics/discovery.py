"""How fast a closed loop discovers: hits over labels, against the same number of labels of a baseline.

A campaign is an ordered list of labels, each a hit or not. Acceleration and enhancement factor are those of closed-loop
benchmarks (Rohr et al. 2020, doi 10.1039/C9SC05999G; Adesiji et al. 2025, doi 10.1039/D5DD00337G); together with the
area under the discovery curve they are the figures of MADE (Malik et al. 2026, arXiv 2601.20996). There the oracle
says whether a crystal is stable, here whether it meets the target.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

Bound = Literal["exact", "at least", "at most", "unknown"]


@dataclass(frozen=True)
class Acceleration:
    """An acceleration factor and what is known of it.

    Attributes
    ----------
    value
        Labels of the baseline over labels of this arm for the same number of hits; NaN if neither came that far.
    bound
        ``at least``: the baseline never came that far, its labels are those it spent; ``at most``: this arm never did.
    """

    value: float
    bound: Bound


def discovery_curve(hits: Sequence[bool], budget: int | None = None) -> np.ndarray:
    """Return the hits found after 1, 2 ... ``budget`` labels, (budget,) whole numbers.

    Parameters
    ----------
    hits
        Whether each label is a hit, in the order in which the labels were spent.
    budget
        Labels allowed; the number of labels by default. Labels that were not spent find nothing.

    Raises
    ------
    ValueError
        If more labels were spent than allowed.
    """
    allowed = len(hits) if budget is None else budget
    if len(hits) > allowed:
        raise ValueError(f"{len(hits)} labels were spent with a budget of {allowed}; give the budget of the campaign")
    found = np.zeros(allowed, dtype=int)
    found[: len(hits)] = np.asarray(hits, dtype=bool)
    return np.cumsum(found)


def area_under_discovery_curve(hits: Sequence[bool], budget: int | None = None) -> float:
    """Return the area under the discovery curve, normalised by that of a campaign whose every label is a hit.

    sum_n D(n) / sum_n n with D(n) hits after n of ``budget`` labels: 0 without a hit, 1 if every label is one, and of
    two campaigns with equally many hits that which found them earlier has more. NaN for a budget of 0.
    """
    curve = discovery_curve(hits, budget)
    n = len(curve)
    return float(2 * curve.sum() / (n * (n + 1))) if n else math.nan


def enhancement_factor(hits: Sequence[bool], baseline: Sequence[bool], budget: int | None = None) -> float:
    """Return the hits of this arm over those of a baseline, both after ``budget`` labels (EF; MADE, Adesiji et al.).

    Parameters
    ----------
    budget
        Labels after which both are compared; the smaller of the numbers of labels by default.

    Returns
    -------
    float
        Infinite if only the baseline has none, NaN if both have none.
    """
    at = min(len(hits), len(baseline)) if budget is None else budget
    own, other = sum(map(bool, hits[:at])), sum(map(bool, baseline[:at]))
    if other:
        return own / other
    return math.inf if own else math.nan


def labels_to_reach(hits: Sequence[bool], count: int) -> int | None:
    """Return how many labels were spent when ``count`` hits were found, ``None`` if they never were.

    Raises
    ------
    ValueError
        If ``count`` is below 1.
    """
    if count < 1:
        raise ValueError(f"count is {count}; ask for at least 1 hit")
    places = np.flatnonzero(np.asarray(hits, dtype=bool))
    return int(places[count - 1]) + 1 if len(places) >= count else None


def acceleration_factor(hits: Sequence[bool], baseline: Sequence[bool], count: int) -> Acceleration:
    """Return how many times more labels a baseline needs for ``count`` hits (AF; Rohr et al., MADE).

    An arm that never came that far needs more labels than it spent, so that the factor is a bound then.
    """
    own, other = labels_to_reach(hits, count), labels_to_reach(baseline, count)
    if own is not None and other is not None:
        return Acceleration(other / own, "exact")
    if own is not None:
        return Acceleration(len(baseline) / own, "at least")
    if other is not None and len(hits):
        return Acceleration(other / len(hits), "at most")
    return Acceleration(math.nan, "unknown")
