"""The potential of a round: fine-tuned on the labels so far, or kept with the reason; never a stop."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pymatgen.core import Lattice, Structure

from builders.potentials import calculator_of, is_of_stage, round_calculators
from builders.run import build_campaign
from fireworks_specs import protocols
from fireworks_specs.firetasks import fine_tune
from fireworks_specs.firetasks.dft import relaxed_structure
from fireworks_specs.firetasks.train import TrainTask
from fireworks_specs.protocols import mlip_protocol, round_calculator
from fireworks_specs.steps import model_of_round
from inv_design.calculators import registry
from inv_design.config import CampaignConfig
from inv_design.mechanics.stages import measure_equation_of_state
from inv_design.testing import tiny_mace
from stores.protocol import protocol_id
from stores.provenance import provenance
from stores.records import insert_calculation, insert_campaign, insert_candidate, insert_prediction, insert_structure

if TYPE_CHECKING:
    from stores.connection import Connection

NAME = "tuned"
PAIRS = [("Al", "Ni", 2.9), ("Cu", "Pd", 3.0), ("Al", "Cu", 3.0), ("Ni", "Pd", 2.95), ("Ni", "Cu", 2.8)]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CampaignConfig:
    """Give a campaign that fine-tunes a small untrained network; weights are cached in the test's folder."""
    import torch

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("INV_DESIGN_WORKERS", "1")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    (tmp_path / "tiny.safetensors").write_bytes(tiny_mace())
    tuning = {"enabled": True, "epochs": 4, "replay": 8, "min_frames": 20, "rate": 0.01}
    mlip = {"calculator": str(tmp_path / "tiny.safetensors"), "fine_tune": tuning}
    stages = {"mlip": mlip, "dft": {"calculator": "emt"}, "predictor": {"min_radius_ratio": 0.0}}
    return CampaignConfig.model_validate({"name": NAME, "targets": {"bulk_modulus_vrh": 150.0}, "stages": stages})


@pytest.fixture
def database(embedded_connection: Connection, config: CampaignConfig) -> Connection:
    """Give a database with that campaign, without a candidate."""
    plain = config.model_dump(mode="json")
    insert_campaign(NAME, plain, targets=config.targets, provenance=provenance(command="tests"))
    return embedded_connection


def add_labelled(pairs: list[tuple[str, str, float]], number: int) -> list[str]:
    """Insert candidates of a round with their E(V) by EMT; return the ids of the calculations."""
    made = provenance(command="tests")
    ids = []
    for index, (a, b, length) in enumerate(pairs):
        crystal = Structure(Lattice.cubic(length), [a, b], [[0, 0, 0], [0.5, 0.5, 0.5]])
        identity = insert_structure(crystal, {"kind": "generated", "id": "m-x"}, made)
        insert_candidate(campaign=NAME, structure_id=identity, round=number, seed=1, index=index, provenance=made)
        insert_prediction(structure_id=identity, property="bulk_modulus_vrh", value=150.0, std=9.0, unit="GPa",
                          model_id="m-p", protocol_id="p-p", provenance=made)  # fmt: skip
        record = measure_equation_of_state(crystal, calculator="emt", strain=0.04)
        output = insert_structure(Structure.from_dict(record["structure"]), {"kind": "relaxed", "id": identity}, made)
        calculation, _ = insert_calculation(
            structure_id=identity, kind="eos", method="surrogate", protocol_id="p-emt", state=record["state"],
            results=record["results"], flags=record["flags"], output_structure_id=output, provenance=made,
        )  # fmt: skip
        ids.append(calculation)
    return ids


def task(number: int) -> TrainTask:
    return TrainTask(campaign=NAME, round=number, kind="mlip")


def test_a_round_learns_the_labels_and_names_its_potential(database: Connection, config: CampaignConfig) -> None:
    labels = add_labelled(PAIRS[:4], 0)
    assert round_calculator(NAME, config, 1) == config.stages.mlip.calculator
    task(1).work()
    model = model_of_round(NAME, 1, "mlip")
    calculator = round_calculator(NAME, config, 1)
    assert calculator == model.parent_model_id != model.model_id
    assert model.hyperparameters["frames_learned"] == 28
    assert set(model.metrics) == {"before", "after", "done"}
    trained = database.db["models"].find_one({"model_id": calculator})
    assert set(labels) < set(trained["provenance"]["inputs"])
    assert trained["sha256"] == model.sha256
    assert trained["hyperparameters"]["settings"]["replay"] == 8
    protocol = mlip_protocol(config, calculator)
    assert protocol["calculator"]["calculator"] == calculator
    assert protocol["calculator"]["weights_sha256"] == model.sha256
    assert protocol_id(protocol) != protocol_id(mlip_protocol(config))
    # a worker elsewhere, without the weights, knows the protocol too
    registry.cached_model(calculator).unlink()
    protocols._calculator.cache_clear()
    assert mlip_protocol(config, calculator) == protocol
    assert registry.cached_model(calculator).is_file()
    # done again, nothing changes; with no new label the next round keeps it, and says why
    task(1).work()
    task(2).work()
    kept = model_of_round(NAME, 2, "mlip")
    assert kept.hyperparameters["kept"].startswith("0 new frames of 20 that are needed")
    assert round_calculator(NAME, config, 2) == calculator
    assert database.db["models"].count_documents({"kind": "mlip", "round": {"$ne": None}}) == 2


