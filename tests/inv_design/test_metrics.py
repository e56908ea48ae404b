"""Metrics against values computed by hand, and inputs that must not stop them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from inv_design.metrics.campaign import element_enrichment, element_shares, funnel, hit_rate, target_errors
from inv_design.metrics.generation import (
    generation_metrics,
    is_valid_composition,
    is_valid_structure,
    target_error,
)
from inv_design.metrics.pareto import pareto_front, pareto_ranks
from inv_design.metrics.prediction import coverage, mae_log10, prediction_metrics

B2 = Structure(Lattice.cubic(2.9), ["Al", "Ni"], [[0, 0, 0], [0.5, 0.5, 0.5]])
ROCKSALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def scaled(structure: Structure, factor: float) -> Structure:
    return Structure(structure.lattice.matrix * factor, structure.species, structure.frac_coords)


def strange() -> list[Structure]:
    nan = B2.copy()
    nan[0] = "Al", [np.nan, 0, 0]
    return [
        nan,
        Structure(Lattice.cubic(3), [{"Al": 0.5, "Ni": 0.5}], [[0, 0, 0]]),
        Structure(Lattice.cubic(1e-3), ["Al", "Ni"], [[0, 0, 0], [0.5] * 3]),
        Structure(Lattice.cubic(3), [], []),
        Structure(Lattice.cubic(3), ["Al", "Al"], [[0, 0, 0], [0, 0, 0]]),
        Structure(Lattice.orthorhombic(0.05, 0.05, 900), ["Al", "Ni"], [[0, 0, 0], [0.5] * 3]),
        Structure(Lattice.cubic(4), ["X0+", "Ni"], [[0, 0, 0], [0.5] * 3]),
    ]


# -- generation ------------------------------------------------------------------------------------------------------


def test_generation_metrics_by_hand():
    other = Structure(Lattice.cubic(3.0), ["Al", "Co"], [[0, 0, 0], [0.5] * 3])
    close = Structure(Lattice.cubic(3.0), ["Al", "Fe"], [[0, 0, 0], [0.1, 0, 0]])
    generated = [B2, scaled(B2, 1.1), other, close]
    metrics = generation_metrics(
        generated, reference=[ROCKSALT, scaled(B2, 0.9)], values=[300, None, 420, 350], target=350
    )
    assert metrics.duplicate_of == [None, 0, None, None]
    assert metrics.known_as == [1, 1, None, None]
    record = metrics.record()
    assert record["valid_structure"] == {"count": 3, "total": 4, "fraction": 0.75}
    assert record["unique"] == {"count": 3, "total": 4, "fraction": 0.75}
    assert record["novel"] == {"count": 2, "total": 4, "fraction": 0.5}
    assert record["valid_unique_novel"]["count"] == 1
    assert record["target"]["mape"] == pytest.approx((50 / 350 + 70 / 350 + 0) / 3)
    assert record["target"]["within_20"]["count"] == 3
    assert record["target"]["missing"] == 1
    assert record["tolerances"] == {"ltol": 0.2, "stol": 0.3, "angle_tol": 5.0}


def test_novelty_needs_a_reference_and_nothing_is_a_fraction_of_nothing():
    assert "novel" not in generation_metrics([B2]).record()
    empty = generation_metrics([], reference=[B2]).record()
    assert empty["unique"] == {"count": 0, "total": 0, "fraction": None}


def test_strange_crystals_never_stop_it():
    crystals = [*strange(), B2]
    metrics = generation_metrics(crystals, reference=[*strange(), scaled(B2, 1.05)])
    assert metrics.structural == [False] * 7 + [True] or metrics.structural[-1]
    assert not any(metrics.structural[:5])
    assert metrics.known_as[-1] == len(strange())
    assert metrics.record()["n"] == 8
    assert metrics.record()["not_judged"] >= 4


@pytest.mark.parametrize(
    ("formula", "valid"),
    [("NaCl", True), ("AlNi", True), ("Re", True), ("TiO2", True), ("NaCl2", False), ("Al2O3", True), ("NaF3", False)],
)
def test_composition_validity(formula, valid):
    from pymatgen.core import Composition

    species = [str(e) for e, n in Composition(formula).get_el_amt_dict().items() for _ in range(int(n))]
    structure = Structure(Lattice.cubic(9), species, [[i / len(species)] * 3 for i in range(len(species))])
    assert is_valid_composition(structure) is valid


def test_structure_validity_is_cdvaes():
    def pair(distance: float) -> Structure:
        return Structure(Lattice.cubic(5), ["Al", "Ni"], [[0, 0, 0], [distance / 5, 0, 0]])

    assert not is_valid_structure(pair(0.49))
    assert is_valid_structure(pair(0.51))


def test_packaged_alloys_are_valid_and_nearly_all_unique():
    from inv_design.datasets.mp_binaries import load_alloys

    structures = [e.structure for e in load_alloys()[:80]]
    record = generation_metrics(structures, reference=structures).record()
    assert record["valid"]["fraction"] == 1.0
    assert record["novel"]["count"] == 0
    assert record["unique"]["fraction"] > 0.9


def test_target_error_is_the_papers_mape():
    result = target_error([343.54, 356.52, math.nan, None], 350.0)
    assert result["mape"] == pytest.approx((6.46 + 6.52) / 2 / 350)
    assert result["n"] == 2
    assert target_error([], 350.0)["mape"] is None
    with pytest.raises(ValueError, match="not positive"):
        target_error([1.0], 0.0)


# -- prediction ------------------------------------------------------------------------------------------------------


def test_prediction_metrics_by_hand():
    result = prediction_metrics([100.0, 200.0, 300.0, math.nan], [110.0, 180.0, 300.0, 5.0], [5.0, 30.0, 1.0, 1.0])
    assert result["n"] == 3
    assert result["n_left_out"] == 1
    assert result["mae"] == pytest.approx(10.0)
    assert result["rmse"] == pytest.approx(math.sqrt(500 / 3))
    assert result["bias"] == pytest.approx(-10 / 3)
    assert result["mape"] == pytest.approx((0.1 + 0.1 + 0) / 3)
    assert result["mae_log10"] == pytest.approx((math.log10(1.1) - math.log10(0.9)) / 3)
    assert result["coverage_1s"] == pytest.approx(2 / 3)
    assert result["coverage_2s"] == 1.0
    with pytest.raises(ValueError, match="equal length"):
        prediction_metrics([1.0], [1.0, 2.0])
    assert prediction_metrics([math.nan], [1.0]) == {"n": 0, "n_left_out": 1}


def test_honest_gaussian_uncertainty_covers_68_percent():
    rng = np.random.default_rng(0)
    std = rng.uniform(1, 20, 4000)
    assert coverage(np.zeros(4000), rng.normal(0, std), std) == pytest.approx(0.683, abs=0.02)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(1, 1e4), st.floats(1, 1e4)), min_size=1, max_size=30), st.floats(0.1, 10))
def test_mae_log10_does_not_depend_on_the_unit(pairs, factor):
    true, predicted = np.array(pairs).T
    assert mae_log10(true * factor, predicted * factor) == pytest.approx(mae_log10(true, predicted), abs=1e-9)


# -- Pareto ------------------------------------------------------------------------------------------------------------


def dominated(points: np.ndarray, i: int) -> bool:
    return any((p <= points[i]).all() and (p < points[i]).any() for p in points)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 6)] * 3), max_size=25))
def test_pareto_front_is_that_of_all_pairs(points):
    table = np.array(points, float).reshape(-1, 3)
    assert pareto_front(points) == [i for i in range(len(table)) if not dominated(table, i)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 3)), max_size=25))
def test_each_rank_is_the_front_of_what_the_ranks_before_it_leave(points):
    left, rank = list(range(len(points))), 0
    ranks = pareto_ranks(points)
    while left:
        front = {left[i] for i in pareto_front([points[j] for j in left])}
        assert {i for i in left if ranks[i] == rank} == front
        left = [i for i in left if i not in front]
        rank += 1


def test_pareto_directions_ranks_and_nan():
    points = [[350, 1], [300, 0.5], [360, 2], [math.nan, 0], [290, 3]]
    assert pareto_front(points, maximise=[True, False]) == [0, 1, 2]
    assert pareto_ranks(points, maximise=[True, False]) == [0, 0, 0, -1, 1]
    assert pareto_front([]) == []
    with pytest.raises(ValueError, match="1 directions for 2 columns"):
        pareto_front(points, maximise=[True])


# -- campaign ----------------------------------------------------------------------------------------------------------


def summaries() -> list[dict]:
    def one(stages, reasons=(), hit=None):
        named = [{"stage": s, "rule": r} for s, r in reasons]
        return {"stages": stages, "reasons": named, "hit": hit}

    passed, rejected = {"status": "passed", "value": 340.0}, {"status": "rejected", "value": 100.0}
    hit = {"status": "passed", "value": 385.0, "method": "surrogate"}
    miss = {"status": "rejected", "value": 175.0, "method": "gpaw"}
    return [
        one({"predictor": rejected}, [("predictor", "min_distance"), ("predictor", "target")]),
        one({"predictor": rejected}, [("predictor", "target")]),
        one({"predictor": {"status": "waiting"}}),
        one({"predictor": passed, "mlip": {"status": "failed"}}, [("mlip", "calculation")]),
        one({"predictor": passed, "mlip": passed, "dft": {"status": "waiting"}}),
        one({"predictor": passed, "mlip": passed, "dft": hit}, hit=True),
        one({"predictor": passed, "mlip": passed, "dft": miss}, hit=False),
        {"error": "boom", "status": "failed"},
    ]  # fmt: skip


def test_funnel_by_hand():
    result = funnel(summaries(), budget=2)
    assert {k: result["predictor"][k] for k in ("in", "passed", "rejected", "failed", "waiting")} == {
        "in": 8, "passed": 4, "rejected": 2, "failed": 1, "waiting": 1,
    }  # fmt: skip
    assert result["predictor"]["reasons"] == {"min_distance": 1, "target": 1, "summary": 1}
    assert result["predictor"]["all_reasons"]["target"] == 2
    assert result["mlip"]["reasons"] == {"calculation": 1}
    assert (result["dft"]["in"], result["dft"]["waiting"], result["dft"]["over_budget"]) == (3, 1, 1)
    assert funnel(summaries(), budget=3)["dft"]["over_budget"] == 0
    for stage in result.values():
        assert stage["in"] == stage["passed"] + stage["rejected"] + stage["failed"] + stage["waiting"]


def test_hit_rate_and_target_errors_by_hand():
    assert hit_rate(summaries()) == {
        "hits": 1, "labelled": 2, "generated": 8, "per_label": 0.5, "per_candidate": 1 / 8,
    }  # fmt: skip
    errors = target_errors(summaries(), 350.0)
    assert errors["predictor"]["n"] == 6
    assert errors["predictor"]["mean_relative_error"] == pytest.approx((4 * 10 + 2 * 250) / 6 / 350)
    assert errors["dft"]["mean_relative_error"] == pytest.approx((35 + 175) / 2 / 350)
    assert errors["dft"]["methods"] == {"surrogate": 1, "gpaw": 1}
    assert hit_rate([])["per_label"] is None
    assert target_errors([], 350.0)["mlip"]["mean_relative_error"] is None


def test_elements():
    assert element_shares([["Re", "W"], ["Re", "Ru"], ["Re", "Re"], []]) == {"Re": 0.75, "Ru": 0.25, "W": 0.25}
    result = element_enrichment([["Re", "W"], ["Re", "Ru"]], [["Al", "Re"], ["Al", "Ni"], ["W"], ["W"]])
    assert list(result) == ["Ru", "Re", "W"]
    assert result["Re"]["ratio"] == pytest.approx((2.5 / 3) / (1.5 / 5))
    assert result["Ru"]["background"] == 0.0
    assert result["Ru"]["ratio"] == pytest.approx((1.5 / 3) / (0.5 / 5))
