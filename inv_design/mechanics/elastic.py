"""Elastic tensors from the stresses of small strains, those of many crystals in one batch where the calculator can."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.stress import voigt_6_to_full_3x3_stress

from inv_design.mechanics.born import born_stable
from inv_design.mechanics.eos import fit_birch_murnaghan
from inv_design.mechanics.evaluate import GPA_PER_EV_A3, to_atoms
from inv_design.mechanics.flags import elastic_flags, mismatch_flags
from inv_design.mechanics.lockstep import run_in_order
from inv_design.mechanics.records import plain_fields
from inv_design.mechanics.symmetry import crystal_symmetry, spanning, to_mandel

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ase import Atoms
    from ase.calculators.calculator import Calculator
    from pymatgen.core import Structure

    from inv_design.mechanics.evaluate import Evaluation
    from inv_design.mechanics.lockstep import Work
    from inv_design.mechanics.symmetry import CrystalSymmetry

NAN = float("nan")
# Voigt's unit strains as tensors (6, 3, 3): a shear of gamma is gamma / 2 on both sides of the diagonal
DIRECTIONS = np.array([voigt_6_to_full_3x3_stress(row * [1, 1, 1, 0.5, 0.5, 0.5]) for row in np.eye(6)])
VOLUME_STRAINS = np.array([-0.04, -0.02, 0.0, 0.02, 0.04])  # linear, of the E(V) that checks the tensor
FORCE_TOLERANCE = 1e-3  # eV/Å at the largest strain; below it relaxing the ions changes no elastic constant visibly
DISPLACEMENT = 0.01  # Å
OPPOSITE = 0.05  # how far a unit vector may be from the opposite of another
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
    bulk_modulus_clamped, bulk_modulus_eos
        K_Voigt of the clamped-ion tensor and K of E(V) over ±4 % linear strain, GPa: the same quantity twice.
    shear_modulus_voigt, shear_modulus_reuss, shear_modulus_vrh
        G likewise, GPa.
    born_stable, eigenvalues
        Whether all eigenvalues of C are positive; the eigenvalues in GPa, ascending.
    symmetry_residual
        Relative misfit of the measured stresses and the tensor that has the crystal's symmetry, or the asymmetry of
        the tensor without it, whichever is larger.
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
    bulk_modulus_clamped: float = NAN
    bulk_modulus_eos: float = NAN
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
    """Return the elastic tensor of one relaxed crystal; see :func:`elastic_tensors`."""
    return next(elastic_tensors([structure], calculator, strain=strain, relax_ions=relax_ions))


def elastic_tensors(
    structures: Iterable[Structure],
    calculator: Calculator,
    *,
    strain: float = 0.01,
    relax_ions: bool = True,
    batch: int = 16,
) -> Iterator[ElasticResult]:
    """Yield the elastic tensor of each relaxed crystal, in the order given; a failure is a result with its error.

    Strains are applied with -strain, -strain/2, strain/2, strain (engineering shear: gamma), and the slope of the
    Cauchy stress is fitted; of the six Voigt strains only those from which the crystal's symmetry gives the others.
    Where the strains make forces, the ions' relaxation enters by linear response,
    C = C_clamped - Lambda^T Phi^-1 Lambda / V (Wu, Vanderbilt and Hamann, Phys. Rev. B 72, 035105 (2005), eq. 18), with
    Lambda the forces per strain and Phi the force constants at the zone centre, from displacements. The energies of
    four other volumes give the modulus of E(V), which must agree with that of the clamped-ion tensor.

    Parameters
    ----------
    structures
        Crystals at their minimum for ``calculator`` (see :func:`~inv_design.mechanics.relax.relax_structures`).
    strain
        Largest strain, relative: 0.005 to 0.01 for smooth potentials, 0.02 or more for CHGNet, which is wavy below.
    relax_ions
        ``False`` gives the clamped-ion tensor.
    batch
        Crystals whose strained cells are evaluated together where the calculator can.
    """
    works = (elasticity(structure, strain=strain, relax_ions=relax_ions) for structure in structures)
    yield from run_in_order(works, calculator, batch=batch)


def elasticity(structure: Structure, *, strain: float = 0.01, relax_ions: bool = True) -> Work[ElasticResult]:
    """Compute one tensor, for :mod:`inv_design.mechanics.lockstep`; parameters as in :func:`elastic_tensors`."""
    try:
        return (yield from _elasticity(structure, strain, relax_ions))
    except Exception as error:
        return _failure(f"{type(error).__name__}: {error}")


def _elasticity(structure: Structure, strain: float, relax_ions: bool) -> Work[ElasticResult]:
    if not 0 < strain < 0.2:
        raise ValueError(f"a strain of {strain}; give a fraction such as 0.01")
    reference = to_atoms(structure)
    symmetry = crystal_symmetry(structure)
    orbits = np.array([to_mandel(symmetry.turned(direction)) for direction in DIRECTIONS])
    chosen = spanning(orbits)
    magnitudes = strain * np.array([-1.0, -0.5, 0.5, 1.0])
    strained = [_deformed(reference, np.eye(3) + size * DIRECTIONS[d]) for d in chosen for size in magnitudes]
    scaled = [_deformed(reference, scale * np.eye(3)) for scale in 1 + VOLUME_STRAINS if scale != 1]
    start, *evaluations = yield [reference, *strained, *scaled]
    for evaluation in (start, *evaluations):
        if evaluation.error is not None:
            return _failure(evaluation.error)
    under_strain, under_pressure = evaluations[: len(strained)], evaluations[len(strained) :]
    shape = (len(chosen), len(magnitudes), -1)
    stresses, linear_residual = _slopes(magnitudes, np.array([e.stress for e in under_strain]).reshape(shape))
    forces, _ = _slopes(magnitudes, np.array([e.forces.ravel() for e in under_strain]).reshape(shape))
    tensor, response, residual = _all_directions(symmetry, chosen, stresses, forces)
    clamped, softest = tensor, NAN
    if relax_ions and len(reference) > 1 and strain * np.abs(forces).max() > FORCE_TOLERANCE:
        constants = yield from _force_constants(reference, symmetry, start)
        softening, softest = _ion_softening(constants, response, reference.get_volume())
        tensor = tensor - softening
    return _result(
        tensor * GPA_PER_EV_A3,
        clamped_bulk_modulus=voigt_average(clamped)[0] * GPA_PER_EV_A3,
        eos_bulk_modulus=_eos_bulk_modulus(reference, start, scaled, under_pressure),
        symmetry_residual=residual,
        linear_residual=linear_residual,
        reference=start,
        softest=softest,
    )


def _deformed(atoms: Atoms, deformation: np.ndarray) -> Atoms:
    out = atoms.copy()
    out.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
    return out


def _slopes(magnitudes: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, float]:
    """Return (slope over strain (d, k), largest relative residual) of values (d directions, m magnitudes, k).

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


