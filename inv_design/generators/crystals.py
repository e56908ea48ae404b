"""Crystals as a network sees them: one canonical cell, origin and site order, as padded tensors."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from inv_design.structures.validity import metallic_radius

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pymatgen.core import Element, Structure

ELEMENTS = 94
"""Species are atomic numbers 1 .. 94; 0 pads."""

SYMPREC = 0.01
COARSE_GRID = 24
FINE_GRID = 2520
FEATURES = (
    "X", "row", "group", "mendeleev_no", "melting_point", "boiling_point", "bulk_modulus", "density_of_solid",
    "atomic_mass",
)  # fmt: skip
LOGARITHMIC = ("melting_point", "boiling_point", "bulk_modulus", "density_of_solid", "atomic_mass")


@dataclass(frozen=True)
class CanonicalCrystal:
    """A crystal in its canonical description.

    Attributes
    ----------
    numbers
        Atomic numbers (n,), sorted by the number of sites of the species, then electronegativity.
    coords
        Fractional coordinates (n, 3) in [0, 1).
    lengths, angles
        Cell lengths (3,) in Å and angles (3,) in degrees.
    """

    numbers: np.ndarray
    coords: np.ndarray
    lengths: np.ndarray
    angles: np.ndarray

    def to_structure(self) -> Structure:
        """Return the crystal as a pymatgen structure."""
        from pymatgen.core import Element, Lattice, Structure

        lattice = Lattice.from_parameters(*self.lengths, *self.angles)
        return Structure(lattice, [Element.from_Z(int(z)) for z in self.numbers], self.coords % 1.0)


@cache
def element_features() -> np.ndarray:
    """Return standardised elemental properties (95, f), row = atomic number, row 0 is zero."""
    from pymatgen.core import Element

    rows = []
    for z in range(1, ELEMENTS + 1):
        element = Element.from_Z(z)
        row = [_number(_quietly(element, name)) for name in FEATURES]
        rows.append([*row, np.log(reference_volume(element.symbol))])
    table = np.array(rows)
    for column, name in enumerate(FEATURES):
        if name in LOGARITHMIC:
            table[:, column] = np.log(np.maximum(table[:, column], 1e-3))
    table = np.where(np.isnan(table), np.nanmedian(table, axis=0), table)
    table = (table - table.mean(0)) / table.std(0)
    return np.vstack([np.zeros((1, table.shape[1])), table])


def _quietly(element: Element, name: str) -> object:
    """Return a property of an element, missing ones without pymatgen's warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(element, name, None)


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return float("nan")


