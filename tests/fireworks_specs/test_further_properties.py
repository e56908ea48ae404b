"""A campaign with several objectives: each further property gets a predictor, predictions and a place in the order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from fireworks_specs import execution
from fireworks_specs.firetasks.predict import trusted
from inv_design.config import CampaignConfig

if TYPE_CHECKING:
    from stores.connection import Connection


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INV_DESIGN_WORKERS", "1")


def two_objectives(**changes: Any) -> CampaignConfig:
    settings: dict[str, Any] = {
        "name": "two",
        "targets": {"bulk_modulus_vrh": "150 GPa", "shear_modulus_vrh": "max", "density": "min"},
        "data": {"elements": ["Al", "Cu", "Ag", "Au", "Ni", "Pd", "Pt"], "exclude": [], "max_entries": 40},
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


def test_a_further_property_is_predicted_by_a_model_of_the_training_set(embedded_connection: Connection) -> None:
    database = embedded_connection.db
    config = two_objectives()
    assert execution.run(embedded_connection, config).finished
    own = database["models"].find_one({"campaign": "two", "kind": "predictor"})
    (shear,) = database["models"].find({"property": "shear_modulus_vrh"})
    assert shear["kind"] == "predictor"
    assert shear.get("campaign") is None
    assert shear["training_set_id"] == own["training_set_id"]
    assert shear["provenance"]["inputs"] == [own["training_set_id"]]
    candidates = set(database["candidates"].distinct("structure_id"))
    found = list(database["predictions"].find({"property": "shear_modulus_vrh"}))
    assert {p["structure_id"] for p in found} == candidates
    assert {p["model_id"] for p in found} == {shear["model_id"]}
    assert all(p["unit"] == "GPa" and p["value"] > 0 for p in found)
    for summary in database["candidate_summaries"].find():
        assert set(summary["properties"]) == {"bulk_modulus_vrh", "shear_modulus_vrh", "density"}
        assert summary["stages"]["predictor"]["model_id"] == own["model_id"]
        assert summary["properties"]["shear_modulus_vrh"] is not None
    models = database["models"].count_documents({})
    assert execution.run(embedded_connection, config).fireworks_run == 0
    assert database["models"].count_documents({}) == models


def test_a_property_without_labels_is_not_predicted(embedded_connection: Connection) -> None:
    config = two_objectives(properties={"hardness": "GPa"}, targets={"K": "150 GPa", "hardness": "max"})
    assert execution.run(embedded_connection, config).finished
    assert embedded_connection.db["predictions"].distinct("property") == ["bulk_modulus_vrh"]
    summary = embedded_connection.db["candidate_summaries"].find_one()
    assert summary["properties"]["hardness"] is None


@pytest.mark.parametrize(
    ("labels", "name", "expected"),
    [
        ({}, "shear_modulus_vrh", False),
        ({"shear_modulus_vrh": 30.0, "bulk_modulus_vrh": 100.0}, "shear_modulus_vrh", True),
        ({"shear_modulus_vrh": 0.2, "bulk_modulus_vrh": 100.0}, "shear_modulus_vrh", False),
        ({"shear_modulus_vrh": 200.0, "bulk_modulus_vrh": 100.0}, "shear_modulus_vrh", False),
        ({"e_above_hull": 0.0}, "e_above_hull", True),
        ({"charge": -1.0}, "charge", True),
    ],
)
def test_labels_to_learn_from(labels: dict[str, float], name: str, expected: bool) -> None:
    assert trusted({k: {"value": v} for k, v in labels.items()}, name) is expected
