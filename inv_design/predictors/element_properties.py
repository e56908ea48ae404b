"""Numbers that describe an element: the input of the crystal graph network and of the composition descriptors."""

from __future__ import annotations

import math
import warnings
from functools import cache

import numpy as np

MAX_Z = 100
NEAREST_FOR_GAPS = 3

# (pymatgen attribute, use its logarithm). Tabulated properties of the elements in their standard state.
TABULATED: tuple[tuple[str, bool], ...] = (
    ("group", False),
    ("row", False),
    ("X", False),
    ("mendeleev_no", False),
    ("atomic_mass", True),
    ("atomic_radius", False),
    ("ionization_energy", False),
    ("electron_affinity", False),
    ("melting_point", True),
    ("boiling_point", True),
    ("molar_volume", True),
    ("bulk_modulus", True),
    ("youngs_modulus", True),
    ("rigidity_modulus", True),
    ("coefficient_of_linear_thermal_expansion", True),
    ("thermal_conductivity", True),
)
VALENCE: tuple[str, ...] = ("s_electrons", "p_electrons", "d_electrons", "f_electrons", "metallic_radius")
PROPERTIES: tuple[str, ...] = tuple(name for name, _ in TABULATED) + VALENCE
MOLAR_VOLUME = PROPERTIES.index("molar_volume")
METALLIC_RADIUS = PROPERTIES.index("metallic_radius")


@cache
def element_properties() -> np.ndarray:
    """Return the table (101, 21) of :data:`PROPERTIES` by atomic number, row 0 unused; logarithms are natural.

    Units are pymatgen's; ``molar_volume`` is stored as ln of Å^3 per atom and ``metallic_radius`` in Å. A property that
    is not tabulated for an element is the mean over the three elements nearest to it in the properties that are.
    """
    from pymatgen.core import Element

    table = np.full((MAX_Z + 1, len(PROPERTIES)), np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # one line per gap of pymatgen's tables; they are filled below
        for z in range(1, MAX_Z + 1):
            table[z] = _row(Element.from_Z(z))
    table[:, MOLAR_VOLUME] += math.log(1.0 / 0.602214076)  # cm^3/mol -> Å^3 per atom
    table[1:] = _fill_gaps(table[1:])
    table[0] = table[1:].mean(axis=0)
    return table


def _row(element: object) -> list[float]:
    from inv_design.structures.elements import METALLIC_RADII

    row = []
    for name, logarithm in TABULATED:
        value = _number(getattr(element, name, None))
        if logarithm:
            value = math.log(value) if value > 0 else math.nan
        row.append(value)
    shells = dict.fromkeys("spdf", 0)
    for _, orbital, electrons in _valence_shells(element):
        shells[orbital] += electrons
    row.extend(float(shells[orbital]) for orbital in "spdf")
    symbol = str(element)
    row.append(METALLIC_RADII.get(symbol, _number(getattr(element, "atomic_radius", None))))
    return row


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan


def _valence_shells(element: object) -> list[tuple[int, str, int]]:
    """Return the shells outside the noble-gas core, filled d and f shells below the valence left out."""
    structure: list[tuple[int, str, int]] = element.full_electronic_structure  # type: ignore[attr-defined]
    top = max(n for n, _, _ in structure)
    full = {"d": 10, "f": 14}
    has_p = any(n == top and orbital == "p" for n, orbital, _ in structure)
    kept = []
    for n, orbital, electrons in structure:
        outer = n == top
        open_d = orbital == "d" and n == top - 1 and not (electrons == full["d"] and has_p)
        open_f = orbital == "f" and n == top - 2 and electrons < full["f"]
        if outer or open_d or open_f:
            kept.append((n, orbital, electrons))
    return kept


def _fill_gaps(table: np.ndarray) -> np.ndarray:
    """Fill NaN with the mean of the nearest rows that have the value; distance over the standardised known columns."""
    standard = (table - np.nanmean(table, axis=0)) / np.nanstd(table, axis=0)
    filled = table.copy()
    for i, j in zip(*np.nonzero(np.isnan(table)), strict=True):
        difference = (standard - standard[i]) ** 2
        distance = np.nanmean(difference, axis=1)
        distance[np.isnan(table[:, j])] = np.inf
        filled[i, j] = table[np.argsort(distance, kind="stable")[:NEAREST_FOR_GAPS], j].mean()
    return filled
