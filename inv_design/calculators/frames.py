"""Labelled configurations, from which a machine-learned potential learns: read from files, derived from records."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inv_design.mechanics.eos import BirchMurnaghan, fit_birch_murnaghan
from inv_design.mechanics.evaluate import GPA_PER_EV_A3

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ase import Atoms
    from pymatgen.core import Structure

SUFFIXES = (".extxyz", ".xyz")
KEYS = {"energy": ("energy", "REF_energy"), "forces": ("forces", "REF_forces"), "stress": ("stress", "REF_stress")}
"""Label -> its names in an extxyz file: ASE's own, and those that MACE's trainer reads."""
ELASTIC_STRAINS = (-0.015, 0.0, 0.015)  # linear; small, for the tensor says nothing of dK/dP
ELASTIC_DERIVATIVE = 4.0  # dK/dP of second-order Birch-Murnaghan
SAME_VOLUME = 1e-4  # relative


@dataclass(frozen=True)
class Frame:
    """One configuration and what is known of it; what is not known is ``None`` and teaches nothing.

    Attributes
    ----------
    structure
        The configuration, an ordered crystal.
    energy
        eV per cell, on the scale of ``level``.
    forces
        eV/Å, (n, 3).
    stress
        GPa, (3, 3), tension positive.
    pressure
        GPa, compression positive; read only where ``stress`` is not known.
    group
        Frames of one group are one crystal, deformed; errors of energy are relative within a group.
    level
        How the labels were made (a protocol id, a file); energies of different levels have different zeros.
    """

    structure: Structure
    energy: float | None = None
    forces: np.ndarray | None = None
    stress: np.ndarray | None = None
    pressure: float | None = None
    group: str = ""
    level: str = ""

    def __post_init__(self) -> None:
        n = len(self.structure)
        for name, shape in (("forces", (n, 3)), ("stress", (3, 3))):
            value = getattr(self, name)
            if value is not None and np.shape(value) != shape:
                raise ValueError(f"{self.formula}: {name} of shape {np.shape(value)}; give {shape}")
        known = [v for v in (self.energy, self.forces, self.stress, self.pressure) if v is not None]
        if not known:
            raise ValueError(f"{self.formula} has no label; give an energy, forces, a stress or a pressure")
        if not all(np.isfinite(v).all() for v in known):
            raise ValueError(f"{self.formula} has a label that is not finite")
        if not self.structure.is_ordered:
            raise ValueError(f"{self.formula} has partially occupied sites; an ordered crystal is needed")

    @cached_property
    def numbers(self) -> np.ndarray:
        """Atomic numbers, (n,)."""
        return np.array([site.specie.Z for site in self.structure])

    @property
    def triple(self) -> tuple[list[int], np.ndarray, np.ndarray]:
        """(numbers, positions Å, cell Å), as the evaluator takes them."""
        return self.numbers.tolist(), self.structure.cart_coords, self.structure.lattice.matrix

    @property
    def formula(self) -> str:
        """Formula of the cell."""
        return self.structure.composition.formula

    @cached_property
    def chemsys(self) -> str:
        """Chemical system, such as ``Re-W``."""
        return self.structure.chemical_system

    @property
    def volume(self) -> float:
        """Å^3/atom."""
        return self.structure.volume / len(self.structure)

    @property
    def known_pressure(self) -> float | None:
        """GPa, compression positive, from the stress where there is one."""
        return self.pressure if self.stress is None else -float(np.trace(self.stress)) / 3

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the configuration and its labels, rounded to 1e-6 of their units."""
        parts = [*self.triple, self.energy, self.forces, self.stress, self.known_pressure]
        arrays = [np.round(np.atleast_1d(np.nan if part is None else part).astype(float), 6) + 0.0 for part in parts]
        text = f"{self.group}|{self.level}".encode()
        return hashlib.sha256(b"|".join([text, *(array.tobytes() for array in arrays)])).hexdigest()


def frames_digest(frames: Sequence[Frame]) -> str:
    """Return the SHA-256 of a set of frames; their order makes no difference."""
    return hashlib.sha256("\n".join(sorted(frame.digest for frame in frames)).encode()).hexdigest()


# -- from files -------------------------------------------------------------------------------------------------------


def read_frames(path: str | Path) -> tuple[list[Frame], list[str]]:
    """Return (frames, what was left out and why) of an extxyz file: energies eV, forces eV/Å, stresses eV/Å^3.

    The stress is ASE's: tension positive, 3 x 3 or Voigt order, in eV/Å^3. A key ``group`` in the comment line says
    which configurations are one crystal; without it those of one formula are.

    Raises
    ------
    FileNotFoundError, ValueError
        If the file does not exist, has another suffix, or cannot be read at all.
    """
    from ase.io import read

    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{str(path)!r} is no {' or '.join(SUFFIXES)} file; `ase convert {path.name} frames.extxyz`")
    if not path.is_file():
        raise FileNotFoundError(2, "no such file of frames", str(path))
    try:
        configurations = read(path, index=":", format="extxyz")
    except Exception as error:  # ase.io raises whatever its parsers meet
        raise ValueError(f"{str(path)!r} cannot be read as extxyz: {error}") from error
    frames, left_out = [], []
    for index, atoms in enumerate(configurations):
        try:
            frames.append(_frame_of_atoms(atoms, path.name))
        except ValueError as error:
            left_out.append(f"{path.name}:{index}: {error}")
    return frames, left_out


