"""Crystal graphs against pymatgen's neighbour search, and what they must not depend on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from inv_design.predictors.graph import build_graph


@pytest.fixture
def nial() -> Structure:
    return Structure(Lattice.cubic(2.88), ["Ni", "Al"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def distances(structure: Structure, **settings: float) -> np.ndarray:
    return np.linalg.norm(build_graph(structure, **settings).vectors, axis=2)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.tuples(*[st.floats(2.5, 9.0)] * 3),
    angles=st.tuples(*[st.floats(60.0, 115.0)] * 3),
    seed=st.integers(0, 10_000),
    n=st.integers(1, 6),
)
def test_the_nearest_distances_are_those_pymatgen_finds(lengths, angles, seed, n):
    lattice = Lattice.from_parameters(*lengths, *angles)
    if not np.isfinite(lattice.volume) or lattice.volume < 8.0 * n:
        return
    coords = np.random.default_rng(seed).random((n, 3)) * 3.0 - 1.0
    crystal = Structure(lattice, ["Fe"] * n, coords)
    if n > 1 and (crystal.distance_matrix + 9.0 * np.eye(n)).min() < 0.05:
        return
    graph = build_graph(crystal)
    expected = crystal.get_all_neighbors(8.0)
    for atom, near in enumerate(expected):
        wanted = sorted(x.nn_distance for x in near)[:12]
        found = np.linalg.norm(graph.vectors[atom], axis=1)
        assert found[: len(wanted)] == pytest.approx(wanted, abs=2e-3)
        assert (found[len(wanted) :] == 9.0).all()


def test_the_neighbour_index_belongs_to_the_vector(nial):
    graph = build_graph(nial)
    for atom in range(2):
        ends = nial.cart_coords[atom] + graph.vectors[atom]
        for end, neighbour in zip(ends, graph.neighbours[atom], strict=True):
            difference = nial.lattice.get_fractional_coords(end) - nial.frac_coords[neighbour]
            assert difference == pytest.approx(np.rint(difference), abs=1e-5)
    assert (graph.neighbours[0, :8] == 1).all()  # B2: eight unlike neighbours, then like ones
    assert (graph.neighbours[0, 8:] == 0).all()
    assert graph.volume == pytest.approx(2.88**3)


def test_a_supercell_has_the_distances_of_its_cell(nial):
    assert distances(nial * (2, 2, 2)).mean(axis=0) == pytest.approx(distances(nial).mean(axis=0), abs=1e-5)


def test_missing_neighbours_are_put_beyond_the_radius():
    far = Structure(Lattice.cubic(5.0), ["W"], [[0, 0, 0]])
    found = distances(far, radius=5.5)[0]
    assert found[:6] == pytest.approx(5.0)
    assert found[6:] == pytest.approx(6.5)


def test_crystals_without_a_graph_are_named():
    with pytest.raises(ValueError, match="no neighbour within 8 Å"):
        build_graph(Structure(Lattice.cubic(12.0), ["W"], [[0, 0, 0]]))
    with pytest.raises(ValueError, match="0 Å apart"):
        build_graph(Structure(Lattice.cubic(4.0), ["W", "W"], [[0, 0, 0], [0, 0, 1]]))
    with pytest.raises(ValueError, match="partially occupied"):
        build_graph(Structure(Lattice.cubic(3.0), [{"Fe": 0.5, "Ni": 0.5}], [[0, 0, 0]]))
    with pytest.raises(ValueError, match="volume of"):
        build_graph(Structure(Lattice.cubic(0.3), ["W"], [[0, 0, 0]]))
    with pytest.raises(ValueError, match="degenerate"):
        build_graph(Structure(Lattice.orthorhombic(0.002, 0.002, 4e6), ["W"], [[0, 0, 0]]))


def test_the_cache_is_keyed_by_content(nial):
    first = build_graph(nial)
    assert build_graph(nial.copy()) is first
    strained = nial.copy()
    strained.scale_lattice(nial.volume * 1.1)
    assert build_graph(strained) is not first
    swapped = Structure(nial.lattice, ["Al", "Ni"], nial.frac_coords)
    assert build_graph(swapped).numbers.tolist() == [13, 28]
    assert build_graph(nial, neighbours=8).neighbours.shape == (2, 8)
