"""Bucketed matching: the result of all pairs, order, tolerances, and odd crystals that must not stop it."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from inv_design.structures.matching import (
    StructureIndex,
    duplicate_groups,
    first_matches,
    unmatchable,
    unskewed,
)

B2 = Structure(Lattice.cubic(2.9), ["Al", "Ni"], [[0, 0, 0], [0.5, 0.5, 0.5]])
B1 = Structure(Lattice.from_parameters(3.5, 3.5, 3.5, 60, 60, 60), ["Al", "Ni"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def crystals(n: int, seed: int) -> list[Structure]:
    """Return crystals of few compositions, among them supercells, strained and shifted copies."""
    rng = np.random.default_rng(seed)
    out: list[Structure] = []
    while len(out) < n:
        if out and rng.random() < 0.5:
            s = out[rng.integers(len(out))].copy()
            if len(s) <= 4 and rng.random() < 0.4:
                s.make_supercell([1, 1, 2])
            s = Structure(s.lattice.matrix * rng.uniform(0.9, 1.1), s.species, s.frac_coords + rng.random(3))
            s.perturb(rng.uniform(0, 0.5))
        else:
            k = int(rng.integers(1, 4))
            lattice = Lattice.from_parameters(*rng.uniform(2.8, 5, 3), *rng.uniform(70, 110, 3))
            s = Structure(lattice, ["Al", "Ni"] * k, rng.random((2 * k, 3)))
        out.append(s)
    return out


def all_pairs_groups(structures: list[Structure]) -> list[list[int]]:
    """Return the greedy groups of all pairs, as ``StructureMatcher.group_structures`` makes them."""
    matcher, groups = StructureMatcher(), []
    for i, s in enumerate(structures):
        for group in groups:
            if matcher.fit(structures[group[0]], s):
                group.append(i)
                break
        else:
            groups.append([i])
    return groups


@pytest.mark.parametrize("seed", range(6))
def test_groups_equal_those_of_all_pairs(seed):
    structures = crystals(16, seed)
    assert duplicate_groups(structures) == all_pairs_groups(structures)


def test_groups_of_the_packaged_alloys_equal_all_pairs():
    from inv_design.datasets.mp_binaries import load_alloys

    structures = [e.structure for e in load_alloys() if e.chemsys.startswith(("Al-Ni", "Al-", "Ni-"))][:60]
    assert duplicate_groups(structures) == all_pairs_groups(structures)


def test_first_added_wins_and_all_matches_are_listed():
    index = StructureIndex()
    for name, a in (("one", 2.9), ("two", 2.95), ("three", 3.0)):
        index.add(name, Structure(Lattice.cubic(a), B2.species, B2.frac_coords))
    index.add("other", B1)
    assert index.find(B2) == "one"
    assert list(index.matches(B2)) == ["one", "two", "three"]
    assert index.find(B1) == "other"
    assert len(index) == 4


def test_tolerances_count_and_are_recorded():
    strained = Structure(Lattice.tetragonal(2.9, 3.3), B2.species, B2.frac_coords)
    loose, tight = StructureIndex(), StructureIndex(ltol=0.02, stol=0.05, angle_tol=1)
    for index in (loose, tight):
        index.add("cubic", B2)
    assert loose.find(strained) == "cubic"
    assert tight.find(strained) is None
    assert tight.tolerances == {"ltol": 0.02, "stol": 0.05, "angle_tol": 1}


def test_oxidation_states_do_not_matter():
    charged = B2.copy()
    charged.add_oxidation_state_by_element({"Al": 3, "Ni": -3})
    index = StructureIndex()
    index.add("bare", B2)
    assert index.find(charged) == "bare"


def odd() -> dict[str, Structure]:
    nan = B2.copy()
    nan[0] = "Al", [np.nan, 0, 0]
    return {
        "partial": Structure(Lattice.cubic(3), [{"Al": 0.5, "Ni": 0.5}], [[0, 0, 0]]),
        "nan": nan,
        "flat": Structure(Lattice.from_parameters(3, 3, 3, 60, 60, 119.9999999), B2.species, B2.frac_coords),
        "needle": Structure(Lattice.orthorhombic(0.05, 0.05, 900), B2.species, B2.frac_coords),
        "overlapping": Structure(Lattice.cubic(3), ["Al", "Ni"], [[0, 0, 0], [0, 0, 0]]),
        "tiny": Structure(Lattice.cubic(1e-3), B2.species, B2.frac_coords),
        "huge": Structure(Lattice.cubic(1e5), B2.species, B2.frac_coords),
        "dummy": Structure(Lattice.cubic(4), ["X0+", "Ni"], [[0, 0, 0], [0.5] * 3]),
        "empty": Structure(Lattice.cubic(3), [], []),
    }


def test_one_odd_crystal_never_stops_it():
    start = time.perf_counter()
    index = StructureIndex()
    index.add("good", B2)
    for name, structure in odd().items():
        index.find(structure, name)
        index.add(name, structure)
        index.find_or_add(name + "-again", structure)
    assert index.find(B2) == "good"
    assert {"partial", "nan", "flat", "needle", "tiny", "dummy", "empty"} <= set(index.skipped)
    assert all("\n" not in reason for reason in index.skipped.values())
    groups = duplicate_groups([*odd().values(), B2, B2])
    assert sorted(i for g in groups for i in g) == list(range(11))
    assert [9, 10] in groups
    assert time.perf_counter() - start < 20


def test_error_in_a_reduction_is_kept_with_its_name(monkeypatch):
    index = StructureIndex()
    index.add("a", B2)

    def fail(*args, **options):
        raise RuntimeError("no")

    monkeypatch.setattr(Structure, "get_reduced_structure", fail)
    assert index.find(B2, "b") is None
    assert "RuntimeError: no" in index.skipped["b"]


def test_first_matches():
    assert first_matches([B1, B2, odd()["partial"]], [B2, B2, B1]) == [2, 0, None]


@settings(max_examples=25, deadline=None)
@given(
    st.permutations(range(4)),
    st.tuples(*[st.floats(-3, 3)] * 3),
    st.sampled_from([[1, 1, 1], [2, 1, 1], [[1, 1, 0], [0, 1, 0], [0, 0, 2]]]),
    st.floats(0.8, 1.2),
)
def test_same_crystal_in_other_words_matches(order, shift, supercell, scale):
    base = Structure.from_spacegroup("Pm-3m", Lattice.cubic(3.6), ["Al", "Ni"], [[0, 0, 0], [0, 0.5, 0.5]])
    other = Structure(
        base.lattice.matrix * scale, [base[i].specie for i in order], base.frac_coords[list(order)] + np.array(shift)
    )
    other.make_supercell(supercell)
    index = StructureIndex()
    index.add("base", base)
    assert unmatchable(other) is None
    assert index.find(other) == "base"


def test_only_the_bucket_of_the_query_is_reduced():
    rng = np.random.default_rng(0)
    index = StructureIndex()
    metals = ["Ti", "V", "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Zr", "Nb", "Mo", "Ru", "Rh", "Pd", "W", "Re"]
    for a, b in itertools.combinations(metals, 2):
        for k in range(8):
            index.add(f"{a}{b}{k}", Structure(Lattice.cubic(4), [a, b, b], rng.random((3, 3))))
    start = time.perf_counter()
    assert index.find(Structure(Lattice.cubic(4), ["Os", "Ir"], [[0, 0, 0], [0.5] * 3])) is None
    assert time.perf_counter() - start < 0.5
    assert all(e.reduced is None for bucket in index._buckets.values() for e in bucket)


def test_a_very_skewed_cell_is_the_same_crystal():
    base = Structure(
        Lattice.orthorhombic(2.9, 3.1, 3.6), ["Al", "Ni", "Ni"], [[0, 0, 0], [0.5, 0.5, 0.3], [0, 0.5, 0.7]]
    )
    change = np.array([[1, 0, 0], [60, 1, 0], [-45, 70, 1]])
    skewed = Structure(change @ base.lattice.matrix, base.species, base.frac_coords @ np.linalg.inv(change))
    assert unskewed(base) is base
    assert max(unskewed(skewed).lattice.abc) < 4
    index = StructureIndex()
    index.add("base", base)
    start = time.process_time()
    assert index.find(skewed) == "base"
    assert time.process_time() - start < 5


def test_real_layers_and_needles_are_compared_and_impossible_ones_are_not():
    def box(*edges: float) -> Structure:
        return Structure(Lattice.orthorhombic(*edges), B2.species, B2.frac_coords)

    assert unmatchable(box(2.5, 2.5, 40)) is None
    assert unmatchable(box(2.5, 60, 60)) is None
    assert "too long and thin" in str(unmatchable(box(0.3, 300, 300)))
    assert "too long and thin" in str(unmatchable(box(2.5, 2.5, 4000)))
