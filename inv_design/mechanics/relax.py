"""Relaxation of positions and cell, many crystals in step, so that a batched calculator serves all of them at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.stress import voigt_6_to_full_3x3_stress

from inv_design.mechanics.evaluate import Evaluation, to_atoms, to_structure
from inv_design.mechanics.lockstep import run_in_order
from inv_design.mechanics.records import plain_fields
from inv_design.mechanics.springs import STRAINS, spring_hessian

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ase import Atoms
    from ase.calculators.calculator import Calculator
    from pymatgen.core import Structure

    from inv_design.mechanics.lockstep import Work

NAN = float("nan")
VOLUME_BOUNDS = (0.2, 5.0)  # relative to the start; a cell outside has exploded or collapsed
MAX_FORCE_BOUND = 1e3  # eV/Å
BFGS_SHARE = 0.7  # of the steps; what BFGS has not converged by then, FIRE finishes
MAX_SHIFT = 0.2  # Å, of an atom in one step
MAX_STRAIN = 0.06  # of the cell in one step
MIN_CURVATURE = 0.1  # of the model Hessian's; a softer or a concave direction is not followed any further


@dataclass(frozen=True)
class RelaxResult:
    """A relaxed crystal, or the reason why there is none.

    Attributes
    ----------
    structure
        The relaxed crystal, sites in the order of the input; ``None`` if ``error`` is set.
    energy_per_atom
        eV/atom.
    converged
        Whether all forces (and the cell's generalised forces) are below ``fmax``.
    n_steps
        Optimizer steps taken.
    max_force
        Largest force on an atom, eV/Å.
    volume_change
        (V_relaxed - V_initial) / V_initial.
    pressure
        GPa, compression positive.
    error
        What went wrong, or ``None``.
    """

    structure: Structure | None = None
    energy_per_atom: float = NAN
    converged: bool = False
    n_steps: int = 0
    max_force: float = NAN
    volume_change: float = NAN
    pressure: float = NAN
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain data; units as in the class, the crystal as pymatgen's dictionary."""
        return plain_fields(self)


def relax_structure(
    structure: Structure, calculator: Calculator, *, fmax: float = 0.02, max_steps: int = 300, relax_cell: bool = True
) -> RelaxResult:
    """Relax one crystal; see :func:`relax_structures`."""
    return next(relax_structures([structure], calculator, fmax=fmax, max_steps=max_steps, relax_cell=relax_cell))


def relax_structures(
    structures: Iterable[Structure],
    calculator: Calculator,
    *,
    fmax: float = 0.02,
    max_steps: int = 300,
    relax_cell: bool = True,
    batch: int = 32,
) -> Iterator[RelaxResult]:
    """Yield one result per crystal, in the order given; a bad crystal yields a result with its error.

    BFGS from a model Hessian of springs (:mod:`inv_design.mechanics.springs`); where it blows up, ASE's FIRE starts
    anew, and where it is slow, FIRE goes on. ``batch`` crystals advance in step, each until it has converged itself.

    Parameters
    ----------
    fmax
        eV/Å, for the forces and, per atom, for the cell's generalised forces (the rows of V σ / n), as in ASE's
        ``FrechetCellFilter``.
    max_steps
        Optimizer steps per crystal.
    relax_cell
        Whether the cell relaxes too; otherwise only the positions.
    """
    works = (relaxation(s, fmax=fmax, max_steps=max_steps, relax_cell=relax_cell) for s in structures)
    yield from run_in_order(works, calculator, batch=batch)


def relaxation(
    structure: Structure, *, fmax: float = 0.02, max_steps: int = 300, relax_cell: bool = True
) -> Work[RelaxResult]:
    """Relax one crystal, for :mod:`inv_design.mechanics.lockstep`; parameters as in :func:`relax_structures`."""
    n_steps = 0
    try:
        atoms = to_atoms(structure)
        volume = atoms.get_volume()
        optimizer: _SpringBfgs | _AseFire = _SpringBfgs(structure, relax_cell)
        while True:
            (evaluation,) = yield [atoms]
            if (problem := _problem(evaluation, atoms.get_volume() / volume)) is not None:
                if n_steps == 0 or isinstance(optimizer, _AseFire):
                    return _failure(problem, n_steps)
                atoms = to_atoms(structure)  # BFGS blew up: start again, carefully
                optimizer = _AseFire(atoms, relax_cell)
                continue
            largest = generalised_force(atoms, evaluation, relax_cell)
            if largest <= fmax or n_steps >= max_steps:
                return _result(structure, atoms, evaluation, volume, n_steps, converged=largest <= fmax)
            if isinstance(optimizer, _SpringBfgs) and n_steps >= int(BFGS_SHARE * max_steps):
                optimizer = _AseFire(atoms, relax_cell)
            optimizer.step(atoms, evaluation)
            n_steps += 1
    except Exception as error:  # a singular cell, an eigenvalue that does not converge
        return _failure(f"{type(error).__name__}: {error}", n_steps)


def generalised_force(atoms: Atoms, evaluation: Evaluation, relax_cell: bool = True) -> float:
    """Return the largest force on an atom or on a cell vector (a row of V σ / n), eV/Å."""
    if not relax_cell:
        return evaluation.max_force
    virial = atoms.get_volume() * voigt_6_to_full_3x3_stress(evaluation.stress)
    return max(evaluation.max_force, float(np.linalg.norm(virial, axis=1).max()) / len(atoms))


class _SpringBfgs:
    """BFGS in coordinates in which the model Hessian is the identity (Nocedal and Wright 2006, eqs. 6.19 and 6.20)."""

    def __init__(self, structure: Structure, relax_cell: bool) -> None:
        self.n = len(structure)
        size = 3 * self.n + (6 if relax_cell else 0)
        self.inverse = np.linalg.inv(np.linalg.cholesky(spring_hessian(structure)[:size, :size]))
        self.hessian = np.eye(size)
        self.gradient: np.ndarray | None = None
        self.moved = np.zeros(size)

    def step(self, atoms: Atoms, evaluation: Evaluation) -> None:
        """Move the atoms, and the cell by a symmetric strain."""
        gradient = self.inverse @ self._derivatives(atoms, evaluation)
        if self.gradient is not None:
            self._update(gradient - self.gradient)
        self.gradient = gradient
        eigenvalues, vectors = np.linalg.eigh(self.hessian)
        self.moved = -vectors @ ((vectors.T @ gradient) / np.maximum(np.abs(eigenvalues), MIN_CURVATURE))
        change = self.inverse.T @ self.moved
        shift = change[: 3 * self.n].reshape(-1, 3)
        strain = np.einsum("k,kab->ab", change[3 * self.n :], STRAINS[: len(change) - 3 * self.n])
        part = min(
            1.0,
            MAX_SHIFT / max(float(np.linalg.norm(shift, axis=1).max()), 1e-12),
            MAX_STRAIN / max(float(np.linalg.norm(strain)), 1e-12),
        )
        self.moved = part * self.moved
        shift, strain = part * shift, part * strain
        deformation = np.eye(3) + strain + strain @ strain / 2 + strain @ strain @ strain / 6
        atoms.positions = atoms.positions @ deformation + shift
        atoms.set_cell(atoms.cell.array @ deformation)

    def _derivatives(self, atoms: Atoms, evaluation: Evaluation) -> np.ndarray:
        """Return dE by positions (eV/Å) and strain coefficients (eV)."""
        virial = atoms.get_volume() * voigt_6_to_full_3x3_stress(evaluation.stress)
        by_strain = np.einsum("kab,ab->k", STRAINS, virial)
        return np.concatenate([-evaluation.forces.ravel(), by_strain])[: len(self.hessian)]

    def _update(self, change: np.ndarray) -> None:
        moved = self.moved
        curvature = float(change @ moved)
        if np.array_equal(self.hessian, np.eye(len(moved))) and curvature > 0:
            self.hessian *= np.clip(curvature / (moved @ moved), 0.02, 50.0)
        bent = self.hessian @ moved
        if abs(curvature) > 1e-14 and abs(moved @ bent) > 1e-14:
            self.hessian += np.outer(change, change) / curvature - np.outer(bent, bent) / (moved @ bent)


class _AseFire:
    """ASE's FIRE on its ``FrechetCellFilter``: slow, and hard to upset."""

    def __init__(self, atoms: Atoms, relax_cell: bool) -> None:
        from ase.filters import FrechetCellFilter
        from ase.optimize import FIRE

        target = FrechetCellFilter(atoms) if relax_cell else atoms
        self.optimizer: Any = FIRE(target, logfile=None, maxstep=0.1)

    def step(self, atoms: Atoms, evaluation: Evaluation) -> None:
        """Move the atoms and the cell."""
        from ase.calculators.singlepoint import SinglePointCalculator

        known = {"energy": evaluation.energy, "free_energy": evaluation.energy}
        atoms.calc = SinglePointCalculator(atoms, forces=evaluation.forces, stress=evaluation.stress, **known)
        self.optimizer.step()


def _problem(evaluation: Evaluation, ratio: float) -> str | None:
    if evaluation.error is not None:
        return evaluation.error
    if not VOLUME_BOUNDS[0] < ratio < VOLUME_BOUNDS[1]:
        return f"the cell {'exploded' if ratio > 1 else 'collapsed'} to {ratio:.3g} of its volume while relaxing"
    if evaluation.max_force > MAX_FORCE_BOUND:
        return f"a force of {evaluation.max_force:.3g} eV/Å while relaxing; atoms are too close"
    return None


def _result(
    structure: Structure, atoms: Atoms, evaluation: Evaluation, volume: float, n_steps: int, *, converged: bool
) -> RelaxResult:
    return RelaxResult(
        structure=to_structure(atoms, structure),
        energy_per_atom=evaluation.energy / len(atoms),
        converged=converged,
        n_steps=n_steps,
        max_force=evaluation.max_force,
        volume_change=atoms.get_volume() / volume - 1,
        pressure=evaluation.pressure,
    )


def _failure(error: str, n_steps: int = 0) -> RelaxResult:
    return RelaxResult(n_steps=n_steps, error=" ".join(error.split()))
