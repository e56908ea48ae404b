"""Stability: the energy above the convex hull of known phases, and how far a relaxation moves the atoms."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pymatgen.analysis.phase_diagram import PhaseDiagram
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core import Composition, Structure

    Entry = tuple[Composition, float]

FORMAT = 'write [{"composition": "Re3W", "energy_per_atom": -12.1}, ...]'


class Hull:
    """The convex hull of known phases, chemical system by chemical system.

    Parameters
    ----------
    entries
        (composition, eV/atom) of the known phases, all by one method: the one the judged energies are from too.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries = list(entries)
        self._diagrams: dict[frozenset[str], PhaseDiagram] = {}

    @classmethod
    def from_file(cls, path: str | Path) -> Hull:
        """Read a JSON list of records (``.json``, ``.json.gz``), or ``{"entries": [...]}``.

        A record has ``composition`` (a formula or element -> amount) and ``energy_per_atom`` in eV/atom, or, as in
        pymatgen's computed entries, ``energy`` (and ``correction``) in eV for that composition.

        Raises
        ------
        ValueError
            If the file is not such a list; the message names the record and the cure.
        FileNotFoundError
            If there is no such file.
        """
        path = Path(path)
        data = path.read_bytes()
        try:
            records = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"{path} is not JSON ({error}); {FORMAT}") from None
        if isinstance(records, dict):
            records = records.get("entries")
        if not isinstance(records, list) or not records:
            raise ValueError(f"{path} holds no list of entries; {FORMAT}")
        return cls(_entry(record, f"{path}, entry {i}") for i, record in enumerate(records))

    def e_above_hull(self, composition: Composition, energy_per_atom: float) -> float:
        """Return the energy above the hull in eV/atom; negative below it.

        Of the phases in the chemical system and its subsystems (Ong et al., Chem. Mater. 20, 1798, 2008), which do not
        include the crystal itself: MatterGen's definition (Zeni et al., Nature 639, 624, 2025).

        Raises
        ------
        ValueError
            If the energy is not finite or an element has no reference phase.
        """
        from pymatgen.analysis.phase_diagram import PDEntry

        if not math.isfinite(energy_per_atom):
            raise ValueError(f"the energy of {composition.reduced_formula} is {energy_per_atom}")
        composition = composition.element_composition
        diagram = self._diagram(frozenset(element.symbol for element in composition))
        entry = PDEntry(composition, energy_per_atom * composition.num_atoms)
        value = diagram.get_e_above_hull(entry, allow_negative=True)
        assert value is not None
        return float(value)

    def _diagram(self, elements: frozenset[str]) -> PhaseDiagram:
        from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram

        if elements not in self._diagrams:
            inside = [(c, e) for c, e in self.entries if {x.symbol for x in c} <= elements]
            pure = {next(iter(c)).symbol for c, _ in inside if len(c) == 1}
            if missing := sorted(elements - pure):
                raise ValueError(f"the hull has no phase of the pure element {', '.join(missing)}")
            self._diagrams[elements] = PhaseDiagram([PDEntry(c, e * c.num_atoms) for c, e in inside])
        return self._diagrams[elements]


def energies_above_hull(
    structures: Sequence[Structure], energies: Sequence[float | None], hull: Hull
) -> tuple[list[float | None], dict[int, str]]:
    """Return (eV/atom above the hull or ``None`` per crystal, index -> why there is none)."""
    values: list[float | None] = []
    errors: dict[int, str] = {}
    for i, (structure, energy) in enumerate(zip(structures, energies, strict=True)):
        try:
            if energy is None:
                raise ValueError(f"{structure.composition.reduced_formula} has no energy")
            values.append(hull.e_above_hull(structure.composition, energy))
        except Exception as error:  # one strange crystal never stops it
            values.append(None)
            errors[i] = _one_line(error)
    return values, errors


def relaxation_rmsd(initial: Structure, relaxed: Structure) -> tuple[float, bool]:
    """Return (root mean square displacement in Å of the atoms in a relaxation, whether the two could be matched).

    MatterGen's definition (its ``rmsd_from_relaxation``): pymatgen's ``StructureMatcher`` (0.5, 0.5, 10°, no scaling,
    supercells tried) gives the distance in units of (V/N)^(1/3), V the mean of both volumes; without a match it is
    0.5 of that unit, the largest that the matcher knows.

    Raises
    ------
    ValueError
        If one of them cannot be compared.
    """
    from inv_design.structures.matching import unmatchable, unskewed

    for structure in (initial, relaxed):
        if (reason := unmatchable(structure)) is not None:
            raise ValueError(reason)
    unit = ((initial.volume + relaxed.volume) / (2 * len(initial))) ** (1 / 3)
    found = _rmsd_matcher().get_rms_dist(unskewed(initial), unskewed(relaxed))
    return (0.5 * unit, False) if found is None else (float(found[0]) * unit, True)


def relaxation_rmsds(initial: Sequence[Structure], relaxed: Sequence[Structure | None]) -> dict[str, Any]:
    """Return ``{"mean", "n", "unmatched", "missing"}``: the mean RMSD in Å over ``n`` crystals; see above.

    ``missing`` counts crystals without a relaxed one or that cannot be compared; they are left out of the mean.
    """
    values, unmatched = [], 0
    for first, second in zip(initial, relaxed, strict=True):
        try:
            if second is None:
                continue
            value, matched = relaxation_rmsd(first, second)
        except Exception:  # counted as missing
            continue
        values.append(value)
        unmatched += not matched
    mean = sum(values) / len(values) if values else None
    return {"mean": mean, "n": len(values), "unmatched": unmatched, "missing": len(initial) - len(values)}


def _rmsd_matcher() -> StructureMatcher:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return StructureMatcher(ltol=0.5, stol=0.5, angle_tol=10.0, scale=False, attempt_supercell=True)


def _entry(record: Mapping[str, Any], place: str) -> Entry:
    from pymatgen.core import Composition, Element

    try:
        composition = Composition(record["composition"]).element_composition
        if unknown := [str(symbol) for symbol in composition if not isinstance(symbol, Element)]:
            raise ValueError(f"{', '.join(unknown)} is no element")
        n = composition.num_atoms
        if "energy_per_atom" in record:
            energy = float(record["energy_per_atom"])
        else:
            energy = (float(record["energy"]) + float(record.get("correction") or 0.0)) / n
        if not n > 0 or not math.isfinite(energy):
            raise ValueError(f"{energy} eV/atom")
    except Exception as error:
        raise ValueError(f"{place} is no phase with an energy ({_one_line(error)}); {FORMAT}") from None
    return composition, energy


def _one_line(error: BaseException) -> str:
    return " ".join((str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}").split())[:200]
