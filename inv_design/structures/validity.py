"""Geometry rules: shortest distances, in Å and against the metallic radii, with reasons for a rejection."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from inv_design.structures.elements import METALLIC_RADII

if TYPE_CHECKING:
    from pymatgen.core import Structure

MIN_DISTANCE = 0.5
MIN_RADIUS_RATIO = 0.75
MIN_VOLUME_PER_ATOM = 0.1


@cache
def metallic_radius(symbol: str) -> float:
    """Return the radius of an element in Å: metallic where there is one, else the atomic radius of pymatgen.

    Raises
    ------
    ValueError
        If the symbol is no element or has neither radius.
    """
    if symbol in METALLIC_RADII:
        return METALLIC_RADII[symbol]
    from pymatgen.core import Element

    if not Element.is_valid_symbol(symbol):
        raise ValueError(f"{symbol!r} is no element")
    element = Element(symbol)
    radius = element.atomic_radius or element.atomic_radius_calculated
    if radius is None:
        raise ValueError(f"no radius is known for {symbol!r}")
    return float(radius)


def min_distance(structure: Structure) -> float:
    """Return the shortest distance in Å between two sites, periodic images included."""
    _, _, distances = _neighbours(structure)
    return float(distances.min())


def min_radius_ratio(structure: Structure) -> float:
    """Return the smallest d_ij / (r_i + r_j) over all pairs of sites, images included, with metallic radii r."""
    first, second, distances = _neighbours(structure)
    radii = np.array([metallic_radius(site.specie.symbol) for site in structure])
    return float((distances / (radii[first] + radii[second])).min())


def geometry_reasons(
    structure: Structure, *, min_distance: float = MIN_DISTANCE, min_ratio: float = MIN_RADIUS_RATIO
) -> list[str]:
    """Return why a crystal's geometry is refused, an empty list if it is accepted.

    Parameters
    ----------
    min_distance
        Smallest distance allowed, in Å (0.5 in Xie et al. 2022, the validity of CDVAE).
    min_ratio
        Smallest distance allowed as a share of the sum of the two metallic radii.
    """
    volume = structure.volume
    if not np.isfinite(volume) or volume < MIN_VOLUME_PER_ATOM * len(structure):
        return [f"cell of {volume:.3g} Å^3 for {len(structure)} sites"]
    first, second, distances = _neighbours(structure)
    radii = np.array([metallic_radius(site.specie.symbol) for site in structure])
    ratios = distances / (radii[first] + radii[second])
    reasons = []
    shortest, tightest = int(distances.argmin()), int(ratios.argmin())
    if distances[shortest] < min_distance:
        reasons.append(f"{_pair(structure, first[shortest], second[shortest])} at {distances[shortest]:.2f} Å")
    if ratios[tightest] < min_ratio:
        reasons.append(
            f"{_pair(structure, first[tightest], second[tightest])} at {ratios[tightest]:.2f} of the sum of radii"
        )
    return reasons


def _pair(structure: Structure, i: int, j: int) -> str:
    return f"{structure[int(i)].specie.symbol}-{structure[int(j)].specie.symbol}"


def _neighbours(structure: Structure) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (first site, second site, distance in Å) of all pairs that can decide about the smallest ratio.

    The cutoff grows until it holds at least one pair and no pair beyond it can have a smaller ratio.
    """
    radii = np.array([metallic_radius(site.specie.symbol) for site in structure])
    largest = 2.0 * radii.max()
    cutoff = largest + 0.1
    matrix, coords = structure.lattice.matrix, structure.frac_coords
    while True:
        first, second, distances = _pairs_within(matrix, coords, cutoff)
        if not len(distances):
            cutoff *= 1.6
            continue
        needed = largest * (distances / (radii[first] + radii[second])).min()
        if needed <= cutoff:
            return first, second, distances
        cutoff = needed


def _pairs_within(matrix: np.ndarray, coords: np.ndarray, cutoff: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return all pairs (i <= j, image) within ``cutoff`` Å, without a site and itself in the same cell."""
    heights = abs(np.linalg.det(matrix)) / np.linalg.norm(
        np.cross(matrix[[1, 2, 0]], matrix[[2, 0, 1]]), axis=1
    )  # distances between opposite faces
    spans = [np.arange(-n, n + 1) for n in np.ceil(cutoff / heights).astype(int)]
    images = np.stack(np.meshgrid(*spans, indexing="ij"), axis=-1).reshape(-1, 3)
    wrapped = coords - np.floor(coords)
    first, second = np.triu_indices(len(coords))
    delta = wrapped[second] - wrapped[first]
    delta -= np.rint(delta)
    vectors = (delta[:, None, :] + images[None, :, :]) @ matrix
    distances = np.sqrt((vectors**2).sum(-1))
    near = distances <= cutoff
    near[first == second, len(images) // 2] = False
    pairs, _ = np.nonzero(near)
    return first[pairs], second[pairs], distances[near]
