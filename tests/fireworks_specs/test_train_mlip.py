"""train-mlip on a launchpad: a campaign's calculations in, one model with its parent out, once."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from fireworks import FWorker, Workflow
from fireworks.core.rocket_launcher import launch_rocket
from pymatgen.core import Lattice, Structure

from builders.mlip_training_set import campaign_frames
from fireworks_specs.firetasks.train_mlip import (
    TrainingData,
    fetch_calculator,
    find_parent,
    request_id,
    train_mlip,
    train_mlip_workflow,
)
from inv_design.calculators.finetune import FinetuneSettings
from inv_design.mechanics.stages import measure_equation_of_state
from inv_design.testing import tiny_mace
from inv_design.weights import pack, sha256
from stores.provenance import lineage, provenance
from stores.records import insert_calculation, insert_campaign, insert_candidate, insert_model, insert_structure

if TYPE_CHECKING:
    from pathlib import Path

    from stores.connection import Connection

SETTINGS = {"steps": 20, "rate": 0.01, "replay": 8}
CRYSTALS = [("Al", "Ni", 2.9), ("Cu", "Pd", 3.0), ("Al", "Cu", 3.0), ("Ni", "Pd", 2.95)]
NAME = "labels"


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a small network in a file; the cache of weights is the test's own."""
    import torch

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    path = tmp_path / "tiny.safetensors"
    path.write_bytes(tiny_mace())
    return path


