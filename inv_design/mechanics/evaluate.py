"""Energy, forces and stress of many crystals: in one pass where the calculator can, one by one where it cannot."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ase import Atoms
    from ase.calculators.calculator import Calculator
    from pymatgen.core import Structure

GPA_PER_EV_A3 = 160.21766208
MIN_DISTANCE = 0.6  # Å; below it two atoms sit on each other, and a learned potential returns anything

DEVICE_ERRORS = re.compile(r"CUDA error|CUBLAS|CUDNN|device-side assert", re.IGNORECASE)
OUT_OF_MEMORY = re.compile(r"out of memory", re.IGNORECASE)


class DeviceLost(RuntimeError):  # noqa: N818
    """A GPU failed under a calculator: in this process it will for every crystal that follows, good ones included."""


@dataclass(frozen=True)
class Evaluation:
    """What a calculator says of one configuration.

    Attributes
    ----------
    energy
        eV per cell.
    forces
        eV/Å, (n, 3).
    stress
        eV/Å^3, tension positive, Voigt order xx yy zz yz xz xy, (6,).
    error
        Why there are no numbers, or ``None``; the numbers are NaN then.
    """

    energy: float
    forces: np.ndarray
    stress: np.ndarray
    error: str | None = None

    @property
    def max_force(self) -> float:
        """Largest force on an atom, eV/Å."""
        return float(np.linalg.norm(self.forces, axis=1).max())

    @property
    def pressure(self) -> float:
        """Pressure in GPa, compression positive."""
        return float(-self.stress[:3].mean() * GPA_PER_EV_A3)


def evaluate(calculator: Calculator, configurations: Sequence[Atoms]) -> list[Evaluation]:
    """Return one evaluation per configuration, in order; a failure is an evaluation with its error.

    Raises
    ------
    DeviceLost
        If the GPU failed, other than for want of memory: this process can use it no more.
    """
    evaluate_batch = getattr(calculator, "evaluate_batch", None)
    if evaluate_batch is not None and len(configurations) > 1:
        try:
            return [_checked(r["energy"], r["forces"], r["stress"]) for r in evaluate_batch(configurations)]
        except Exception:  # one of them is bad: find it below, keep the others
            pass
    return [_evaluate_one(calculator, atoms) for atoms in configurations]


def _evaluate_one(calculator: Calculator, configuration: Atoms) -> Evaluation:
    atoms = configuration.copy()
    atoms.calc = calculator
    try:
        return _checked(atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress())
    except Exception as error:
        if DEVICE_ERRORS.search(str(error)) and not OUT_OF_MEMORY.search(str(error)):
            raise DeviceLost(" ".join(str(error).split())) from error
        if (reset := getattr(calculator, "reset", None)) is not None:
            reset()  # some calculators (EMT) remember half of what failed and would fail again on a good crystal
        return _failed(error, len(configuration))


def _checked(energy: float, forces: np.ndarray, stress: np.ndarray) -> Evaluation:
    if not (np.isfinite(energy) and np.isfinite(forces).all() and np.isfinite(stress).all()):
        raise ValueError("the calculator returned a number that is not finite")
    return Evaluation(float(energy), np.array(forces, float), np.array(stress, float))


def _failed(error: Exception, n_atoms: int) -> Evaluation:
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    nan = float("nan")
    return Evaluation(nan, np.full((n_atoms, 3), nan), np.full(6, nan), " ".join(text.split()))


def to_atoms(structure: Structure) -> Atoms:
    """Return the ASE form of a crystal, sites in the same order.

    Raises
    ------
    ValueError
        If the crystal is disordered, has a coordinate that is not finite, a degenerate cell, or atoms on each other.
    """
    from ase import Atoms

    if not structure.is_ordered:
        raise ValueError(f"{structure.composition.formula} has partially occupied sites; an ordered crystal is needed")
    cell, fractional = structure.lattice.matrix, structure.frac_coords
    if not (np.isfinite(cell).all() and np.isfinite(fractional).all()):
        raise ValueError(f"{structure.composition.formula} has a coordinate or a cell vector that is not finite")
    if abs(np.linalg.det(cell)) < 1.0 * len(structure):
        raise ValueError(f"{structure.composition.formula} has a degenerate cell of {structure.volume:.3g} Å^3")
    if (nearest := _nearest_distance(cell, fractional)) < MIN_DISTANCE:
        raise ValueError(
            f"{structure.composition.formula} has atoms {nearest:.2f} Å apart; at least {MIN_DISTANCE} Å is needed"
        )
    numbers = [site.specie.Z for site in structure]
    return Atoms(numbers=numbers, scaled_positions=fractional, cell=cell, pbc=True)


def to_structure(atoms: Atoms, like: Structure) -> Structure:
    """Return the crystal of ``atoms`` with the species of ``like``, sites in the same order."""
    from pymatgen.core import Lattice, Structure

    return Structure(Lattice(atoms.cell.array), like.species, atoms.get_scaled_positions(wrap=True))


def _nearest_distance(cell: np.ndarray, fractional: np.ndarray) -> float:
    """Return the least distance between two atoms (images included) up to 2 Å, or infinity."""
    from ase.neighborlist import primitive_neighbor_list

    distances = primitive_neighbor_list("d", [True] * 3, cell, fractional, 2.0, use_scaled_positions=True)
    return float(distances.min()) if len(distances) else float("inf")