def _all_directions(
    symmetry: CrystalSymmetry, chosen: Sequence[int], stresses: np.ndarray, forces: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return (clamped tensor (6, 6) in eV/Å^3, forces per strain (6, 3n) in eV/Å, relative misfit).

    The slopes of the chosen strains hold, turned, for all their images; the responses to the six Voigt strains are the
    linear fit to all of them. What the fit leaves, or leaves asymmetric, is no tensor of this crystal.
    """
    strains, answers = [], []
    for direction, stress, force in zip(chosen, stresses, forces, strict=True):
        strains.append(to_mandel(symmetry.turned(DIRECTIONS[direction])))
        turned = to_mandel(symmetry.turned(voigt_6_to_full_3x3_stress(stress)))
        moved = symmetry.moved(force.reshape(-1, 3)).reshape(len(turned), -1)
        answers.append(np.concatenate([turned, moved], axis=1))
    rows, values = np.concatenate(strains), np.concatenate(answers)
    fitted, *_ = np.linalg.lstsq(rows, values, rcond=None)
    norm = float(np.linalg.norm(values[:, :6]))
    misfit = float(np.linalg.norm((rows @ fitted - values)[:, :6])) / norm if norm > 0 else 0.0
    mandel = fitted[:, :6]
    asymmetry = float(np.linalg.norm(mandel - mandel.T)) / 2 / max(float(np.linalg.norm(mandel)), 1e-300)
    weights = np.array([1.0] * 3 + [np.sqrt(0.5)] * 3)  # a Mandel coefficient is sqrt(2) times Voigt's stress
    tensor = (mandel + mandel.T) / 2 * np.outer(weights, weights)
    return tensor, fitted[:, 6:] * weights[:, None], max(misfit, asymmetry)


def _force_constants(atoms: Atoms, symmetry: CrystalSymmetry, start: Evaluation) -> Work[np.ndarray]:
    """Compute the force constants (3n, 3n) at the zone centre, eV/Å^2, from as few displacements as symmetry allows."""
    n = len(atoms)
    sites = sorted(set(symmetry.permutations.min(axis=0)))
    # moving all atoms together makes no force: the rows of one atom follow from the others'
    alone = [i for i in sites if (symmetry.permutations[:, i] == i).all()]
    implied = alone[-1] if alone else None
    moves: list[tuple[int, np.ndarray]] = []
    for site in sites:
        if site == implied:
            continue
        images = symmetry.stabiliser(site).transpose(2, 0, 1)  # of x, y and z
        for direction in spanning(images):
            moves.append((site, np.eye(3)[direction]))
            # symmetry may give the opposite displacement; otherwise it cancels the third-order constants
            if np.linalg.norm(images[direction] + np.eye(3)[direction], axis=1).min() > OPPOSITE:
                moves.append((site, -np.eye(3)[direction]))
    displaced = []
    for site, move in moves:
        moved = atoms.copy()
        moved.positions[site] += DISPLACEMENT * move
        displaced.append(moved)
    evaluations = yield displaced
    squares, products = np.zeros((n, 3, 3)), np.zeros((n, 3, 3 * n))
    for (site, move), evaluation in zip(moves, evaluations, strict=True):
        if evaluation.error is not None:
            raise ValueError(f"displacing an ion: {evaluation.error}")
        slope = -(evaluation.forces - start.forces) / DISPLACEMENT
        images, to = symmetry.rotations @ move, symmetry.permutations[:, site]
        answers = symmetry.moved(slope).reshape(len(images), -1)
        np.add.at(squares, to, images[:, :, None] * images[:, None])
        np.add.at(products, to, images[:, :, None] * answers[:, None])
    constants = np.zeros((n, 3, 3 * n))
    known = [i for i in range(n) if i != implied]
    constants[known] = np.linalg.solve(squares[known], products[known])
    if implied is not None:
        constants[implied] = -constants.sum(axis=0)
    flat = constants.reshape(3 * n, 3 * n)
    return (flat + flat.T) / 2


def _ion_softening(constants: np.ndarray, response: np.ndarray, volume: float) -> tuple[np.ndarray, float]:
    """Return (Lambda^T Phi^-1 Lambda / V (6, 6) in eV/Å^3, least eigenvalue of Phi in eV/Å^2 without translations).

    ``constants`` is Phi (3n, 3n) in eV/Å^2, ``response`` Lambda^T (6, 3n) in eV/Å, the forces per unit strain.
    """
    n = len(constants) // 3
    # a basis without the three translations, in which the force constants have an inverse
    translations = np.tile(np.eye(3), (n, 1)) / np.sqrt(n)
    basis = np.linalg.svd(translations)[0][:, 3:]
    eigenvalues, vectors = np.linalg.eigh(basis.T @ constants @ basis)
    projected = response @ basis @ vectors
    # a mode softer than the numerics resolve would divide by noise; it is flagged, and left clamped
    used = np.abs(eigenvalues) > SOFT_MODE
    softening = (projected[:, used] / eigenvalues[used]) @ projected[:, used].T / volume
    return softening, float(eigenvalues[0])


def _eos_bulk_modulus(
    atoms: Atoms, start: Evaluation, scaled: Sequence[Atoms], evaluations: Sequence[Evaluation]
) -> float:
    """Return the bulk modulus of E(V), GPa; NaN if the energies have no minimum."""
    volumes = np.array([a.get_volume() for a in (atoms, *scaled)])
    energies = np.array([e.energy for e in (start, *evaluations)])
    try:
        return fit_birch_murnaghan(volumes, energies).bulk_modulus
    except ValueError:
        return NAN


def _result(
    tensor: np.ndarray,
    *,
    clamped_bulk_modulus: float,
    eos_bulk_modulus: float,
    symmetry_residual: float,
    linear_residual: float,
    reference: Evaluation,
    softest: float,
) -> ElasticResult:
    stable, eigenvalues = born_stable(tensor)
    k_voigt, g_voigt = voigt_average(tensor)
    k_reuss, g_reuss = reuss_average(tensor)
    k_vrh, g_vrh = (k_voigt + k_reuss) / 2, (g_voigt + g_reuss) / 2
    flags = elastic_flags(
        bulk_modulus=k_vrh,
        shear_modulus=g_vrh,
        born_stable=stable,
        symmetry_residual=symmetry_residual,
        linear_residual=linear_residual,
        reference_pressure=reference.pressure,
        reference_max_force=reference.max_force,
        softest_force_constant=softest,
    )
    return ElasticResult(
        tensor=tensor,
        bulk_modulus_voigt=k_voigt,
        bulk_modulus_reuss=k_reuss,
        bulk_modulus_vrh=k_vrh,
        bulk_modulus_clamped=clamped_bulk_modulus,
        bulk_modulus_eos=eos_bulk_modulus,
        shear_modulus_voigt=g_voigt,
        shear_modulus_reuss=g_reuss,
        shear_modulus_vrh=g_vrh,
        born_stable=stable,
        eigenvalues=eigenvalues,
        symmetry_residual=symmetry_residual,
        linear_residual=linear_residual,
        reference_pressure=reference.pressure,
        reference_max_force=reference.max_force,
        softest_force_constant=softest,
        flags=flags + mismatch_flags(clamped_bulk_modulus, eos_bulk_modulus),
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
