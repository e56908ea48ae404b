"""Elastic tensor from the stresses of small strains, all of them in one batch where the calculator can."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from inv_design.mechanics.born import born_stable
from inv_design.mechanics.evaluate import GPA_PER_EV_A3, evaluate, to_atoms
from inv_design.mechanics.flags import elastic_flags, symmetry_residual
from inv_design.mechanics.records import plain_fields

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator
    from pymatgen.core import Structure

    from inv_design.mechanics.evaluate import Evaluation

NAN = float("nan")
VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
FORCE_TOLERANCE = 1e-3  # eV/Å at the largest strain; below it relaxing the ions changes no elastic constant visibly
DISPLACEMENT = 0.01  # Å
SOFT_MODE = 0.02  # eV/Å^2; metals' optical modes have 1 to 30


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
    reference_pressure, reference_max_force
        Pressure (GPa) and largest force (eV/Å) of the crystal without strain; both are near zero if it is relaxed.
    softest_force_constant
        Least eigenvalue of the force constants at the zone centre, eV/Å^2, translations left out; NaN where symmetry
        keeps the ions in place and it was not needed.
    flags
        Names of the quality gates that the result fails; see :mod:`inv_design.mechanics.flags`.
    error
        What went wrong, or ``None``.
    """

    tensor: np.ndarray | None = None
    bulk_modulus_voigt: float = NAN
    bulk_modulus_reuss: float = NAN
    bulk_modulus_vrh: float = NAN
    shear_modulus_voigt: float = NAN
    shear_modulus_reuss: float = NAN
    shear_modulus_vrh: float = NAN
    born_stable: bool = False
    eigenvalues: np.ndarray | None = None
    symmetry_residual: float = NAN
    linear_residual: float = NAN
    reference_pressure: float = NAN
    reference_max_force: float = NAN
    softest_force_constant: float = NAN
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
    the slope of the Cauchy stress is fitted. Where the strains make forces, the ions' relaxation enters by linear
    response, C = C_clamped - Lambda^T Phi^-1 Lambda / V (Wu, Vanderbilt and Hamann, Phys. Rev. B 72, 035105 (2005),
    eq. 18), with Lambda the forces per strain and Phi the force constants at the zone centre, from displacements.

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
    magnitudes = strain * np.array([-1.0, -0.5, 0.5, 1.0])
    strained = [_strained(reference, direction, size) for direction in range(6) for size in magnitudes]
    start, *evaluations = evaluate(calculator, [reference, *strained])
    for evaluation in (start, *evaluations):
        if evaluation.error is not None:
            return _failure(evaluation.error)
    shape = (6, len(magnitudes), -1)
    tensor, linear_residual = _slopes(magnitudes, np.array([e.stress for e in evaluations]).reshape(shape))
    softest = float("nan")
    if relax_ions:
        response, _ = _slopes(magnitudes, np.array([e.forces.ravel() for e in evaluations]).reshape(shape))
        if len(reference) > 1 and strain * np.abs(response).max() > FORCE_TOLERANCE:
            softening, softest = _ion_softening(reference, calculator, response)
            tensor = tensor - softening
    return _result(tensor * GPA_PER_EV_A3, structure, linear_residual, start, softest)


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


def _slopes(magnitudes: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, float]:
    """Return (slope over strain (6, k), largest relative residual) of values (6 directions, m magnitudes, k).

    The fit takes an intercept (a reference with some residual stress) and a quadratic term (a third-order constant);
    neither reaches the slope, because the magnitudes are symmetric about zero.
    """
    design = np.stack([magnitudes, np.ones_like(magnitudes), magnitudes**2], axis=1)
    rows, worst = [], 0.0
    for block in values:
        coefficients, *_ = np.linalg.lstsq(design, block, rcond=None)
        rows.append(coefficients[0])
        span = np.abs(block - coefficients[1]).max()
        if span > 0:
            worst = max(worst, float(np.abs(block - design @ coefficients).max() / span))
    return np.array(rows), worst


def _ion_softening(atoms: Atoms, calculator: Calculator, response: np.ndarray) -> tuple[np.ndarray, float]:
    """Return (Lambda^T Phi^-1 Lambda / V (6, 6) in eV/Å^3, least eigenvalue of Phi in eV/Å^2 without translations).

    ``response`` is Lambda^T (6, 3n) in eV/Å, the forces per unit strain.
    """
    n = len(atoms)
    displaced = []
    for coordinate in range(3 * (n - 1)):
        for sign in (-1, 1):
            moved = atoms.copy()
            moved.positions[coordinate // 3, coordinate % 3] += sign * DISPLACEMENT
            displaced.append(moved)
    evaluations = evaluate(calculator, displaced)
    for evaluation in evaluations:
        if evaluation.error is not None:
            raise ValueError(f"displacing an ion: {evaluation.error}")
    forces = np.array([evaluation.forces.ravel() for evaluation in evaluations])
    rows = -(forces[1::2] - forces[::2]) / (2 * DISPLACEMENT)
    # moving all atoms together makes no force: the last atom's rows follow from the others'
    constants = np.concatenate([rows, -rows.reshape(n - 1, 3, 3 * n).sum(axis=0)])
    # a basis without the three translations, in which the force constants have an inverse
    translations = np.tile(np.eye(3), (n, 1)) / np.sqrt(n)
    basis = np.linalg.svd(translations)[0][:, 3:]
    eigenvalues, vectors = np.linalg.eigh(basis.T @ ((constants + constants.T) / 2) @ basis)
    projected = response @ basis @ vectors
    # a mode softer than the numerics resolve would divide by noise; it is flagged, and left clamped
    used = np.abs(eigenvalues) > SOFT_MODE
    softening = (projected[:, used] / eigenvalues[used]) @ projected[:, used].T / atoms.get_volume()
    return softening, float(eigenvalues[0])


def _result(
    tensor: np.ndarray, structure: Structure, linear_residual: float, reference: Evaluation, softest: float
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
        reference_pressure=reference.pressure,
        reference_max_force=reference.max_force,
        softest_force_constant=softest,
        flags=elastic_flags(
            bulk_modulus=k_vrh,
            shear_modulus=g_vrh,
            born_stable=stable,
            symmetry_residual=residual,
            linear_residual=linear_residual,
            reference_pressure=reference.pressure,
            reference_max_force=reference.max_force,
            softest_force_constant=softest,
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
    return ElasticResult(error=" ".join(error.split()))
