"""structure_id: one id for all descriptions of a crystal, another for another crystal."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from inv_design.structures.identity import canonical_form, structure_id

BASES = [
    Structure(Lattice.cubic(2.9), ["Al", "Ni"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
    Structure.from_spacegroup("Fm-3m", Lattice.cubic(3.9), ["Pt"], [[0, 0, 0]]),
    Structure(Lattice.hexagonal(2.76, 4.46), ["Re", "Ru"], [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]]),
    Structure(
        Lattice.from_parameters(3.1, 4.2, 5.3, 81, 95, 102), ["W", "W", "Re"],
        [[0.1, 0.2, 0.3], [0.4, 0.71, 0.85], [0.9, 0.33, 0.55]],
    ),
    Structure.from_spacegroup("Fd-3m", Lattice.cubic(7.2), ["Mg", "Cu"], [[0, 0, 0], [0.625, 0.625, 0.625]]),
]  # fmt: skip


def rotation(a: float, b: float, c: float) -> np.ndarray:
    def turn(angle: float, i: int, j: int) -> np.ndarray:
        m = np.eye(3)
        m[i, i] = m[j, j] = np.cos(angle)
        m[i, j], m[j, i] = -np.sin(angle), np.sin(angle)
        return m

    return turn(a, 0, 1) @ turn(b, 1, 2) @ turn(c, 0, 1)


bases = st.sampled_from(BASES)
angle = st.floats(0, 2 * np.pi)
several = settings(max_examples=20, deadline=None)


@several
@given(bases, st.randoms(use_true_random=False))
def test_permuting_sites(base, random):
    sites = list(base)
    random.shuffle(sites)
    assert structure_id(Structure.from_sites(sites)) == structure_id(base)


@several
@given(bases, st.lists(st.tuples(*[st.integers(-3, 3)] * 3), min_size=24, max_size=24))
def test_wrapping(base, shifts):
    moved = Structure(base.lattice, base.species, base.frac_coords + np.array(shifts[: len(base)]))
    assert structure_id(moved) == structure_id(base)


@several
@given(bases, st.tuples(*[st.floats(-2, 2)] * 3))
def test_translating(base, shift):
    moved = Structure(base.lattice, base.species, base.frac_coords + np.array(shift))
    assert structure_id(moved) == structure_id(base)


@several
@given(bases, angle, angle, angle)
def test_rotating(base, a, b, c):
    turned = Structure(base.lattice.matrix @ rotation(a, b, c), base.species, base.frac_coords)
    assert structure_id(turned) == structure_id(base)


@several
@given(
    bases,
    st.sampled_from(
        [[2, 1, 1], [1, 2, 1], [1, 1, 3], [[1, 1, 0], [-1, 1, 0], [0, 0, 1]], [[1, 2, 0], [0, 1, 0], [0, 3, 1]]]
    ),
)
def test_supercells_and_other_bases(base, matrix):
    other = base.copy()
    other.make_supercell(matrix)
    assert structure_id(other) == structure_id(base)


@several
@given(bases, st.integers(0, 2**32 - 1))
def test_float_noise(base, seed):
    rng = np.random.default_rng(seed)
    noisy = Structure(
        base.lattice.matrix * (1 + rng.normal(0, 1e-13, (3, 3))),
        base.species,
        base.frac_coords + rng.normal(0, 1e-13, (len(base), 3)),
    )
    assert structure_id(noisy) == structure_id(base)


def test_different_crystals_differ():
    longer = Structure(Lattice.cubic(2.91), BASES[0].species, BASES[0].frac_coords)
    moved = Structure(BASES[0].lattice, BASES[0].species, [[0, 0, 0], [0.5, 0.5, 0.48]])
    other = Structure(BASES[0].lattice, ["Al", "Co"], BASES[0].frac_coords)
    ids = [structure_id(s) for s in [*BASES, longer, moved, other]]
    assert len(set(ids)) == len(ids)


def test_exchange_of_species_in_b2_is_the_same_crystal_and_stoichiometry_counts():
    swapped = Structure(BASES[0].lattice, ["Ni", "Al"], BASES[0].frac_coords)
    assert structure_id(swapped) == structure_id(BASES[0])
    assert canonical_form(BASES[1])["species"] == [78]


def test_packaged_alloys_have_distinct_ids_and_survive_json():
    from inv_design.datasets.mp_binaries import load_alloys

    entries = load_alloys()[:150]
    ids = [structure_id(e.structure) for e in entries]
    assert len(set(ids)) == len(ids)
    again = [structure_id(Structure.from_dict(e.structure.as_dict())) for e in entries[:40]]
    assert again == ids[:40]


def test_form_of_the_id():
    assert structure_id(BASES[0]).startswith("s-")
    assert len(structure_id(BASES[0])) == 22


@pytest.mark.parametrize(
    "bad",
    [
        Structure(Lattice.cubic(3), [{"Al": 0.5, "Ni": 0.5}], [[0, 0, 0]]),
        Structure(Lattice.from_parameters(3, 3, 3, 60, 60, 119.99999999), ["Al"], [[0, 0, 0]]),
    ],
)
def test_refused(bad):
    with pytest.raises(ValueError, match=r"partially occupied|degenerate"):
        structure_id(bad)


def test_a_cell_beyond_all_lengths_is_degenerate():
    with pytest.raises(ValueError, match="degenerate cell"):
        structure_id(Structure(Lattice.cubic(1e153), ["Al", "Ni"], [[0, 0, 0], [0.5, 0.5, 0.5]]))
