"""Symmetry of a crystal's responses: what one strain or displacement says of all those equivalent to it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from inv_design.mechanics.springs import STRAINS

if TYPE_CHECKING:
    from pymatgen.core import Structure

MAX_CONDITION = 4.0  # of the equations that the measured directions leave for the others


@dataclass(frozen=True)
class CrystalSymmetry:
    """The operations of a space group, acting on Cartesian vectors and on the sites.

    Attributes
    ----------
    rotations
        Orthogonal matrices, (g, 3, 3).
    permutations
        Operation k brings site i to site ``permutations[k, i]``, (g, n).
    """

    rotations: np.ndarray
    permutations: np.ndarray

    def turned(self, tensor: np.ndarray) -> np.ndarray:
        """Return the images (g, 3, 3) of a tensor of second rank."""
        return self.rotations @ tensor @ self.rotations.transpose(0, 2, 1)

    def moved(self, vectors: np.ndarray) -> np.ndarray:
        """Return the images (g, n, 3) of one vector per site, (n, 3)."""
        out = np.empty((len(self.rotations), *vectors.shape))
        operations = np.arange(len(out))[:, None]
        out[operations, self.permutations] = np.einsum("gab,nb->gna", self.rotations, vectors)
        return out

    def stabiliser(self, site: int) -> np.ndarray:
        """Return the rotations (h, 3, 3) of the operations that leave a site where it is."""
        fixed: np.ndarray = self.rotations[self.permutations[:, site] == site]
        return fixed


def crystal_symmetry(structure: Structure, symprec: float = 0.01) -> CrystalSymmetry:
    """Return the operations that map a crystal onto itself within ``symprec`` Å; at least the identity."""
    import spglib

    n, lattice, fractional = len(structure), structure.lattice.matrix, structure.frac_coords
    cell: Any = (lattice, fractional, [site.specie.Z for site in structure])
    found = spglib.get_symmetry(cell, symprec=symprec)
    if found is None:
        return CrystalSymmetry(np.eye(3)[None], np.arange(n)[None])
    images = np.einsum("gab,nb->gna", found["rotations"], fractional) + found["translations"][:, None]
    apart = images[:, :, None] - fractional
    apart = (apart - np.round(apart)) @ lattice
    permutations = np.argmin((apart**2).sum(axis=-1), axis=-1)
    whole = (np.sort(permutations, axis=1) == np.arange(n)).all(axis=1)
    rotations = lattice.T @ found["rotations"] @ np.linalg.inv(lattice.T)
    # a crystal that is symmetric within a tolerance gives matrices that are orthogonal within it
    left, _, right = np.linalg.svd(rotations)
    return CrystalSymmetry((left @ right)[whole], permutations[whole])


def spanning(orbits: np.ndarray) -> list[int]:
    """Return the fewest directions whose images span the space, the best conditioned of that number.

    Parameters
    ----------
    orbits
        The images of each direction under the group, (directions, g, dimension).
    """
    squares = orbits.transpose(0, 2, 1) @ orbits
    for size in range(1, len(orbits) + 1):
        chosen = list(combinations(range(len(orbits)), size))
        eigenvalues = np.linalg.eigvalsh(np.array([squares[list(c)].sum(axis=0) for c in chosen]))
        conditions = eigenvalues[:, -1] / np.maximum(eigenvalues[:, 0], 1e-12 * eigenvalues[:, -1])
        # rounded: of equally good choices the first, on every machine
        best = int(np.argmin(np.round(conditions, 3)))
        if conditions[best] < MAX_CONDITION**2:
            return list(chosen[best])
    return list(range(len(orbits)))


def to_mandel(tensors: np.ndarray) -> np.ndarray:
    """Return the coefficients (..., 6) of symmetric tensors (..., 3, 3) in the basis ``STRAINS``."""
    out: np.ndarray = np.einsum("kab,...ab->...k", STRAINS, tensors)
    return out
