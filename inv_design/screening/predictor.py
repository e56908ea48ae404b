"""Stage I: rules of composition and geometry, duplicates, and the predicted property."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from inv_design.config import PROPERTY_UNITS
from inv_design.screening.acquisition import target_probability
from inv_design.screening.target import UPPER_BOUNDS, target_reasons
from inv_design.screening.verdict import Reason, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pymatgen.core import Structure

    from inv_design.config import PredictorConfig


def screen_predictor(
    structure: Structure,
    predictions: Iterable[Mapping[str, Any]],
    *,
    targets: Mapping[str, float],
    config: PredictorConfig,
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
        Property -> wanted value. Density and volume per atom are taken from the crystal itself.
    exclude
        Element symbols that no candidate may contain.
    duplicate_of
        Id of the earlier crystal that this one matches within ``config.match``, if any.
    hit_tolerance
        Relative deviation of the label that will count as a hit; used unless ``config.acquisition`` is ``threshold``.
    """
    reasons = [
        *composition_reasons(structure, min_elements=config.min_elements, exclude=exclude),
        *distance_reasons(structure, min_distance=config.min_distance, min_radius_ratio=config.min_radius_ratio),
    ]
    if duplicate_of is not None:
        reasons.append(Reason("duplicate", duplicate_of, dict(config.match), f"duplicate of {duplicate_of}"))

    records = {str(record["property"]): record for record in predictions}
    values = {name: float(r["value"]) for name, r in records.items() if _usable(r)}
    missing = [name for name, r in records.items() if name in targets and name not in values]
    plain = {**_structure_values(structure, targets), **values}
    if config.acquisition != "threshold":
        uncertain = {name: records[name] for name in values if name in targets and name not in UPPER_BOUNDS}
        plain = {name: value for name, value in plain.items() if name not in uncertain}
        reasons += probability_reasons(uncertain, targets, least=config.min_probability, tolerance=hit_tolerance)
    reasons += target_reasons(plain, targets, tolerance=config.tolerance)
    if reasons:
        return Verdict("predictor", "rejected", tuple(reasons))
    if missing:
        error = records[missing[0]].get("error") or "no finite value"
        return Verdict("predictor", "failed", (Reason("prediction", None, None, f"prediction failed: {error}"),))
    if "bulk_modulus_vrh" in targets and "bulk_modulus_vrh" not in values:
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
    predictions: Mapping[str, Mapping[str, Any]], targets: Mapping[str, float], *, least: float, tolerance: float
) -> list[Reason]:
    """Return a reason for each target that a candidate is too unlikely to hit.

    Parameters
    ----------
    predictions
        Property -> prediction record with ``value`` and ``std`` in the property's unit.
    least
        Smallest probability that passes.
    tolerance
        Relative deviation from the target that counts as a hit.
    """
    reasons = []
    for name, record in predictions.items():
        value, std, target = float(record["value"]), record.get("std"), targets[name]
        probability = target_probability(value, std, target=target, tolerance=tolerance)
        if probability < least:
            unit = PROPERTY_UNITS.get(name, "")
            spread = f" ± {std:.1f}" if std is not None and math.isfinite(std) else ""
            message = (
                f"{name} {value:.1f}{spread} {unit} is within {100 * tolerance:g} % of {target:g} {unit} "
                f"with probability {probability:.2g} (at least {least:g} wanted)"
            )
            reasons.append(Reason("target_probability", probability, least, message))
    return reasons


def _usable(record: Mapping[str, Any]) -> bool:
    value = record.get("value")
    return not record.get("error") and value is not None and math.isfinite(float(value))


def _structure_values(structure: Structure, wanted: Iterable[str]) -> dict[str, float]:
    """Return the wanted properties that the crystal itself has: ``density`` in g/cm^3, ``volume_per_atom`` in Å^3."""
    have = {"density": lambda: float(structure.density), "volume_per_atom": lambda: structure.volume / len(structure)}
    return {name: have[name]() for name in wanted if name in have}
