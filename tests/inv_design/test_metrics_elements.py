"""Element shares, enrichment, warnings and costs: counted by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inv_design.metrics.elements import (
    atom_shares,
    bias_warnings,
    composition_cost,
    enrichment,
    stage_shares,
    warning_lines,
)

formulas = st.lists(
    st.dictionaries(st.sampled_from(["Re", "W", "Pt", "Al"]), st.integers(1, 9), min_size=1), min_size=1
)


def test_shares_are_of_atoms_and_a_large_cell_counts_once():
    assert atom_shares([{"Re": 1, "W": 1}, {"Re": 24, "Al": 8}]) == pytest.approx({"Re": 0.625, "W": 0.25, "Al": 0.125})
    assert atom_shares([]) == {}


@given(formulas)
def test_shares_sum_to_one(crystals):
    shares = atom_shares(crystals)
    assert sum(shares.values()) == pytest.approx(1)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)


@given(formulas)
def test_a_set_is_not_enriched_against_itself(crystals):
    shares = atom_shares(crystals)
    ratios = enrichment(shares, shares, n=len(crystals), n_background=len(crystals))
    assert ratios == pytest.approx(dict.fromkeys(shares, 1.0))


def test_enrichment_of_an_element_that_the_training_set_lacks_is_finite():
    ratios = enrichment({"Pt": 0.5, "W": 0.5}, {"W": 0.5, "Al": 0.5}, n=100, n_background=1000)
    assert ratios["W"] == pytest.approx(1.0, abs=0.01)
    assert 100 < ratios["Pt"] < 10_000
    few = enrichment({"Pt": 0.5, "W": 0.5}, {"W": 0.5, "Al": 0.5}, n=1, n_background=1000)
    assert few["Pt"] < ratios["Pt"]  # one crystal says less than a hundred
    assert enrichment({}, {}, n=0, n_background=0) == {}


def test_warnings_name_element_share_and_ratio_and_only_where_there_are_enough():
    background = [{"Re": 1, "W": 1, "Al": 5, "Ni": 13}] * 100
    picked = [{"Re": 1, "W": 3}] * 6 + [{"Al": 1, "Ni": 1}] * 4
    stages = stage_shares({"generated": background, "predictor": picked, "mlip": picked[:3], "dft": []}, background)
    assert list(stages) == ["training_set", "generated", "predictor", "mlip"]
    assert stages["predictor"]["shares"]["W"] == pytest.approx(0.45)
    warnings = bias_warnings(stages)
    # Ni is 65 % of what was generated, as of what the generator learned from: said all the same
    assert {(w["stage"], w["element"]) for w in warnings} == {("generated", "Ni"), ("predictor", "W")}
    (tungsten,) = [w for w in warnings if w["element"] == "W"]
    assert (
        tungsten["message"]
        == "W is 45 % of the atoms and 8.6 times its share in the training set (passed stage I, n = 10)"
    )


def test_cost_by_atoms_and_by_mass():
    assert composition_cost({"Re": 1, "Mo": 1}, {"Re": 10.0}) == 5.0
    by_mass = composition_cost({"Re": 1, "Al": 1}, {"Re": 10.0, "Al": 1.0}, by="mass")
    assert by_mass == pytest.approx((10 * 186.207 + 26.982) / (186.207 + 26.982), rel=1e-4)
    assert composition_cost({"W": 2}, {}) == 0.0


def test_one_line_per_element():
    found = [
        {"element": "Re", "message": "Re a"},
        {"element": "W", "message": "W b"},
        {"element": "Re", "message": "c"},
    ]
    assert warning_lines(found) == ["Re a; also in 1 other stage", "W b"]
    assert warning_lines([]) == []
