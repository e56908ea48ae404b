"""Objectives: what campaign.yaml may say, and what it means to every stage."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inv_design.config import CampaignConfig, DftConfig, MlipConfig
from inv_design.objective import Objective, objectives_of
from inv_design.screening.acquisition import hit_probability
from inv_design.screening.dft import screen_dft
from inv_design.screening.mlip import screen_mlip
from inv_design.screening.priority import rank
from inv_design.screening.target import target_reasons

OWN = {"hardness": "GPa", "charge": ""}
finite = st.floats(-1e4, 1e4)


def campaign(**changes):
    return CampaignConfig.model_validate({"name": "x", "targets": {"K": "350 GPa"}, **changes})


@pytest.mark.parametrize(
    ("wanted", "kind", "plain", "text"),
    [
        ("350 GPa", "value", 350.0, "350 GPa"),
        (350, "value", 350.0, "350 GPa"),
        ("300..400 GPa", "range", "300.0..400.0 GPa", "300 to 400 GPa"),
        ("300 .. 400", "range", "300.0..400.0 GPa", "300 to 400 GPa"),
        ("300..", "range", "300.0.. GPa", "at least 300 GPa"),
        ("..1e2 GPa", "range", "..100.0 GPa", "at most 100 GPa"),
        ("max", "max", "max", "max"),
        (" min ", "min", "min", "min"),
    ],
)
def test_what_may_be_wanted(wanted, kind, plain, text):
    objective = Objective.parse("G", wanted)
    assert (objective.name, objective.kind, objective.plain, objective.text) == (
        "shear_modulus_vrh", kind, plain, text,
    )  # fmt: skip
    assert Objective.parse("G", objective.plain) == objective


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("400..300", "is empty; write the lower bound first"),
        ("..", "is not a range"),
        ("1..2 eV", "unit 'eV' is not supported"),
        ("-5..-1", "holds no positive value"),
        ("1e999..", "not finite"),
        ("most", "'most' is not a number with a unit"),
        ("..-3", "holds no positive value"),
    ],
)
def test_what_may_not(wanted, words):
    with pytest.raises(ValueError, match=words):
        Objective.parse("G", wanted)


@given(finite, finite)
def test_a_range_survives_its_text(a, b):
    low, high = sorted((a, b))
    if low == high:
        return
    objective = Objective.parse("charge", f"{low!r}..{high!r}", own=OWN)
    assert (objective.low, objective.high) == (low, high)
    assert Objective.parse("charge", objective.plain, own=OWN) == objective


def test_own_properties_may_be_negative_and_must_be_declared():
    assert Objective.parse("charge", "-0.5", own=OWN).value == -0.5
    with pytest.raises(ValueError, match=r"unknown property 'hardness'.*properties: \{hardness: UNIT\}"):
        Objective.parse("hardness", "max")


def test_deviation_of_each_kind():
    value, inside, most, least = objectives_of({"K": 350, "density": "5..10", "G": "max", "volume_per_atom": "min"})
    assert value.deviation(315) == pytest.approx(0.1)
    assert [inside.deviation(x) for x in (4, 5, 7, 10, 12)] == pytest.approx([0.2, 0, 0, 0, 0.2])
    assert most.deviation(1e9) == least.deviation(-1) == 0
    assert most.badness(5) < most.badness(4)
    assert least.badness(4) < least.badness(5)
    assert Objective.parse("charge", "..0", own=OWN).deviation(0.3) == pytest.approx(0.3)


def test_a_campaign_with_several_objectives_round_trips():
    config = campaign(
        properties={"hardness": "GPa"},
        targets={"density": "..12", "K": "300..400 GPa", "G": "max", "hardness": "min", "cost": "min"},
        chemistry={"cost": {"Re": 10}},
    )
    assert config.target == 350.0
    assert [o.name for o in config.objectives] == [
        "bulk_modulus_vrh", "density", "shear_modulus_vrh", "hardness", "cost",
    ]  # fmt: skip
    stored = config.model_dump(mode="json")
    assert stored["targets"] == {
        "density": "..12.0 g/cm^3", "bulk_modulus_vrh": "300.0..400.0 GPa", "shear_modulus_vrh": "max",
        "hardness": "min", "cost": "min",
    }  # fmt: skip
    assert CampaignConfig.model_validate(stored) == config


def test_a_campaign_stored_before_these_keys_still_loads():
    stored = campaign().model_dump(mode="json")
    for section, keys in (("predictor", ("acquisition", "min_probability")), ("mlip", ("budget_per_round",))):
        for key in keys:
            del stored["stages"][section][key]
    del stored["properties"], stored["chemistry"]["cost_by"]
    assert CampaignConfig.model_validate(stored) == campaign()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"targets": {"K": "max"}}, "has no middle"),
        ({"targets": {"K": "300.."}}, "has no middle"),
        ({"targets": {"K": 350, "cost": "min"}}, "chemistry.cost is empty"),
        ({"properties": {"density": "g"}}, "every campaign has"),
        ({"properties": {"a.b": "g"}}, "no name of a property"),
        ({"targets": {"K": 350, "hardness": "max"}}, "unknown property 'hardness'"),
    ],
)
def test_campaigns_that_cannot_be(changes, words):
    with pytest.raises(ValueError, match=words):
        campaign(**changes)


def test_reasons_of_each_kind():
    targets = {"K": 350, "density": "5..10", "G": "max", "e_above_hull": "0.1"}
    values = {"bulk_modulus_vrh": 300.0, "density": 11.5, "shear_modulus_vrh": 1.0, "e_above_hull": 0.2}
    texts = [r.message for r in target_reasons(values, targets, tolerance=0.1)]
    assert texts == [
        "bulk_modulus_vrh 300.0 GPa is 14 % off the target 350 GPa (allowed 10 %)",
        "density 11.5 g/cm^3 is outside the wanted 5 to 10 g/cm^3 (allowed 10 %)",
        "e_above_hull 0.2 eV/atom is above the wanted 0.1 eV/atom",
    ]
    assert len(target_reasons(values, targets, tolerance=0.2)) == 1
    assert len(target_reasons(values, targets, tolerance=0.2, range_tolerance=0.0)) == 2
    assert target_reasons({"shear_modulus_vrh": math.nan}, {"G": "1..2"}, tolerance=1)[0].value is None


def test_cheap_stages_allow_for_their_error_and_a_label_is_taken_at_its_word():
    """A range of 300 to 400 GPa: 280 passes the potential's 20 %, and is no hit as a label."""
    targets = {"K": "300..400 GPa"}
    relaxed = {"state": "completed", "results": {"bulk_modulus_vrh": 280.0, "born_stable": True}}
    assert screen_mlip(relaxed, targets=targets, config=MlipConfig()).status == "passed"
    label = {"state": "completed", "results": {"bulk_modulus_vrh": 280.0}}
    assert screen_dft(label, targets=targets, config=DftConfig()).status == "rejected"
    label["results"] = {"bulk_modulus_vrh": 301.0}
    assert screen_dft(label, targets=targets, config=DftConfig()).status == "passed"


