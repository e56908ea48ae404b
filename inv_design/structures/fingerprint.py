"""The cheap test before a comparison: whether two lattices can be laid over each other within the tolerances."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pymatgen.core import Lattice, Structure

SLACK = 1e-6
"""Tolerances are widened by this share, so that rounding never makes the test stricter than the matcher."""
REACH = 1.5
"""Lattice vectors are listed up to this multiple of the longest edge, and further when a comparison asks for it."""
CHUNK = 4096


@dataclass
class LatticeFingerprint:
    """The lattice of a primitive cell, scaled to a volume of 1 Å^3 per site.

    Attributes
    ----------
    lengths, angles
        Edges in Å after scaling, and angles in degrees (3 each).
    """

    lengths: np.ndarray
    angles: np.ndarray
    _lattice: Lattice = field(repr=False)
    _reach: float = field(default=0.0, repr=False)
    _vectors: tuple[np.ndarray, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, reduced: Structure) -> LatticeFingerprint:
        """Return the fingerprint of a crystal whose cell is primitive and reduced."""
        lattice = reduced.lattice.scale(float(len(reduced)))
        return cls(np.array(lattice.lengths), np.array(lattice.angles), lattice)

    def maps_onto(self, other: LatticeFingerprint, *, ltol: float, angle_tol: float) -> bool:
        """Return whether a basis of this lattice has the other cell's lengths and angles within the tolerances.

        That is the first step of pymatgen's ``StructureMatcher.fit`` with volumes scaled away (lengths within a factor
        of 1 + ``ltol``, angles within ``angle_tol`` degrees, the basis spans the primitive cell): where the answer is
        no, this crystal, as the first of the two, does not match, wherever the atoms are.
        """
        wide = (1.0 + ltol) * (1.0 + SLACK)
        lengths, units, coords, half = self._up_to(float(other.lengths.max()) * wide)
        low = np.searchsorted(lengths, other.lengths / wide, "left")
        high = np.searchsorted(lengths, other.lengths * wide, "right")
        if (low == high).any():
            return False
        # a basis and its inverse are the same: of each vector and its opposite one suffices as the first
        first = low[0] + np.flatnonzero(half[low[0] : high[0]])
        a, b, c = units[first], units[low[1] : high[1]], units[low[2] : high[2]]
        least, most = _cosines(other.angles, angle_tol)
        gamma = _between(a @ b.T, least[2], most[2])
        i, j = np.nonzero(gamma)
        if not len(i):
            return False
        alpha = _between(b @ c.T, least[0], most[0])
        beta = _between(a @ c.T, least[1], most[1])
        for start in range(0, len(i), CHUNK):
            rows, columns = i[start : start + CHUNK], j[start : start + CHUNK]
            pair, k = np.nonzero(alpha[columns] & beta[rows])
            bases = np.stack([coords[first[rows[pair]]], coords[low[1] + columns[pair]], coords[low[2] + k]], axis=1)
            if (np.abs(np.abs(np.linalg.det(bases)) - 1.0) < 0.5).any():
                return True
        return False

    def _up_to(self, radius: float) -> tuple[np.ndarray, ...]:
        """Return lengths (n,), directions (n, 3), integer coordinates (n, 3) of the lattice vectors, shortest first.

        The fourth array (n,) marks one of each vector and its opposite.
        """
        if radius > self._reach:
            self._reach = max(radius, REACH * float(self.lengths.max()))
            self._vectors = _lattice_vectors(self._lattice, self._reach)
        return self._vectors


def _lattice_vectors(lattice: Lattice, radius: float) -> tuple[np.ndarray, ...]:
    found: Any = lattice.get_points_in_sphere([[0, 0, 0]], [0, 0, 0], radius, zip_results=False)
    coords = np.rint(found[0]).astype(int)
    coords = coords[coords.any(axis=1)]
    vectors = coords @ lattice.matrix
    lengths = np.linalg.norm(vectors, axis=1)
    order = np.argsort(lengths)
    coords, vectors, lengths = coords[order], vectors[order], lengths[order]
    sign = coords[np.arange(len(coords)), (coords != 0).argmax(axis=1)]
    return lengths, vectors / lengths[:, None], coords.astype(float), sign > 0


def _cosines(angles: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest and the largest cosine (3,) of angles within a tolerance in degrees."""
    wide = tolerance * (1.0 + SLACK) + SLACK
    largest, smallest = np.clip(angles + wide, 0.0, 180.0), np.clip(angles - wide, 0.0, 180.0)
    return np.cos(np.radians(largest)) - SLACK, np.cos(np.radians(smallest)) + SLACK


def _between(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return (values >= low) & (values <= high)