@pytest.fixture
def campaign(embedded_connection: Connection, parent: Path) -> Connection:
    """Give a database with a campaign of four labelled candidates, one failed and one distrusted."""
    made = provenance(command="tests")
    config = {"name": NAME, "targets": {"bulk_modulus_vrh": 150.0}}
    insert_campaign(NAME, config, targets=config["targets"], provenance=made)  # type: ignore[arg-type]
    for index, (a, b, length) in enumerate(CRYSTALS):
        crystal = Structure(Lattice.cubic(length), [a, b], [[0, 0, 0], [0.5, 0.5, 0.5]])
        record = measure_equation_of_state(crystal, calculator="emt", strain=0.04)
        assert record["state"] == "completed"
        add_label(index, crystal, record)
    good = {"state": "completed", "results": {"bulk_modulus_vrh": 100.0}, "flags": [], "error": None, "structure": None}
    silver = Structure(Lattice.cubic(3.2), ["Pd", "Pd"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    nickel = Structure(Lattice.cubic(2.8), ["Ni", "Ni"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    add_label(8, silver, {**good, "state": "failed", "error": "no convergence"})
    add_label(9, nickel, {**good, "flags": ["eos_residual"]})
    return embedded_connection


def add_label(index: int, crystal: Structure, record: dict[str, Any]) -> None:
    made = provenance(command="tests")
    identity = insert_structure(crystal, {"kind": "generated", "id": "m-x"}, made)
    insert_candidate(campaign=NAME, structure_id=identity, round=0, seed=1, index=index, provenance=made)
    output = None
    if record["structure"] is not None:
        output = insert_structure(Structure.from_dict(record["structure"]), {"kind": "relaxed", "id": identity}, made)
    insert_calculation(
        structure_id=identity, kind="eos", method="surrogate", protocol_id="p-emt", state=record["state"],
        results=record["results"], flags=record["flags"], error=record["error"], output_structure_id=output,
        provenance=made,
    )  # fmt: skip


def launch(connection: Connection, workflow: Workflow) -> str:
    launchpad = connection.launchpad()
    launchpad.add_wf(workflow)
    assert launch_rocket(launchpad, FWorker(), strm_lvl="CRITICAL", err_file=io.StringIO())
    document = launchpad.fireworks.find_one({}, sort=[("fw_id", -1)])
    launched = launchpad.launches.find_one({"fw_id": document["fw_id"]}, sort=[("launch_id", -1)])
    trace = ((launched.get("action") or {}).get("stored_data") or {}).get("_exception", {}).get("_stacktrace", "")
    return f"{document['state']} {trace}".strip()


def test_a_campaign_gives_frames_and_says_what_it_leaves_out(campaign: Connection) -> None:
    found = campaign_frames(NAME)
    assert len(found.frames) == 7 * len(CRYSTALS)
    assert len(found.calculation_ids) == len(CRYSTALS)
    assert len(found.left_out) == 2
    text = " ".join(found.left_out)
    assert "no convergence" in text
    assert "eos_residual" in text
    assert {frame.level for frame in found.frames} == {"p-emt"}
    assert campaign_frames("another").frames == []


def test_the_workflow_trains_once(campaign: Connection, parent: Path, tmp_path: Path) -> None:
    workflow = train_mlip_workflow(NAME, parent=str(parent), name="stiff", settings=SETTINGS)
    workflow.to_file(str(tmp_path / "train_mlip.yaml"))
    again = Workflow.from_file(str(tmp_path / "train_mlip.yaml"))  # what `lpad add` does
    assert launch(campaign, again) == "COMPLETED"
    models = {m["name"]: m for m in campaign.db["models"].find()}
    assert set(models) == {"stiff", "tiny.safetensors"}
    model = models["stiff"]
    assert model["kind"] == models["tiny.safetensors"]["kind"] == "mlip"
    assert model["parent_model_id"] == models["tiny.safetensors"]["model_id"]
    assert models["tiny.safetensors"]["sha256"] == sha256(parent.read_bytes())
    assert model["campaign"] == NAME
    assert model["hyperparameters"]["parent_sha256"] == sha256(parent.read_bytes())
    assert model["hyperparameters"]["settings"]["steps"] == model["metrics"]["done"]["steps"] == 20
    assert model["hyperparameters"]["n_left_out"] == 2
    assert model["metrics"]["after"]["train"]["frames"] == model["hyperparameters"]["train_frames"]
    ids = campaign_frames(NAME).calculation_ids
    assert set(ids) < set(model["provenance"]["inputs"])
    reached = {child["id"] for child in lineage(model["model_id"])["children"]}
    assert reached == {*ids, model["parent_model_id"]}
    assert model["model_id"] in {child["id"] for child in lineage(ids[0], direction="down")["children"]}
    log = [json.loads(line) for path in tmp_path.glob("**/train_mlip.jsonl") for line in path.read_text().splitlines()]
    assert log[0]["request_id"] == model["hyperparameters"]["request_id"]
    assert log[-1]["sha256"] == model["sha256"]

    assert (
        launch(campaign, train_mlip_workflow(NAME, parent=str(parent), name="stiff", settings=SETTINGS)) == "COMPLETED"
    )
    assert campaign.db["models"].count_documents({}) == 2


def test_a_model_of_the_database_is_a_parent_and_a_calculator(campaign: Connection, parent: Path) -> None:
    from inv_design.calculators.registry import cached_model, get_calculator

    found = campaign_frames(NAME)
    data = TrainingData(found.frames, NAME, found.calculation_ids)
    settings = FinetuneSettings(**SETTINGS)  # type: ignore[arg-type]

    def made(inputs: list[str]) -> dict[str, Any]:
        return provenance(inputs=inputs)

    first = train_mlip(data, settings, parent=str(parent), provenance=made)
    assert not first.known
    assert train_mlip(data, settings, parent=str(parent), provenance=made).known
    second = train_mlip(data, settings, parent=first.model.model_id, provenance=made)
    assert second.model.parent_model_id == first.model.model_id
    name = second.model.model_id
    get_calculator(name)
    cached_model(name).unlink()
    fetch_calculator(name)
    assert sha256(cached_model(name).read_bytes()) == second.model.sha256
    fetch_calculator("mace-alloy-small")
    with pytest.raises(LookupError, match="m-00000000000000000000"):
        fetch_calculator("m-00000000000000000000")


def test_only_a_potential_can_be_a_parent(embedded_connection: Connection) -> None:
    import numpy as np

    blob = pack({"x": np.zeros(2)}, {"kind": "cgcnn"})
    model = insert_model(blob, kind="predictor", name="cgcnn", provenance=provenance())
    with pytest.raises(ValueError, match="is a predictor"):
        find_parent(model.model_id)


def test_a_campaign_without_labels_fails_with_the_reason(embedded_connection: Connection, parent: Path) -> None:
    made = provenance(command="tests")
    insert_campaign(
        NAME,
        {"name": NAME, "targets": {"bulk_modulus_vrh": 150.0}},
        targets={"bulk_modulus_vrh": 150.0},
        provenance=made,
    )
    state = launch(embedded_connection, train_mlip_workflow(NAME, parent=str(parent)))
    assert state.startswith("FIZZLED")
    assert "has no calculation to learn from" in state
    state = launch(embedded_connection, train_mlip_workflow("nowhere"))
    assert "no campaign 'nowhere'" in state
    assert embedded_connection.db["models"].count_documents({}) == 0


def test_unknown_settings_never_reach_the_launchpad() -> None:
    with pytest.raises(TypeError, match="epochs"):
        train_mlip_workflow(NAME, settings={"epochs": 3})
    with pytest.raises(ValueError, match="steps"):
        train_mlip_workflow(NAME, settings={"steps": 0})


def test_the_request_is_everything_that_determines_the_weights(campaign: Connection, parent: Path) -> None:
    frames = campaign_frames(NAME).frames
    blob, settings = parent.read_bytes(), FinetuneSettings()
    requests = {
        request_id(frames, blob, settings),
        request_id(frames[1:], blob, settings),
        request_id(frames, blob + b" ", settings),
        request_id(frames, blob, FinetuneSettings(seed=1)),
        request_id(frames, blob, settings, "name"),
    }
    assert len(requests) == 5
    assert request_id(frames[::-1], blob, settings) in requests
