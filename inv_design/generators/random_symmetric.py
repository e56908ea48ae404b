"""The baseline without any knowledge of structures: random crystals of random space groups, made by PyXtal."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from pyxtal.crystal import random_crystal

from inv_design.generators.baseline import Baseline
from inv_design.generators.crystals import ELEMENTS, canonical_crystal
from inv_design.generators.known_crystals import KnownCrystals
from inv_design.generators.protocol import Condition, Sample
from inv_design.structures.validity import metallic_radius

if TYPE_CHECKING:
    from pymatgen.core import Structure
    from pyxtal.symmetry import Group

    from inv_design.generators.protocol import Progress

SPACE_GROUPS = 230


@dataclass(frozen=True)
class RandomSymmetricSettings:
    """Settings of the baseline.

    Attributes
    ----------
    filter
        Compositions drawn for each one that is kept, the one predicted nearest to the target (1: no ranking, so that
        the target is ignored).
    max_sites
        Largest number of sites in the primitive cell.
    attempts
        Compositions tried per wanted crystal before the call ends short.
    cells, placements
        Random cells per composition and space group, and placements of the atoms per cell; bound PyXtal's effort.
    min_ratio
        Smallest distance of a sample as a share of the sum of metallic radii.
    unique
        Whether samples of one call must differ from each other.
    """

    filter: int = 20
    max_sites: int = 20
    attempts: int = 10
    cells: int = 3
    placements: int = 3
    min_ratio: float = 0.75
    unique: bool = True

    def __post_init__(self) -> None:
        for name in ("filter", "max_sites", "attempts", "cells", "placements"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; at least 1 is needed")


class RandomSymmetric(Baseline):
    """Random elements in a stoichiometry of the training set, placed at random on Wyckoff positions of a random group.

    The volume is the one that the property model expects of the composition. Keyword arguments are the fields of
    :class:`RandomSymmetricSettings`.
    """

    name = "random_symmetric"
    description = "Baseline: random crystals of random space groups (PyXtal), ranked by a composition model"

    def __init__(self, **settings: Any) -> None:
        super().__init__(RandomSymmetricSettings(**settings))

    def _stoichiometries(self) -> list[tuple[int, ...]]:
        """Return the numbers of atoms of each species of every training crystal's primitive cell, fewest first."""
        return [tuple(sorted(Counter(c.numbers.tolist()).values())) for c in self._learned()]

    def sample(self, n: int, condition: Condition, *, seed: int = 0, progress: Progress | None = None) -> list[Sample]:
        """Return ``n`` random crystals that are valid, new and different, fewer if the attempts run out."""
        target, allowed = self._check(condition)
        started = time.perf_counter()
        largest = min(self.settings.max_sites, condition.max_sites or self.settings.max_sites)
        eligible = [s for s in self._stoichiometries() if sum(s) <= largest and len(s) <= len(allowed)]
        if not eligible:
            raise ValueError(f"no training crystal has at most {largest} sites and {len(allowed)} species")
        rng = np.random.default_rng(seed)
        accepted: list[Sample] = []
        found = KnownCrystals()
        rejected: Counter[str] = Counter()
        tried = 0
        while len(accepted) < n and tried < n * self.settings.attempts:
            tried += 1
            counts, predicted, deviation = self._draw(eligible, allowed, target, rng)
            structure, group = self._place(counts, rng)
            crystal = None if structure is None else canonical_crystal(structure)
            reason = "placement" if crystal is None else self._refuse(crystal.to_structure(), found)
            if reason is not None or crystal is None:
                rejected[str(reason)] += 1
                continue
            structure = crystal.to_structure()
            found.add(crystal, structure)
            facts = {"generator": self.name, "space_group": group, "predicted_log_std": deviation}
            accepted.append(Sample(structure, len(accepted), condition.to_dict(), seed, predicted, facts))
            if progress is not None:
                progress(len(accepted), n, "sampling")
        self.last_statistics = {
            "wanted": n,
            "accepted": len(accepted),
            "draws": tried,
            "compositions": tried * self.settings.filter,
            "rejected": dict(sorted(rejected.items())),
            "seconds": time.perf_counter() - started,
        }
        return accepted

    def _draw(
        self, eligible: list[tuple[int, ...]], allowed: list[int], target: float, rng: np.random.Generator
    ) -> tuple[np.ndarray, float, float]:
        """Return (atoms of each element (95,), predicted value, deviation of its logarithm) of the best of N draws."""
        counts = np.zeros((self.settings.filter, ELEMENTS + 1), dtype=int)
        for row in counts:
            stoichiometry = eligible[int(rng.integers(len(eligible)))]
            row[rng.choice(allowed, size=len(stoichiometry), replace=False)] = stoichiometry
        predicted, deviation = self.property_model.predict(counts, self.property_model.predict_volume(counts))
        best = int(np.abs(np.log(predicted / target)).argmin())
        return counts[best], float(predicted[best]), float(deviation[best])

    def _place(self, counts: np.ndarray, rng: np.random.Generator) -> tuple[Structure | None, int]:
        """Return (crystal or ``None``, number of its space group), drawn from the groups that can hold the atoms."""
        numbers = np.flatnonzero(counts)
        atoms = [int(n) for n in counts[numbers]]
        volume = float(self.property_model.predict_volume(counts[None])[0])
        # the first compatible one of a random order is a uniform draw from all compatible ones
        order = (int(number) for number in rng.permutation(SPACE_GROUPS) + 1)
        number = next(number for number in order if _compatible(number, tuple(sorted(atoms))))
        made = _random_structure(number, numbers.tolist(), atoms, volume, settings=self.settings, rng=rng.spawn(1)[0])
        return made, number


