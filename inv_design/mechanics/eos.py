"""Equation of state: the bulk modulus from energies at several volumes (Birch 1947)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from inv_design.mechanics.evaluate import GPA_PER_EV_A3, to_atoms
from inv_design.mechanics.flags import eos_flags
from inv_design.mechanics.lockstep import run_in_order
from inv_design.mechanics.records import plain_fields
from inv_design.mechanics.relax import relaxation

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator
    from pymatgen.core import Structure

    from inv_design.mechanics.lockstep import Work
    from inv_design.mechanics.relax import RelaxResult

NAN = float("nan")
ION_FORCE = 0.01
"""eV/Å; largest force on an ion after its relaxation at a volume."""


@dataclass(frozen=True)
class BirchMurnaghan:
    """Parameters of the third-order Birch-Murnaghan equation of state.

    Attributes
    ----------
    e0
        Energy at the minimum, eV (per whatever the volumes are per).
    v0
        Volume at the minimum, Å^3.
    bulk_modulus
        K at v0, GPa.
    derivative
        dK/dP at v0.
    residual
        Root mean square deviation of the fitted energies, eV.
    """

    e0: float
    v0: float
    bulk_modulus: float
    derivative: float
    residual: float

    def energy(self, volume: np.ndarray) -> np.ndarray:
        """Return E(V) in eV (Birch, Phys. Rev. 71, 809 (1947), third order)."""
        eta = (self.v0 / np.asarray(volume, float)) ** (2 / 3) - 1
        k = self.bulk_modulus / GPA_PER_EV_A3
        return self.e0 + 9 * self.v0 * k / 16 * (eta**3 * self.derivative + eta**2 * (6 - 4 * (eta + 1)))

    def pressure(self, volume: np.ndarray) -> np.ndarray:
        """Return P(V) = -dE/dV in eV/Å^3."""
        ratio = (self.v0 / np.asarray(volume, float)) ** (1 / 3)
        k = self.bulk_modulus / GPA_PER_EV_A3
        return 1.5 * k * (ratio**7 - ratio**5) * (1 + 0.75 * (self.derivative - 4) * (ratio**2 - 1))


def fit_birch_murnaghan(volumes: np.ndarray, energies: np.ndarray) -> BirchMurnaghan:
    """Fit E(V); the third-order equation is a cubic polynomial in V^(-2/3), so the fit is linear.

    Parameters
    ----------
    volumes, energies
        At least four points, Å^3 and eV.

    Raises
    ------
    ValueError
        If there are fewer than four points, a value is not finite, or the energies have no minimum in or near the
        range (a quarter of the sampled range of volumes beyond it at most).
    """
    volumes, energies = np.asarray(volumes, float), np.asarray(energies, float)
    if len(volumes) < 4:
        raise ValueError(f"{len(volumes)} points are too few for a Birch-Murnaghan fit; give at least 4")
    if not (np.isfinite(volumes).all() and np.isfinite(energies).all() and (volumes > 0).all()):
        raise ValueError("a volume or an energy is not finite; the calculator failed for this crystal")
    scale = float(np.mean(volumes))
    x = (volumes / scale) ** (-2 / 3)
    coefficients = np.polyfit(x, energies, 3)
    slope, curvature = np.polyder(coefficients), np.polyder(coefficients, 2)
    roots = np.roots(slope)
    roots = roots[np.abs(roots.imag) < 1e-9].real
    minima = [root for root in roots if root > 0 and np.polyval(curvature, root) > 0]
    if not minima:
        raise ValueError(f"the energies have no minimum between {volumes.min():.4g} and {volumes.max():.4g} Å^3")
    x0 = min(minima, key=lambda root: abs(root - 1))
    v0 = scale * x0**-1.5
    margin = 0.25 * float(np.ptp(volumes))
    if not volumes.min() - margin < v0 < volumes.max() + margin:
        raise ValueError(
            f"the energy minimum at {v0:.4g} Å^3 lies outside the volumes {volumes.min():.4g}-{volumes.max():.4g} Å^3"
        )
    # With x = (V/scale)^(-2/3) and dx/dV = -(2/3) x/V, at the minimum: K = V E'' = (4/9) x^2 E_xx / V, and
    # K' = dK/dP = 4 + (2/3) x E_xxx / E_xx.
    second = float(np.polyval(curvature, x0))
    third = float(np.polyval(np.polyder(coefficients, 3), x0))
    bulk = 4 / 9 * x0**2 * second / v0
    derivative = 4 + 2 / 3 * x0 * third / second
    residual = float(np.sqrt(np.mean((np.polyval(coefficients, x) - energies) ** 2)))
    return BirchMurnaghan(
        e0=float(np.polyval(coefficients, x0)),
        v0=float(v0),
        bulk_modulus=float(bulk * GPA_PER_EV_A3),
        derivative=float(derivative),
        residual=residual,
    )


@dataclass(frozen=True)
class EosResult:
    """The equation of state of a crystal, or the reason why there is none.

    Attributes
    ----------
    bulk_modulus
        K at the minimum, GPa.
    bulk_modulus_derivative
        dK/dP at the minimum.
    v0, e0
        Volume (Å^3/atom) and energy (eV/atom) of the minimum.
    fit_residual
        Root mean square deviation of the energies from the curve, eV/atom.
    volumes, energies
        The points, Å^3/atom and eV/atom.
    flags
        Names of the quality gates that the result fails; see :mod:`inv_design.mechanics.flags`.
    error
        What went wrong, or ``None``.
    """

    bulk_modulus: float = NAN
    bulk_modulus_derivative: float = NAN
    v0: float = NAN
    e0: float = NAN
    fit_residual: float = NAN
    volumes: np.ndarray | None = None
    energies: np.ndarray | None = None
    flags: list[str] = field(default_factory=list)
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain data; units as in the class."""
        return plain_fields(self)


