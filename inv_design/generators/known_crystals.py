"""The crystals a generator was trained on, or was told of: what must not come out again as if it were new."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np

from inv_design.generators.crystals import CanonicalCrystal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core import Structure


class KnownCrystals:
    """A set of crystals that answers whether a structure is one of them (StructureMatcher, same species).

    Comparisons are made within a reduced formula only, so that a lookup costs nothing for a new composition.
    """

    def __init__(self, crystals: Iterable[CanonicalCrystal] = ()) -> None:
        self.crystals: list[CanonicalCrystal] = []
        self._structures: list[Structure | None] = []
        self._groups: dict[tuple[tuple[int, int], ...], list[int]] = {}
        self._matcher: StructureMatcher | None = None
        for crystal in crystals:
            self.add(crystal)

    def __len__(self) -> int:
        return len(self.crystals)

    def add(self, crystal: CanonicalCrystal, structure: Structure | None = None) -> None:
        """Add one crystal."""
        self._groups.setdefault(reduced_formula(crystal.numbers), []).append(len(self.crystals))
        self.crystals.append(crystal)
        self._structures.append(structure)

    def joined(self, structures: Iterable[Structure]) -> KnownCrystals:
        """Return a set of these crystals and further ones, as they are."""
        other = KnownCrystals(self.crystals)
        other._structures = list(self._structures)
        for structure in structures:
            other.add(plain_crystal(structure), structure)
        return other

    def contains(self, structure: Structure) -> bool:
        """Return whether the structure is one of the crystals, volume scaled away (ltol 0.2, stol 0.3, angle 5)."""
        group = self._groups.get(reduced_formula([site.specie.Z for site in structure]), [])
        if not group:
            return False
        if self._matcher is None:
            from pymatgen.analysis.structure_matcher import StructureMatcher

            self._matcher = StructureMatcher(ltol=0.2, stol=0.3, angle_tol=5)
        return any(self._matcher.fit(structure, self._structure(index)) for index in group)

    def _structure(self, index: int) -> Structure:
        structure = self._structures[index]
        if structure is None:
            structure = self._structures[index] = self.crystals[index].to_structure()
        return structure

    def to_tensors(self) -> dict[str, np.ndarray]:
        """Return the crystals as flat arrays."""
        crystals = self.crystals
        return {
            "known.sizes": np.array([len(crystal.numbers) for crystal in crystals], dtype=np.uint8),
            "known.numbers": np.concatenate([c.numbers for c in crystals] or [np.zeros(0)]).astype(np.uint8),
            "known.coords": np.concatenate([c.coords for c in crystals] or [np.zeros((0, 3))]).astype(np.float32),
            "known.lengths": np.array([c.lengths for c in crystals], dtype=np.float32).reshape(-1, 3),
            "known.angles": np.array([c.angles for c in crystals], dtype=np.float32).reshape(-1, 3),
        }

    @classmethod
    def from_tensors(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """Return the crystals that :meth:`to_tensors` described."""
        ends = np.cumsum(arrays["known.sizes"].astype(int))
        starts = ends - arrays["known.sizes"]
        return cls(
            CanonicalCrystal(
                numbers=arrays["known.numbers"][start:end].astype(int),
                coords=arrays["known.coords"][start:end].astype(float),
                lengths=lengths.astype(float),
                angles=angles.astype(float),
            )
            for start, end, lengths, angles in zip(
                starts, ends, arrays["known.lengths"], arrays["known.angles"], strict=True
            )
        )


def plain_crystal(structure: Structure) -> CanonicalCrystal:
    """Return a structure as it is, sites and cell not made canonical."""
    return CanonicalCrystal(
        numbers=np.array([site.specie.Z for site in structure]),
        coords=np.array(structure.frac_coords),
        lengths=np.array(structure.lattice.lengths),
        angles=np.array(structure.lattice.angles),
    )


def reduced_formula(numbers: Sequence[int] | np.ndarray) -> tuple[tuple[int, int], ...]:
    """Return the reduced formula as sorted pairs (atomic number, count over the greatest common divisor)."""
    species, counts = np.unique(np.asarray(numbers, dtype=int), return_counts=True)
    divisor = np.gcd.reduce(counts)
    return tuple((int(z), int(count // divisor)) for z, count in zip(species, counts, strict=True))
