"""Likeness: which crystals are the same within tolerances, found bucket by bucket."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from inv_design.structures.fingerprint import LatticeFingerprint

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core import Structure

MAX_POINTS = 20_000
"""A cell so skewed or flat that comparing lattices needs more lattice points than this is not matched."""
MAX_BASES = 1_000_000
"""Nor is one with more triples of lattice vectors of about the lengths of its edges than this."""


@dataclass
class _Entry:
    name: str
    structure: Structure
    reduced: Structure | None = None
    """The primitive Niggli cell, made when the first comparison needs it."""
    fingerprint: LatticeFingerprint | None = None
    failed: bool = False


@dataclass
class StructureIndex:
    """Finds crystals that match within tolerances, without comparing all pairs.

    pymatgen's ``StructureMatcher`` (primitive cells, volume scaled away) decides. Two crystals can only match when
    their reduced formulas agree, the numbers of sites of their primitive cells agree, and one's lattice can be laid
    over the other's (:class:`~inv_design.structures.fingerprint.LatticeFingerprint`), so only those are compared: the
    result is that of all pairs. Formula and sites are buckets; the lattices are tested pair by pair, at a thirtieth of
    a comparison's cost, because no key that crystals share or do not share respects tolerances. (A fingerprint of
    neighbour distances was measured too: at a threshold that loses no match it spares less than a tenth of the
    comparisons.)

    Attributes
    ----------
    ltol, stol, angle_tol
        ``StructureMatcher``'s tolerances: fractional length, site distance in units of (V/N)^(1/3), angle in degrees.
    skipped
        Name -> one line that says why a crystal cannot be compared; it matches nothing.
    """

    ltol: float = 0.2
    stol: float = 0.3
    angle_tol: float = 5.0
    skipped: dict[str, str] = field(default_factory=dict, init=False)
    _buckets: dict[str, list[_Entry]] = field(default_factory=dict, init=False, repr=False)
    _matcher: StructureMatcher | None = field(default=None, init=False, repr=False)

    @property
    def tolerances(self) -> dict[str, float]:
        """The tolerances, to be recorded with every result of matching."""
        return {"ltol": self.ltol, "stol": self.stol, "angle_tol": self.angle_tol}

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self._buckets.values())

    def add(self, name: str, structure: Structure) -> None:
        """Add a crystal under ``name``; one that cannot be compared is noted in ``skipped`` instead."""
        entry = self._entry(name, structure)
        if entry is not None:
            self._buckets.setdefault(entry.structure.composition.reduced_formula, []).append(entry)

    def find(self, structure: Structure, name: str = "query") -> str | None:
        """Return the name of the first crystal added that matches, ``None`` if none does or it cannot be compared."""
        return next(self.matches(structure, name), None)

    def find_or_add(self, name: str, structure: Structure) -> str | None:
        """Return the name of the first crystal added that matches; if none does, add this one and return ``None``."""
        entry = self._entry(name, structure)
        if entry is None:
            return None
        match = next(self._matches(entry), None)
        if match is None and name not in self.skipped:
            self._buckets.setdefault(entry.structure.composition.reduced_formula, []).append(entry)
        return match

    def matches(self, structure: Structure, name: str = "query") -> Iterator[str]:
        """Yield the names of all crystals that match, in the order they were added."""
        entry = self._entry(name, structure)
        if entry is not None:
            yield from self._matches(entry)

    def _matches(self, entry: _Entry) -> Iterator[str]:
        bucket = self._buckets.get(entry.structure.composition.reduced_formula, [])
        if not bucket or not self._reduce(entry):
            return
        for other in bucket:
            if self._reduce(other) and self._fit(other, entry):
                yield other.name

    def _entry(self, name: str, structure: Structure) -> _Entry | None:
        try:
            reason = unmatchable(structure)
            if reason is None:
                return _Entry(name, _without_oxidation_states(structure))
        except Exception as error:  # a crystal too strange even to be described
            reason = _one_line(error)
        self.skipped[name] = reason
        return None

    def _reduce(self, entry: _Entry) -> bool:
        """Make the primitive Niggli cell, exactly as ``StructureMatcher`` would; return whether there is one."""
        if entry.failed:
            return False
        if entry.reduced is None:
            try:
                entry.reduced = unskewed(entry.structure).get_reduced_structure("niggli").get_primitive_structure()
                entry.fingerprint = LatticeFingerprint.of(entry.reduced)
            except Exception as error:  # any failure in a reduction concerns this crystal alone
                entry.failed = True
                self.skipped[entry.name] = f"cannot be reduced to its primitive cell: {_one_line(error)}"
                return False
        return True

    def _fit(self, first: _Entry, second: _Entry) -> bool:
        assert first.reduced is not None
        assert second.reduced is not None
        if len(first.reduced) != len(second.reduced):
            return False
        try:
            if not self._lattices_fit(first, second):
                return False
            return bool(self._get_matcher().fit(first.reduced, second.reduced, skip_structure_reduction=True))
        except Exception as error:
            self.skipped[second.name] = f"cannot be compared with {first.name}: {_one_line(error)}"
            return False

    def _lattices_fit(self, first: _Entry, second: _Entry) -> bool:
        assert first.fingerprint is not None
        assert second.fingerprint is not None
        return first.fingerprint.maps_onto(second.fingerprint, ltol=self.ltol, angle_tol=self.angle_tol)

    def _get_matcher(self) -> StructureMatcher:
        if self._matcher is None:
            from pymatgen.analysis.structure_matcher import StructureMatcher

            self._matcher = StructureMatcher(ltol=self.ltol, stol=self.stol, angle_tol=self.angle_tol)
        return self._matcher


def duplicate_groups(
    structures: Sequence[Structure], *, ltol: float = 0.2, stol: float = 0.3, angle_tol: float = 5.0
) -> list[list[int]]:
    """Return groups of indices of like crystals; each is led by its first member, to which all others match.

    A crystal joins the first group whose leader it matches (likeness is not transitive, so the order matters and is
    kept). One that cannot be compared is a group of its own.
    """
    index = StructureIndex(ltol=ltol, stol=stol, angle_tol=angle_tol)
    groups: dict[str, list[int]] = {}
    for i, structure in enumerate(structures):
        leader = index.find_or_add(str(i), structure)
        groups.setdefault(leader if leader is not None else str(i), []).append(i)
    return list(groups.values())


def first_matches(
    structures: Iterable[Structure],
    reference: Iterable[Structure],
    *,
    ltol: float = 0.2,
    stol: float = 0.3,
    angle_tol: float = 5.0,
) -> list[int | None]:
    """Return for each crystal (n,) the index of the first one of ``reference`` that it matches, or ``None``."""
    index = StructureIndex(ltol=ltol, stol=stol, angle_tol=angle_tol)
    for i, structure in enumerate(reference):
        index.add(str(i), structure)
    return [None if (name := index.find(structure)) is None else int(name) for structure in structures]


def unmatchable(structure: Structure) -> str | None:
    """Return one line that says why a crystal cannot be compared with others, ``None`` if it can."""
    if not structure.is_ordered:
        return f"{structure.composition.formula} has partially occupied sites"
    return describes_no_cell(structure)


def describes_no_cell(structure: Structure) -> str | None:
    """Return one line that says why the neighbours of a crystal's sites cannot be listed, ``None`` if they can."""
    import numpy as np

    if len(structure) == 0:
        return "has no atoms"
    lattice = structure.lattice
    if not (np.isfinite(lattice.matrix).all() and np.isfinite(structure.frac_coords).all()):
        return f"{structure.composition.formula} has coordinates or a cell that are not finite"
    if lattice.volume < 1e-3 * len(structure):
        return f"{structure.composition.formula} has a degenerate cell of {lattice.volume:.3g} Å^3"
    # lattice points within the longest edge are listed, and triples of those as long as the edges are tried: a needle
    # or a sheet has too many of them
    edges = np.array(lattice.get_lll_reduced_lattice().abc)
    points = 4.2 * (1.2 * edges.max()) ** 3 / lattice.volume
    bases = np.maximum(4.0, 4.8 * edges**3 / lattice.volume).prod()
    if points > MAX_POINTS or bases > MAX_BASES:
        return f"{structure.composition.formula} has a cell too long and thin to compare ({points:.0f} lattice points)"
    return None


def unskewed(structure: Structure) -> Structure:
    """Return a crystal in a cell whose lattice points can be listed: its own, unless that is very skewed."""
    import numpy as np

    lattice = structure.lattice
    radius = 1.2 * max(lattice.get_lll_reduced_lattice().abc)
    heights = 1.0 / np.linalg.norm(lattice.inv_matrix, axis=0)
    if np.prod(2.0 * np.ceil(radius / heights) + 1.0) <= MAX_POINTS:
        return structure
    return structure.get_reduced_structure("LLL")


def _without_oxidation_states(structure: Structure) -> Structure:
    from pymatgen.core import Element

    if all(isinstance(specie, Element) for specie in structure.composition):
        return structure
    bare = structure.copy()
    bare.remove_oxidation_states()
    return bare


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
