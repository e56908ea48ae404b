"""Conditions beyond the one property: what they are, and that samples keep them, alone and together."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from inv_design.datasets.mp_binaries import load_alloys
from inv_design.generators.conditions import (
    GROUPS,
    SCALARS,
    SYSTEMS,
    Conditions,
    feature_owners,
    feature_size,
    system_of_group,
)
from inv_design.generators.crystals import canonical_crystal
from inv_design.generators.protocol import Condition
from inv_design.generators.registry import default_generator
from inv_design.generators.substitution import Substitution

K, G = "bulk_modulus_vrh", "shear_modulus_vrh"


@pytest.fixture(scope="module")
def packaged():
    return default_generator()


@pytest.fixture(scope="module")
def alloys():
    return [a for a in load_alloys() if len(a.structure) <= 4][::25]


@pytest.fixture(scope="module")
def conditions(alloys):
    crystals = [canonical_crystal(a.structure) for a in alloys]
    return Conditions.of(crystals, {G: [a.labels[G] for a in alloys]})


def test_conditions_follow_from_the_crystals(alloys, conditions):
    for alloy, row, system in zip(alloys, conditions.scalars, conditions.systems, strict=True):
        known = dict(zip(SCALARS, row, strict=True))
        primitive = alloy.structure.get_primitive_structure()
        assert known["density"] == pytest.approx(float(alloy.structure.density), rel=1e-3)
        assert known["sites"] == len(primitive)
        assert known[G] == pytest.approx(alloy.labels[G])
        assert np.isnan(known["formation_energy_per_atom"])
        assert SYSTEMS[system] == SpacegroupAnalyzer(alloy.structure, symprec=0.01).get_crystal_system()


def test_features_are_finite_and_owned(conditions):
    features, known = conditions.features(), conditions.known()
    assert features.shape == (len(known), feature_size())
    assert len(feature_owners()) == feature_size()
    assert np.isfinite(features).all()
    assert known[:, GROUPS.index("composition")].all()
    assert not known[:, GROUPS.index("formation_energy_per_atom")].any()


def test_a_wish_knows_only_what_is_asked_for(conditions):
    wish = conditions.wish({"density": 10.0}, "cubic", None)
    shown = dict(zip(GROUPS, wish.known()[0], strict=True))
    assert {name for name, value in shown.items() if value} == {"density", "crystal_system"}
    assert np.isfinite(wish.features()).all()


def test_conditions_survive_a_file(conditions, alloys):
    crystals = [canonical_crystal(a.structure) for a in alloys]
    read = Conditions.from_tensors(conditions.to_tensors(), crystals)
    np.testing.assert_allclose(read.features(), conditions.features(), atol=1e-5)
    np.testing.assert_array_equal(read.known(), conditions.known())


def test_unknown_labels_are_refused(alloys):
    crystals = [canonical_crystal(a.structure) for a in alloys]
    with pytest.raises(ValueError, match="'hardness'"):
        Conditions.of(crystals, {"hardness": [1.0] * len(crystals)})
    with pytest.raises(ValueError, match="2 values"):
        Conditions.of(crystals, {G: [1.0, 2.0]})


@pytest.mark.parametrize(("group", "system"), [(1, 0), (2, 0), (3, 1), (15, 1), (16, 2), (75, 3), (143, 4), (194, 5),
                                               (195, 6), (230, 6)])  # fmt: skip
def test_crystal_systems_of_space_groups(group, system):
    assert system_of_group(group) == SYSTEMS[system]


def test_the_packaged_generator_knows_more_than_one_property(packaged):
    capabilities = packaged.capabilities()
    assert capabilities.conditions[0] == K
    assert {G, "density", "volume_per_atom"} <= set(capabilities.conditions)
    low, high = capabilities.ranges["density"]
    assert 0.5 < low < 2
    assert 15 < high < 25


def test_sites_composition_and_symmetry_are_kept(packaged):
    four = packaged.sample(5, Condition({K: 200.0}, sites=4), seed=1)
    assert {len(s.structure) for s in four} == {4}
    cubic = packaged.sample(5, Condition({K: 200.0}, crystal_system="cubic"), seed=1)
    assert {SpacegroupAnalyzer(s.structure, symprec=0.01).get_crystal_system() for s in cubic} == {"cubic"}
    fixed = packaged.with_settings(novel=False).sample(3, Condition({K: 380.0}, composition="ReW3"), seed=1)
    assert {s.structure.composition.reduced_formula for s in fixed} == {"ReW3"}
    assert fixed[0].condition["composition"] == "ReW3"
    assert Condition.from_dict(fixed[0].condition).composition == "ReW3"


def test_several_properties_at_once(packaged):
    targets = {K: 200.0, "density": 14.0}
    both = packaged.sample(8, Condition(targets), seed=2)
    densities = np.array([float(s.structure.density) for s in both])
    alone = np.array([float(s.structure.density) for s in packaged.sample(8, Condition({K: 200.0}), seed=2)])
    assert np.median(np.abs(densities / 14.0 - 1)) < 0.1 < np.median(np.abs(alone / 14.0 - 1))
    assert np.median([abs(s.score / 200.0 - 1) for s in both]) < 0.1
    assert both[0].condition["targets"] == targets


def test_a_density_without_the_modulus(packaged):
    samples = packaged.sample(6, Condition({"density": 15.0}), seed=3)
    assert np.median([abs(float(s.structure.density) / 15.0 - 1) for s in samples]) < 0.1
    assert samples[0].score == pytest.approx(float(samples[0].structure.density), rel=0.05)


def test_conditions_may_be_lent_by_training_crystals(packaged):
    given = packaged.sample(4, Condition({K: 300.0}), seed=5)
    filled = packaged.with_settings(conditioning="filled").sample(4, Condition({K: 300.0}), seed=5)
    assert [s.structure.formula for s in given] != [s.structure.formula for s in filled]
    with pytest.raises(ValueError, match="'most'"):
        packaged.with_settings(conditioning="most")


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (Condition({}), "asks for nothing"),
        (Condition({"hardness": 3.0}), "hardness"),
        (Condition({K: 300.0}, composition="XyZ2"), "XyZ2"),
        (Condition({K: 300.0}, composition="NaCl"), "Cl"),
        (Condition({K: 300.0}, composition="ReW3", exclude_elements=frozenset({"W"})), "W"),
        (Condition({K: 300.0}, composition="ReW3", sites=5), "leave no crystal"),
        (Condition({K: 300.0}, crystal_system="square"), "square"),
        (Condition({"density": -1.0}), "not positive"),
    ],
)
def test_impossible_wishes_are_named(packaged, condition, message):
    with pytest.raises(ValueError, match=message):
        packaged.sample(1, condition)


def test_a_generator_that_cannot_fix_a_shape_says_so():
    cells = [Structure(Lattice.cubic(3.0 + 0.1 * i), ["W", "Re"], [[0, 0, 0], [0.5] * 3]) for i in range(3)]
    baseline = Substitution(pool=50)
    baseline.fit(cells, [300.0, 310.0, 320.0])
    with pytest.raises(ValueError, match="cannot fix sites = 4"):
        baseline.sample(1, Condition({K: 300.0}, sites=4))
