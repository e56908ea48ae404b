"""How good generated crystals are: validity, uniqueness, novelty, target error; counts beside every fraction."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pymatgen.core import Structure

MIN_DISTANCE = 0.5
MIN_VOLUME = 0.1
MATCH = {"ltol": 0.2, "stol": 0.3, "angle_tol": 5.0}
MAX_COMBINATIONS = 100_000


@dataclass(frozen=True)
class Share:
    """A fraction with the counts behind it."""

    count: int
    total: int

    @property
    def fraction(self) -> float | None:
        """``count / total``, ``None`` of nothing."""
        return self.count / self.total if self.total else None

    def record(self) -> dict[str, Any]:
        """Return count, total and fraction."""
        return {**asdict(self), "fraction": self.fraction}


@dataclass
class GenerationMetrics:
    """What can be said about a set of generated crystals; one entry per crystal in the lists.

    Attributes
    ----------
    structural, compositional
        Validity of each crystal (CDVAE's definitions).
    duplicate_of
        Index of the first crystal that each one matches, ``None`` for the first of its kind.
    known_as
        Index of the first reference crystal that each one matches; ``None`` for all without a reference.
    errors
        Why a crystal could not be judged or compared; such a crystal is invalid, unique and novel counts leave it out.
    """

    structural: list[bool]
    compositional: list[bool]
    duplicate_of: list[int | None]
    known_as: list[int | None]
    has_reference: bool
    tolerances: dict[str, float]
    errors: dict[int, str] = field(default_factory=dict)
    target: dict[str, Any] | None = None

    def record(self) -> dict[str, Any]:
        """Return all shares as plain data.

        ``unique`` and ``novel`` are shares of all crystals; ``valid_unique_novel`` needs all of structural validity,
        uniqueness and novelty (MatterGen's S.U.N. without the energy above hull, whose place ``valid`` takes).
        """
        n = len(self.structural)
        unique = [d is None and i not in self.errors for i, d in enumerate(self.duplicate_of)]
        novel = [k is None and i not in self.errors for i, k in enumerate(self.known_as)]
        both = zip(self.structural, self.compositional, strict=True)
        result: dict[str, Any] = {
            "n": n,
            "valid_structure": Share(sum(self.structural), n).record(),
            "valid_composition": Share(sum(self.compositional), n).record(),
            "valid": Share(sum(s and c for s, c in both), n).record(),
            "unique": Share(sum(unique), n).record(),
            "tolerances": self.tolerances,
            "not_judged": len(self.errors),
        }
        if self.has_reference:
            result["novel"] = Share(sum(novel), n).record()
            good = zip(self.structural, unique, novel, strict=True)
            result["valid_unique_novel"] = Share(sum(all(g) for g in good), n).record()
        if self.target is not None:
            result["target"] = self.target
        return result


def generation_metrics(
    structures: Sequence[Structure],
    *,
    reference: Sequence[Structure] | None = None,
    values: Sequence[float | None] | None = None,
    target: float | None = None,
    match: dict[str, float] | None = None,
) -> GenerationMetrics:
    """Return validity, uniqueness, novelty and target error of generated crystals; a strange one never stops it.

    Parameters
    ----------
    structures
        The generated crystals (n).
    reference
        Crystals that were known, such as the training set; without it novelty is not judged.
    values, target
        A judge's value per crystal (n, ``None`` where it has none) and the target, same unit, for the target error.
    match
        Tolerances of likeness, ``StructureMatcher``'s defaults otherwise.
    """
    from inv_design.structures.matching import StructureIndex

    tolerances = dict(match or MATCH)
    seen, known = StructureIndex(**tolerances), StructureIndex(**tolerances)
    formulas = {_formula(s) for s in structures}
    for i, structure in enumerate(reference or ()):
        if _formula(structure) in formulas:
            known.add(str(i), structure)
    duplicate_of: list[int | None] = []
    known_as: list[int | None] = []
    for i, structure in enumerate(structures):
        first = seen.find_or_add(str(i), structure)
        duplicate_of.append(None if first is None else int(first))
        match_name = known.find(structure, f"query {i}")
        known_as.append(None if match_name is None else int(match_name))
    return GenerationMetrics(
        structural=[is_valid_structure(s) for s in structures],
        compositional=[is_valid_composition(s) for s in structures],
        duplicate_of=duplicate_of,
        known_as=known_as,
        has_reference=reference is not None,
        tolerances=tolerances,
        errors={int(name): reason for name, reason in seen.skipped.items()},
        target=None if target is None or values is None else target_error(values, target),
    )


def is_valid_structure(structure: Structure) -> bool:
    """Return whether the smallest distance is above 0.5 Å and the volume above 0.1 Å^3 (Xie et al. 2022, CDVAE)."""
    import numpy as np

    from inv_design.structures.validity import min_distance

    try:
        if not np.isfinite(structure.frac_coords).all():
            return False
        if len(structure) == 0 or not math.isfinite(structure.volume) or structure.volume < MIN_VOLUME:
            return False
        if structure.volume / len(structure) < MIN_VOLUME:  # collapsed; its neighbours cannot be counted
            return False
        return bool(min_distance(structure) > MIN_DISTANCE)
    except (ValueError, ArithmeticError, MemoryError, AttributeError, IndexError):
        return False


def is_valid_composition(structure: Structure) -> bool:
    """Return whether the composition is charge neutral with electronegativities in order (CDVAE's use of SMACT).

    Single elements and all-metal compositions pass, as they do there. A charge-neutral assignment of common
    oxidation states must exist in which no cation is more electronegative (Pauling) than an anion. Real crystals fail
    it one time in six, so it is a figure to compare generators by, never a filter.
    """
    try:
        amounts = structure.composition.reduced_composition.get_el_amt_dict()
        return _valid_composition(tuple(sorted((el, round(amount)) for el, amount in amounts.items())))
    except (ValueError, ArithmeticError, AttributeError, KeyError):
        return False


@cache
def _valid_composition(amounts: tuple[tuple[str, int], ...]) -> bool:
    from pymatgen.core import Element

    from inv_design.structures.elements import is_metal

    if not amounts:
        return False
    if len(amounts) == 1 or all(is_metal(symbol) for symbol, _ in amounts):
        return True
    elements = [Element(symbol) for symbol, _ in amounts]
    states = [element.icsd_oxidation_states or element.common_oxidation_states for element in elements]
    if not all(states) or math.prod(map(len, states)) > MAX_COMBINATIONS:
        return False
    counts = [count for _, count in amounts]
    return any(
        sum(q * n for q, n in zip(charges, counts, strict=True)) == 0 and _pauling(elements, charges)
        for charges in itertools.product(*states)
    )


def _pauling(elements: Sequence[Any], charges: Sequence[int]) -> bool:
    cations = [e.X for e, q in zip(elements, charges, strict=True) if q > 0]
    anions = [e.X for e, q in zip(elements, charges, strict=True) if q < 0]
    return bool(cations and anions) and max(cations) < min(anions)


def target_error(values: Sequence[float | None], target: float) -> dict[str, Any]:
    """Return how far values are from a target: the MAPE of Li et al. 2025, equation 1, mean |P_i - C| / C.

    Returns
    -------
    dict
        ``target``, ``n`` (values that are finite), ``missing``, ``mape`` (relative), ``median``, ``within_20``,
        ``within_30`` (shares with counts).

    Raises
    ------
    ValueError
        If the target is not positive.
    """
    import statistics

    if not target > 0:
        raise ValueError(f"target {target!r} is not positive; a relative error needs a positive target")
    usable = [float(v) for v in values if v is not None and math.isfinite(v)]
    errors = [abs(v - target) / target for v in usable]
    return {
        "target": target,
        "n": len(usable),
        "missing": len(values) - len(usable),
        "mape": statistics.fmean(errors) if errors else None,
        "median": statistics.median(usable) if usable else None,
        "within_20": Share(sum(e <= 0.20 for e in errors), len(errors)).record(),
        "within_30": Share(sum(e <= 0.30 for e in errors), len(errors)).record(),
    }


def _formula(structure: Structure) -> str:
    try:
        return str(structure.composition.element_composition.reduced_formula)
    except Exception:  # a strange composition is compared with nothing
        return ""
