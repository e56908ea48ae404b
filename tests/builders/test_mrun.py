"""The builders under maggma's command line, serial and in several processes, and what happens to items that raise."""

from __future__ import annotations

import json
import logging
from importlib import resources

import pytest
from click.testing import CliRunner
from maggma.cli import run as mrun
from maggma.core import Builder
from monty.serialization import loadfn
from pymatgen.core import Lattice, Structure

from builders.candidates import _searches
from inv_design.config import CampaignConfig
from stores.provenance import provenance
from stores.records import insert_campaign, insert_candidates, insert_structures

SPECS = sorted(p.name for p in (resources.files("builders") / "mrun").iterdir() if p.name.endswith(".json"))


@pytest.fixture
def quiet():
    """Take away what mrun does to the root logger."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers = handlers


@pytest.fixture
def campaign(embedded_connection, quiet):
    _searches.clear()
    config = CampaignConfig.model_validate({"name": "c", "targets": {"K": 350}})
    insert_campaign("c", config.model_dump(mode="json"), targets={}, provenance=provenance())
    crystals = [
        Structure(Lattice.cubic(3.1), ["Re", m], [[0, 0, 0], [0.5] * 3]) for m in ("Ru", "W", "Ir", "Mo", "Rh", "Ta")
    ]
    ids = insert_structures(crystals, [{"kind": "generated", "id": "g"}] * len(crystals), provenance())
    insert_candidates(
        [
            {"campaign": "c", "structure_id": s, "round": 0, "seed": 1, "index": i, "provenance": provenance()}
            for i, s in enumerate(ids)
        ]
    )
    return embedded_connection


def spec(name: str) -> str:
    return str(resources.files("builders") / "mrun" / name)


def test_specs_load_and_name_every_builder():
    loaded = [loadfn(spec(name)) for name in SPECS]
    flat = [b for item in loaded for b in (item if isinstance(item, list) else [item])]
    assert all(isinstance(b, Builder) for b in flat)
    assert {type(b).__name__ for b in flat} == {
        "CandidateBuilder", "ScreeningQueueBuilder", "CampaignMetricsBuilder", "TrainingSetBuilder",
    }  # fmt: skip


@pytest.mark.parametrize("processes", [1, 2])
def test_mrun_builds_the_campaign(campaign, processes):
    arguments = ["--no_bars", "-n", str(processes), spec("candidates.json")]
    result = CliRunner().invoke(mrun, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert campaign.db["candidate_summaries"].count_documents({"status": "waiting"}) == 6
    result = CliRunner().invoke(mrun, ["--no_bars", spec("campaign.json")], catch_exceptions=False)
    assert result.exit_code == 0
    assert campaign.db["screening_queue"].count_documents({"stage": "predictor"}) == 6
    assert campaign.db["campaign_metrics"].find_one()["generated"] == 6


@pytest.mark.parametrize("processes", [1, 2])
def test_an_item_that_raises_is_a_failed_document_in_both_runners(campaign, processes):
    first = campaign.db["candidates"].find_one()
    campaign.db["structures"].update_one({"structure_id": first["structure_id"]}, {"$set": {"structure": {}}})
    arguments = ["--no_bars", "-n", str(processes), spec("candidates.json")]
    CliRunner().invoke(mrun, arguments, catch_exceptions=False)
    failed = list(campaign.db["candidate_summaries"].find({"state": "failed"}))
    assert [f["candidate_id"] for f in failed] == [first["candidate_id"]]
    assert "not a pymatgen structure" in failed[0]["error"]
    assert campaign.db["candidate_summaries"].count_documents({}) == 6


def test_a_spec_for_one_campaign(campaign, tmp_path):
    path = tmp_path / "one.json"
    path.write_text(json.dumps({"@module": "builders.candidates", "@class": "CandidateBuilder", "campaign": "nope"}))
    with pytest.raises(ValueError, match="'nope' is not in this database; it holds c"):
        CliRunner().invoke(mrun, ["--no_bars", str(path)], catch_exceptions=False)
