"""Quality gates: named flags of results that a reader should not take at face value."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pymatgen.core import Structure

MAX_SYMMETRY_RESIDUAL = 0.05  # relative; a tensor further than this from its own crystal's symmetry is wrong somewhere
MAX_LINEAR_RESIDUAL = 0.05  # relative; stress is not linear in strain
MAX_EOS_RESIDUAL = 0.002  # eV/atom
MAX_REFERENCE_PRESSURE = 1.0  # GPa
MAX_REFERENCE_FORCE = 0.05  # eV/Å
MIN_FORCE_CONSTANT = 0.02  # eV/Å^2; a softer mode at the zone centre is about to, or wants to, distort the crystal
MAX_EOS_MISMATCH = 0.15  # relative
BULK_MODULUS_BOUNDS = (0.0, 600.0)  # GPa; diamond has 443
SHEAR_MODULUS_BOUNDS = (0.0, 600.0)  # GPa
DERIVATIVE_BOUNDS = (1.0, 10.0)  # dK/dP of solids lies between 2 and 8


def moduli_flags(bulk_modulus: float, shear_modulus: float | None = None) -> list[str]:
    """Return ``bulk_modulus_out_of_bounds`` and ``shear_modulus_out_of_bounds`` where they hold; GPa."""
    flags = []
    if not BULK_MODULUS_BOUNDS[0] < bulk_modulus < BULK_MODULUS_BOUNDS[1]:
        flags.append("bulk_modulus_out_of_bounds")
    if shear_modulus is not None and not SHEAR_MODULUS_BOUNDS[0] < shear_modulus < SHEAR_MODULUS_BOUNDS[1]:
        flags.append("shear_modulus_out_of_bounds")
    return flags


def elastic_flags(
    *,
    bulk_modulus: float,
    shear_modulus: float,
    born_stable: bool,
    symmetry_residual: float,
    linear_residual: float,
    reference_pressure: float,
    reference_max_force: float,
    softest_force_constant: float,
) -> list[str]:
    """Return the flags of an elastic tensor; moduli and pressure in GPa, residuals relative, force in eV/Å.

    ``softest_force_constant`` (eV/Å^2) may be NaN: it was not needed.
    """
    flags = moduli_flags(bulk_modulus, shear_modulus)
    if not born_stable:
        flags.append("born_unstable")
    if not symmetry_residual <= MAX_SYMMETRY_RESIDUAL:
        flags.append("symmetry_residual")
    if not linear_residual <= MAX_LINEAR_RESIDUAL:
        flags.append("stress_not_linear")
    if not (abs(reference_pressure) <= MAX_REFERENCE_PRESSURE and reference_max_force <= MAX_REFERENCE_FORCE):
        flags.append("reference_not_relaxed")
    if softest_force_constant <= MIN_FORCE_CONSTANT:
        flags.append("ions_unstable")
    return flags


def eos_flags(*, bulk_modulus: float, derivative: float, residual: float, v0: float, volumes: np.ndarray) -> list[str]:
    """Return the flags of an equation of state; GPa, eV/atom, and v0 in the unit of ``volumes``."""
    flags = moduli_flags(bulk_modulus)
    if not DERIVATIVE_BOUNDS[0] < derivative < DERIVATIVE_BOUNDS[1]:
        flags.append("derivative_out_of_bounds")
    if not residual <= MAX_EOS_RESIDUAL:
        flags.append("eos_residual")
    low, high = float(np.min(volumes)), float(np.max(volumes))
    if not low < v0 < high:
        flags.append("minimum_outside_range")
    return flags


def mismatch_flags(bulk_modulus: float, bulk_modulus_eos: float) -> list[str]:
    """Return ``bulk_modulus_mismatch`` if the moduli (GPa) of tensor and E(V) differ by more than 15 % of E(V)'s.

    Of one calculator, with the ions clamped in both, they are the same quantity: a difference is numerics, such as a
    potential that is wavy on the scale of small strains.
    """
    if not (math.isfinite(bulk_modulus) and math.isfinite(bulk_modulus_eos)):
        return ["bulk_modulus_mismatch"]
    mismatch = abs(bulk_modulus - bulk_modulus_eos)
    return ["bulk_modulus_mismatch"] if mismatch > MAX_EOS_MISMATCH * abs(bulk_modulus_eos) else []


def tensor_flags(tensor: np.ndarray, structure: Structure) -> list[str]:
    """Return the flags that an elastic tensor (6, 6), GPa, of another code shows by itself: bounds, Born, symmetry.

    ``structure`` must lie in the Cartesian frame of the tensor (atomate2's ``raw``, not its ``ieee_format``).
    """
    from inv_design.mechanics.born import born_stable
    from inv_design.mechanics.elastic import reuss_average, voigt_average

    (k_voigt, g_voigt), (k_reuss, g_reuss) = voigt_average(tensor), reuss_average(tensor)
    flags = moduli_flags((k_voigt + k_reuss) / 2, (g_voigt + g_reuss) / 2)
    if not born_stable(tensor)[0]:
        flags.append("born_unstable")
    if not symmetry_residual(tensor, structure) <= MAX_SYMMETRY_RESIDUAL:
        flags.append("symmetry_residual")
    return flags


def symmetry_residual(tensor: np.ndarray, structure: Structure, symprec: float = 0.01) -> float:
    """Return how far an elastic tensor (6, 6) is from the symmetry of its own crystal, relative (Frobenius norms).

    The distance of the tensor from its average over the crystal's point group, in the Cartesian frame of the cell.
    """
    from inv_design.mechanics.symmetry import crystal_symmetry

    rotations = crystal_symmetry(structure, symprec).rotations
    average = np.mean([rotated(tensor, rotation) for rotation in rotations], axis=0)
    norm = float(np.linalg.norm(tensor))
    return float(np.linalg.norm(average - tensor)) / norm if norm > 0 else 0.0


def rotated(tensor: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Return a stiffness tensor (6, 6) in another Cartesian frame (Bond, Proc. Phys. Soc. B 56, 121 (1943))."""
    a, pairs = rotation, ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
    bond = np.empty((6, 6))
    for i, (p, q) in enumerate(pairs):
        for j, (r, s) in enumerate(pairs):
            bond[i, j] = a[p, r] * a[q, r] if r == s else a[p, r] * a[q, s] + a[p, s] * a[q, r]
    return bond @ tensor @ bond.T