def equation_of_state(
    structure: Structure, calculator: Calculator, *, strain: float = 0.04, n_points: int = 7, relax_ions: bool = False
) -> EosResult:
    """Fit E(V) of one relaxed crystal, scaled isotropically with its fractional coordinates kept.

    Its K is K_Voigt of a tensor with clamped ions; with ``relax_ions`` of one whose ions relax.

    Parameters
    ----------
    structure
        A crystal at its minimum for ``calculator``.
    strain
        Largest linear strain; the volumes run from (1 - strain)^3 to (1 + strain)^3 of the crystal's own.
    n_points
        Number of volumes, at least 4.
    relax_ions
        Whether the ions relax at each volume, to :data:`ION_FORCE`.
    """
    work = volume_scan(structure, strain=strain, n_points=n_points, relax_ions=relax_ions)
    return next(run_in_order([work], calculator))


def volume_scan(
    structure: Structure, *, strain: float = 0.04, n_points: int = 7, relax_ions: bool = False
) -> Work[EosResult]:
    """Compute one E(V), for :mod:`inv_design.mechanics.lockstep`; parameters as in :func:`equation_of_state`."""
    try:
        atoms = to_atoms(structure)
        configurations = []
        for scale in np.linspace(1 - strain, 1 + strain, n_points):
            scaled = atoms.copy()
            scaled.set_cell(atoms.cell.array * scale, scale_atoms=True)
            configurations.append(scaled)
        volumes = np.array([c.get_volume() for c in configurations]) / len(atoms)
        if relax_ions:
            relaxed = yield from _relaxed(structure, volumes * len(atoms))
            points = [(result.energy_per_atom, result.error) for result in relaxed]
        else:
            evaluations = yield configurations
            points = [(evaluation.energy / len(atoms), evaluation.error) for evaluation in evaluations]
        for _, problem in points:
            if problem is not None:
                return _failure(problem)
        energies = np.array([energy for energy, _ in points])
        fit = fit_birch_murnaghan(volumes, energies)
    except Exception as error:
        return _failure(f"{type(error).__name__}: {error}")
    return EosResult(
        bulk_modulus=fit.bulk_modulus,
        bulk_modulus_derivative=fit.derivative,
        v0=fit.v0,
        e0=fit.e0,
        fit_residual=fit.residual,
        volumes=volumes,
        energies=energies,
        flags=eos_flags(
            bulk_modulus=fit.bulk_modulus, derivative=fit.derivative, residual=fit.residual, v0=fit.v0, volumes=volumes
        ),
    )


def _relaxed(structure: Structure, volumes: np.ndarray) -> Work[list[RelaxResult]]:
    """Relax the ions of a crystal that is scaled to each volume (Å^3 of the cell)."""
    results = []
    for volume in volumes:
        scaled = structure.copy()
        scaled.scale_lattice(volume)
        results.append((yield from relaxation(scaled, fmax=ION_FORCE, relax_cell=False)))
    return results


def _failure(error: str) -> EosResult:
    return EosResult(error=" ".join(error.split()))
