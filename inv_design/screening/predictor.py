"""Stage I: rules of composition and geometry, duplicates, and the predicted property."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from inv_design.objective import UPPER_BOUNDS, objectives_of
from inv_design.screening.acquisition import hit_probability
from inv_design.screening.target import plain_number, target_reasons
from inv_design.screening.verdict import Reason, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pymatgen.core import Structure

    from inv_design.config import PredictorConfig
    from inv_design.objective import Targets

SCREENED = "bulk_modulus_vrh"
"""The property without which no candidate passes."""


def screen_predictor(
    structure: Structure,
    predictions: Iterable[Mapping[str, Any]],
    *,
    targets: Targets,
    config: PredictorConfig,
    known: Mapping[str, float] | None = None,
    exclude: Iterable[str] = (),
    duplicate_of: str | None = None,
    hit_tolerance: float = 0.20,
) -> Verdict:
    """Return stage I's verdict (Li et al. 2025, II C 1): cheap rules first, every failing rule recorded.

    Parameters
    ----------
    structure
        The crystal as it was generated.
    predictions
        Prediction records of the crystal: ``property``, ``value`` (in the property's unit), ``error``.
    targets
        Property -> what is wanted, or objectives. Density and volume per atom are taken from the crystal itself.
    known
        What else is known of the crystal, property -> number, such as its cost.
    exclude
        Element symbols that no candidate may contain.
    duplicate_of
        Id of the earlier crystal that this one matches within ``config.match``, if any.
    hit_tolerance
        Relative deviation of the label that will count as a hit; used where ``config.min_probability`` decides.
    """
    reasons = [
        *composition_reasons(structure, min_elements=config.min_elements, exclude=exclude),
        *distance_reasons(structure, min_distance=config.min_distance, min_radius_ratio=config.min_radius_ratio),
    ]
    if duplicate_of is not None:
        reasons.append(Reason("duplicate", duplicate_of, dict(config.match), f"duplicate of {duplicate_of}"))

    objectives = objectives_of(targets)
    records = {str(record["property"]): record for record in predictions}
    values = {name: float(r["value"]) for name, r in records.items() if _usable(r)}
    plain = {**structure_values(structure, [o.name for o in objectives]), **(known or {}), **values}
    if config.acquisition != "threshold" and config.min_probability is not None:
        reasons += probability_reasons(records, objectives, least=config.min_probability, tolerance=hit_tolerance)
        plain = {name: value for name, value in plain.items() if name not in values or name in UPPER_BOUNDS}
    reasons += target_reasons(plain, objectives, tolerance=config.tolerance)
    if reasons:
        return Verdict("predictor", "rejected", tuple(reasons))
    if SCREENED in records and SCREENED not in values:  # another property that cannot be predicted stops nothing
        error = records[SCREENED].get("error") or "no finite value"
        return Verdict("predictor", "failed", (Reason("prediction", None, None, f"prediction failed: {error}"),))
    if SCREENED not in values and any(o.name == SCREENED for o in objectives):
        return Verdict("predictor", "waiting")
    return Verdict("predictor", "passed")


def composition_reasons(structure: Structure, *, min_elements: int, exclude: Iterable[str] = ()) -> list[Reason]:
    """Return a reason if a crystal has too few elements, and one if it contains excluded elements."""
    symbols = sorted(element.symbol for element in structure.composition.elements)
    reasons = []
    if len(symbols) < min_elements:
        message = f"{len(symbols)} element(s) ({', '.join(symbols)}), at least {min_elements} wanted"
        reasons.append(Reason("elements", len(symbols), min_elements, message))
    banned = sorted(set(symbols) & set(exclude))
    if banned:
        message = f"contains {', '.join(banned)}, excluded by the campaign"
        reasons.append(Reason("excluded_elements", banned, sorted(exclude), message))
    return reasons


def distance_reasons(structure: Structure, *, min_distance: float, min_radius_ratio: float) -> list[Reason]:
    """Return a reason for each geometry rule that a crystal breaks.

    Parameters
    ----------
    min_distance
        Smallest distance between two atoms, periodic images included, in Å.
    min_radius_ratio
        Smallest distance in units of the sum of the pair's metallic radii.
    """
    import numpy as np

    from inv_design.structures import validity

    if not np.isfinite(structure.frac_coords).all():
        return [Reason("cell", None, None, "a coordinate is not finite")]
    volume, smallest = structure.volume / len(structure), validity.MIN_VOLUME_PER_ATOM
    if not smallest <= volume < math.inf:  # NaN must fail too; no distances in a collapsed cell
        return [Reason("cell", volume, smallest, f"cell of {volume:.3g} Å^3 per atom, at least {smallest:g} wanted")]
    reasons = []
    try:
        distance = validity.min_distance(structure)
        if not distance >= min_distance:
            message = f"shortest distance {distance:.2f} Å, at least {min_distance:g} Å wanted"
            reasons.append(Reason("min_distance", distance, min_distance, message))
        ratio = validity.min_radius_ratio(structure)
        if not ratio >= min_radius_ratio:
            message = f"shortest distance {ratio:.2f} of the sum of radii, at least {min_radius_ratio:g} wanted"
            reasons.append(Reason("min_radius_ratio", ratio, min_radius_ratio, message))
    except ValueError as error:  # an element without a radius
        reasons.append(Reason("geometry", None, None, f"distances cannot be judged: {error}"))
    return reasons


def probability_reasons(
    predictions: Mapping[str, Mapping[str, Any]], targets: Targets, *, least: float, tolerance: float
) -> list[Reason]:
    """Return a reason for each target that a candidate is too unlikely to hit.

    Parameters
    ----------
    predictions
        Property -> prediction record with ``value`` and ``std`` in the property's unit; those without a value are left
        out.
    targets
        Property -> what is wanted, or objectives.
    least
        Smallest probability that passes.
    tolerance
        Relative deviation from a wanted value that counts as a hit.
    """
    reasons = []
    for objective in objectives_of(targets):
        name, unit = objective.name, objective.unit
        record = predictions.get(name)
        if record is None or not _usable(record) or objective.kind in ("max", "min") or name in UPPER_BOUNDS:
            continue
        value, std = float(record["value"]), record.get("std")
        probability = hit_probability(value, std, objective, tolerance=tolerance)
        if probability < least:
            spread = f" ± {plain_number(std)}" if std is not None and math.isfinite(std) else ""
            within = f"within {100 * tolerance:g} % of" if objective.kind == "value" else "in"
            message = (
                f"{name} {plain_number(value)}{spread} {unit} is {within} {objective.text} "
                f"with probability {probability:.2g} (at least {least:g} wanted)"
            )
            reasons.append(Reason("target_probability", probability, least, message))
    return reasons


def structure_values(structure: Structure, wanted: Iterable[str]) -> dict[str, float]:
    """Return the wanted properties that the crystal itself has: ``density`` in g/cm^3, ``volume_per_atom`` in Å^3."""
    have = {"density": lambda: float(structure.density), "volume_per_atom": lambda: structure.volume / len(structure)}
    return {name: have[name]() for name in wanted if name in have}


def _usable(record: Mapping[str, Any]) -> bool:
    value = record.get("value")
    return not record.get("error") and value is not None and math.isfinite(float(value))
