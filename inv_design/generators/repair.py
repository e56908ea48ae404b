"""Cheap geometry: contacts of padded batches of crystals, a soft-sphere push apart, and symmetrisation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from pymatgen.core import Structure

SYMMETRY_TOLERANCES = (0.15, 0.05)


def contact_ratios(coords: Tensor, matrix: Tensor, radii: Tensor, mask: Tensor, *, reach: int = 1) -> Tensor:
    """Return d_ij / (r_i + r_j) over all pairs and images (b, n, n, k); padding and the site itself are large.

    Parameters
    ----------
    coords, matrix
        Fractional coordinates (b, n, 3) and lattice vectors (b, 3, 3) in Å.
    radii, mask
        Radii (b, n) in Å and the mask of sites (b, n).
    reach
        Images from ``-reach`` to ``reach`` along each vector; 1 is exact for reduced cells.
    """
    axis = torch.arange(-reach, reach + 1, dtype=coords.dtype)
    images = torch.cartesian_prod(axis, axis, axis)
    delta = coords[:, None, :, :] - coords[:, :, None, :]
    delta = delta - delta.detach().round()
    shifts = torch.einsum("kc,bcd->bkd", images, matrix)
    vectors = torch.einsum("bijc,bcd->bijd", delta, matrix)[:, :, :, None, :] + shifts[:, None, None, :, :]
    itself = torch.eye(coords.shape[1], dtype=torch.bool)[None, :, :, None] & (images == 0).all(-1)
    outside = ~(mask[:, :, None] & mask[:, None, :])[..., None]
    square = vectors.square().sum(-1).masked_fill(itself | outside, 1e4)
    return square.clamp_min(1e-6).sqrt() / (radii[:, :, None] + radii[:, None, :]).clamp_min(0.1)[..., None]


def push_apart(
    coords: Tensor, matrix: Tensor, radii: Tensor, mask: Tensor, *, contact: float = 0.9, steps: int = 25
) -> Tensor:
    """Return coordinates after ``steps`` of descent on sum max(0, contact - d_ij / (r_i + r_j))^2, cells fixed.

    Steps are taken in Cartesian space with a bounded length, so that crystals without overlap do not move.
    """
    x = coords.clone()
    inverse = torch.linalg.inv(matrix)
    generator = torch.Generator().manual_seed(0)
    x = x + 1e-3 * torch.randn(x.shape, generator=generator) @ inverse  # leaves exact coincidences
    velocity = torch.zeros_like(x)
    for _ in range(steps):
        x = x.detach().requires_grad_(True)
        overlap = (contact - contact_ratios(x, matrix, radii, mask)).clamp_min(0.0)
        energy = overlap.square().sum()
        (gradient,) = torch.autograd.grad(energy, x)
        force = -torch.einsum("bnc,bdc->bnd", gradient, inverse)  # to Cartesian, Å^-1
        velocity = 0.6 * velocity + 0.35 * force
        length = velocity.norm(dim=-1, keepdim=True)
        velocity = velocity * (0.25 / length.clamp_min(0.25))
        x = x.detach() + torch.einsum("bnc,bcd->bnd", velocity, inverse)
    return x.detach() % 1.0


def symmetrised(structure: Structure) -> tuple[Structure, float]:
    """Return the crystal with the symmetry it nearly has made exact, and the tolerance in Å at which it was found.

    The largest tolerance is taken that keeps the number of sites, the composition, the volume within 3 % and finds a
    symmetry beyond P1; without one the crystal comes back as it is, with tolerance 0.
    """
    import spglib
    from pymatgen.core import Element, Lattice, Structure

    numbers: list[int] = [site.specie.Z for site in structure]
    cell: Any = (structure.lattice.matrix, structure.frac_coords, numbers)
    for tolerance in SYMMETRY_TOLERANCES:
        try:
            dataset = spglib.get_symmetry_dataset(cell, symprec=tolerance)
            if dataset is None or dataset.number == 1:
                break
            standard = spglib.standardize_cell(cell, to_primitive=True, no_idealize=False, symprec=tolerance)
        except spglib.SpglibError:
            continue
        if standard is None:
            continue
        matrix, coords, species = (np.asarray(array) for array in standard)
        whole = len(numbers) == len(species) and sorted(numbers) == sorted(int(z) for z in species)
        if whole and abs(abs(np.linalg.det(matrix)) / structure.volume - 1.0) < 0.03:
            symbols = [Element.from_Z(int(z)) for z in species]
            scaled = matrix * (structure.volume / abs(np.linalg.det(matrix))) ** (1 / 3)
            return Structure(Lattice(scaled), symbols, coords % 1.0), tolerance
    return structure, 0.0
