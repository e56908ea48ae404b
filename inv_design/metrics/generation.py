"""How good generated crystals are: validity, uniqueness, novelty, target error; counts beside every fraction."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from inv_design.metrics.share import Share
from inv_design.metrics.validity import is_valid_composition, is_valid_structure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pymatgen.core import Structure

MATCH = {"ltol": 0.2, "stol": 0.3, "angle_tol": 5.0}


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

    @property
    def unique(self) -> list[bool]:
        """Whether each crystal is the first of its kind."""
        return [d is None and i not in self.errors for i, d in enumerate(self.duplicate_of)]

    @property
    def novel(self) -> list[bool]:
        """Whether each crystal is like none of the reference."""
        return [k is None and i not in self.errors for i, k in enumerate(self.known_as)]

    def record(self) -> dict[str, Any]:
        """Return all shares as plain data.

        ``unique`` and ``novel`` are shares of all crystals; ``valid_unique_novel`` needs all of structural validity,
        uniqueness and novelty (MatterGen's S.U.N. without the energy above hull, whose place ``valid`` takes).
        """
        n = len(self.structural)
        unique, novel = self.unique, self.novel
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
