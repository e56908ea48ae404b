"""Relaxation, equations of state and elastic tensors, against EMT and hand-made potentials."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from inv_design.mechanics.elastic import elastic_tensor, reuss_average, voigt_average
from inv_design.mechanics.eos import BirchMurnaghan, equation_of_state, fit_birch_murnaghan
from inv_design.mechanics.evaluate import GPA_PER_EV_A3, evaluate, to_atoms
from inv_design.mechanics.flags import (
    elastic_flags,
    eos_flags,
    mismatch_flags,
    moduli_flags,
    rotated,
    symmetry_residual,
)
from inv_design.mechanics.relax import relax_structure, relax_structures

ORTHORHOMBIC = [[0, 0, 0], [0.5, 0.45, 0.1], [0, 0.5, 0.55], [0.5, 0.95, 0.5]]


def crystal(symbol: str, structure: str | None = None, **kwargs: Any) -> Structure:
    atoms = bulk(symbol, structure, **kwargs) if structure else bulk(symbol)
    return Structure(atoms.cell.array, atoms.get_chemical_symbols(), atoms.get_scaled_positions())


def l1_2(majority: str, minority: str, a: float) -> Structure:
    return Structure.from_spacegroup(221, Lattice.cubic(a), [minority, majority], [[0, 0, 0], [0, 0.5, 0.5]])


class Springs(Calculator):
    """A calculator made of a function of the cell: it shows what a bad potential does to the code."""

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012

    def __init__(self, stress: float, fail_above: float = np.inf) -> None:
        super().__init__()
        self.pull, self.fail_above = stress, fail_above

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        volume = atoms.get_volume()
        if volume > self.fail_above:
            raise RuntimeError("no convergence\nin 60 cycles")
        self.results = {
            "energy": self.pull * volume,
            "free_energy": self.pull * volume,
            "forces": np.zeros((len(atoms), 3)),
            "stress": np.array([self.pull] * 3 + [0.0] * 3),
        }


@pytest.mark.parametrize("symbol", ["Cu", "Al", "Ni", "Ag"])
def test_tensor_and_equation_of_state_agree_for_emt(symbol: str) -> None:
    relaxed = relax_structure(crystal(symbol), EMT(), fmax=0.002)
    assert relaxed.converged
    assert relaxed.structure is not None
    assert abs(relaxed.pressure) < 0.1
    eos = equation_of_state(relaxed.structure, EMT(), strain=0.02)
    tensor = elastic_tensor(relaxed.structure, EMT())
    assert tensor.error is None
    assert tensor.born_stable
    assert tensor.flags == []
    assert tensor.bulk_modulus_vrh == pytest.approx(eos.bulk_modulus, rel=0.05)
    assert relaxed.structure.volume == pytest.approx(eos.v0, rel=2e-3)
    assert mismatch_flags(tensor.bulk_modulus_vrh, eos.bulk_modulus) == []


def test_an_equation_of_state_with_relaxed_ions_agrees_with_a_tensor_that_has_them() -> None:
    places = [[0.5 * (i % 2), 0.5 * (i % 2), i / 4] for i in range(4)]
    layers = Structure(Lattice.tetragonal(2.65, 7.6), ["Cu", "Cu", "Au", "Ni"], places)
    relaxed = relax_structure(layers, EMT(), fmax=0.001).structure
    assert relaxed is not None
    clamped = equation_of_state(relaxed, EMT(), strain=0.015)
    free = equation_of_state(relaxed, EMT(), strain=0.015, relax_ions=True)
    tensors = [elastic_tensor(relaxed, EMT(), relax_ions=relax).bulk_modulus_voigt for relax in (False, True)]
    assert [clamped.bulk_modulus, free.bulk_modulus] == pytest.approx(tensors, rel=0.003)
    assert clamped.bulk_modulus > 1.005 * free.bulk_modulus
    failed = equation_of_state(crystal("Cu"), Springs(0.0, fail_above=0.0), relax_ions=True)
    assert "no convergence" in (failed.error or "")


def test_silver_agrees_with_the_ase_tutorial() -> None:
    # "Equation of state" tutorial of ASE: EMT silver, B = 100.1 GPa, V0 = 16.78 Å^3
    relaxed = relax_structure(crystal("Ag"), EMT(), fmax=0.002).structure
    assert relaxed is not None
    eos = equation_of_state(relaxed, EMT(), strain=0.03)
    assert eos.bulk_modulus == pytest.approx(100.1, rel=0.03)
    assert eos.v0 == pytest.approx(16.78, rel=0.003)


@pytest.mark.parametrize("direction", [0, 3])
def test_elastic_constants_are_the_curvature_of_the_energy(direction: int) -> None:
    structure = relax_structure(crystal("Cu", cubic=True), EMT(), fmax=0.001).structure
    assert structure is not None
    tensor = elastic_tensor(structure, EMT()).tensor
    atoms = to_atoms(structure)
    sizes = np.linspace(-0.01, 0.01, 5)
    energies = []
    for size in sizes:
        deformation = np.eye(3)
        if direction == 0:
            deformation[0, 0] += size
        else:
            deformation[1, 2] = deformation[2, 1] = size / 2
        strained = atoms.copy()
        strained.set_cell(atoms.cell.array @ deformation, scale_atoms=True)
        energies.append(evaluate(EMT(), [strained])[0].energy)
    curvature = 2 * np.polyfit(sizes, energies, 2)[0] / atoms.get_volume() * GPA_PER_EV_A3
    assert tensor[direction, direction] == pytest.approx(curvature, rel=0.02)


def test_ions_relax_at_a_strain_where_symmetry_lets_them() -> None:
    start = Structure(Lattice.orthorhombic(2.8, 4.4, 4.7), ["Cu", "Cu", "Au", "Au"], ORTHORHOMBIC)
    crystal_ = relax_structure(start, EMT(), fmax=0.001).structure
    assert crystal_ is not None
    free, clamped = elastic_tensor(crystal_, EMT()), elastic_tensor(crystal_, EMT(), relax_ions=False)
    assert free.error is None
    assert clamped.error is None
    # relaxing lowers the energy at every strain, so no eigenvalue rises
    assert (free.eigenvalues <= clamped.eigenvalues + 0.1).all()
    assert np.abs(free.tensor - clamped.tensor).max() > 3
    # the same numbers as from relaxing the ions at each strain
    for direction in (0, 5):
        stresses = []
        for size in (-0.004, 0.004):
            deformation = np.eye(3)
            if direction == 0:
                deformation[0, 0] += size
            else:
                deformation[0, 1] = deformation[1, 0] = size / 2
            strained = Structure(crystal_.lattice.matrix @ deformation, crystal_.species, crystal_.frac_coords)
            relaxed = relax_structure(strained, EMT(), fmax=0.0005, relax_cell=False).structure
            assert relaxed is not None
            stresses.append(evaluate(EMT(), [to_atoms(relaxed)])[0].stress)
        slope = (stresses[1] - stresses[0]) / 0.008 * GPA_PER_EV_A3
        assert np.allclose(slope, free.tensor[direction], atol=3)


def test_relaxation_recovers_the_perfect_crystal() -> None:
    start = l1_2("Cu", "Au", 3.9)
    start.perturb(0.1, seed=1)
    start.apply_strain([0.03, -0.02, 0.01])
    result = relax_structure(start, EMT())
    assert result.error is None
    assert result.converged
    assert result.structure is not None
    assert [site.specie for site in result.structure] == [site.specie for site in start]
    assert result.structure.get_space_group_info(symprec=0.05)[1] == 221
    assert result.volume_change == pytest.approx(result.structure.volume / start.volume - 1)
    assert result.max_force <= 0.02


def test_fixed_cell_keeps_the_cell() -> None:
    start = l1_2("Cu", "Au", 3.9)
    start.perturb(0.1, seed=1)
    result = relax_structure(start, EMT(), relax_cell=False)
    assert result.structure is not None
    assert np.allclose(result.structure.lattice.matrix, start.lattice.matrix)
    assert result.volume_change == pytest.approx(0)


def bad_crystals() -> dict[str, Structure]:
    overlapping = Structure(Lattice.cubic(4), ["Cu", "Cu"], [[0, 0, 0], [0.01, 0, 0]])
    not_a_number = crystal("Cu", cubic=True)
    not_a_number.translate_sites([0], [np.nan, 0, 0], to_unit_cell=False)
    return {
        "apart": overlapping,
        "not finite": not_a_number,
        "partially occupied": Structure(Lattice.cubic(3), [{"Cu": 0.5, "Au": 0.5}], [[0, 0, 0]]),
        "degenerate": Structure(Lattice([[3, 0, 0], [0, 3, 0], [3, 3, 1e-6]]), ["Cu"], [[0, 0, 0]]),
        "No EMT-potential": crystal("Ti"),
    }


@pytest.mark.parametrize("reason", list(bad_crystals()))
def test_a_bad_crystal_gives_a_result_with_its_error(reason: str) -> None:
    bad = bad_crystals()[reason]
    calculator = EMT()
    results = (relax_structure(bad, calculator), equation_of_state(bad, calculator), elastic_tensor(bad, calculator))
    assert relax_structure(crystal("Cu"), calculator).converged  # and the calculator is not spoilt
    for result in results:
        assert result.error is not None
        assert reason in result.error
        assert "\n" not in result.error
        json.dumps(result.as_dict(), allow_nan=False)


def test_one_bad_crystal_stops_nobody_and_the_order_is_kept() -> None:
    good = [crystal("Cu"), crystal("Ni"), crystal("Al")]
    bad = bad_crystals()
    mixed = [bad["apart"], good[0], bad["No EMT-potential"], good[1], bad["not finite"], good[2]]
    results = list(relax_structures(iter(mixed), EMT(), batch=2))
    assert [result.error is None for result in results] == [False, True, False, True, False, True]
    for result, structure in zip(results[1::2], good, strict=True):
        assert result.structure is not None
        assert result.structure.composition == structure.composition
        alone = relax_structure(structure, EMT())
        assert result.energy_per_atom == pytest.approx(alone.energy_per_atom, abs=1e-9)


@pytest.mark.parametrize(("pull", "word"), [(-2.0, "exploded"), (2.0, "collapsed")])
def test_a_cell_that_explodes_is_caught(pull: float, word: str) -> None:
    result = relax_structure(crystal("Cu"), Springs(pull))
    assert result.error is not None
    assert word in result.error


def test_a_calculator_that_fails_on_the_way_is_an_error_in_one_line() -> None:
    result = relax_structure(crystal("Cu"), Springs(-0.5, fail_above=14.0))
    assert result.error == "RuntimeError: no convergence in 60 cycles"
    assert not result.converged


def test_too_few_steps_are_reported_not_hidden() -> None:
    start = l1_2("Cu", "Au", 3.9)
    start.perturb(0.1, seed=1)
    result = relax_structure(start, EMT(), max_steps=2)
    assert result.error is None
    assert not result.converged
    assert result.n_steps == 2
    assert result.structure is not None


def test_no_minimum_in_range_is_an_error() -> None:
    result = equation_of_state(crystal("Cu", "fcc", a=4.5), EMT())
    assert result.error is not None
    assert "minimum" in result.error


@settings(max_examples=50, deadline=None)
@given(
    st.builds(
        BirchMurnaghan,
        e0=st.floats(-10, 0),
        v0=st.floats(5, 60),
        bulk_modulus=st.floats(5, 450),
        derivative=st.floats(2.5, 7),
        residual=st.just(0.0),
    ),
    st.floats(0.98, 1.02),
    st.integers(4, 9),
)
def test_the_fit_recovers_its_own_curve(curve: BirchMurnaghan, centre: float, n_points: int) -> None:
    v0 = curve.v0
    volumes = v0 * centre * np.linspace(0.94, 1.06, n_points) ** 3
    fit = fit_birch_murnaghan(volumes, curve.energy(volumes))
    assert fit.v0 == pytest.approx(v0, rel=1e-5)
    assert fit.bulk_modulus == pytest.approx(curve.bulk_modulus, rel=1e-4)
    assert fit.derivative == pytest.approx(curve.derivative, rel=1e-3)
    assert fit.e0 == pytest.approx(curve.e0, abs=1e-6)
    step = 1e-4 * v0
    slope = (curve.energy(volumes + step) - curve.energy(volumes - step)) / (2 * step)
    assert np.allclose(-slope, curve.pressure(volumes), atol=1e-6)


@pytest.mark.parametrize(("volumes", "energies"), [([1, 2, 3], [1, 0, 1]), ([1, 2, 3, 4], [1, np.nan, 1, 2])])
def test_the_fit_refuses_what_it_cannot_fit(volumes: list[float], energies: list[float]) -> None:
    with pytest.raises(ValueError, match=r"too few|not finite"):
        fit_birch_murnaghan(np.array(volumes, float), np.array(energies, float))


def test_averages_of_an_isotropic_solid_coincide() -> None:
    k, g = 160.0, 80.0
    tensor = np.diag([2 * g] * 3 + [g] * 3)
    tensor[:3, :3] += k - 2 * g / 3
    assert voigt_average(tensor) == pytest.approx((k, g))
    assert reuss_average(tensor) == pytest.approx((k, g))
    angle = 0.7
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    assert np.allclose(rotated(tensor, rotation), tensor)


def test_symmetry_residual_sees_a_wrong_tensor() -> None:
    tensor = np.diag([50.0] * 3 + [75.0] * 3)
    tensor[:3, :3] += 120
    assert symmetry_residual(tensor, crystal("Cu")) == pytest.approx(0, abs=1e-9)
    tensor[0, 0] *= 1.5
    assert symmetry_residual(tensor, crystal("Cu")) > 0.05


def test_each_gate_has_its_flag() -> None:
    good: dict[str, Any] = {
        "bulk_modulus": 150.0,
        "shear_modulus": 60.0,
        "born_stable": True,
        "symmetry_residual": 0.0,
        "linear_residual": 0.0,
        "reference_pressure": 0.0,
        "reference_max_force": 0.0,
        "softest_force_constant": float("nan"),
    }
    assert elastic_flags(**good) == []
    for change, flag in [
        ({"born_stable": False}, "born_unstable"),
        ({"symmetry_residual": 0.2}, "symmetry_residual"),
        ({"symmetry_residual": float("nan")}, "symmetry_residual"),
        ({"linear_residual": 0.2}, "stress_not_linear"),
        ({"reference_pressure": -3.0}, "reference_not_relaxed"),
        ({"reference_max_force": 0.3}, "reference_not_relaxed"),
        ({"softest_force_constant": -1.0}, "ions_unstable"),
        ({"bulk_modulus": 900.0}, "bulk_modulus_out_of_bounds"),
        ({"shear_modulus": -700.0}, "shear_modulus_out_of_bounds"),
    ]:
        assert elastic_flags(**{**good, **change}) == [flag]
    assert moduli_flags(float("nan")) == ["bulk_modulus_out_of_bounds"]
    volumes = np.linspace(9, 11, 5)
    assert eos_flags(bulk_modulus=100, derivative=4, residual=1e-4, v0=10, volumes=volumes) == []
    assert eos_flags(bulk_modulus=100, derivative=40, residual=0.1, v0=12, volumes=volumes) == [
        "derivative_out_of_bounds",
        "eos_residual",
        "minimum_outside_range",
    ]
    assert mismatch_flags(150, 200) == ["bulk_modulus_mismatch"]
    assert mismatch_flags(float("nan"), 200) == ["bulk_modulus_mismatch"]
