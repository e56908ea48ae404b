"""From plain summaries to what the report draws: fronts, reliability, windows, element stages."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from inv_design.cli.report_data import (
    LEVELS,
    element_stages,
    held_out_parity,
    hit_window,
    label_parities,
    pareto_points,
    reliabilities,
)
from inv_design.cli.report_provenance import cost_text
from inv_design.config import CampaignConfig
from inv_design.objective import objectives_of
from inv_design.predictors.target import Target
from inv_design.predictors.validation import Validation


def campaign(**changes: Any) -> CampaignConfig:
    return CampaignConfig.model_validate({"name": "x", "targets": {"K": "350 GPa"}, **changes})


def summary(identity: str, *, status: str = "passed", **values: float | None) -> dict[str, Any]:
    names = {"K": "bulk_modulus_vrh", "G": "shear_modulus_vrh"}
    return {
        "candidate_id": identity, "formula": "ReW", "round": 0, "status": status,
        "properties": {names.get(k, k): v for k, v in values.items()},
    }  # fmt: skip


def labelled(
    predicted: float, std: float, label: float, *, number: int = 0, flags: tuple[str, ...] = ()
) -> dict[str, Any]:
    return {
        "round": number,
        "stages": {
            "predictor": {"value": predicted, "std": std},
            "mlip": {"value": predicted},
            "dft": {"value": label, "flags": list(flags)},
        },
    }


def test_the_front_is_of_those_that_are_not_out() -> None:
    objectives = objectives_of({"K": "350 GPa", "density": "min"})
    points = pareto_points(
        [
            summary("near", K=345.0, density=20.0),
            summary("light", K=320.0, density=15.0),
            summary("beaten", K=320.0, density=21.0),
            summary("rejected", status="rejected", K=350.0, density=1.0),
            summary("unknown", K=350.0, density=None),
            {**summary("twin", K=350.0, density=2.0), "duplicate_of": "near"},
            {**summary("label", K=300.0, density=14.0), "hit": True},
        ],
        objectives,
    )
    assert {p.id: (p.state, p.front) for p in points} == {
        "near": ("open", True), "light": ("open", True), "beaten": ("open", False), "rejected": ("out", False),
        "label": ("hit", True),
    }  # fmt: skip
    assert pareto_points([summary("near", K=345.0)], objectives[:1]) == []


def test_reliability_of_honest_and_of_overconfident_predictions() -> None:
    rng = np.random.default_rng(0)
    true = 300 * np.exp(0.1 * rng.standard_normal(4000))
    honest = [labelled(300.0, 300 * np.sinh(0.1), float(t)) for t in true]
    (curve,) = reliabilities(None, honest)
    assert (curve.title, curve.n) == ("labelled candidates", 4000)
    assert curve.nominal == list(LEVELS)
    assert curve.observed == pytest.approx(LEVELS, abs=0.03)
    (proud,) = reliabilities(None, [labelled(300.0, 300 * np.sinh(0.03), float(t)) for t in true])
    assert all(a < b for a, b in zip(proud.observed, LEVELS, strict=True))
    assert reliabilities(None, honest[:3]) == []
    assert reliabilities(None, [labelled(300.0, 30.0, 310.0, flags=("eos_residual",))] * 10) == []


def test_what_training_held_out_is_the_first_curve_and_the_parity() -> None:
    values = np.linspace(100, 300, 1000)
    kept = Validation(Target.of("bulk_modulus_vrh"), values, values * 1.05, values * 0.1, "5 folds")
    found = ({"name": "cgcnn", "round": 2}, SimpleNamespace(validation=kept))
    (curve,) = reliabilities(found, [])
    assert (curve.title, curve.n) == ("held-out crystals", 1000)
    assert curve.observed[0] == 0.0
    assert curve.observed[-1] == 1.0
    (parity,) = held_out_parity(found, {})
    assert parity.title == "Held out: 5 folds"
    assert len(parity.reference) <= 400
    assert parity.predicted == pytest.approx([1.05 * v for v in parity.reference])
    assert held_out_parity(None, {}) == []


def test_label_parities_know_the_round_of_each_point() -> None:
    predictor, mlip = label_parities(
        [labelled(340.0, 9.0, 330.0, number=n) for n in (0, 1, 1)],
        {"predictor": "cgcnn", "mlip": "mace", "dft": "VASP"},
    )
    assert predictor.rounds == mlip.rounds == [0, 1, 1]


def test_the_window_of_hits() -> None:
    assert hit_window(campaign()) == pytest.approx(0.2)
    assert hit_window(campaign(targets={"K": "300..400 GPa"})) == pytest.approx(50 / 350)


def test_costs_in_the_footer() -> None:
    assert cost_text(campaign()) == ""
    assert cost_text(campaign(chemistry={"cost": {"W": 2, "Re": 10}, "cost_by": "mass"})) == "by mass: Re 10, W 2"


def test_stages_of_elements_come_in_order_and_only_with_candidates() -> None:
    record = {"n": 3, "shares": {"Re": 1.0}, "enrichment": {}}
    metrics = [
        {"round": 0, "elements": {"hits": record, "training_set": record, "generated": record}},
        {"round": 1, "elements": {"training_set": record}},
        {"round": 2, "state": "failed"},
    ]
    found = element_stages(metrics)
    assert {number: [s.stage for s in stages] for number, stages in found.items()} == {
        0: ["training_set", "generated", "hits"]
    }
