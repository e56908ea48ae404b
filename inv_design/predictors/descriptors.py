"""Descriptors of a crystal for the tree ensembles: composition, volume, density and packing; no coordinates."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from inv_design.predictors.element_properties import (
    MAX_Z,
    METALLIC_RADIUS,
    MOLAR_VOLUME,
    PROPERTIES,
    element_properties,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pymatgen.core import Structure

STATISTICS = ("mean", "spread", "min", "max")
VOLUME_FEATURES = ("log_volume_per_atom", "log_volume_over_vegard", "packing_fraction", "log_density")
MIXING_FEATURES = ("n_elements", "largest_fraction", "mixing_entropy")
DALTON = 1.66053907  # g/cm^3 per Da/Å^3


def descriptor_names() -> list[str]:
    """Return the names of the columns of :func:`descriptors`."""
    statistics = [f"{statistic}_{name}" for statistic in STATISTICS for name in PROPERTIES]
    return [*statistics, *VOLUME_FEATURES, *MIXING_FEATURES]


def descriptors(structures: Sequence[Structure]) -> np.ndarray:
    """Return the descriptors (n, 91) of crystals; fractions of the elements weight the statistics.

    ``log_volume_over_vegard`` compares the volume with the sum of the elements' own (Vegard, Z. Phys. 5, 17 (1921),
    taken for volumes); ``packing_fraction`` fills it with spheres of metallic radius.

    Raises
    ------
    ValueError
        If a crystal is partially occupied or its cell degenerate; it names the index.
    """
    fractions = np.zeros((len(structures), MAX_Z + 1))
    volumes = np.zeros(len(structures))
    masses = np.zeros(len(structures))
    for row, structure in enumerate(structures):
        try:
            fractions[row], volumes[row], masses[row] = _cell(structure)
        except ValueError as error:
            raise ValueError(f"the structure at index {row} has no descriptors: {error}") from error
    return descriptors_from_fractions(fractions, volumes, masses)


def descriptors_from_fractions(fractions: np.ndarray, volumes: np.ndarray, masses: np.ndarray) -> np.ndarray:
    """Return the descriptors (n, 91) from element fractions (n, 101) by atomic number, Å^3 and Da per atom (n,)."""
    table = element_properties()
    mean = fractions @ table
    spread = np.sqrt(np.maximum(fractions @ table**2 - mean**2, 0.0))
    present = fractions > 0
    low = np.where(present[:, :, None], table[None], np.inf).min(axis=1, initial=np.inf)
    high = np.where(present[:, :, None], table[None], -np.inf).max(axis=1, initial=-np.inf)
    vegard = fractions @ np.exp(table[:, MOLAR_VOLUME])
    spheres = fractions @ (4.0 / 3.0 * math.pi * table[:, METALLIC_RADIUS] ** 3)
    volume = np.stack(
        [np.log(volumes), np.log(volumes / vegard), spheres / volumes, np.log(DALTON * masses / volumes)], axis=1
    )
    logs = np.log(np.where(present, fractions, 1.0))
    mixing = np.stack([present.sum(axis=1), fractions.max(axis=1), -(fractions * logs).sum(axis=1)], axis=1)
    return np.hstack([mean, spread, low, high, volume, mixing])


def _cell(structure: Structure) -> tuple[np.ndarray, float, float]:
    """Return (element fractions (101,), volume per atom in Å^3, mass per atom in Da)."""
    if not structure.is_ordered:
        raise ValueError(f"{structure.composition.formula} has partially occupied sites; give an ordered crystal")
    volume = structure.volume / len(structure)
    if not math.isfinite(volume) or volume < 0.1:
        raise ValueError(f"a volume of {volume:.3g} Å^3 per atom; give a physical crystal")
    numbers = [site.specie.Z for site in structure]
    if max(numbers) > MAX_Z:
        raise ValueError(f"atomic number {max(numbers)} is beyond {MAX_Z}; leave that element out")
    fractions = np.bincount(numbers, minlength=MAX_Z + 1) / len(numbers)
    mass = float(sum(site.specie.atomic_mass for site in structure)) / len(structure)
    return fractions, volume, mass
