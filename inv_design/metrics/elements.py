"""Element shares: what crystals are made of, how that shifts from stage to stage, and what it costs."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

SHARE_LIMIT = 0.30
"""An element that is more of the atoms than this is warned of: a relaxation with a potential rewards some metals."""
ENRICHMENT_LIMIT = 5.0
"""An element that is so many times more frequent than in the training set is warned of."""
ENOUGH = 5
"""Crystals below which no warning is given: one crystal of two elements has 50 % of each."""


def atom_shares(formulas: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return element -> share of the atoms, each crystal with the same weight, the most frequent first; sum 1.

    Parameters
    ----------
    formulas
        Element -> number of atoms, one mapping per crystal; a large cell counts no more than a small one.
    """
    total: Counter[str] = Counter()
    crystals = 0
    for formula in formulas:
        atoms = sum(formula.values())
        if atoms > 0:
            crystals += 1
            for symbol, count in formula.items():
                total[symbol] += count / atoms  # type: ignore[assignment]  # a Counter of floats
    return {s: n / crystals for s, n in sorted(total.items(), key=lambda item: (-item[1], item[0]))}


def enrichment(
    shares: Mapping[str, float], background: Mapping[str, float], *, n: int, n_background: int
) -> dict[str, float]:
    """Return element -> how many times its share of the atoms is that in the background.

    Half a crystal, spread evenly over all elements of both, is added to each side, so that an element that the
    background lacks has a finite ratio, and a few crystals do not make a large one.

    Parameters
    ----------
    shares, background
        Element -> share of the atoms (:func:`atom_shares`).
    n, n_background
        Numbers of crystals.
    """
    symbols = sorted(set(shares) | set(background))
    if not symbols or n == 0 or n_background == 0:
        return {}
    prior = 0.5 / len(symbols)
    return {
        s: ((shares.get(s, 0.0) * n + prior) / (n + 0.5))
        / ((background.get(s, 0.0) * n_background + prior) / (n_background + 0.5))
        for s in symbols
        if s in shares
    }


def stage_shares(
    stages: Mapping[str, Sequence[Mapping[str, float]]], background: Sequence[Mapping[str, float]]
) -> dict[str, dict[str, Any]]:
    """Return the element shares of the crystals that reached each stage, and their enrichment.

    Parameters
    ----------
    stages
        Stage -> element -> number of atoms, per crystal.
    background
        The same of the training set that the generator learned from.

    Returns
    -------
    dict
        Stage -> ``n`` (crystals), ``shares`` (of the atoms) and ``enrichment`` (against the training set); stages
        without a crystal are left out, and the training set is the first where there is one.
    """
    base = atom_shares(background)
    found: dict[str, dict[str, Any]] = {}
    if background:
        found["training_set"] = {"n": len(background), "shares": base, "enrichment": {}}
    for stage, formulas in stages.items():
        if formulas:
            shares = atom_shares(formulas)
            ratio = enrichment(shares, base, n=len(formulas), n_background=len(background))
            found[stage] = {"n": len(formulas), "shares": shares, "enrichment": ratio}
    return found


def bias_warnings(stages: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a warning for each element that is too much of a stage's atoms or too enriched, the worst first.

    Parameters
    ----------
    stages
        As :func:`stage_shares` returns it. The training set itself and stages of fewer than :data:`ENOUGH` crystals
        are not judged.

    Returns
    -------
    list
        ``stage``, ``element``, ``share``, ``enrichment`` (``None`` without a training set), ``n`` and ``message``.
    """
    found = []
    for stage, record in stages.items():
        if stage == "training_set" or record["n"] < ENOUGH:
            continue
        where = STAGE_NAMES.get(stage, stage)
        for symbol, share in record["shares"].items():
            ratio = record["enrichment"].get(symbol)
            reasons = []
            if share > SHARE_LIMIT:
                reasons.append(f"{100 * share:.0f} % of the atoms")
            if ratio is not None and ratio > ENRICHMENT_LIMIT:
                reasons.append(f"{ratio:.1f} times its share in the training set")
            if reasons:
                found.append(
                    {
                        "stage": stage, "element": symbol, "share": share, "enrichment": ratio, "n": record["n"],
                        "message": f"{symbol} is {' and '.join(reasons)} ({where}, n = {record['n']})",
                    }
                )  # fmt: skip
    return sorted(found, key=lambda w: -max(w["share"] / SHARE_LIMIT, (w["enrichment"] or 0.0) / ENRICHMENT_LIMIT))


def warning_lines(warnings: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return one line per element of warnings as :func:`bias_warnings` returns them: its worst, and how many more."""
    by_element: dict[str, list[Mapping[str, Any]]] = {}
    for warning in warnings:
        by_element.setdefault(warning["element"], []).append(warning)
    lines = []
    for found in by_element.values():
        more = len(found) - 1
        lines.append(found[0]["message"] + (f"; also in {more} other stage{'s' * (more > 1)}" if more else ""))
    return lines


STAGE_NAMES = {
    "training_set": "training set",
    "generated": "generated",
    "predictor": "passed stage I",
    "mlip": "passed stage II",
    "labelled": "labelled",
    "hits": "hits",
}
"""Stage of :func:`stage_shares` -> what it is called, in order."""


def composition_cost(
    formula: Mapping[str, float], cost: Mapping[str, float], *, by: Literal["atoms", "mass"] = "atoms"
) -> float:
    """Return the mean cost of a crystal's elements, weighted by atomic fractions or by mass fractions.

    Parameters
    ----------
    formula
        Element -> number of atoms.
    cost
        Element -> relative cost, 0 for those that are not listed; per kilogram it belongs with ``by="mass"``.
    """
    weights = dict(formula)
    if by == "mass":
        from ase.data import atomic_masses, atomic_numbers

        weights = {s: count * float(atomic_masses[atomic_numbers[s]]) for s, count in formula.items()}
    return sum(cost.get(s, 0.0) * w for s, w in weights.items()) / sum(weights.values())
