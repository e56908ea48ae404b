"""Elastic tensor from the stresses of small strains, all of them in one batch where the calculator can."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from inv_design.mechanics.born import born_stable
from inv_design.mechanics.evaluate import GPA_PER_EV_A3, Evaluation, evaluate, to_atoms, to_structure
from inv_design.mechanics.flags import elastic_flags, symmetry_residual
from inv_design.mechanics.records import plain_fields
from inv_design.mechanics.relax import relax_structures

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator
    from pymatgen.core import Structure

VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
ION_FMAX = 0.003  # eV/Å; forces below it change no elastic constant visibly
ION_STEPS = 150


@dataclass(frozen=True)
class ElasticResult:
    """An elastic tensor and what follows from it, or the reason why there is none.

    Attributes
    ----------
    tensor
        C (6, 6) in Voigt notation and the Cartesian frame of the crystal's cell, GPa; symmetric.
    bulk_modulus_voigt, bulk_modulus_reuss, bulk_modulus_vrh
        K as upper bound, lower bound and their mean, GPa.
    shear_modulus_voigt, shear_modulus_reuss, shear_modulus_vrh
        G likewise, GPa.
    born_stable, eigenvalues
        Whether all eigenvalues of C are positive; the eigenvalues in GPa, ascending.
    symmetry_residual
        Relative distance of C from its average over the crystal's point group.
    linear_residual
        Largest relative deviation of a stress from its straight line.
    reference_pressure
        Pressure of the crystal without strain, GPa.
    flags
        Names of the quality gates that the result fails; see :mod:`inv_design.mechanics.flags`.
    error
        What went wrong, or ``None``.
    """

    tensor: np.ndarray | None
    bulk_modulus_voigt: float
    bulk_modulus_reuss: float
    bulk_modulus_vrh: float
    shear_modulus_voigt: float
    shear_modulus_reuss: float
    shear_modulus_vrh: float
    born_stable: bool
    eigenvalues: np.ndarray | None
    symmetry_residual: float
    linear_residual: float
    reference_pressure: float
    flags: list[str] = field(default_factory=list)
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain data; units as in the class."""
        return plain_fields(self)


def elastic_tensor(
    structure: Structure, calculator: Calculator, *, strain: float = 0.01, relax_ions: bool = True
) -> ElasticResult:
    """Return the elastic tensor of a relaxed crystal; a failure is a result with its error.

    Each of the six Voigt strains is applied with -strain, -strain/2, strain/2, strain (engineering shear: gamma), and
    the slope of the Cauchy stress is fitted. The ions are relaxed at a strain only where forces demand it; symmetry
    often keeps them at zero.

    Parameters
    ----------
    structure
        A crystal at its minimum for ``calculator`` (see :func:`~inv_design.mechanics.relax.relax_structure`).
    strain
        Largest strain, relative: 0.005 to 0.01 for smooth potentials, 0.02 or more for CHGNet, which is wavy below.
    relax_ions
        ``False`` gives the clamped-ion tensor.
    """
    try:
        return _elastic_tensor(structure, calculator, strain, relax_ions)
    except Exception as error:
        return _failure(f"{type(error).__name__}: {error}")


def _elastic_tensor(structure: Structure, calculator: Calculator, strain: float, relax_ions: bool) -> ElasticResult:
    if not 0 < strain < 0.2:
        raise ValueError(f"a strain of {strain}; give a fraction such as 0.01")
    reference = to_atoms(structure)
    (start,) = evaluate(calculator, [reference])
    if start.error is not None:
        return _failure(start.error)
    unconverged = 0
    if relax_ions and start.max_force > ION_FMAX:
        relaxed = next(relax_structures([structure], calculator, fmax=ION_FMAX, max_steps=ION_STEPS, relax_cell=False))
        if relaxed.structure is None:
            return _failure(f"relaxing the ions: {relaxed.error}")
        unconverged += not relaxed.converged
        structure, reference = relaxed.structure, to_atoms(relaxed.structure)
    magnitudes = strain * np.array([-1.0, -0.5, 0.5, 1.0])
    strained = [_strained(reference, direction, size) for direction in range(6) for size in magnitudes]
    evaluations = evaluate(calculator, strained)
    if relax_ions:
        unconverged += _relax_ions(structure, calculator, strained, evaluations, len(magnitudes))
    for evaluation in evaluations:
        if evaluation.error is not None:
            return _failure(evaluation.error)
    stresses = (
        np.array([evaluation.stress for evaluation in evaluations]).reshape(6, len(magnitudes), 6) * GPA_PER_EV_A3
    )
    tensor, linear_residual = _fit(magnitudes, stresses)
    return _result(tensor, structure, linear_residual, start.pressure, unconverged)


def _strained(atoms: Atoms, direction: int, size: float) -> Atoms:
    """Return the crystal under one Voigt strain; a shear of gamma is gamma/2 on both sides of the diagonal."""
    deformation = np.eye(3)
    i, j = VOIGT[direction]
    if i == j:
        deformation[i, i] += size
    else:
        deformation[i, j] = deformation[j, i] = size / 2
    out = atoms.copy()
    out.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
    return out