def test_what_is_known_besides_the_results_is_checked_too():
    relaxed = {"state": "completed", "results": {"bulk_modulus_vrh": 350.0, "born_stable": True}}
    options = {"targets": {"K": 350, "cost": "..2"}, "config": MlipConfig()}
    assert screen_mlip(relaxed, known={"cost": 1.9}, **options).status == "passed"
    assert screen_mlip(relaxed, known={"cost": 3.0}, **options).status == "rejected"


def test_probability_of_a_range_and_of_a_property_that_may_be_negative():
    charge = Objective.parse("charge", "-1..1", own=OWN)
    assert hit_probability(0.0, 1.0, charge, tolerance=0.2) == pytest.approx(0.682689, abs=1e-6)
    assert hit_probability(-0.5, None, charge, tolerance=0.2) == 1.0
    assert hit_probability(5.0, 1.0, Objective.parse("G", "max"), tolerance=0.2) == 1.0


def test_several_objectives_order_by_front_and_then_by_the_bulk_modulus():
    candidates = [
        {"candidate_id": "near, heavy", "value": 350.0, "std": 5.0, "properties": {"density": 20.0}},
        {"candidate_id": "far, light", "value": 300.0, "std": 5.0, "properties": {"density": 10.0}},
        {"candidate_id": "far, heavy", "value": 290.0, "std": 5.0, "properties": {"density": 21.0}},
        {"candidate_id": "off, unknown", "value": 320.0, "std": 5.0, "properties": {}},
    ]
    found = rank(candidates, target=350.0, others=[Objective.parse("density", "min")])
    assert [c["candidate_id"] for c in found] == ["near, heavy", "far, light", "off, unknown", "far, heavy"]
    assert [c["priority"] for c in found] == sorted((c["priority"] for c in found), reverse=True)
    assert rank([], target=350.0, others=[Objective.parse("density", "min")]) == []
