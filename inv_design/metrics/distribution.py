"""Distances between the distributions of a quantity over two sets of crystals."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pymatgen.core import Structure


def wasserstein(
    first: Sequence[float],
    second: Sequence[float],
    first_weights: Sequence[float] | None = None,
    second_weights: Sequence[float] | None = None,
) -> float | None:
    """Return the first Wasserstein distance of two sets of values, in their unit; ``None`` if one is empty."""
    from scipy.stats import wasserstein_distance

    if not len(first) or not len(second):
        return None
    return float(wasserstein_distance(first, second, first_weights, second_weights))


def densities(structures: Sequence[Structure]) -> list[float]:
    """Return the densities in g/cm^3 of all crystals that have a finite one."""
    return [value for value in (_number(s, "density") for s in structures) if value is not None]


def element_counts(structures: Sequence[Structure]) -> list[int]:
    """Return the number of elements of each crystal with atoms."""
    return [n for n in (len(s.composition.get_el_amt_dict()) for s in structures) if n]


def space_group(structure: Structure, symprec: float = 0.01) -> int:
    """Return the space group number, 1 where none is found (atoms that overlap, a cell that is none)."""
    import spglib

    from inv_design.structures.matching import unmatchable

    try:
        if unmatchable(structure) is not None:
            return 1
        numbers = [site.specie.Z for site in structure]
        cell: Any = (structure.lattice.matrix, structure.frac_coords % 1.0, numbers)
        dataset: Any = spglib.get_symmetry_dataset(cell, symprec=symprec)
    except Exception:  # spglib's errors, partially occupied sites, unknown species
        return 1
    return 1 if dataset is None else int(dataset.number)


def _number(structure: Structure, name: str) -> float | None:
    try:
        value = float(getattr(structure, name))
    except Exception:  # a crystal too strange to have one
        return None
    return value if math.isfinite(value) else None
