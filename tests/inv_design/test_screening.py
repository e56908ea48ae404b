"""The stage rules: each alone, all reasons together, and what waits or failed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from inv_design.config import DftConfig, MlipConfig, PredictorConfig
from inv_design.screening.dft import screen_dft
from inv_design.screening.mlip import screen_mlip
from inv_design.screening.predictor import screen_predictor
from inv_design.screening.priority import priority, rank
from inv_design.screening.target import relative_error, target_reasons

TARGETS = {"bulk_modulus_vrh": 350.0}
RERU = Structure(Lattice.hexagonal(2.74, 4.37), ["Re", "Ru"], [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]])


def predicted(value: float | None, **more: object) -> list[dict[str, object]]:
    return [{"property": "bulk_modulus_vrh", "value": value, "std": 10.0, "unit": "GPa", **more}]


def stage1(structure=RERU, predictions=None, **options):
    options = {"targets": TARGETS, "config": PredictorConfig(), **options}
    return screen_predictor(structure, predicted(340.0) if predictions is None else predictions, **options)


def rules(verdict) -> list[str]:
    return [reason.rule for reason in verdict.reasons]


def test_predictor_passes_and_waits():
    assert stage1().status == "passed"
    assert stage1().headline is None
    assert stage1(predictions=[]).status == "waiting"


@pytest.mark.parametrize(
    ("value", "status"), [(245.01, "passed"), (454.99, "passed"), (244.9, "rejected"), (455.1, "rejected")]
)
def test_predictor_tolerance_is_thirty_percent(value, status):
    assert stage1(predictions=predicted(value)).status == status


def test_predictor_records_every_reason_cheapest_first():
    bad = Structure(Lattice.cubic(0.45), ["Tc"], [[0, 0, 0]])
    verdict = stage1(bad, predicted(100.0), exclude=["Tc", "Os"], duplicate_of="c-1")
    assert rules(verdict) == [
        "elements", "excluded_elements", "cell", "duplicate", "target",
    ]  # fmt: skip
    assert verdict.status == "rejected"
    assert verdict.headline == verdict.reasons[0].message
    assert all(record["stage"] == "predictor" for record in verdict.records())
    close = Structure(Lattice.cubic(2.0), ["Re", "Ru"], [[0, 0, 0], [0.2, 0, 0]])
    assert rules(stage1(close)) == ["min_distance", "min_radius_ratio"]


def test_predictor_failed_prediction():
    verdict = stage1(predictions=predicted(None, error="graph has no edges"))
    assert verdict.status == "failed"
    assert "graph has no edges" in verdict.headline
    assert stage1(predictions=predicted(math.nan)).status == "failed"
    assert stage1(predictions=predicted(None, error="x"), duplicate_of="c-9").status == "rejected"


def test_predictor_checks_every_target_it_has_a_value_for():
    targets = {"bulk_modulus_vrh": 350.0, "density": 5.0, "shear_modulus_vrh": 200.0, "e_above_hull": 0.1}
    verdict = stage1(targets=targets)
    assert [r.message.split()[0] for r in verdict.reasons] == ["density"]
    more = [*predicted(340.0), {"property": "shear_modulus_vrh", "value": 90.0}]
    names = [r.message.split()[0] for r in stage1(predictions=more, targets=targets).reasons]
    assert names == ["density", "shear_modulus_vrh"]


def test_predictor_never_raises_on_a_strange_cell():
    nan = RERU.copy()
    nan[0] = "Re", [np.nan] * 3
    for structure in (nan, Structure(Lattice.cubic(1e-4), ["Re", "Ru"], [[0, 0, 0], [0.5] * 3])):
        assert stage1(structure).status == "rejected"


def elastic(**changes) -> dict[str, object]:
    results = {
        "bulk_modulus_vrh": 360.0, "shear_modulus_vrh": 210.0, "born_stable": True, "eigenvalues": [100.0, 900.0],
        "relaxed": True, "structure_matched": True, "rms": 0.01, "volume_change": 0.02,
    }  # fmt: skip
    return {"state": "completed", "results": {**results, **changes}, "flags": []}


def stage2(calculation, **options):
    return screen_mlip(calculation, **{"targets": TARGETS, "config": MlipConfig(), **options})


def test_mlip_passes_waits_fails():
    assert stage2(elastic()).status == "passed"
    assert stage2(None).status == "waiting"
    verdict = stage2({"state": "failed", "error": "relaxation: exploded", "results": {}})
    assert verdict.status == "failed"
    assert "exploded" in verdict.headline


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"relaxed": False}, "relaxation"),
        ({"structure_matched": False}, "keep_structure"),
        ({"born_stable": False, "eigenvalues": [-5.0, 10.0]}, "born_stable"),
        ({"bulk_modulus_vrh": 279.0}, "target"),
        ({"bulk_modulus_vrh": 421.0}, "target"),
        ({"bulk_modulus_vrh": None}, "target"),
    ],
)
def test_mlip_rejects(change, rule):
    verdict = stage2(elastic(**change))
    assert verdict.status == "rejected"
    assert rules(verdict) == [rule]


def test_mlip_all_reasons_and_born_switch():
    change = {"relaxed": False, "structure_matched": False, "born_stable": False, "bulk_modulus_vrh": 10.0}
    assert rules(stage2(elastic(**change))) == ["relaxation", "keep_structure", "born_stable", "target"]
    assert stage2(elastic(born_stable=False), config=MlipConfig(born_stable=False)).status == "passed"
    assert rules(stage2(elastic(), targets={**TARGETS, "shear_modulus_vrh": 100.0})) == ["target"]


def test_quality_flags():
    def flagged(*flags):
        return {**elastic(), "flags": list(flags)}

    assert rules(stage2(flagged("symmetry_residual", "eos_residual"))) == ["quality", "quality"]
    assert stage2(flagged("shear_modulus_out_of_bounds")).status == "passed"


def test_every_distrusted_flag_is_one_that_the_mechanics_raise():
    import inspect

    from inv_design.mechanics import flags, stages
    from inv_design.screening.quality import DISTRUSTED

    raised = inspect.getsource(flags) + inspect.getsource(stages)
    assert [flag for flag in DISTRUSTED if not flag.startswith("non_finite:") and f'"{flag}"' not in raised] == []


def test_dft_hit_and_miss():
    label = {"state": "completed", "results": {"bulk_modulus_vrh": 330.0}, "flags": []}

    def screen(calculation):
        return screen_dft(calculation, targets=TARGETS, config=DftConfig())

    assert screen(label).status == "passed"
    assert screen(None).status == "waiting"
    assert screen({"state": "failed", "error": "SCF"}).status == "failed"
    assert screen({**label, "results": {"bulk_modulus_vrh": 200.0}}).status == "rejected"
    assert screen({**label, "results": {}}).status == "rejected"


def test_e_above_hull_is_an_upper_bound():
    assert target_reasons({"e_above_hull": -0.2}, {"e_above_hull": 0.0}, tolerance=0.1) == []
    (reason,) = target_reasons({"e_above_hull": 0.2}, {"e_above_hull": 0.1}, tolerance=0.1)
    assert "above" in reason.message


def test_priority_orders_by_mlip_then_std():
    candidates = [
        {"candidate_id": "far", "value": 300.0, "std": 1.0},
        {"candidate_id": "near-unsure", "value": 349.0, "std": 50.0},
        {"candidate_id": "near-sure", "value": 351.0, "std": 5.0},
        {"candidate_id": "none", "value": None, "std": None},
        {"candidate_id": "near-sure-2", "value": 351.0, "std": 5.0},
    ]
    order = [c["candidate_id"] for c in rank(candidates, target=350.0)]
    assert order == ["near-sure", "near-sure-2", "near-unsure", "far", "none"]


@given(st.floats(1, 600), st.floats(1, 600), st.floats(0.05, 0.5))
def test_the_tolerance_is_the_relative_error(value, target, tolerance):
    reasons = target_reasons({"bulk_modulus_vrh": value}, {"bulk_modulus_vrh": target}, tolerance=tolerance)
    assert bool(reasons) == (relative_error(value, target) > tolerance)


@given(st.floats(1, 600), st.floats(1, 600))
def test_priority_is_monotonic_in_the_error(a, b):
    nearer, farther = sorted((a, b), key=lambda v: abs(v - 350))
    assert priority(value=nearer, std=10.0, target=350.0) >= priority(value=farther, std=10.0, target=350.0)


def test_stage_one_judges_by_probability_where_the_campaign_says_so():
    config = PredictorConfig(acquisition="target_probability", min_probability=0.05)
    vague = [{"property": "bulk_modulus_vrh", "value": 210.0, "std": 60.0}]
    assert rules(stage1(predictions=vague)) == ["target"]
    assert stage1(predictions=vague, config=config).status == "passed"
    assert rules(stage1(predictions=vague, config=config, hit_tolerance=0.02)) == ["target_probability"]
    assert stage1(predictions=[], config=config).status == "waiting"
    assert rules(stage1(predictions=predicted(340.0), config=config, targets={**TARGETS, "density": 5.0})) == ["target"]
