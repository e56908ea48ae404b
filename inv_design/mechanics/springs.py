"""A model Hessian of springs between neighbours: the metric in which a relaxation takes few steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pymatgen.core import Structure

DECAY = 3.0  # of the springs with the distance over the nearest neighbours'
REACH = 1.6  # nearest-neighbour distances
TRANSVERSE = 0.2  # of a spring's stiffness across the bond
STIFFNESS = 1.0  # eV/Å^3 (160 GPa), bulk modulus of the springs, and once more of a term in the volume alone
SHEAR = np.sqrt(0.5)
STRAINS = np.array(
    [
        [[1, 0, 0], [0, 0, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 1, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 0, 0], [0, 0, 1]],
        [[0, 0, 0], [0, 0, SHEAR], [0, SHEAR, 0]],
        [[0, 0, SHEAR], [0, 0, 0], [SHEAR, 0, 0]],
        [[0, SHEAR, 0], [SHEAR, 0, 0], [0, 0, 0]],
    ]
)
"""An orthonormal basis of the symmetric strains, (6, 3, 3): Mandel's notation."""


def spring_hessian(structure: Structure) -> np.ndarray:
    """Return second derivatives (3n + 6, 3n + 6) of a spring model by positions (Å) and strains, eV; positive definite.

    Pairs of atoms repel and attract by springs exp(-3 (r / r_nn - 1)), the weights of Packwood et al., J. Chem. Phys.
    144, 164109 (2016), here along the bond, so that strain and positions couple as in a crystal. The strain
    coordinates are the coefficients of :data:`STRAINS`.
    """
    n, volume = len(structure), structure.volume
    first, second, images, distances = _neighbours(structure)
    nearest = max(distances[first == atom].min() for atom in range(n))
    near = distances < REACH * nearest
    first, second, images, distances = first[near], second[near], images[near], distances[near]
    bonds = (structure.frac_coords[second] + images - structure.frac_coords[first]) @ structure.lattice.matrix
    # change of every bond vector by every coordinate, (m, 3, 3n + 6)
    change = np.zeros((len(bonds), 3, 3 * n + 6))
    ends = np.eye(n)[second] - np.eye(n)[first]
    change[:, :, : 3 * n] = np.einsum("mi,ab->maib", ends, np.eye(3)).reshape(len(bonds), 3, 3 * n)
    change[:, :, 3 * n :] = np.einsum("kab,mb->mak", STRAINS, bonds)
    along = np.einsum("ma,mb->mab", bonds, bonds) / distances[:, None, None] ** 2
    weights = np.exp(-DECAY * (distances / nearest - 1))[:, None, None]
    springs = weights * (along + TRANSVERSE * (np.eye(3) - along))
    hessian = change.reshape(-1, 3 * n + 6).T @ (springs @ change).reshape(-1, 3 * n + 6)
    block = slice(3 * n, 3 * n + 3)
    hessian *= STIFFNESS * 9 * volume / hessian[block, block].sum()
    hessian[block, block] += STIFFNESS * volume
    # all atoms together move freely; a stiffness makes the matrix invertible and is never felt
    hessian[: 3 * n, : 3 * n] += STIFFNESS * np.tile(np.eye(3), (n, n))
    return hessian


def _neighbours(structure: Structure) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return (first, second, images, distances) of the pairs within a radius in which every atom has a neighbour."""
    radius = 6.0
    while True:
        first, second, images, distances = structure.get_neighbor_list(radius)
        if len(np.unique(first)) == len(structure):
            reach = REACH * max(distances[first == atom].min() for atom in range(len(structure)))
            if reach <= radius:
                return first, second, images, distances
        radius *= 1.5
