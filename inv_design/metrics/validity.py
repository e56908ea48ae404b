"""Validity of a crystal as CDVAE defines it: atoms apart in a cell with volume, a possible balance of charges."""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pymatgen.core import Structure

MIN_DISTANCE = 0.5
MIN_VOLUME = 0.1
MAX_COMBINATIONS = 100_000


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
        if min(structure.lattice.get_lll_reduced_lattice().abc) <= MIN_DISTANCE:  # a site too near to its own image
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
