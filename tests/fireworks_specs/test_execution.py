"""A campaign on a launchpad: run, run again, interrupted, recovered, on both databases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from fireworks_specs import execution
from fireworks_specs.steps import Step, next_step
from fireworks_specs.workflows import step_workflows
from inv_design.config import CampaignConfig, ConfigError
from stores.workers import this_worker

if TYPE_CHECKING:
    from pathlib import Path

    from stores.connection import Connection

AUTHORITATIVE = ("structures", "candidates", "predictions", "calculations", "models", "training_sets", "evaluations")


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INV_DESIGN_WORKERS", "1")


def small(**changes: Any) -> CampaignConfig:
    settings: dict[str, Any] = {
        "name": "small",
        "targets": {"bulk_modulus_vrh": "150 GPa"},
        "data": {"elements": ["Al", "Cu", "Ag", "Au", "Ni", "Pd", "Pt"], "exclude": [], "max_entries": 30},
        "generator": {"name": "substitution", "samples_per_round": 6, "chunk": 3, "max_sites": 4},
        "stages": {
            "predictor": {"model": "extra_trees", "tolerance": 0.9},
            "mlip": {"calculator": "emt", "tolerance": 0.9, "chunk": 3, "born_stable": False},
            "dft": {"backend": "surrogate", "calculator": "emt", "budget_per_round": 2},
        },
        "evaluation": {"targets": []},
        "rounds": 0,
    }
    return CampaignConfig.model_validate(settings | changes)


def counts(connection: Connection) -> dict[str, int]:
    return {name: connection.db[name].count_documents({}) for name in AUTHORITATIVE}


def test_a_campaign_runs_to_its_end_and_running_again_changes_nothing(connection: Connection) -> None:
    config = small()
    summary = execution.run(connection, config)
    assert summary.finished
    assert summary.fireworks_failed == 0
    first = counts(connection)
    assert first["models"] == 2
    assert first["candidates"] == 6
    assert first["evaluations"] == 1
    kinds = connection.db["calculations"].distinct("method")
    assert {"reference", "mlip"} <= set(kinds)
    again = execution.run(connection, config)
    assert again.fireworks_run == 0
    assert counts(connection) == first
    assert execution.launch(connection, config) == 0
    # a further round learns from the labels of this one
    more = execution.run(connection, config, rounds=1)
    assert more.fireworks_run > 0
    later = counts(connection)
    assert later["models"] == 4
    assert later["candidates"] == 12
    labels = connection.db["training_sets"].find_one({"round": 1})["labels_by_method"]
    assert labels["reference"] >= 30


@pytest.mark.slow
def test_models_that_are_not_retrained_stay_those_of_round_0(embedded_connection: Connection) -> None:
    execution.run(embedded_connection, small(rounds=2, retrain=["predictor"]))
    models = {(m["kind"], m["round"]): m for m in embedded_connection.db["models"].find()}
    assert len(models) == 6
    generators = [models["generator", number] for number in range(3)]
    assert len({m["sha256"] for m in generators}) == 1
    assert len({m["model_id"] for m in generators}) == 3  # each round names its own
    assert [m["hyperparameters"].get("kept_from_round") for m in generators] == [None, 0, 1]
    assert {m["training_set_id"] for m in generators} == {models["predictor", 0]["training_set_id"]}
    assert len({models["predictor", number]["training_set_id"] for number in range(3)}) > 1
    for number in range(3):
        used = embedded_connection.db["candidates"].distinct("generator_model_id", {"round": number})
        assert used == [models["generator", number]["model_id"]]


@pytest.mark.slow
def test_without_retraining_a_round_differs_only_by_its_seed(embedded_connection: Connection) -> None:
    assert execution.run(embedded_connection, small(rounds=1, retrain=[])).finished
    models = list(embedded_connection.db["models"].find())
    assert len(models) == 4
    assert len({m["sha256"] for m in models}) == 2
    assert embedded_connection.db["training_sets"].count_documents({}) == 1
    candidates = embedded_connection.db["candidates"]
    assert set(candidates.distinct("seed", {"round": 0})).isdisjoint(candidates.distinct("seed", {"round": 1}))


def test_a_generator_is_told_the_candidates_of_earlier_rounds_only(
    embedded_connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inv_design.generators.substitution import Substitution
    from inv_design.structures.identity import structure_id

    told: list[list[str]] = []

    def avoiding(self: Substitution, structures: list[Any]) -> Substitution:
        told.append([structure_id(s) for s in structures])
        return self

    monkeypatch.setattr(Substitution, "avoiding", avoiding, raising=False)
    execution.run(embedded_connection, small(rounds=1))
    first = sorted(embedded_connection.db["candidates"].distinct("structure_id", {"round": 0}))
    assert told == [first, first]  # both chunks of round 1, and none of round 0


def test_a_campaign_from_before_a_key_existed_goes_on(embedded_connection: Connection) -> None:
    config = small()
    execution.register_campaign(config)
    embedded_connection.db["campaigns"].update_one({"name": "small"}, {"$unset": {"config.retrain": 1}})
    execution.register_campaign(config)
    with pytest.raises(ValueError, match=r"retrain \['predictor', 'generator'\] -> \[\]"):
        execution.register_campaign(small(retrain=[]))


def test_stage_results_are_per_candidate_and_protocol(embedded_connection: Connection) -> None:
    execution.run(embedded_connection, small())
    keys = [(d["structure_id"], d["kind"], d["protocol_id"]) for d in embedded_connection.db["calculations"].find()]
    assert len(keys) == len(set(keys))
    passed = [s for s in embedded_connection.db["candidate_summaries"].find() if s["stage"] != "predictor"]
    computed = set(embedded_connection.db["calculations"].distinct("structure_id", {"method": "mlip"}))
    assert {s["structure_id"] for s in passed} == computed


def test_changed_settings_are_refused_by_name(embedded_connection: Connection) -> None:
    execution.register_campaign(small())
    execution.register_campaign(small(rounds=3))
    changed = small(stages={**small().model_dump()["stages"], "mlip": {"calculator": "emt", "tolerance": 0.1}})
    with pytest.raises(ValueError, match=r"stages\.mlip\.tolerance 0\.9 -> 0\.1"):
        execution.register_campaign(changed)


def stages(**calculators: str) -> dict[str, Any]:
    found = small().model_dump()["stages"]
    return found | {stage: found[stage] | {"calculator": name} for stage, name in calculators.items()}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"generator": {"name": "con_cdva"}}, r"generator\.name: no generator 'con_cdva' is installed"),
        ({"stages": {"predictor": {"model": "cgcn"}}}, r"stages\.predictor\.model: no predictor is called 'cgcn'"),
        ({"stages": stages(mlip="mace-aloy-small")}, r"stages\.mlip\.calculator: unknown calculator 'mace-aloy-small'"),
        ({"stages": stages(dft="chgnett")}, r"stages\.dft\.calculator: unknown calculator 'chgnett'"),
        ({"stages": stages(mlip="mace/own.model")}, r"stages\.mlip\.calculator: .*is a pickle"),
    ],
)
def test_a_name_that_nobody_knows_is_refused_before_anything_is_written(
    embedded_connection: Connection, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        execution.launch(embedded_connection, small(**changes))
    for name in ("campaigns", "structures", "fireworks"):
        assert embedded_connection.db[name].count_documents({}) == 0


@pytest.mark.parametrize("name", ["elsewhere.potential:make", "/scratch/own.safetensors", "m-" + 20 * "0", "/nets/own"])
def test_a_calculator_that_only_the_workers_may_have_is_launched(embedded_connection: Connection, name: str) -> None:
    assert execution.launch(embedded_connection, small(stages=stages(mlip=name))) == 2


def test_two_workers_that_derive_the_same_step_add_it_once(connection: Connection) -> None:
    config = small()
    launchpad = connection.launchpad()
    execution.register_campaign(config)
    assert execution.advance(launchpad, "small", config, rounds=0) == 2
    assert execution.advance(launchpad, "small", config, rounds=0) == 0
    assert launchpad.workflows.count_documents({}) == 2


def test_lost_fireworks_are_planned_anew(embedded_connection: Connection) -> None:
    config = small()
    launchpad = embedded_connection.launchpad()
    execution.launch(embedded_connection, config)
    # as a process leaves them that was killed while it ran one
    launchpad.fireworks.update_one({"state": "READY"}, {"$set": {"state": "RUNNING"}})
    launchpad.workflows.update_many({}, {"$set": {"locked": True}})
    summary = execution.run(embedded_connection, config)
    assert summary.recovered > 0
    assert summary.finished
    assert counts(embedded_connection)["candidates"] == 6


def test_another_hosts_firework_is_left_alone(embedded_connection: Connection) -> None:
    config = small()
    launchpad = embedded_connection.launchpad()
    execution.launch(embedded_connection, config)
    firework = launchpad.fireworks.find_one({"state": "READY"})
    launchpad.fireworks.update_one({"fw_id": firework["fw_id"]}, {"$set": {"state": "RUNNING"}})
    launchpad.launches.insert_one({"launch_id": 1, "fw_id": firework["fw_id"], "fworker": {"name": "node7"}})
    assert execution.recover(launchpad, "small", everything=False) == 0
    launchpad.launches.update_one({"launch_id": 1}, {"$set": {"fworker.env": {"worker": this_worker()}}})
    assert execution.recover(launchpad, "small", everything=False) > 0


def test_a_step_that_keeps_failing_stops_with_its_reason(embedded_connection: Connection) -> None:
    generator = small().model_dump()["generator"] | {"settings": {"nonesuch": 1}}
    config = small(generator=generator)
    with pytest.raises(execution.CampaignFailed, match=r"round 0, step train: .*nonesuch"):
        execution.run(embedded_connection, config)


def test_one_crystal_that_fails_does_not_stop_the_campaign(
    embedded_connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inv_design.mechanics import stages

    real = stages.measure_elasticities
    seen: list[object] = []

    def fail_first(structures: Any, **options: Any) -> Any:
        for index, record in real(structures, **options):
            seen.append(index)
            yield index, stages.failed("boom") if len(seen) == 1 else record

    monkeypatch.setattr(stages, "measure_elasticities", fail_first)
    assert execution.run(embedded_connection, small()).finished
    failures = list(embedded_connection.db["calculations"].find({"state": "failed"}))
    assert [f["error"] for f in failures] == ["boom"]
    assert embedded_connection.db["candidate_summaries"].count_documents({"status": "failed"}) == 1


def test_written_workflows_are_accepted_by_lpad_add(embedded_connection: Connection, tmp_path: Path) -> None:
    from fireworks.scripts import lpad_run

    config = small()
    path = tmp_path / "round.yaml"
    assert execution.write_workflows(config, path) == 2
    launchpad = embedded_connection.launchpad()
    lpad_run.get_lp, original = (lambda _: launchpad), lpad_run.get_lp
    try:
        assert lpad_run.lpad(["-s", "add", str(path)]) == 0
    finally:
        lpad_run.get_lp = original
    assert launchpad.fireworks.count_documents({"spec.campaign": "small", "state": "READY"}) == 2
    assert execution.run(embedded_connection, config).finished


def test_no_credential_reaches_the_launchpad(connection: Connection) -> None:
    execution.launch(connection, small())
    for name in ("fireworks", "workflows", "campaigns", "steps"):
        assert "mongodb://" not in str(list(connection.db[name].find()))


def test_the_next_step_follows_from_the_records(embedded_connection: Connection) -> None:
    config = small()
    execution.register_campaign(config)
    step = next_step("small", config, rounds=0)
    assert step == Step("small", 0, "train", ("predictor", "generator"))
    assert len(step_workflows(step, rounds=0)) == 2
    execution.run(embedded_connection, config)
    assert next_step("small", config, rounds=0) is None
    assert next_step("small", config, rounds=1).round == 1
