"""The metrics of CDVAE, MatterGen and matbench-genmetrics on cases whose answer is known by hand."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Composition, DummySpecies, Lattice, Structure

from inv_design.metrics.cdvae import cdvae_metrics
from inv_design.metrics.coverage import coverage, diversity, fingerprints, nearest_distances
from inv_design.metrics.distribution import densities, element_counts, space_group, wasserstein
from inv_design.metrics.fingerprint import average_minimum_distances, composition_profile
from inv_design.metrics.generation import generation_metrics
from inv_design.metrics.genmetrics import genmetrics
from inv_design.metrics.mattergen import mattergen_metrics
from inv_design.metrics.stability import Hull, energies_above_hull, relaxation_rmsd, relaxation_rmsds

if TYPE_CHECKING:
    from pathlib import Path


def b2(a: str, b: str, length: float = 3.0) -> Structure:
    return Structure(Lattice.cubic(length), [a, b], [[0, 0, 0], [0.5] * 3])


def group(symbol: str, lattice: Lattice, element: str = "Re") -> Structure:
    return Structure.from_spacegroup(symbol, lattice, [element], [[0, 0, 0]])


FCC = group("Fm-3m", Lattice.cubic(3.9))
BCC = group("Im-3m", Lattice.cubic(3.1))
HCP = Structure(
    Lattice.hexagonal(2.76, 2.76 * math.sqrt(8 / 3)), ["Re"] * 2, [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]]
)
SIMPLE = Structure(Lattice.cubic(2.5), ["Re"], [[0, 0, 0]])


# -- fingerprints ------------------------------------------------------------------------------------------------------


def test_average_minimum_distances_of_simple_packings():
    simple = average_minimum_distances(SIMPLE)
    assert simple[:6] == pytest.approx([1.0] * 6)
    assert simple[6:18] == pytest.approx([math.sqrt(2)] * 12)
    assert simple[18:26] == pytest.approx([math.sqrt(3)] * 8)
    edge = 4 ** (1 / 3)  # of a cube with four sites of unit volume
    fcc = average_minimum_distances(FCC)
    assert fcc[:12] == pytest.approx([edge / math.sqrt(2)] * 12)
    assert fcc[12:18] == pytest.approx([edge] * 6)
    assert len(fcc) == 100


def test_the_cutoff_is_half_the_distance_of_hcp_from_fcc():
    cells = fingerprints([FCC, HCP, BCC, SIMPLE]).structure
    distance = np.linalg.norm(cells[:, None] - cells[None], axis=-1)
    nearest = distance[np.triu_indices(4, 1)].min()
    assert nearest == distance[0, 1]
    assert nearest / 2 == pytest.approx(0.05, abs=0.005)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.5, 2), st.sampled_from([[2, 1, 1], [[1, 1, 0], [0, 1, 0], [0, 0, 1]]]), st.integers(0, 99))
def test_fingerprints_do_not_depend_on_the_description(scale, supercell, seed):
    rng = np.random.default_rng(seed)
    cell = Lattice.from_parameters(*rng.uniform(3, 5, 3), *rng.uniform(70, 110, 3))
    crystal = Structure(cell, ["Re", "W", "W"], rng.random((3, 3)))
    other = Structure(cell.matrix * scale, crystal.species, crystal.frac_coords + rng.random(3))
    other.make_supercell(supercell)
    assert average_minimum_distances(other) == pytest.approx(average_minimum_distances(crystal), abs=1e-6)
    assert composition_profile(other) == pytest.approx(composition_profile(crystal))


def test_composition_distance_is_the_way_through_mendeleev_numbers():
    numbers = {s: int(Composition(s).elements[0].mendeleev_no) for s in ("Re", "W", "Os")}
    pure, half = composition_profile(b2("Re", "Re")), composition_profile(b2("Re", "W"))
    assert np.abs(pure - half).sum() == pytest.approx(abs(numbers["Re"] - numbers["W"]) / 2)
    other = composition_profile(b2("Os", "Os"))
    assert np.abs(pure - other).sum() == pytest.approx(abs(numbers["Re"] - numbers["Os"]))


# -- coverage ----------------------------------------------------------------------------------------------------------


def test_coverage_by_hand():
    generated = fingerprints([FCC, FCC, SIMPLE])
    reference = fingerprints([FCC, group("Fm-3m", Lattice.cubic(4.2)), BCC, b2("F", "Cl")])
    record = coverage(generated, reference)
    assert record["coverage_recall"] == {"count": 2, "total": 4, "fraction": 0.5}
    assert record["coverage_precision"] == {"count": 2, "total": 3, "fraction": pytest.approx(2 / 3)}
    assert record["amcd_precision"] == 0.0
    cells, other = generated.structure, reference.structure
    bcc = np.linalg.norm(other[2] - cells, axis=1).min()
    assert record["amsd_recall"] == pytest.approx(2 * bcc / 4)  # B2 is bcc to a fingerprint without species
    assert record["amsd_precision"] == pytest.approx(np.linalg.norm(other - cells[2], axis=1).min() / 3)


def test_a_set_covers_itself_and_nothing_covers_nothing():
    both = fingerprints([FCC, BCC, b2("Re", "W")])
    record = coverage(both, both)
    assert record["coverage_recall"]["fraction"] == record["coverage_precision"]["fraction"] == 1.0
    assert record["amsd_recall"] == record["amcd_recall"] == 0.0
    none = coverage(fingerprints([]), both)
    assert none["coverage_recall"] == {"count": 0, "total": 3, "fraction": 0.0}
    assert none["coverage_precision"]["fraction"] is None
    assert none["amsd_recall"] is None


def test_crystals_without_fingerprint_count_in_precision():
    broken = Structure(Lattice.cubic(3), ["Re"], [[np.nan, 0, 0]])
    generated = fingerprints([FCC, broken])
    assert list(generated.errors) == [1]
    assert coverage(generated, fingerprints([FCC]))["coverage_precision"] == {"count": 1, "total": 2, "fraction": 0.5}


@given(st.integers(0, 50), st.integers(0, 30), st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_nearest_distances_are_those_of_all_pairs(n, m, seed):
    rng = np.random.default_rng(seed)
    first, second = rng.random((n * 12, 3)), rng.random((m, 3))
    there, back = nearest_distances(first, second, "cityblock")
    table = np.abs(first[:, None] - second[None]).sum(-1)
    assert there == pytest.approx(table.min(axis=1) if m else np.full(n * 12, np.inf))
    assert back == pytest.approx(table.min(axis=0) if n else np.full(m, np.inf))


def test_diversity_by_hand():
    both = fingerprints([FCC, BCC])
    assert diversity(both)["structure_diversity"] == pytest.approx(np.linalg.norm(np.subtract(*both.structure)))
    assert diversity(both)["composition_diversity"] == 0.0
    assert diversity(fingerprints([FCC])) == {"structure_diversity": None, "composition_diversity": None}


# -- distributions -----------------------------------------------------------------------------------------------------


def test_wasserstein_by_hand():
    assert wasserstein([1, 2, 3], [2, 3, 4]) == pytest.approx(1.0)
    assert wasserstein([1, 3], [1], [1, 3], None) == pytest.approx(1.5)
    assert wasserstein([], [1]) is None


def test_densities_and_numbers_of_elements():
    from pymatgen.core import Element

    [density] = densities([SIMPLE])
    assert density == pytest.approx(float(Element("Re").atomic_mass) * 1.66053907 / 2.5**3)
    assert element_counts([SIMPLE, b2("Re", "W"), Structure(Lattice.cubic(3), [], [])]) == [1, 2]
    assert [space_group(s) for s in (FCC, BCC, HCP, b2("Re", "W"))] == [225, 229, 194, 221]


def test_cdvae_by_hand():
    close = Structure(Lattice.cubic(3), ["Re", "W"], [[0, 0, 0], [0.1, 0, 0]])
    generated, held_out = [FCC, close], [FCC, b2("Re", "W")]
    record = cdvae_metrics(generated, generation_metrics(generated), held_out)
    assert record["valid"] == {"count": 1, "total": 2, "fraction": 0.5}
    known = densities(held_out)
    assert record["wasserstein_density"] == pytest.approx(abs(known[0] - known[1]) / 2)
    assert record["wasserstein_elements"] == pytest.approx(0.5)
    assert record["without_fingerprint"] == {"generated": 0, "reference": 0}
    assert "not comparable" in record["fingerprints"]
    assert "coverage_recall" not in cdvae_metrics(generated, generation_metrics(generated))


# -- the hull ----------------------------------------------------------------------------------------------------------


def hull() -> Hull:
    """Return a hull of Al-Ni with one compound at the middle, 0.4 eV/atom below the elements."""
    return Hull(
        [(Composition("Al"), -3.0), (Composition("Ni"), -5.0), (Composition("AlNi"), -4.4), (Composition("Re"), -12)]
    )


@pytest.mark.parametrize(
    ("formula", "energy", "above"),
    [
        ("AlNi", -4.4, 0.0),
        ("AlNi", -4.3, 0.1),
        ("Al2Ni2", -4.5, -0.1),
        ("Al", -2.8, 0.2),
        ("AlNi3", -4.7, 0.0),  # half way from AlNi to Ni: (-4.4 - 5.0) / 2
        ("Al3Ni", -3.5, 0.2),  # (-4.4 - 3.0) / 2 = -3.7
        ("AlRe", -7.5, 0.0),
    ],
)
def test_energy_above_hull_by_hand(formula, energy, above):
    assert hull().e_above_hull(Composition(formula), energy) == pytest.approx(above, abs=1e-9)


def test_missing_elements_and_energies_are_named():
    with pytest.raises(ValueError, match="no phase of the pure element Os, W"):
        hull().e_above_hull(Composition("AlOsW"), -1.0)
    values, errors = energies_above_hull([b2("Al", "Ni"), b2("Al", "W"), b2("Al", "Ni")], [-4.4, -1.0, None], hull())
    assert values == [pytest.approx(0.0, abs=1e-9), None, None]
    assert list(errors) == [1, 2]
    assert "has no energy" in errors[2]


def test_hull_files(tmp_path: Path):
    import gzip

    simple = [
        {"composition": "Al", "energy_per_atom": -3},
        {"composition": {"Ni": 2}, "energy": -9.0, "correction": -1.0},
    ]
    (tmp_path / "hull.json").write_text(json.dumps(simple))
    (tmp_path / "hull.json.gz").write_bytes(gzip.compress(json.dumps({"entries": simple}).encode()))
    for name in ("hull.json", "hull.json.gz"):
        read = Hull.from_file(tmp_path / name)
        assert read.e_above_hull(Composition("AlNi"), -4.0) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no json", "is not JSON"),
        ("[]", "holds no list of entries"),
        ('{"a": 1}', "holds no list of entries"),
        ('[{"composition": "Al"}]', "entry 0 is no phase"),
        ('[{"composition": "Xx", "energy_per_atom": 1}]', "entry 0 is no phase"),
        ('[{"composition": "Al", "energy_per_atom": NaN}]', "entry 0 is no phase"),
        ("[3]", "entry 0 is no phase"),
    ],
)
def test_hull_files_that_are_none_say_the_cure(tmp_path: Path, text, says):
    path = tmp_path / "hull.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=says) as error:
        Hull.from_file(path)
    assert "energy_per_atom" in str(error.value)
    assert "\n" not in str(error.value)


# -- relaxation --------------------------------------------------------------------------------------------------------


def test_rmsd_of_a_relaxation_by_hand():
    initial = Structure(Lattice.cubic(4), ["Al", "Ni"], [[0, 0, 0], [0.5] * 3])
    moved = Structure(Lattice.cubic(4), ["Al", "Ni"], [[0, 0, 0], [0.55, 0.5, 0.5]])
    # 0.2 Å between the two; about their centre each moves by 0.1 Å
    assert relaxation_rmsd(initial, moved) == (pytest.approx(0.1), True)
    assert relaxation_rmsd(initial, initial) == (pytest.approx(0.0, abs=1e-9), True)
    far = Structure(Lattice.orthorhombic(2, 4, 8), ["Al", "Ni"], [[0, 0, 0], [0.5, 0.5, 0.1]])
    assert relaxation_rmsd(initial, far) == (pytest.approx(0.5 * 32 ** (1 / 3)), False)


def test_mean_rmsd_leaves_out_what_is_missing():
    initial = Structure(Lattice.cubic(4), ["Al", "Ni"], [[0, 0, 0], [0.5] * 3])
    moved = Structure(Lattice.cubic(4), ["Al", "Ni"], [[0, 0, 0], [0.55, 0.5, 0.5]])
    broken = Structure(Lattice.cubic(4), ["Al", "Ni"], [[0, 0, 0], [np.nan, 0, 0]])
    record = relaxation_rmsds([initial] * 4, [moved, initial, None, broken])
    assert record == {"mean": pytest.approx(0.05), "n": 2, "unmatched": 0, "missing": 2}
    assert relaxation_rmsds([], [])["mean"] is None


# -- MatterGen ---------------------------------------------------------------------------------------------------------


def test_sun_by_hand():
    generated = [b2("Al", "Ni"), b2("Al", "Ni", 3.1), b2("Al", "Co"), b2("Al", "Fe"), b2("Al", "Ru"), b2("Al", "Rh")]
    metrics = generation_metrics(generated, reference=[b2("Al", "Co", 2.9)])
    #        new       copy  known     stable  strict  unknown
    above = [0.1, -0.2, 0.0, 0.1000001, -0.01, None]
    record = mattergen_metrics(metrics, e_above_hull=above, failed=2)
    assert record["unique"] == {"count": 5, "total": 8, "fraction": 5 / 8}
    assert record["novel"] == {"count": 5, "total": 8, "fraction": 5 / 8}
    assert record["novel_unique"]["count"] == 4
    assert record["stable"]["count"] == 4
    assert record["stable_strict"]["count"] == 3
    assert record["sun"] == {"count": 2, "total": 8, "fraction": 0.25}
    assert record["sun_strict"]["count"] == 1
    assert record["without_e_above_hull"] == 1
    assert record["median_e_above_hull"] == 0.0


def test_without_a_reference_or_a_hull_nothing_is_claimed():
    metrics = generation_metrics([b2("Al", "Ni")])
    assert set(mattergen_metrics(metrics)) == {"unique", "threshold"}
    assert "sun" not in mattergen_metrics(metrics, e_above_hull=[0.0])
    assert mattergen_metrics(generation_metrics([]), e_above_hull=[])["stable"]["fraction"] is None


# -- matbench-genmetrics -----------------------------------------------------------------------------------------------


def test_genmetrics_by_hand():
    train, test = [BCC, b2("Re", "W")], [FCC, SIMPLE]
    generated = [FCC, group("Fm-3m", Lattice.cubic(4.0)), BCC, HCP]
    record = genmetrics(generated, train, test)
    assert record["coverage"] == {"count": 2, "total": 2, "fraction": 1.0}
    assert record["novelty"] == {"count": 3, "total": 4, "fraction": 0.75}
    assert record["uniqueness"] == {"count": 10, "total": 12, "fraction": 10 / 12}
    known = [229, 221, 225, 221]
    distance = wasserstein(known, [225, 225, 229, 194])
    assert record["validity_space_group"] == pytest.approx(1 - distance / (sum(known) / 4 - 1))
    rhenium, tungsten = (int(Composition(s).elements[0].mendeleev_no) for s in ("Re", "W"))
    mean = (7 * rhenium + tungsten) / 8
    assert record["validity_elements"] == pytest.approx(1 - abs(mean - rhenium) / (mean - 1))
    assert record["validity"] == pytest.approx((record["validity_space_group"] + record["validity_elements"]) / 2)


def test_genmetrics_of_the_known_crystals_are_perfectly_valid_and_not_novel():
    known = [BCC, FCC, b2("Re", "W")]
    record = genmetrics(known, known)
    assert record["validity"] == pytest.approx(1.0)
    assert record["novelty"]["count"] == 0
    assert "coverage" not in record
    low = Structure(Lattice.from_parameters(3, 4, 5, 80, 85, 95), ["Re", "W"], [[0, 0, 0], [0.4, 0.3, 0.35]])
    assert genmetrics(known, [low])["validity"] is None  # the dummy cannot be told from P1


# -- strange crystals --------------------------------------------------------------------------------------------------


def strange_crystals() -> st.SearchStrategy[Structure]:
    """Return crystals with NaN, atoms on top of each other, no volume, no atoms, unknown or partial species."""
    coordinate = st.one_of(st.floats(-2, 2), st.sampled_from([math.nan, math.inf, 0.0, 1e9]))
    edge = st.one_of(st.floats(2, 6), st.sampled_from([1e-6, 1e-3, 1e4]))
    specie = st.sampled_from(["Re", "W", "O", "Lr", {"Re": 0.5, "W": 0.5}, {"Re": 0.3}, DummySpecies("X")])

    @st.composite
    def build(draw: st.DrawFn) -> Structure:
        n = draw(st.integers(0, 4))
        angles = draw(st.tuples(*[st.sampled_from([90, 60, 120, 30, 1])] * 3))
        lattice = Lattice.from_parameters(*draw(st.tuples(edge, edge, edge)), *angles)
        species = draw(st.lists(specie, min_size=n, max_size=n))
        coords = draw(st.lists(st.tuples(*[coordinate] * 3), min_size=n, max_size=n))
        return Structure(lattice, species, np.array(coords, float).reshape(n, 3), to_unit_cell=False)

    return build()


@settings(max_examples=20, deadline=None)
@given(st.lists(strange_crystals(), max_size=5), st.lists(st.one_of(st.none(), st.floats()), min_size=5, max_size=5))
def test_strange_crystals_never_stop_any_suite(strange, energies):
    crystals = [*strange, FCC, group("Fm-3m", Lattice.cubic(4.0))]
    reference = [*strange, BCC]
    metrics = generation_metrics(crystals, reference=reference)
    record = metrics.record()
    assert record["n"] == len(crystals)
    cdvae = cdvae_metrics(crystals, metrics, reference)
    assert cdvae["coverage_precision"]["total"] == len(crystals)
    above, _ = energies_above_hull(crystals, [*energies[: len(strange)], -12.0, -11.5], hull())
    assert above[-2:] == [pytest.approx(0.0, abs=1e-9), pytest.approx(0.5)]
    mattergen = mattergen_metrics(metrics, e_above_hull=above, rmsd=relaxation_rmsds(crystals, crystals[::-1]))
    assert mattergen["stable"]["count"] >= 1
    known = genmetrics(crystals, reference, reference)
    assert known["uniqueness"]["total"] == len(crystals) * (len(crystals) - 1)
    assert known["uniqueness"]["count"] <= known["uniqueness"]["total"] - 2  # the two fcc crystals
    json.dumps([record, cdvae, mattergen, known], allow_nan=False)
