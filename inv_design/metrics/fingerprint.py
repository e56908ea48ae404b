"""Fingerprints that distances between crystals are measured with: one of the structure, one of the composition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pymatgen.core import Structure

NEIGHBOURS = 100
MENDELEEV_NUMBERS = 120
"""Length of a composition's fingerprint; Mendeleev numbers begin at 1."""


def average_minimum_distances(structure: Structure, k: int = NEIGHBOURS) -> np.ndarray:
    """Return the average distance of the sites to their 1st, 2nd ... k-th neighbour (k,), in units of (V/N)^(1/3).

    The average minimum distance of Widdowson et al., MATCH Commun. Math. Comput. Chem. 87, 529 (2022), of all sites
    whatever their species, on the crystal scaled to one site per unit of volume. It does not depend on the cell and
    changes continuously with the coordinates.

    Raises
    ------
    ValueError
        If the crystal has no atoms, coordinates that are not finite or a degenerate cell.
    """
    from scipy.spatial import cKDTree

    from inv_design.structures.matching import describes_no_cell

    if (reason := describes_no_cell(structure)) is not None:
        raise ValueError(reason)
    lattice = structure.lattice.scale(float(len(structure))).get_lll_reduced_lattice()
    coords = structure.lattice.scale(float(len(structure))).get_cartesian_coords(structure.frac_coords)
    fractions = lattice.get_fractional_coords(coords) % 1.0
    heights = 1.0 / np.linalg.norm(lattice.inv_matrix, axis=0)
    radius = 1.3 * (3.0 * (k + 1) / (4.0 * np.pi)) ** (1 / 3)  # of a sphere with a few more sites than needed
    while True:
        spans = [np.arange(-n, n + 1) for n in np.ceil(radius / heights).astype(int)]
        images = np.stack(np.meshgrid(*spans, indexing="ij"), axis=-1).reshape(-1, 3)
        points = (fractions[:, None, :] + images[None, :, :]).reshape(-1, 3) @ lattice.matrix
        distances: Any = cKDTree(points).query(fractions @ lattice.matrix, k=k + 1, distance_upper_bound=radius)[0]
        if np.isfinite(distances).all():
            return np.asarray(distances[:, 1:].mean(axis=0))  # the nearest is the site itself
        radius *= 1.3


def composition_profile(structure: Structure) -> np.ndarray:
    """Return the share of atoms with a Mendeleev number up to 1, 2, ... (120,).

    The city-block distance of two profiles is the earth mover's distance of the compositions along Pettifor's
    Mendeleev numbers (D. G. Pettifor, Solid State Commun. 51, 31, 1984): how far the atoms of one must be moved through
    that order of the elements to make the other (ElMD; Hargreaves et al., Chem. Mater. 32, 10610, 2020).

    Raises
    ------
    ValueError
        If the crystal has no atoms or an element without a Mendeleev number.
    """
    shares = np.zeros(MENDELEEV_NUMBERS)
    for number, share in mendeleev_shares(structure).items():
        shares[number - 1] += share
    return np.cumsum(shares)


def mendeleev_shares(structure: Structure) -> dict[int, float]:
    """Return Mendeleev number -> share of the atoms.

    Raises
    ------
    ValueError
        If the crystal has no atoms or an element without a Mendeleev number.
    """
    composition = structure.composition.element_composition.fractional_composition
    if len(composition) == 0:
        raise ValueError("a crystal without atoms has no composition")
    shares: dict[int, float] = {}
    for element, share in composition.items():
        number = getattr(element, "mendeleev_no", None)
        if number is None or not np.isfinite(number):
            raise ValueError(f"{element} has no Mendeleev number")
        shares[int(number)] = shares.get(int(number), 0.0) + float(share)
    return shares