class _BoundedCrystal(random_crystal):
    """PyXtal's random crystal with a bound on its effort that is ours (PyXtal's own is 400 placements, minutes)."""

    def __init__(self, cells: int, placements: int, **arguments: Any) -> None:
        self.cells, self.placements = cells, placements
        super().__init__(**arguments)

    def set_crystal(self) -> None:
        """Place the atoms in the given cell, and in others of its volume."""
        self.lattice, self.numattempts = self.lattice0, 0
        for cell in range(self.cells):
            if cell:
                self.lattice.reset_matrix()
            for _ in range(self.placements):
                sites = self._set_coords()
                if sites:
                    self.atom_sites = sites
                    return


def _random_structure(
    number: int,
    elements: list[int],
    atoms: list[int],
    volume: float,
    *,
    settings: RandomSymmetricSettings,
    rng: np.random.Generator,
) -> Structure | None:
    """Return a crystal of a space group, conventional cell, or ``None`` if the atoms found no place.

    Parameters
    ----------
    elements, atoms
        Atomic numbers and how many of each in the primitive cell.
    volume
        Of the primitive cell, in Å^3.
    """
    from pymatgen.core import Element
    from pymatgen.core import Structure as PymatgenStructure
    from pyxtal.lattice import Lattice
    from pyxtal.msg import VolumeError
    from pyxtal.tolerance import Tol_matrix

    group = _group(number)
    symbols = [Element.from_Z(z).symbol for z in elements]
    distances = Tol_matrix(
        *((a, b, settings.min_ratio * (metallic_radius(a) + metallic_radius(b))) for a in symbols for b in symbols)
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lattice = Lattice(group.lattice_type, volume * group.cellsize(), random_state=rng)
            made = _BoundedCrystal(
                settings.cells, settings.placements, dim=3, group=group, species=symbols, numIons=atoms,
                lattice=lattice, conventional=False, tm=distances, random_state=rng,
            )  # fmt: skip
    except (VolumeError, ValueError):  # no cell of this volume within PyXtal's limits on lengths and angles
        return None
    if not made.valid:
        return None
    species = [site.specie for site in made.atom_sites for _ in range(len(site.coords))]
    return PymatgenStructure(
        made.lattice.matrix, species, np.concatenate([site.coords for site in made.atom_sites]) % 1.0
    )


@cache
def _group(number: int) -> Group:
    from pyxtal.symmetry import Group

    return Group(number)


@cache
def _compatible(number: int, atoms: tuple[int, ...]) -> bool:
    """Return whether a space group has Wyckoff positions for these numbers of atoms in the primitive cell."""
    group = _group(number)
    return bool(group.check_compatible([n * group.cellsize() for n in atoms])[0])