def _relax_ions(
    structure: Structure,
    calculator: Calculator,
    strained: list[Atoms],
    evaluations: list[Evaluation],
    n_magnitudes: int,
) -> int:
    """Relax the ions of every direction in which a strain makes forces, in place; return how many did not converge.

    A direction is relaxed as a whole: its straight line must not mix relaxed and clamped points.
    """
    chosen = [
        direction * n_magnitudes + k
        for direction in range(6)
        if any(not e.max_force <= ION_FMAX for e in evaluations[direction * n_magnitudes :][:n_magnitudes])
        for k in range(n_magnitudes)
    ]
    crystals = [to_structure(strained[index], structure) for index in chosen]
    results = relax_structures(crystals, calculator, fmax=ION_FMAX, max_steps=ION_STEPS, relax_cell=False)
    relaxed, unconverged = [], 0
    for result in results:
        if result.structure is None:
            raise ValueError(f"relaxing the ions at a strain: {result.error}")
        unconverged += not result.converged
        relaxed.append(to_atoms(result.structure))
    for index, evaluation in zip(chosen, evaluate(calculator, relaxed), strict=True):
        evaluations[index] = evaluation
    return unconverged


def _fit(magnitudes: np.ndarray, stresses: np.ndarray) -> tuple[np.ndarray, float]:
    """Return (C (6, 6) in GPa before symmetrisation, largest relative residual) of stresses (6, m, 6).

    The straight line takes an intercept (a reference with some residual stress) and a quadratic term (a third-order
    constant), neither of which reaches the slope, because the magnitudes are symmetric about zero.
    """
    design = np.stack([magnitudes, np.ones_like(magnitudes), magnitudes**2], axis=1)
    rows, worst = [], 0.0
    for block in stresses:
        coefficients, *_ = np.linalg.lstsq(design, block, rcond=None)
        rows.append(coefficients[0])
        span = np.abs(block - coefficients[1]).max()
        if span > 0:
            worst = max(worst, float(np.abs(block - design @ coefficients).max() / span))
    return np.array(rows), worst


def _result(
    tensor: np.ndarray, structure: Structure, linear_residual: float, pressure: float, unconverged: int
) -> ElasticResult:
    asymmetry = float(np.linalg.norm(tensor - tensor.T)) / 2 / float(np.linalg.norm(tensor))
    tensor = (tensor + tensor.T) / 2
    residual = max(symmetry_residual(tensor, structure), asymmetry)
    stable, eigenvalues = born_stable(tensor)
    k_voigt, g_voigt = voigt_average(tensor)
    k_reuss, g_reuss = reuss_average(tensor)
    k_vrh, g_vrh = (k_voigt + k_reuss) / 2, (g_voigt + g_reuss) / 2
    return ElasticResult(
        tensor=tensor,
        bulk_modulus_voigt=k_voigt,
        bulk_modulus_reuss=k_reuss,
        bulk_modulus_vrh=k_vrh,
        shear_modulus_voigt=g_voigt,
        shear_modulus_reuss=g_reuss,
        shear_modulus_vrh=g_vrh,
        born_stable=stable,
        eigenvalues=eigenvalues,
        symmetry_residual=residual,
        linear_residual=linear_residual,
        reference_pressure=pressure,
        flags=elastic_flags(
            bulk_modulus=k_vrh,
            shear_modulus=g_vrh,
            born_stable=stable,
            symmetry_residual=residual,
            linear_residual=linear_residual,
            reference_pressure=pressure,
            unconverged_ions=unconverged,
        ),
    )


def voigt_average(tensor: np.ndarray) -> tuple[float, float]:
    """Return (K, G) at uniform strain, GPa (Hill, Proc. Phys. Soc. A 65, 349 (1952))."""
    normal, cross, shear = (
        np.trace(tensor[:3, :3]),
        tensor[0, 1] + tensor[0, 2] + tensor[1, 2],
        np.trace(tensor[3:, 3:]),
    )
    return float((normal + 2 * cross) / 9), float((normal - cross + 3 * shear) / 15)


def reuss_average(tensor: np.ndarray) -> tuple[float, float]:
    """Return (K, G) at uniform stress, GPa (Hill 1952); NaN for a singular tensor."""
    try:
        compliance = np.linalg.inv(tensor)
    except np.linalg.LinAlgError:
        return float("nan"), float("nan")
    normal, shear = np.trace(compliance[:3, :3]), np.trace(compliance[3:, 3:])
    cross = compliance[0, 1] + compliance[0, 2] + compliance[1, 2]
    return float(1 / (normal + 2 * cross)), float(15 / (4 * normal - 4 * cross + 3 * shear))


def _failure(error: str) -> ElasticResult:
    nan = float("nan")
    return ElasticResult(None, nan, nan, nan, nan, nan, nan, False, None, nan, nan, nan, error=" ".join(error.split()))