@cache
def reference_volume(symbol: str) -> float:
    """Return the atomic volume in Å^3 of a close packing of spheres with the element's radius, 4 sqrt(2) r^3."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _close_packing(symbol)


def _close_packing(symbol: str) -> float:
    try:
        return 4.0 * 2**0.5 * metallic_radius(symbol) ** 3
    except ValueError:
        return 4.0 * 2**0.5 * 1.5**3


@cache
def reference_volumes() -> np.ndarray:
    """Return :func:`reference_volume` (95,) by atomic number; entry 0 is zero."""
    from pymatgen.core import Element

    return np.array([0.0, *(reference_volume(Element.from_Z(z).symbol) for z in range(1, ELEMENTS + 1))])


@cache
def electronegativities() -> np.ndarray:
    """Return Pauling electronegativities (95,) by atomic number; 9 where there is none, so that it sorts last."""
    from pymatgen.core import Element

    values = [_number(_quietly(Element.from_Z(z), "X")) for z in range(1, ELEMENTS + 1)]
    return np.array([0.0, *(9.0 if np.isnan(x) else x for x in values)])


def species_order(numbers: Sequence[int] | np.ndarray) -> list[int]:
    """Return the distinct species in canonical order: fewest sites first, then electronegativity, then number."""
    values = [int(z) for z in numbers]
    return sorted(set(values), key=lambda z: (values.count(z), electronegativities()[z], z))


def canonical_crystal(structure: Structure, *, symprec: float = SYMPREC) -> CanonicalCrystal:
    """Return the canonical description of a crystal, so that like crystals have like coordinates.

    The cell is spglib's standardised primitive one, which members of one prototype share whatever their lengths. Of
    all symmetry operations of the lattice and all origins on an atom of the first species, the description with the
    lexicographically least coordinates is taken (on a coarse grid first, so that small displacements do not decide).

    Raises
    ------
    ValueError
        If a site is partially occupied or an element lies beyond plutonium.
    """
    if not structure.is_ordered:
        raise ValueError(f"{structure.composition.formula} has partially occupied sites; an ordered crystal is needed")
    matrix, coords, numbers = _standard_primitive(structure, symprec)
    if max(numbers) > ELEMENTS:
        raise ValueError(f"{structure.composition.formula} has an element beyond Pu, which the generator does not know")
    order = species_order(numbers)
    rank = np.array([order.index(z) for z in numbers])
    operations = _lattice_symmetry(matrix)
    origins = coords[rank == 0]
    shifted = coords[None, :, :] - origins[:, None, :]
    best_key: tuple[tuple[int, ...], ...] | None = None
    best = coords
    best_order = np.arange(len(coords))
    for operation in operations:
        for points in (shifted @ operation) % 1.0:
            coarse = np.rint(points * COARSE_GRID).astype(int) % COARSE_GRID
            fine = np.rint(points * FINE_GRID).astype(int) % FINE_GRID
            sites = np.lexsort((*fine.T[::-1], *coarse.T[::-1], rank))
            key = (tuple(coarse[sites].ravel().tolist()), tuple(fine[sites].ravel().tolist()))
            if best_key is None or key < best_key:
                best_key, best, best_order = key, points, sites
    lengths = np.linalg.norm(matrix, axis=1)
    unit = matrix / lengths[:, None]
    cosines = np.clip([unit[1] @ unit[2], unit[0] @ unit[2], unit[0] @ unit[1]], -1, 1)
    return CanonicalCrystal(
        numbers=np.array(numbers)[best_order],
        coords=best[best_order] % 1.0,
        lengths=lengths,
        angles=np.degrees(np.arccos(cosines)),
    )


def _standard_primitive(structure: Structure, symprec: float) -> tuple[np.ndarray, np.ndarray, list[int]]:
    import spglib

    cell: Any = (structure.lattice.matrix, structure.frac_coords, [site.specie.Z for site in structure])
    try:
        standard = spglib.standardize_cell(cell, to_primitive=True, no_idealize=False, symprec=symprec)
    except spglib.SpglibError:  # atoms that overlap: keep the cell as it is
        standard = None
    matrix, coords, numbers = cell if standard is None else standard
    return np.asarray(matrix), np.asarray(coords) % 1.0, [int(z) for z in numbers]


def _lattice_symmetry(matrix: np.ndarray) -> np.ndarray:
    """Return integer matrices (m, 3, 3), determinant +1 or -1, for ``coords @ w`` that leave the metric as it is."""
    from inv_design.structures.identity import _unimodular

    metric = matrix @ matrix.T
    candidates = _unimodular()
    scale = np.sqrt(np.outer(metric.diagonal(), metric.diagonal()))
    same = (np.abs(candidates @ metric @ candidates.transpose(0, 2, 1) - metric) < 1e-3 * scale).all(axis=(1, 2))
    proper = np.linalg.inv(candidates[same])
    return np.concatenate([proper, -proper])


def fit_atomic_volumes(crystals: Sequence[CanonicalCrystal]) -> np.ndarray:
    """Return atomic volumes (95,) in Å^3 by atomic number, a ridge fit of V = sum n_e v_e around the close packings.

    Elements that do not occur keep the volume of the close packing scaled by the median of the data.
    """
    reference = reference_volumes()
    volumes = np.array([cell_volume(crystal.lengths, crystal.angles) for crystal in crystals])
    counts = np.zeros((len(crystals), ELEMENTS + 1))
    for row, crystal in enumerate(crystals):
        np.add.at(counts[row], crystal.numbers, 1)
    design = counts * reference / volumes[:, None]
    prior = float(np.median(1.0 / design.sum(1)))
    ridge = 0.3
    normal = design.T @ design + ridge * np.eye(ELEMENTS + 1)
    factors = np.linalg.solve(normal, design.sum(0) + ridge * prior)
    return np.clip(factors, 0.3 * prior, 3.0 * prior) * reference


def cell_volume(lengths: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Return cell volumes in Å^3 for lengths (..., 3) in Å and angles (..., 3) in degrees; NaN if there is no cell."""
    cos = np.cos(np.radians(angles))
    square = 1.0 - (cos**2).sum(-1) + 2.0 * cos.prod(-1)
    with np.errstate(invalid="ignore"):
        return np.asarray(lengths).prod(-1) * np.sqrt(np.where(square > 1e-6, square, np.nan))


def padded_numbers(crystals: Sequence[CanonicalCrystal]) -> np.ndarray:
    """Return atomic numbers (m, n) of crystals, 0 pads."""
    numbers = np.zeros((len(crystals), max(len(crystal.numbers) for crystal in crystals)), dtype=int)
    for row, crystal in enumerate(crystals):
        numbers[row, : len(crystal.numbers)] = crystal.numbers
    return numbers
