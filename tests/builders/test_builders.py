"""The builders on an embedded database: a whole round by hand, rebuilt step by step."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from builders.campaign_metrics import CampaignMetricsBuilder
from builders.candidates import CandidateBuilder, _searches
from builders.run import build_campaign, build_training_set
from builders.screening_queue import ScreeningQueueBuilder, next_candidates, remaining_budget
from builders.training_set import TrainingSetBuilder, split_of
from inv_design.config import CampaignConfig
from inv_design.datasets.mp_binaries import LabelledStructure
from stores.ingest import ingest_reference
from stores.provenance import provenance
from stores.records import (
    candidate_id,
    insert_calculation,
    insert_campaign,
    insert_candidates,
    insert_documents,
    insert_model,
    insert_predictions,
    insert_structures,
)

NAME = "stiff"
METALS = ["Re", "Ru", "W", "Ir", "Mo", "Rh", "Ta", "Nb"]


@pytest.fixture
def db(connection):
    """Give an empty database, once embedded and once on a server."""
    _searches.clear()
    return connection


def b2(a: str, b: str, length: float = 3.1) -> Structure:
    return Structure(Lattice.cubic(length), [a, b], [[0, 0, 0], [0.5, 0.5, 0.5]])


def wanted(**changes: Any) -> CampaignConfig:
    settings = {
        "name": NAME,
        "targets": {"bulk_modulus_vrh": "350 GPa"},
        "chemistry": {"exclude": ["Tc"], "cost": {"Re": 10.0}},
        "stages": {"predictor": {"acquisition": "threshold"}, "dft": {"budget_per_round": 2}},
        **changes,
    }
    return CampaignConfig.model_validate(settings)


def start(config: CampaignConfig | None = None) -> CampaignConfig:
    config = config or wanted()
    insert_campaign(config.name, config.model_dump(mode="json"), targets=dict(config.targets), provenance=provenance())
    known = [
        LabelledStructure(b2("Re", "W"), {"bulk_modulus_vrh": 330.0, "shear_modulus_vrh": 150.0}, "mp-1"),
        LabelledStructure(b2("Al", "Ni", 2.9), {"bulk_modulus_vrh": 160.0}, "mp-2"),
        LabelledStructure(b2("Al", "U", 3.4), {"bulk_modulus_vrh": 90.0}, "mp-3"),
        LabelledStructure(b2("Ti", "O", 3.0), {"bulk_modulus_vrh": 90.0}, "mp-4"),
        LabelledStructure(b2("Cu", "Zn", 2.95), {"bulk_modulus_vrh": -3.0}, "mp-5"),
    ]
    ingest_reference(known, "a test")
    return config


def add(
    structures: list[Structure], *, number: int = 0, seed: int = 1, first: int = 0, campaign: str = NAME
) -> list[str]:
    ids = insert_structures(structures, [{"kind": "generated", "id": "m"}] * len(structures), provenance())
    records = [
        {
            "campaign": campaign, "structure_id": s, "round": number, "seed": seed, "index": first + i,
            "generator_model_id": "m-gen", "condition": {"bulk_modulus_vrh": 350.0}, "provenance": provenance(),
        }
        for i, s in enumerate(ids)
    ]  # fmt: skip
    return [identity for identity, _ in insert_candidates(records)]


def structure_of(db, candidate: str) -> str:
    return db.db["candidates"].find_one({"candidate_id": candidate})["structure_id"]


def predict(db, candidate: str, value: float | None, *, model: str = "m-0", std: float = 10.0, **more: Any) -> None:
    record = {"structure_id": structure_of(db, candidate), "property": "bulk_modulus_vrh", "value": value, "std": std}
    insert_predictions(
        [{**record, "unit": "GPa", "model_id": model, "protocol_id": f"p-{model}", "provenance": provenance(), **more}]
    )


def relax(db, candidate: str, value: float, *, protocol: str = "p-mlip", flags=(), **changes: Any) -> None:
    results = {
        "bulk_modulus_vrh": value, "shear_modulus_vrh": 150.0, "born_stable": True, "eigenvalues": [50.0],
        "relaxed": True, "structure_matched": True, "rms": 0.01, "volume_change": 0.01,
        "elastic_tensor": np.eye(6).tolist(),
    }  # fmt: skip
    insert_calculation(
        structure_id=structure_of(db, candidate), kind="elastic", method="mlip", protocol_id=protocol,
        state="completed", results={**results, **changes}, flags=list(flags), provenance=provenance(),
    )  # fmt: skip


def label(
    db, candidate: str, value: float | None, *, flags=(), output: str | None = None, method="surrogate", **more: Any
) -> None:
    record = {
        "structure_id": structure_of(db, candidate), "kind": "eos", "method": method, "protocol_id": f"p-{method}",
        "state": "failed" if value is None else "completed", "error": "no minimum" if value is None else None,
        "results": {} if value is None else {"bulk_modulus_vrh": value}, "flags": list(flags),
        "output_structure_id": output, "provenance": provenance(),
    }  # fmt: skip
    insert_calculation(**{**record, **more})


def summary(db, candidate: str) -> dict[str, Any]:
    return db.db["candidate_summaries"].find_one({"candidate_id": candidate})


def queue(db, stage: str) -> list[str]:
    items = db.db["screening_queue"].find({"stage": stage}).sort([("priority", -1)])
    return [item["candidate_id"] for item in items]


def test_a_round_from_generation_to_labels(db):  # noqa: PLR0915 (one story)
    start()
    build_training_set(NAME, 0)
    good = [b2("Re", "Ru"), b2("Re", "Ir"), b2("Re", "Mo"), b2("Ru", "W")]
    bad = [
        b2("Re", "W", 3.15),  # known
        b2("Re", "Ru", 3.2),  # duplicate of the first
        b2("Re", "Tc"),  # excluded
        Structure(Lattice.cubic(2.7), ["Re"], [[0, 0, 0]]),  # one element
        b2("Re", "Ta", 1.5),  # too close
    ]
    ids = add(good + bad)
    build_campaign(NAME)
    assert set(queue(db, "predictor")) == set(ids[:4])
    assert {s["status"] for s in db.db["candidate_summaries"].find()} == {"waiting", "rejected"}

    for candidate, value in zip(ids, [340, 360, 300, 200, 340, 340, 340, 340, 340], strict=True):
        predict(db, candidate, value)
    build_campaign(NAME)
    assert queue(db, "predictor") == []
    assert queue(db, "mlip") == [ids[0], ids[1], ids[2]] or queue(db, "mlip") == [ids[1], ids[0], ids[2]]
    rules = {i: [r["rule"] for r in summary(db, i)["reasons"]] for i in ids}
    assert [rules[i][0] if rules[i] else None for i in ids] == [
        None, None, None, "target", "duplicate", "duplicate", "excluded_elements", "elements", "min_radius_ratio",
    ]  # fmt: skip
    assert summary(db, ids[4])["duplicate_of"] == structure_id_of(b2("Re", "W"))
    assert summary(db, ids[5])["duplicate_of"] == ids[0]

    relax(db, ids[0], 345.0)
    relax(db, ids[1], 310.0)
    relax(db, ids[2], 349.0)
    build_campaign(NAME)
    assert queue(db, "mlip") == []
    assert queue(db, "dft") == [ids[2], ids[0]]  # the budget is two

    label(db, ids[2], 348.0)
    build_campaign(NAME)
    assert queue(db, "dft") == [ids[0]]  # one label left of two
    label(db, ids[0], 200.0)
    written = build_campaign(NAME)
    assert written["candidate_summaries"] == 1
    assert queue(db, "dft") == []
    hit, miss = summary(db, ids[2]), summary(db, ids[0])
    assert (hit["stage"], hit["status"], hit["hit"]) == ("dft", "passed", True)
    assert (miss["stage"], miss["status"], miss["hit"]) == ("dft", "rejected", False)
    assert hit["bulk_modulus_vrh"] == 348.0
    assert hit["bulk_modulus_method"] == "surrogate"
    assert hit["target_error"] == pytest.approx(2 / 350)
    assert hit["stages"]["mlip"]["shear_modulus_vrh"] == 150.0
    assert "elastic_tensor" not in hit["stages"]["mlip"]
    assert hit["cost"] == pytest.approx(5.0)
    assert (hit["formula"], hit["chemsys"], hit["nsites"]) == ("ReMo", "Mo-Re", 2)

    metrics = db.db["campaign_metrics"].find_one({"campaign": NAME, "round": 0})
    funnel = metrics["funnel"]
    assert {k: funnel["predictor"][k] for k in ("in", "passed", "rejected")} == {"in": 9, "passed": 3, "rejected": 6}
    assert funnel["predictor"]["reasons"]["duplicate"] == 2
    assert (funnel["mlip"]["in"], funnel["mlip"]["passed"]) == (3, 3)
    assert (funnel["dft"]["in"], funnel["dft"]["passed"], funnel["dft"]["rejected"]) == (3, 1, 1)
    assert (funnel["dft"]["waiting"], funnel["dft"]["over_budget"]) == (1, 1)
    for stage in funnel.values():
        assert stage["in"] == sum(stage[k] for k in ("passed", "rejected", "failed", "waiting"))
    assert metrics["hit_rate"]["per_label"] == 0.5
    assert metrics["target_error"]["mlip"]["mean_relative_error"] == pytest.approx((5 + 40 + 1) / 3 / 350)
    assert metrics["target_error"]["predictor"]["n"] == 9
    assert metrics["training_set"]["size"] == 2
    assert metrics["element_enrichment"]["Mo"]["ratio"] > 1


def structure_id_of(structure: Structure) -> str:
    from inv_design.structures.identity import structure_id

    return structure_id(structure)


def test_building_twice_writes_nothing_and_a_new_record_rebuilds_one(db):
    start()
    ids = add([b2("Re", m) for m in METALS[1:5]])
    assert build_campaign(NAME)["candidate_summaries"] == 4
    assert build_campaign(NAME) == {"candidate_summaries": 0, "screening_queue": 0, "campaign_metrics": 0}
    predict(db, ids[2], 350.0)
    assert build_campaign(NAME)["candidate_summaries"] == 1
    assert summary(db, ids[2])["stage"] == "mlip"


def test_new_settings_and_a_new_builder_version_rebuild_all(db, monkeypatch):
    start()
    add([b2("Re", m) for m in METALS[1:5]])
    build_campaign(NAME)
    config = wanted(chemistry={"exclude": ["Ru"]})
    db.db["campaigns"].update_one({"name": NAME}, {"$set": {"config": config.model_dump(mode="json")}})
    assert build_campaign(NAME)["candidate_summaries"] == 4
    assert db.db["candidate_summaries"].count_documents({"reasons.rule": "excluded_elements"}) == 1
    monkeypatch.setattr(CandidateBuilder, "version", "next")
    assert build_campaign(NAME)["candidate_summaries"] == 4
    assert db.db["candidate_summaries"].distinct("builder_version") == ["next"]


def test_result_does_not_depend_on_how_often_or_in_which_order_it_was_built(db):
    start()
    build_training_set(NAME, 0)
    structures = [b2(a, b, x) for a, b, x in [("Re", "Ru", 3.1), ("Re", "W", 3.2), ("Ru", "Re", 3.0), ("Ir", "W", 3.1)]]
    add(structures[2:], seed=2, first=2)
    build_campaign(NAME)  # the later chunk came first
    add(structures[:2], seed=1)
    build_campaign(NAME)
    late = {s["candidate_id"]: s["duplicate_of"] for s in db.db["candidate_summaries"].find()}
    _searches.clear()
    db.db["candidate_summaries"].delete_many({})
    build_campaign(NAME)
    assert {s["candidate_id"]: s["duplicate_of"] for s in db.db["candidate_summaries"].find()} == late
    first = candidate_id(NAME, 0, 1, 0)
    assert late[candidate_id(NAME, 0, 2, 2)] == first
    assert late[first] is None
    assert late[candidate_id(NAME, 0, 1, 1)] == structure_id_of(b2("Re", "W"))


def test_stored_duplicates_are_taken_over_by_a_new_process(db, monkeypatch):
    from inv_design.structures.matching import StructureIndex

    start()
    add([b2("Re", "Ru", 3.0 + 0.01 * i) for i in range(5)])
    build_campaign(NAME)
    before = {s["candidate_id"]: s["duplicate_of"] for s in db.db["candidate_summaries"].find()}
    assert sum(v is not None for v in before.values()) == 4
    _searches.clear()

    def never(*args: Any, **options: Any) -> None:
        raise AssertionError("compared again")

    monkeypatch.setattr(StructureIndex, "find", never)
    assert build_campaign(NAME)["candidate_summaries"] == 0


def test_same_structure_twice_is_a_duplicate_of_the_first(db):
    start()
    ids = add([b2("Re", "Ru"), b2("Re", "Ru")])
    build_campaign(NAME)
    assert summary(db, ids[0])["duplicate_of"] is None
    assert summary(db, ids[1])["duplicate_of"] == ids[0]


def test_a_rounds_own_predictor_decides(db):
    start()
    model = {"kind": "predictor", "name": "x", "campaign": NAME, "provenance": provenance()}
    own = insert_model(b"zero", round=0, **model).model_id
    later = insert_model(b"one", round=1, **model).model_id
    (identity,) = add([b2("Re", "Ru")])
    predict(db, identity, 340.0, model=own)
    build_campaign(NAME)
    predict(db, identity, 100.0, model=later)
    build_campaign(NAME)
    found = summary(db, identity)
    assert found["stages"]["predictor"]["value"] == 340.0
    assert found["model_id"] == own


def test_newest_completed_result_counts_and_protocols_choose(db):
    start()
    (identity,) = add([b2("Re", "Ru")])
    predict(db, identity, 340.0)
    relax(db, identity, 100.0, protocol="p-old")
    insert_calculation(
        structure_id=structure_of(db, identity), kind="elastic", method="mlip", protocol_id="p-new", state="failed",
        error="exploded", provenance=provenance(),
    )  # fmt: skip
    build_campaign(NAME)
    assert summary(db, identity)["stages"]["mlip"]["value"] == 100.0
    build_campaign(NAME, protocols={"mlip": "p-new"})
    found = summary(db, identity)
    assert (found["stage"], found["status"]) == ("mlip", "failed")
    assert "exploded" in found["reason"]


def test_one_strange_candidate_is_a_failed_document(db):
    start()
    ids = add([b2("Re", "Ru"), b2("Re", "Ir"), b2("Re", "Mo")])
    broken = structure_of(db, ids[1])
    db.db["structures"].update_one({"structure_id": broken}, {"$set": {"structure": {"lattice": None}}})
    db.db["structures"].delete_one({"structure_id": structure_of(db, ids[2])})
    build_campaign(NAME)
    assert summary(db, ids[0])["status"] == "waiting"
    for identity, words in ((ids[1], "not a pymatgen structure"), (ids[2], "is not in the database")):
        found = summary(db, identity)
        assert (found["status"], found["state"]) == ("failed", "failed")
        assert words in found["error"]
    metrics = db.db["campaign_metrics"].find_one({"campaign": NAME})
    assert metrics["funnel"]["predictor"]["failed"] == 2
    assert metrics["funnel"]["predictor"]["in"] == 3


def test_unknown_campaign_and_bad_configuration(db):
    with pytest.raises(ValueError, match="'nope' is not in this database; it holds none yet"):
        build_campaign("nope")
    start()
    insert_campaign("broken", {"name": "broken"}, targets={}, provenance=provenance())
    with pytest.raises(ValueError, match="'targets' is missing"):
        build_campaign("broken")
    add([b2("Re", "Ru")])
    assert build_campaign()["candidate_summaries"] == 1  # all campaigns: the broken one is left out


def test_builders_change_no_authoritative_record(db):
    from stores.documents import AUTHORITATIVE

    def records() -> str:
        names = [d._meta["collection"] for d in AUTHORITATIVE]
        return json.dumps([list(db.db[n].find().sort([("_id", 1)])) for n in names], default=str)

    start()
    ids = add([b2("Re", m) for m in METALS[1:4]])
    for identity in ids:
        predict(db, identity, 340.0)
        relax(db, identity, 340.0)
        label(db, identity, 340.0)
    build_training_set(NAME, 0)
    before = records()
    build_campaign(NAME)
    build_campaign(NAME)
    assert records() == before


# -- the queue -----------------------------------------------------------------------------------------------------


def entered(
    identity: str, stage: str, value: float, status: str = "waiting", *, std: float = 5.0, chemsys: str = "Re-W"
) -> dict[str, Any]:
    """Return the summary of a candidate that reached a stage with one value by every judge before it."""
    known = ("predictor", "mlip") if stage == "dft" else ("predictor",)
    stages: dict[str, Any] = {name: {"status": "passed", "value": value} for name in known}
    stages["predictor"]["std"] = std
    stages[stage] = {"status": status}
    return {
        "candidate_id": identity, "structure_id": f"s-{identity}", "stage": stage, "status": status, "stages": stages,
        "chemsys": chemsys,
    }  # fmt: skip


def queued(summaries: list[dict[str, Any]], *, earlier=(), acquisition="threshold", budget=3, mlip_budget=None):
    stages = {
        "predictor": {"acquisition": acquisition},
        "mlip": {"budget_per_round": mlip_budget},
        "dft": {"budget_per_round": budget},
    }
    return [q["candidate_id"] for q in next_candidates(summaries, config=wanted(stages=stages), earlier=earlier)]


def test_budget_counts_results_and_not_what_is_queued():
    summaries = [entered(str(v), "dft", float(v)) for v in (300, 340, 350, 360)]
    assert queued(summaries) == ["350", "340", "360"]
    done = [*summaries[1:], entered("x", "dft", 350.0, "failed"), entered("y", "dft", 350.0, "passed")]
    assert remaining_budget(done, 3) == 1
    assert queued(done) == ["350"]
    assert queued(done, budget=0) == []


def test_relaxations_have_a_budget_of_their_own():
    summaries = [entered(str(v), "mlip", float(v)) for v in (300, 340, 350, 360)]
    assert queued(summaries) == ["350", "340", "360", "300"]
    assert queued(summaries, mlip_budget=2) == ["350", "340"]
    done = [*summaries[:2], entered("x", "mlip", 350.0, "rejected")]
    assert queued(done, mlip_budget=2) == ["340"]


def test_probability_prefers_the_sure_one_and_expected_hits_another_system():
    sure = [entered(f"sure-{i}", "mlip", 352.0, std=10.0) for i in range(2)]
    other = entered("other", "mlip", 320.0, std=40.0, chemsys="Ir-W")
    vague = entered("vague", "mlip", 350.0, std=150.0)
    summaries = [vague, other, *sure]
    assert queued(summaries) == ["vague", "sure-0", "sure-1", "other"]
    assert queued(summaries, acquisition="target_probability") == ["sure-0", "sure-1", "other", "vague"]
    assert queued(summaries, acquisition="expected_hits", mlip_budget=2) == ["sure-0", "other"]


def test_an_interrupted_round_goes_on_as_planned():
    """The plan for two labels is one in each system; a label that arrived must not make room for a second one."""
    plan = [entered("a", "dft", 350.0), entered("b", "dft", 345.0), entered("c", "dft", 400.0, chemsys="Ir-W")]
    assert queued(plan, acquisition="expected_hits", budget=2) == ["a", "c"]
    plan[0] = entered("a", "dft", 350.0, "rejected")
    assert queued(plan, acquisition="expected_hits", budget=2) == ["c"]


def test_labels_of_earlier_rounds_correct_the_potential():
    """A potential that labels showed to be 15 % soft: its 300 GPa stand for 345 GPa."""
    earlier = []
    for i in range(20):
        found = entered(f"e-{i}", "dft", 200.0, "rejected")
        found["stages"]["dft"]["value"] = 230.0
        earlier.append(found)
    summaries = [entered("low", "dft", 300.0, std=0.0), entered("at", "dft", 350.0, std=0.0)]
    assert queued(summaries, acquisition="target_probability") == ["at", "low"]
    assert queued(summaries, acquisition="target_probability", earlier=earlier) == ["low", "at"]
    for found in earlier:
        found["stages"]["dft"]["flags"] = ["eos_residual"]
    assert queued(summaries, acquisition="target_probability", earlier=earlier) == ["at", "low"]


# -- training sets -------------------------------------------------------------------------------------------------


def test_training_set_filter_labels_exclusions_and_identity(db):
    from stores.documents import TrainingSet

    start()
    first = build_training_set(NAME, 0)
    assert build_training_set(NAME, 0) == first
    members = TrainingSet.objects(training_set_id=first).first().load_members()
    assert sorted(m["chemsys"] for m in members) == ["Al-Ni", "Re-W"]  # no actinide, no oxygen, no negative modulus
    assert all(m["split"] == split_of(m["chemsys"]) for m in members)
    ids = add([b2("Re", m) for m in METALS[1:6] if m != "W"])
    (relaxed,) = insert_structures([b2("Re", "Ru", 3.05)], [{"kind": "relaxed", "id": "x"}], provenance())
    label(db, ids[0], 348.0, output=relaxed)
    label(db, ids[1], 700.0)
    label(db, ids[2], 340.0, flags=["eos_residual"])
    label(db, ids[3], None)
    second = build_training_set(NAME, 1)
    document = TrainingSet.objects(training_set_id=second).first()
    new = {m["structure_id"]: m for m in document.load_members()}
    assert len(new) == 3
    assert new[relaxed]["labels"]["bulk_modulus_vrh"]["method"] == "surrogate"
    assert new[relaxed]["labels"]["bulk_modulus_vrh"]["value"] == 348.0
    assert document.parent_training_set_id == first
    assert document.labels_by_method == {"reference": 3, "surrogate": 1}
    reasons = sorted(e["reason"] for e in document.excluded)
    assert [r.split(":")[0] for r in reasons] == [
        "calculation failed",
        "label 700 GPa is outside (0, 500] GPa",
        "quality flags",
    ]
    assert build_training_set(NAME, 0) == first  # labels of round 0 belong to round 1


def test_only_labels_of_the_campaigns_own_stage_are_learned_from(db):
    from builders.mlip_training_set import campaign_frames
    from fireworks_specs.firetasks.fine_tune import labelled_structures
    from stores.documents import TrainingSet

    config = start(wanted(stages={"dft": {"backend": "gpaw", "gpaw": {"kind": "eos"}}}))
    both, rehearsed = add([b2("Re", "Ru"), b2("Re", "W")])
    label(db, both, 340.0, method="gpaw", protocol={"cutoff": 550.0})
    label(db, both, 300.0, method="gpaw", protocol_id="p-coarse", protocol={"cutoff": 250.0})  # newer
    label(db, rehearsed, 310.0)
    document = TrainingSet.objects(training_set_id=build_training_set(NAME, 1)).first()
    assert document.labels_by_method == {"reference": 3, "gpaw": 1}
    learned = {m["structure_id"]: m["labels"]["bulk_modulus_vrh"]["value"] for m in document.load_members()}
    assert learned[structure_of(db, both)] == 340.0
    assert sorted((e["method"], e["reason"].split(":")[0]) for e in document.excluded) == [
        ("gpaw", "not of this campaign's stage III"),
        ("surrogate", "not of this campaign's stage III"),
    ]
    assert labelled_structures(NAME, 0, config.stages.dft) == [structure_of(db, both)]
    frames = campaign_frames(NAME)
    assert len(frames.calculation_ids) + len(frames.left_out) == 1


def test_a_surrogates_label_is_no_label_of_a_dft_campaign(db):
    from inv_design.cli.trust_data import collect_trust

    config = start(wanted(stages={"dft": {"backend": "gpaw", "gpaw": {"kind": "eos"}}}))
    (identity,) = add([b2("Re", "Ru")])
    predict(db, identity, 340.0)
    relax(db, identity, 345.0)
    label(db, identity, 348.0)
    build_campaign(NAME)
    found = summary(db, identity)
    assert (found["stage"], found["status"], found["hit"]) == ("dft", "waiting", None)
    assert queue(db, "dft") == [identity]
    label(db, identity, 349.0, method="gpaw", protocol_id="p-coarse", protocol={"cutoff": 300.0})
    build_campaign(NAME)
    assert queue(db, "dft") == [identity]
    label(db, identity, 351.0, method="gpaw", protocol={"cutoff": 550.0, "version": "another"})
    build_campaign(NAME)
    found = summary(db, identity)
    assert (found["status"], found["stages"]["dft"]["value"]) == ("passed", 351.0)
    assert collect_trust(db.db, config, tolerance=0.2).label == "DFT (GPAW, PBE)"


def test_the_trust_report_calls_labels_what_they_are(db):
    """Whatever the campaign is set to since."""
    from inv_design.cli.report_data import judge_names
    from inv_design.cli.trust_data import collect_trust

    start()
    (identity,) = add([b2("Re", "Ru")])
    predict(db, identity, 340.0)
    relax(db, identity, 345.0)
    label(db, identity, 348.0)
    build_campaign(NAME)
    config = wanted(stages={"dft": {"backend": "vasp"}})
    assert collect_trust(db.db, config, tolerance=0.2).label == "surrogate (E(V))"
    assert judge_names(config, [summary(db, identity)])["dft"] == "surrogate (E(V))"
    assert judge_names(config)["dft"] == "DFT (VASP, PBE)"


@pytest.mark.parametrize("kind", ["eos", "elastic"])
def test_what_the_queue_has_the_worker_lacks(db, kind):
    """Others' failures, newer than the campaign's own, make nothing due that its workers have given up."""
    from stores.attempts import lacking

    start(wanted(stages={"dft": {"retries": 2}, "mlip": {"retries": 2}}))
    (identity,) = add([b2("Re", "Ru")])
    predict(db, identity, 340.0)
    ids = [structure_of(db, identity)]
    stage, method = ("dft", "surrogate") if kind == "eos" else ("mlip", "mlip")
    if stage == "dft":
        relax(db, identity, 345.0)
    killed = {"kind": kind, "method": method, "reason": "killed"}
    seen = []
    for attempt in (1, 2, 3):
        label(db, identity, None, **killed, protocol_id="p-own", attempt=attempt)
        build_campaign(NAME)
        assert queue(db, stage) == [identity] * len(lacking(ids, kind, "p-own", retries=2))
        seen += [item["attempts"] for item in db.db["screening_queue"].find({"stage": stage})]
    assert seen == [1, 2]
    label(db, identity, None, **killed, protocol_id="p-other", protocol={"calculator": {"calculator": "another"}})
    label(db, identity, None, **killed, protocol_id="p-older")
    build_campaign(NAME)
    assert lacking(ids, kind, "p-own", retries=2) == []
    assert queue(db, stage) == []
    assert (summary(db, identity)["stage"], summary(db, identity)["status"]) == (stage, "failed")


def test_no_labels_at_all_says_what_to_do(db):
    config = wanted(data={"elements": ["Be"]})
    start(config)
    with pytest.raises(ValueError, match="none of 5 reference labels passes the data filter"):
        build_training_set(NAME, 0)


def test_the_data_of_another_campaign_stays_out(db):
    start()
    other = wanted(name="other", data={"source": "other.csv"})
    insert_campaign("other", other.model_dump(mode="json"), targets={}, provenance=provenance())
    ingest_reference([LabelledStructure(b2("Ta", "W"), {"bulk_modulus_vrh": 250.0}, "x")], "other.csv")
    from stores.documents import TrainingSet

    def systems(name: str) -> list[str]:
        document = TrainingSet.objects(training_set_id=build_training_set(name, 0)).first()
        return sorted(m["chemsys"] for m in document.load_members())

    assert systems(NAME) == ["Al-Ni", "Re-W"]
    assert "Ta-W" in systems("other")


def test_splits_are_by_chemical_system_and_near_their_shares():
    import itertools

    names = ["-".join(c) for c in itertools.combinations([f"X{i}" for i in range(80)], 2)]
    splits = [split_of(n) for n in names]
    assert splits.count("test") / len(names) == pytest.approx(0.1, abs=0.02)
    assert splits.count("val") / len(names) == pytest.approx(0.1, abs=0.02)


def test_max_entries_and_formation_energy(db):
    from builders.training_set import select_members
    from inv_design.config import DataConfig

    structures = {f"s-{i}": {"chemsys": "Al-Ni", "elements": ["Al", "Ni"], "nsites": 2} for i in range(20)}
    references = [
        {
            "structure_id": f"s-{i}", "calculation_id": f"k-{i}", "method": "reference",
            "results": {"bulk_modulus_vrh": 100.0, "source_id": f"mp-{i:02d}", "formation_energy_per_atom": 0.02 * i},
        }
        for i in range(20)
    ]  # fmt: skip
    members, _ = select_members(references, [], structures, data=DataConfig())
    assert len(members) == 8
    members, _ = select_members(references, [], structures, data=DataConfig(max_entries=10, max_formation_energy=9))
    assert sorted(m["structure_id"] for m in members) == [f"s-{i}" for i in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)]


# -- maggma ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "builder",
    [
        CandidateBuilder(NAME, {"mlip": "p-1"}),
        ScreeningQueueBuilder(NAME),
        CampaignMetricsBuilder(),
        TrainingSetBuilder(NAME, 3),
    ],
)
def test_builders_are_msonable_without_credentials(builder, monkeypatch):
    monkeypatch.setenv("INV_DESIGN_DATABASE", "mongodb://me:secret@host/db")
    from monty.json import MontyDecoder

    text = builder.to_json()
    assert "secret" not in text
    again = MontyDecoder().decode(text)
    assert type(again) is type(builder)
    assert again.as_dict() == builder.as_dict()


def test_evaluations_are_in_the_metrics(db):
    start()
    add([b2("Re", "Ru")])
    build_campaign(NAME)
    record = {
        "evaluation_id": "e-1", "campaign": NAME, "round": 0, "generator_model_id": "m", "property": "bulk_modulus_vrh",
        "target": 300.0, "judge": "E(V)", "unit": "GPa", "n": 2, "values": [280.0, 320.0], "median": 300.0,
        "mean_relative_error": 0.0667, "provenance": provenance(),
    }  # fmt: skip
    insert_documents("evaluations", [record])
    assert build_campaign(NAME)["campaign_metrics"] == 1
    (found,) = db.db["campaign_metrics"].find_one({"campaign": NAME})["evaluations"]
    assert found == {"target": 300.0, "judge": "E(V)", "n": 2, "median": 300.0, "mean_relative_error": 0.0667}


def test_a_lost_race_between_two_workers_is_written_again(db, monkeypatch):
    from pymongo.errors import BulkWriteError

    from stores.maggma import CampaignStore

    start()
    (identity,) = add([b2("Re", "Ru")])
    original, calls = CampaignStore.update, []

    def race(store, docs, key=None):
        calls.append(store.collection_name)
        if len(calls) == 1:
            raise BulkWriteError({"writeErrors": [{"index": 0, "code": 11000, "errmsg": "duplicate key"}]})
        return original(store, docs, key)

    monkeypatch.setattr(CampaignStore, "update", race)
    build_campaign(NAME)
    assert calls[:2] == ["candidate_summaries", "candidate_summaries"]
    assert summary(db, identity)["status"] == "waiting"

    def refuse(store, docs, key=None):
        raise BulkWriteError({"writeErrors": [{"index": 0, "code": 121, "errmsg": "no"}]})

    monkeypatch.setattr(CampaignStore, "update", refuse)
    add([b2("Re", "Ir")], first=1)
    with pytest.raises(BulkWriteError):
        build_campaign(NAME)


# -- several objectives -----------------------------------------------------------------------------------------------


def several(**changes: Any) -> CampaignConfig:
    """Return a campaign that wants stiff, ductile, light, cheap and hard crystals."""
    return wanted(
        properties={"hardness": "GPa"},
        targets={"K": "300..400 GPa", "G": "100..200 GPa", "density": "min", "cost": "..6", "hardness": "max"},
        chemistry={"cost": {"Re": 10.0, "Ir": 20.0}},
        **changes,
    )


def test_every_objective_is_in_the_summary_with_its_source(db):
    start(several())
    ids = add([b2("Re", "Ru"), b2("Re", "Ir"), b2("Ru", "W")])
    for identity in ids:
        predict(db, identity, 340.0)
    predict(db, ids[0], 12.0, property="hardness", protocol_id="p-hard")
    relax(db, ids[0], 345.0, volume_per_atom=16.0)
    relax(db, ids[2], 345.0, shear_modulus_vrh=50.0)
    build_campaign(NAME)
    first, dear, soft = (summary(db, i) for i in ids)
    assert (first["stage"], first["status"]) == ("dft", "waiting")
    assert first["properties"] == pytest.approx(
        {
            "bulk_modulus_vrh": 345.0, "shear_modulus_vrh": 150.0, "cost": 5.0, "hardness": 12.0,
            "density": b2("Re", "Ru", 32 ** (1 / 3)).density,
        },
        rel=1e-6,
    )  # fmt: skip
    assert first["property_methods"]["hardness"] == "predictor"
    assert first["property_methods"]["density"] == first["property_methods"]["shear_modulus_vrh"] == "mlip"
    assert (first["volume_per_atom"], first["shear_modulus_vrh"], first["target_error"]) == (16.0, 150.0, 0.0)
    assert [r["message"].split()[0] for r in dear["reasons"]] == ["cost"]
    assert soft["stage"] == "mlip"
    assert "shear_modulus_vrh 50.0 GPa is outside the wanted 100 to 200 GPa" in soft["reason"]


def test_the_queue_serves_the_front_first(db):
    start(several(stages={"predictor": {"acquisition": "threshold"}, "dft": {"budget_per_round": 2}}))
    ids = add([b2("Re", "Ru", 3.1), b2("Ru", "W", 3.2), b2("Mo", "Ru", 3.3)])
    for identity, value in zip(ids, (350.0, 340.0, 320.0), strict=True):
        predict(db, identity, value)
        relax(db, identity, value)
    build_campaign(NAME)
    # all three have K in range, Ru-Mo is the lightest, and Re-Ru the dearest and heaviest
    assert queue(db, "dft")[0] == ids[2]


# -- which elements a round favours -----------------------------------------------------------------------------------


def test_element_shares_of_every_stage_and_their_warnings(db):
    start()
    build_training_set(NAME, 0)  # Re-W and Al-Ni
    partners = ["Ru", "Ir", "Mo", "Rh", "Ta", "Nb", "V"]
    ids = add([b2("Re", m, 3.0 + 0.05 * i) for i, m in enumerate(partners)])
    for identity in ids[:6]:
        predict(db, identity, 345.0)
    predict(db, ids[6], 100.0)
    for identity in ids[:2]:
        relax(db, identity, 345.0)
    label(db, ids[0], 345.0)
    label(db, ids[1], 100.0)
    build_campaign(NAME)
    metrics = db.db["campaign_metrics"].find_one({"campaign": NAME, "round": 0})
    elements = metrics["elements"]
    assert {k: v["n"] for k, v in elements.items()} == {
        "training_set": 2, "generated": 7, "predictor": 6, "mlip": 2, "labelled": 2, "hits": 1,
    }  # fmt: skip
    assert elements["training_set"]["shares"] == {"Al": 0.25, "Ni": 0.25, "Re": 0.25, "W": 0.25}
    assert elements["generated"]["shares"]["Re"] == pytest.approx(0.5)
    assert elements["generated"]["enrichment"]["Re"] == pytest.approx(2.0, rel=0.1)
    assert elements["hits"]["shares"] == {"Re": 0.5, "Ru": 0.5}
    # stages of fewer than five crystals are not judged
    assert {(w["stage"], w["element"]) for w in metrics["warnings"]} == {("generated", "Re"), ("predictor", "Re")}


def test_excluded_labels_are_counted_by_reason_and_stay_in_the_database(db):
    """Only trusted labels train: what is left out is a record with its reason, and its calculation stays."""
    from stores.documents import TrainingSet

    start()
    ids = add([b2("Re", m) for m in ("Ru", "Ir", "Mo", "Rh")])
    label(db, ids[0], 345.0)
    label(db, ids[1], 340.0, flags=["eos_residual"])
    label(db, ids[2], 340.0, flags=["minimum_outside_range", "shear_modulus_out_of_bounds"])
    label(db, ids[3], None)
    identity = build_training_set(NAME, 1)
    document = TrainingSet.objects(training_set_id=identity).first()
    learned = {m["structure_id"] for m in document.load_members()}
    assert structure_of(db, ids[0]) in learned
    assert not learned & {structure_of(db, i) for i in ids[1:]}
    found = {e["structure_id"]: e["reason"] for e in document.excluded}
    assert found == {
        structure_of(db, ids[1]): "quality flags: eos_residual",
        structure_of(db, ids[2]): "quality flags: minimum_outside_range",
        structure_of(db, ids[3]): "calculation failed: no minimum",
    }
    assert db.db["calculations"].count_documents({"method": "surrogate"}) == 4
    build_campaign(NAME)
    metrics = db.db["campaign_metrics"].find_one({"campaign": NAME, "round": 1})
    assert metrics["training_set"]["excluded_reasons"] == {"quality flags": 2, "calculation failed": 1}
