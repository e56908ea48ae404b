"""The canonical description: like crystals get like coordinates, and none is changed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from inv_design.generators.crystals import (
    canonical_crystal,
    cell_volume,
    element_features,
    fit_atomic_volumes,
    padded_numbers,
    species_order,
)


def l12(minority: str, majority: str, a: float) -> Structure:
    return Structure(Lattice.cubic(a), [minority, majority, majority, majority],
                     [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])  # fmt: skip


def monoclinic() -> Structure:
    lattice = Lattice.from_parameters(4.1, 5.3, 6.7, 90, 104, 90)
    return Structure.from_spacegroup("P2_1/m", lattice, ["Ti", "Al"], [[0.13, 0.25, 0.31], [0.62, 0.25, 0.88]])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), crystal=st.sampled_from(["l12", "monoclinic"]))
def test_the_description_does_not_depend_on_how_the_crystal_is_written(seed, crystal):
    rng = np.random.default_rng(seed)
    original = l12("Cu", "Au", 3.9) if crystal == "l12" else monoclinic()
    written = original.copy()
    if rng.random() < 0.5:
        written.make_supercell([[1, 1, 0], [0, 1, 0], [0, 0, 2]])
    written.translate_sites(range(len(written)), rng.random(3))
    written = Structure.from_sites([written[int(i)] for i in rng.permutation(len(written))])
    first, second = canonical_crystal(original), canonical_crystal(written)
    np.testing.assert_array_equal(first.numbers, second.numbers)
    np.testing.assert_allclose(first.lengths, second.lengths, atol=1e-4)
    np.testing.assert_allclose(first.angles, second.angles, atol=1e-3)
    shift = first.coords - second.coords
    np.testing.assert_allclose(shift - np.round(shift), 0, atol=1e-3)
    assert StructureMatcher(scale=False).fit(original, first.to_structure())


def test_members_of_a_prototype_share_coordinates():
    first, second = canonical_crystal(l12("Ti", "Pt", 3.92)), canonical_crystal(l12("Pb", "Ca", 4.98))
    np.testing.assert_allclose(first.coords, second.coords, atol=1e-6)
    assert first.numbers[0] == 22  # the minority species comes first
    assert species_order([78, 22, 78, 78]) == [22, 78]


def test_partial_occupancy_and_transuranics_are_refused():
    with pytest.raises(ValueError, match="partially occupied"):
        canonical_crystal(Structure(Lattice.cubic(3), [{"Cu": 0.5, "Au": 0.5}], [[0, 0, 0]]))
    with pytest.raises(ValueError, match="beyond Pu"):
        canonical_crystal(Structure(Lattice.cubic(3), ["Cm"], [[0, 0, 0]]))


def test_atomic_volumes_reproduce_additive_cells():
    volumes = {"Ti": 17.0, "Pt": 15.0, "Al": 16.5}
    pairs = [("Ti", "Pt"), ("Pt", "Ti"), ("Al", "Ti"), ("Ti", "Al"), ("Al", "Pt"), ("Pt", "Al")] * 10
    crystals = [canonical_crystal(l12(a, b, (volumes[a] + 3 * volumes[b]) ** (1 / 3))) for a, b in pairs]
    fitted = fit_atomic_volumes(crystals)
    assert fitted[[22, 78, 13]] == pytest.approx([17.0, 15.0, 16.5], rel=0.01)
    assert padded_numbers(crystals).shape == (60, 4)


def test_cell_volume_and_impossible_angles():
    lattice = Lattice.from_parameters(3, 4, 5, 70, 95, 110)
    assert cell_volume(np.array([3, 4, 5]), np.array([70, 95, 110])) == pytest.approx(lattice.volume)
    assert np.isnan(cell_volume(np.ones(3), np.array([30, 30, 150])))


def test_element_features_are_finite_and_distinct():
    table = element_features()
    assert np.isfinite(table).all()
    assert len(np.unique(table[1:], axis=0)) == len(table) - 1
