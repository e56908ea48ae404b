"""Relaxation of positions and cell, many crystals in step, so that a batched calculator serves all of them at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from inv_design.mechanics.evaluate import Evaluation, evaluate, to_atoms, to_structure
from inv_design.mechanics.records import plain_fields

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ase import Atoms
    from ase.calculators.calculator import Calculator
    from pymatgen.core import Structure

NAN = float("nan")
VOLUME_BOUNDS = (0.2, 5.0)  # relative to the start; a cell outside has exploded or collapsed
MAX_FORCE_BOUND = 1e3  # eV/Å
BFGS_SHARE = 0.7  # of the steps; what BFGS has not converged by then, FIRE finishes


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

    BFGS in the logarithmic cell coordinates of ASE's ``FrechetCellFilter``; where it blows up, FIRE starts anew, and
    where it is slow, FIRE goes on. ``batch`` crystals advance in step: their forces come from one evaluation.

    Parameters
    ----------
    fmax
        eV/Å, for the forces and, per atom, for the cell's generalised forces.
    max_steps
        Optimizer steps per crystal.
    relax_cell
        Whether the cell relaxes too; otherwise only the positions.
    """
    pending = enumerate(structures)
    active: dict[int, _Relaxation] = {}
    finished: dict[int, RelaxResult] = {}
    next_out = 0
    while True:
        while len(active) < batch and (item := next(pending, None)) is not None:
            index, structure = item
            try:
                active[index] = _Relaxation(structure, fmax, max_steps, relax_cell)
            except Exception as error:
                finished[index] = _failure(f"{type(error).__name__}: {error}")
        evaluations = evaluate(calculator, [relaxation.atoms for relaxation in active.values()])
        for index, evaluation in zip(list(active), evaluations, strict=True):
            if (result := active[index].advance(evaluation)) is not None:
                finished[index] = result
                del active[index]
        while next_out in finished:
            yield finished.pop(next_out)
            next_out += 1
        if not active and not finished:
            return


class _Relaxation:
    """One crystal on its way: takes an evaluation of its atoms, moves them, until it is done."""

    def __init__(self, structure: Structure, fmax: float, max_steps: int, relax_cell: bool) -> None:
        self.initial = structure
        self.atoms = to_atoms(structure)
        self.fmax, self.max_steps, self.relax_cell = fmax, max_steps, relax_cell
        self.volume = self.atoms.get_volume()
        self.n_steps = 0
        self.bfgs_steps = int(BFGS_SHARE * max_steps)
        self.optimizer: Any = None
        self.target: Any = None
        self.fire = False

    def advance(self, evaluation: Evaluation) -> RelaxResult | None:
        """Move the atoms one step along the forces of ``evaluation``; return the result once there is one."""
        if (problem := self._problem(evaluation)) is not None:
            if self.fire or self.n_steps == 0:
                return _failure(problem, self.n_steps)
            self.atoms = to_atoms(self.initial)  # BFGS blew up: start again, carefully
            self.fire, self.optimizer = True, None
            return None
        try:
            self.atoms.calc = _held(self.atoms, evaluation)
            if self.optimizer is None or (not self.fire and self.n_steps >= self.bfgs_steps):
                self._start(fire=self.fire or (self.optimizer is not None))
            largest = float(np.linalg.norm(self.target.get_forces(), axis=1).max())
            if largest <= self.fmax or self.n_steps >= self.max_steps:
                return self._result(evaluation, converged=largest <= self.fmax)
            self.optimizer.step()
        except Exception as error:  # a singular cell, an eigenvalue that does not converge
            return _failure(f"{type(error).__name__}: {error}", self.n_steps)
        self.n_steps += 1
        return None

    def _start(self, *, fire: bool) -> None:
        from ase.filters import FrechetCellFilter
        from ase.optimize import BFGS, FIRE

        self.fire = fire
        self.target = FrechetCellFilter(self.atoms) if self.relax_cell else self.atoms
        if fire:
            self.optimizer = FIRE(self.target, logfile=None, maxstep=0.1)
        else:
            self.optimizer = BFGS(self.target, logfile=None, maxstep=0.15)

    def _problem(self, evaluation: Evaluation) -> str | None:
        if evaluation.error is not None:
            return evaluation.error
        ratio = self.atoms.get_volume() / self.volume
        if not VOLUME_BOUNDS[0] < ratio < VOLUME_BOUNDS[1]:
            return f"the cell {'exploded' if ratio > 1 else 'collapsed'} to {ratio:.3g} of its volume while relaxing"
        if evaluation.max_force > MAX_FORCE_BOUND:
            return f"a force of {evaluation.max_force:.3g} eV/Å while relaxing; atoms are too close"
        return None

    def _result(self, evaluation: Evaluation, *, converged: bool) -> RelaxResult:
        return RelaxResult(
            structure=to_structure(self.atoms, self.initial),
            energy_per_atom=evaluation.energy / len(self.atoms),
            converged=converged,
            n_steps=self.n_steps,
            max_force=evaluation.max_force,
            volume_change=self.atoms.get_volume() / self.volume - 1,
            pressure=evaluation.pressure,
        )


def _held(atoms: Atoms, evaluation: Evaluation) -> Calculator:
    """Return a calculator that holds known numbers, for ASE's filters and optimizers to read."""
    from ase.calculators.singlepoint import SinglePointCalculator

    return SinglePointCalculator(
        atoms,
        energy=evaluation.energy,
        free_energy=evaluation.energy,
        forces=evaluation.forces,
        stress=evaluation.stress,
    )


def _failure(error: str, n_steps: int = 0) -> RelaxResult:
    return RelaxResult(n_steps=n_steps, error=" ".join(error.split()))
