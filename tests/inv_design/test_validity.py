"""Geometry rules against distances known by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from inv_design.structures.validity import geometry_reasons, metallic_radius, min_distance, min_radius_ratio


def test_distances_of_fcc_copper():
    copper = Structure.from_spacegroup("Fm-3m", Lattice.cubic(3.61), ["Cu"], [[0, 0, 0]])
    assert min_distance(copper) == pytest.approx(3.61 / 2**0.5)
    assert min_radius_ratio(copper) == pytest.approx(3.61 / 2**0.5 / (2 * 1.28))
    assert geometry_reasons(copper) == []


def test_the_smallest_ratio_is_not_the_smallest_distance():
    # Be-Be at 2.1 Å is 0.94 of the radii; Cs-Cs at 3.5 Å is 0.64
    crystal = Structure(Lattice.orthorhombic(20, 20, 20), ["Be", "Be", "Cs", "Cs"],
                        [[0, 0, 0], [2.1 / 20, 0, 0], [0.5, 0.5, 0.5], [0.5 + 3.5 / 20, 0.5, 0.5]])  # fmt: skip
    assert min_distance(crystal) == pytest.approx(2.1)
    assert min_radius_ratio(crystal) == pytest.approx(3.5 / (2 * 2.72))
    (reason,) = geometry_reasons(crystal)
    assert "Cs-Cs" in reason
    assert "0.64" in reason


def test_periodic_images_of_one_atom_count():
    chain = Structure(Lattice.orthorhombic(0.4, 9, 9), ["Al"], [[0, 0, 0]])
    assert min_distance(chain) == pytest.approx(0.4)
    assert len(geometry_reasons(chain)) == 2


def test_a_flat_cell_is_refused():
    flat = Structure(Lattice([[3, 0, 0], [0, 3, 0], [0, 0, 1e-3]]), ["Al"], [[0, 0, 0]])
    assert "Å^3" in geometry_reasons(flat)[0]


def test_radius_of_a_non_metal_and_of_nonsense():
    assert metallic_radius("C") == pytest.approx(0.7)
    with pytest.raises(ValueError, match="'Xx'"):
        metallic_radius("Xx")


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000))
@example(seed=5711)  # the pair with the smallest ratio is not the nearest one
def test_distances_agree_with_pymatgen_in_skewed_cells(seed):
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(3, 3)) * 2 + np.diag([3.0, 3.0, 3.0])
    if abs(np.linalg.det(matrix)) < 5:
        return
    crystal = Structure(Lattice(matrix), ["Ti", "Al", "Ni"], rng.random((3, 3)))
    neighbours = crystal.get_all_neighbors(12.0)
    expected = min(n.nn_distance for site in neighbours for n in site)
    assert min_distance(crystal) == pytest.approx(expected, rel=1e-6)
    radii = {"Ti": 1.47, "Al": 1.43, "Ni": 1.25}
    ratio = min(
        n.nn_distance / (radii[crystal[i].specie.symbol] + radii[n.specie.symbol])
        for i, site in enumerate(neighbours)
        for n in site
    )
    assert min_radius_ratio(crystal) == pytest.approx(ratio, rel=1e-6)