def _frame_of_atoms(atoms: Atoms, level: str) -> Frame:
    from ase.stress import voigt_6_to_full_3x3_stress
    from pymatgen.io.ase import AseAtomsAdaptor

    if not all(atoms.pbc):
        raise ValueError(f"{atoms.get_chemical_formula()} is not periodic in three directions; give a crystal")
    labels = {name: _label(atoms, names) for name, names in KEYS.items()}
    stress = labels["stress"]
    if stress is not None:
        stress = voigt_6_to_full_3x3_stress(stress) if stress.size == 6 else stress.reshape(3, 3)
        stress = stress * GPA_PER_EV_A3
    plain = atoms.copy()
    plain.calc = None
    return Frame(
        AseAtomsAdaptor.get_structure(plain),
        energy=None if labels["energy"] is None else float(labels["energy"]),
        forces=labels["forces"],
        stress=stress,
        group=str(atoms.info.get("group", atoms.get_chemical_formula(empirical=True))),
        level=level,
    )


def _label(atoms: Atoms, names: Sequence[str]) -> np.ndarray | None:
    results = atoms.calc.results if atoms.calc is not None else {}
    for name in names:
        for holder in (results, atoms.info, atoms.arrays):
            if name in holder:
                return np.asarray(holder[name], float)
    return None


# -- from records -----------------------------------------------------------------------------------------------------


def frames_of_calculation(record: Mapping[str, Any], structure: Structure) -> list[Frame]:
    """Return the frames that a completed stage-III calculation holds.

    Three forms of ``results`` are read, the richest that is there:

    - ``frames``: ``{"structure": dict, "energy": eV, "forces": eV/Å, "stress": GPa}`` each, as computed;
    - ``volumes`` and ``energies`` (Å^3/atom, eV/atom) of an equation of state: the relaxed crystal scaled to each
      volume, with its energy and the pressure of the Birch-Murnaghan fit (Birch, Phys. Rev. 71, 809 (1947));
    - the bulk modulus of an elastic tensor alone: the relaxed crystal at three volumes with the pressure
      P(V; K, K' = 4) of the same equation, and no energies. The Voigt modulus is taken, as strain is uniform here.

    The relaxed crystal itself has zero forces, and no stress but the pressure.

    Parameters
    ----------
    record
        A ``calculations`` document: ``calculation_id``, ``protocol_id``, ``results``.
    structure
        Its relaxed crystal.

    Raises
    ------
    ValueError
        If the results hold none of these.
    """
    results = record["results"]
    place = {"group": str(record["calculation_id"]), "level": str(record["protocol_id"])}
    if results.get("frames"):
        return [_stored_frame(frame, place) for frame in results["frames"]]
    forces = np.zeros((len(structure), 3)) if results.get("relaxed") else None
    if results.get("volumes") and results.get("energies"):
        volumes, energies = np.asarray(results["volumes"], float), np.asarray(results["energies"], float)
        curve = fit_birch_murnaghan(volumes, energies)
        return [
            _scaled(structure, v, curve.pressure(v), energy=e, forces=forces, place=place)
            for v, e in zip(volumes, energies, strict=True)
        ]
    modulus = results.get("bulk_modulus_voigt") or results.get("bulk_modulus_vrh")
    if not modulus or not modulus > 0:
        raise ValueError(f"calculation {record['calculation_id']} holds neither E(V) points nor a bulk modulus")
    volume = structure.volume / len(structure)
    curve = BirchMurnaghan(0.0, volume, float(modulus), ELASTIC_DERIVATIVE, 0.0)
    return [
        _scaled(structure, v, curve.pressure(v), energy=None, forces=forces, place=place)
        for v in volume * (1 + np.array(ELASTIC_STRAINS)) ** 3
    ]


def _scaled(
    structure: Structure,
    volume: float,
    pressure: np.ndarray,
    *,
    energy: float | None,
    forces: np.ndarray | None,
    place: dict[str, str],
) -> Frame:
    """Return the crystal at a volume (Å^3/atom) with a pressure (eV/Å^3); ``forces`` hold only at its own volume."""
    n, gpa = len(structure), float(pressure) * GPA_PER_EV_A3
    own = abs(volume * n / structure.volume - 1) < SAME_VOLUME and forces is not None
    scaled = structure.copy()
    scaled.scale_lattice(volume * n)
    return Frame(
        scaled,
        energy=None if energy is None else float(energy) * n,
        forces=forces if own else None,
        stress=-gpa * np.eye(3) if own else None,
        pressure=gpa,
        group=place["group"],
        level=place["level"],
    )


def _stored_frame(frame: Mapping[str, Any], place: dict[str, str]) -> Frame:
    from pymatgen.core import Structure

    forces, stress = (None if frame.get(key) is None else np.asarray(frame[key], float) for key in ("forces", "stress"))
    crystal = Structure.from_dict(dict(frame["structure"]))
    return Frame(crystal, frame.get("energy"), forces, stress, group=place["group"], level=place["level"])
