"""The lattice test never refuses a pair that StructureMatcher accepts, and refuses most that it does not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from inv_design.structures.fingerprint import LatticeFingerprint
from inv_design.structures.matching import StructureIndex, duplicate_groups

edges = st.tuples(*[st.floats(2.2, 9.0)] * 3)
corners = st.tuples(*[st.floats(55.0, 125.0)] * 3).filter(lambda a: sum(a) < 350 and 2 * max(a) < sum(a) - 5)


def reduced(lattice: Lattice) -> Structure:
    return Structure(lattice, ["Re"], [[0, 0, 0]]).get_reduced_structure("niggli")


def mappings(first: Structure, second: Structure, ltol: float, angle_tol: float) -> bool:
    """Return pymatgen's own answer, with the volumes scaled as ``StructureMatcher`` does."""
    a, b = first.lattice.scale(1.0), second.lattice.scale(1.0)
    found = a.find_all_mappings(b, ltol=ltol, atol=angle_tol, skip_rotation_matrix=True)
    return any(abs(abs(np.linalg.det(matrix)) - 1) < 0.5 for _, _, matrix in found)


@settings(max_examples=60, deadline=None)
@given(edges, corners, edges, corners, st.sampled_from([(0.2, 5.0), (0.1, 3.0), (0.35, 12.0)]))
def test_it_is_the_matchers_first_step(edges_1, angles_1, edges_2, angles_2, tolerances):
    ltol, angle_tol = tolerances
    first = reduced(Lattice.from_parameters(*edges_1, *angles_1))
    second = reduced(Lattice.from_parameters(*edges_2, *angles_2))
    test = LatticeFingerprint.of(first).maps_onto(LatticeFingerprint.of(second), ltol=ltol, angle_tol=angle_tol)
    if mappings(first, second, ltol, angle_tol):
        assert test
    if test:  # not stricter, and hardly looser
        assert mappings(first, second, ltol * 1.001 + 1e-5, angle_tol * 1.001 + 1e-3)


@settings(max_examples=40, deadline=None)
@given(edges, corners, st.tuples(*[st.floats(-0.12, 0.12)] * 6), st.integers(0, 2**32 - 1))
def test_no_match_is_lost(lengths, angles, strain, seed):
    rng = np.random.default_rng(seed)
    base = Structure(Lattice.from_parameters(*lengths, *angles), ["Re", "Re", "W"], rng.random((3, 3)))
    xx, yy, zz, yz, xz, xy = strain
    matrix = base.lattice.matrix @ (np.eye(3) + np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]))
    other = Structure(matrix * rng.uniform(0.7, 1.4), base.species, base.frac_coords + rng.normal(0, 0.03, (3, 3)))
    index = StructureIndex()
    index.add("base", base)
    assert (index.find(other) == "base") == StructureMatcher().fit(base, other)


def test_what_it_refuses_and_accepts():
    cubic, long = reduced(Lattice.cubic(3)), reduced(Lattice.tetragonal(3, 9))
    prints = [LatticeFingerprint.of(s) for s in (cubic, long)]
    assert prints[0].maps_onto(prints[0], ltol=0.2, angle_tol=5)
    assert not prints[0].maps_onto(prints[1], ltol=0.2, angle_tol=5)
    assert not prints[1].maps_onto(prints[0], ltol=0.2, angle_tol=5)
    assert prints[0].maps_onto(LatticeFingerprint.of(reduced(Lattice.cubic(30))), ltol=1e-3, angle_tol=0.1)


def test_vectors_are_listed_further_when_a_longer_cell_asks():
    short = LatticeFingerprint.of(reduced(Lattice.cubic(3)))
    short.maps_onto(short, ltol=0.2, angle_tol=5)
    before = len(short._vectors[0])
    short.maps_onto(LatticeFingerprint.of(reduced(Lattice.tetragonal(3, 12))), ltol=0.2, angle_tol=5)
    assert len(short._vectors[0]) > before


def test_most_pairs_that_do_not_match_need_no_comparison(monkeypatch):
    rng = np.random.default_rng(3)
    cells = [Lattice.from_parameters(*rng.uniform(2.5, 6, 3), *rng.uniform(65, 115, 3)) for _ in range(40)]
    crystals = [Structure(cell, ["Re", "W"], rng.random((2, 3))) for cell in cells]
    compared = []
    fit = StructureMatcher.fit
    monkeypatch.setattr(StructureMatcher, "fit", lambda *a, **k: compared.append(1) or fit(*a, **k))
    groups = duplicate_groups(crystals)
    assert len(compared) < 0.4 * sum(range(len(groups)))


@pytest.mark.parametrize("angles", [(90, 90, 90), (60, 60, 60), (120, 100, 91)])
def test_a_lattice_maps_onto_itself_without_any_tolerance(angles):
    print_ = LatticeFingerprint.of(reduced(Lattice.from_parameters(3, 3.5, 4, *angles)))
    assert print_.maps_onto(print_, ltol=0.0, angle_tol=0.0)
