"""Identity by content: the canonical form of a crystal and the id that every machine derives from it."""

from __future__ import annotations

import hashlib
import itertools
import json
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pymatgen.core import Structure

# Coordinates are counted on a grid of 1/20160 (2^6 x 3^2 x 5 x 7): every common fraction lies on a grid point, so
# that float noise never moves one across a rounding boundary. Lengths are counted in 0.001 Å with boundaries at an
# irrational offset for the same reason.
COORDINATE_GRID = 20160
LENGTH_GRID = 1000
LENGTH_OFFSET = 0.41421356
SYMPREC = 1e-3


def structure_id(structure: Structure) -> str:
    """Return the content id of a crystal, ``"s-"`` and 20 hexadecimal digits of the canonical form's SHA-256.

    The id does not change when sites are permuted, coordinates wrapped or shifted, the crystal is rotated, or
    another cell (a supercell, another reduced basis) describes it. Mirror images of chiral crystals differ.

    Raises
    ------
    ValueError
        If a site is partially occupied or the cell is degenerate.
    """
    text = json.dumps(canonical_form(structure), sort_keys=True, separators=(",", ":"))
    return "s-" + hashlib.sha256(text.encode()).hexdigest()[:20]


def canonical_form(structure: Structure) -> dict[str, Any]:
    """Return the canonical form: Niggli metric, species and coordinates as integers, the least of all equivalent ones.

    The cell is made primitive and Niggli reduced; of all reduced bases of the same metric and all origins on an atom
    of the rarest species the lexicographically least description is kept.
    """
    numbers, lattice, coords = _niggli_primitive(structure)
    species = sorted(set(numbers), key=lambda z: (numbers.count(z), z))
    rank = np.array([species.index(z) for z in numbers])
    origins = coords[rank == 0]
    best: tuple[Any, ...] | None = None
    for basis in _equivalent_bases(lattice):
        metric = _rounded_metric(lattice, basis)
        if best is not None and metric > best[0]:
            continue
        inverse = np.linalg.inv(basis)
        # rows are lattice vectors: new = basis @ lattice, so fractional coordinates transform with the inverse
        shifted = (coords[None, :, :] - origins[:, None, :]) @ inverse
        grid = np.rint(shifted * COORDINATE_GRID).astype(int) % COORDINATE_GRID
        for points in grid:
            order = np.lexsort((points[:, 2], points[:, 1], points[:, 0], rank))
            form = (metric, tuple(map(tuple, points[order].tolist())))
            if best is None or form < best:
                best = form
    assert best is not None
    return {"species": [int(z) for z in sorted(numbers, key=species.index)], "metric": best[0], "coordinates": best[1]}


def _niggli_primitive(structure: Structure) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Return (atomic numbers, right-handed Niggli lattice (3, 3) in Å, fractional coordinates (n, 3))."""
    import spglib

    if not structure.is_ordered:
        raise ValueError(f"{structure.composition.formula} has partially occupied sites; an ordered crystal is needed")
    lengths = structure.lattice.matrix
    if not np.isfinite(lengths).all() or np.abs(lengths).max() > 1e6 or structure.volume < 1e-3 * len(structure):
        raise ValueError(f"{structure.composition.formula} has a degenerate cell of {structure.volume:.3g} Å^3")
    numbers: list[int] = [site.specie.Z for site in structure]
    cell: Any = (structure.lattice.matrix, structure.frac_coords, numbers)
    with np.errstate(all="ignore"):
        try:
            primitive = spglib.standardize_cell(cell, to_primitive=True, no_idealize=True, symprec=SYMPREC)
        except spglib.SpglibError:  # atoms that overlap: keep the cell as it is
            primitive = None
    matrix, coords, numbers_out = primitive if primitive is not None else cell
    niggli = spglib.niggli_reduce(matrix, eps=1e-5)
    reduced = np.asarray(matrix if niggli is None else niggli)
    if np.linalg.det(reduced) < 0:
        reduced = -reduced
    coords = np.asarray(coords) @ np.asarray(matrix) @ np.linalg.inv(reduced)
    return [int(z) for z in numbers_out], reduced, coords % 1.0


@cache
def _unimodular() -> np.ndarray:
    """Return all integer matrices (m, 3, 3) with entries -1, 0, 1 and determinant +1."""
    rows = np.array(list(itertools.product((-1, 0, 1), repeat=3)))
    index = np.array(list(itertools.product(range(27), repeat=3)))
    matrices = rows[index]
    return matrices[np.rint(np.linalg.det(matrices)).astype(int) == 1]


def _equivalent_bases(lattice: np.ndarray) -> np.ndarray:
    """Return the basis changes (m, 3, 3) after which the metric is the same within 0.1 % (near ties included)."""
    metric = lattice @ lattice.T
    candidates = _unimodular()
    metrics = candidates @ metric @ candidates.transpose(0, 2, 1)
    scale = np.sqrt(np.outer(metric.diagonal(), metric.diagonal()))
    same = (np.abs(metrics - metric) < 1e-3 * scale).all(axis=(1, 2))
    return candidates[same]


def _rounded_metric(lattice: np.ndarray, basis: np.ndarray) -> tuple[int, ...]:
    """Return three lengths and three face diagonals of the cell in units of 0.001 Å."""
    new = basis @ lattice
    vectors = np.vstack([new, new[1] + new[2], new[0] + new[2], new[0] + new[1]])
    lengths = np.linalg.norm(vectors, axis=1)
    return tuple(int(n) for n in np.floor(lengths * LENGTH_GRID + LENGTH_OFFSET))