@pytest.mark.parametrize("error", [ValueError("no validation was better"), RuntimeError("x"), MemoryError()])
def test_a_training_that_fails_leaves_the_potential_and_its_reason(
    database: Connection, config: CampaignConfig, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    add_labelled(PAIRS[:3], 0)

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(fine_tune, "_train", fail)
    task(1).work()
    model = model_of_round(NAME, 1, "mlip")
    assert model.hyperparameters["kept"].startswith(f"fine-tuning failed: {type(error).__name__}")
    assert round_calculator(NAME, config, 1) == config.stages.mlip.calculator
    assert model.hyperparameters["frames_learned"] == 0  # so that the next round tries with all of them


def test_an_outage_is_no_failure_of_the_training(database: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    from pymongo.errors import AutoReconnect

    add_labelled(PAIRS[:3], 0)

    def away(*_: Any) -> None:
        raise AutoReconnect("gone")

    monkeypatch.setattr(fine_tune, "_train", away)
    with pytest.raises(AutoReconnect):
        task(1).work()
    assert model_of_round(NAME, 1, "mlip") is None


def test_the_configured_potential_judges_what_the_other_one_did(database: Connection, config: CampaignConfig) -> None:
    add_labelled(PAIRS[:4], 0)
    task(1).work()
    add_labelled(PAIRS[4:], 1)
    fine_tune.judge_as_before(task(0))  # the configured potential itself: nothing to compare
    assert database.db["calculations"].count_documents({"kind": "elastic"}) == 0
    fine_tune.judge_as_before(task(1))
    (record,) = database.db["calculations"].find({"kind": "elastic"})
    assert record["protocol_id"] == protocol_id(mlip_protocol(config))
    fine_tune.judge_as_before(task(1))
    assert database.db["calculations"].count_documents({"kind": "elastic"}) == 1


def test_results_of_other_potentials_change_no_verdict(database: Connection, config: CampaignConfig) -> None:
    add_labelled(PAIRS[:1], 0)
    (identity,) = database.db["candidates"].distinct("structure_id")
    other = mlip_protocol(config, "emt")
    results = {"bulk_modulus_vrh": 150.0, "born_stable": True, "relaxed": True, "structure_matched": True}

    def add(protocol: dict[str, Any], value: float) -> str:
        calculation, _ = insert_calculation(
            structure_id=identity, kind="elastic", method="mlip", protocol_id=protocol_id(protocol), protocol=protocol,
            state="completed", results=results | {"bulk_modulus_vrh": value}, provenance=provenance(command="tests"),
            output_structure_id=identity,
        )  # fmt: skip
        return str(calculation)

    def stage() -> dict[str, Any]:
        build_campaign(NAME)
        found = database.db["candidate_summaries"].find_one({"structure_id": identity})
        assert "mlip" in found["stages"], found["reason"]
        return dict(found["stages"]["mlip"])

    add(other, 151.0)
    assert stage()["status"] == "waiting"
    own = add(mlip_protocol(config), 152.0)
    assert stage()["value"] == 152.0
    newest = add(mlip_protocol(config) | {"fmax": 0.5}, 153.0)
    assert stage()["value"] == 152.0
    assert relaxed_structure(identity, mlip_protocol(config))[0] == own  # stage III starts from it, too
    assert relaxed_structure(identity, {"version": "another"})[0] == newest


def test_which_protocols_are_of_a_stage(config: CampaignConfig) -> None:
    stage = config.stages.mlip
    own = mlip_protocol(config)
    assert is_of_stage(own, stage.calculator, stage)  # a file is known by its name
    assert is_of_stage(None, "chgnet", stage)
    assert is_of_stage({}, "chgnet", stage)
    assert is_of_stage({"calculator": "chgnet"}, "chgnet", stage)
    assert not is_of_stage({"calculator": "emt"}, "chgnet", stage)
    assert not is_of_stage(own, "mace-alloy-small", stage)
    assert not is_of_stage(own | {"max_steps": 7}, stage.calculator, stage)
    assert is_of_stage(own | {"version": "0.0"}, stage.calculator, stage)
    other = own | {"calculator": own["calculator"] | {"weights_sha256": "0" * 64}}  # another file of the same name
    assert not is_of_stage(other, stage.calculator, stage)
    assert is_of_stage(other, f"/not/on/this/machine/{Path(stage.calculator).name}", stage)


def test_the_first_model_of_a_round_is_its_potential() -> None:
    one = {"_id": 1, "kind": "mlip", "round": 1, "model_id": "m-1", "hyperparameters": {"calculator": "m-9"}}
    late = {"_id": 2, "kind": "mlip", "round": 1, "model_id": "m-2"}
    trained = {"_id": 0, "kind": "mlip", "round": None, "model_id": "m-9"}
    assert round_calculators([late, trained, one]) == {1: "m-9"}
    assert calculator_of(late) == "m-2"


@pytest.mark.parametrize("calculator", ["chgnet", "emt", "gpaw", "package.module:make"])
def test_what_is_no_network_cannot_be_fine_tuned(calculator: str) -> None:
    stages = {"mlip": {"calculator": calculator, "fine_tune": {"enabled": True}}}
    raw = {"name": "x", "targets": {"bulk_modulus_vrh": 150.0}, "stages": stages}
    with pytest.raises(ValueError, match="is no MACE network"):
        CampaignConfig.model_validate(raw)
