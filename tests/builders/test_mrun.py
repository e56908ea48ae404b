"""The builders under maggma's command line, serial and in several processes, and what happens to items that raise."""

from __future__ import annotations

import itertools
import json
import logging
import math
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from maggma.cli import run as mrun
from maggma.core import Builder
from monty.serialization import loadfn
from pymatgen.core import Lattice, Structure

from builders.candidates import CandidateBuilder, _searches
from builders.state import STATES
from inv_design.config import CampaignConfig
from inv_design.datasets.mp_binaries import LabelledStructure
from stores.ingest import ingest_reference
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
def campaign(connection, quiet):
    """Give a database with a campaign of six candidates, once embedded and once on the server."""
    _searches.clear()
    start("c")
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
    return connection


def start(name: str, **changes: Any) -> None:
    config = CampaignConfig.model_validate({"name": name, "targets": {"K": 350}, **changes})
    insert_campaign(name, config.model_dump(mode="json"), targets={}, provenance=provenance())


def run(name: str | Path, processes: int = 1) -> None:
    """Run a spec as `mrun` does."""
    path = str(name) if isinstance(name, Path) else spec(name)
    result = CliRunner().invoke(mrun, ["--no_bars", "-n", str(processes), path], catch_exceptions=False)
    assert result.exit_code == 0


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
    run("candidates.json", processes)
    assert campaign.db["candidate_summaries"].count_documents({"status": "waiting"}) == 6
    run("campaign.json")
    assert campaign.db["screening_queue"].count_documents({"stage": "predictor"}) == 6
    assert campaign.db["campaign_metrics"].find_one()["generated"] == 6


def test_both_runners_leave_the_same_and_do_nothing_the_second_time(campaign, monkeypatch):
    hidden = dict.fromkeys(("_id", "last_updated", "provenance"), 0)

    def summaries() -> list[dict[str, Any]]:
        return sorted(campaign.db["candidate_summaries"].find({}, hidden), key=lambda s: s["candidate_id"])

    run("candidates.json")
    alone = summaries()
    campaign.db["candidate_summaries"].delete_many({})
    said: list[str] = []
    monkeypatch.setattr(CandidateBuilder, "say", lambda self: said.append(str(self.counts)))
    run("candidates.json", 2)
    run("candidates.json", 2)
    assert said == ["read 6, processed 6, wrote 6, failed 0", "read 6, processed 0, wrote 0, failed 0"]
    assert summaries() == alone


@pytest.mark.parametrize("processes", [1, 2])
def test_an_item_that_raises_is_a_failed_document_in_both_runners(campaign, processes):
    """One whose structure is damaged, one whose own record is, one with a strange prediction; the others are built."""
    broken, strange, *_ = campaign.db["candidates"].find().sort([("index", 1)])
    campaign.db["structures"].update_one({"structure_id": broken["structure_id"]}, {"$set": {"structure": {}}})
    campaign.db["predictions"].insert_one({"structure_id": strange["structure_id"], "value": math.nan})
    damaged = {"candidate_id": "c-damaged", "campaign": "c", "structure_id": broken["structure_id"], "round": math.nan}
    campaign.db["candidates"].insert_many([damaged, {"campaign": "c", "round": 0}])  # of the last nothing can be said
    run("candidates.json", processes)
    failed = {f["candidate_id"]: f for f in campaign.db["candidate_summaries"].find({"state": "failed"})}
    assert set(failed) == {broken["candidate_id"], strange["candidate_id"], "c-damaged"}
    assert "not a pymatgen structure" in failed[broken["candidate_id"]]["error"]
    assert "'property'" in failed[strange["candidate_id"]]["error"]
    assert failed["c-damaged"]["error"] == "the candidate's round is nan, not a whole number"
    assert campaign.db["candidate_summaries"].count_documents({"status": "waiting"}) == 4
    run("campaign.json")  # what follows from the summaries is built all the same
    assert campaign.db["screening_queue"].count_documents({}) == 4
    assert campaign.db["campaign_metrics"].find_one()["funnel"]["predictor"]["failed"] == 2  # one has no round


@pytest.mark.parametrize("processes", [1, 2])
def test_a_round_whose_metrics_raise_is_a_failed_document(campaign, processes):
    run("candidates.json")
    campaign.db["candidate_summaries"].update_one({}, {"$set": {"formula": "no formula"}})
    run("campaign_metrics.json", processes)
    found = campaign.db["campaign_metrics"].find_one()
    assert (found["state"], found["input_hash"]) == ("failed", None)
    assert found["error"]


@pytest.mark.parametrize("processes", [1, 2])
def test_one_campaign_without_labels_does_not_keep_the_others_from_theirs(campaign, processes):
    start("without", data={"elements": ["Be"]})
    crystal = Structure(Lattice.cubic(3.1), ["Re", "Ru"], [[0, 0, 0], [0.5] * 3])
    ingest_reference([LabelledStructure(crystal, {"bulk_modulus_vrh": 330.0}, "mp-1")], "a test")
    campaign.db["calculations"].insert_one({"kind": "reference", "method": "reference", "state": "completed"})
    run("training_set.json", processes)
    assert [t["campaign"] for t in campaign.db["training_sets"].find()] == ["c"]
    state = campaign.db[STATES].find_one({"_id": "TrainingSetBuilder/without"})
    assert state["state"] == "failed"
    assert "no label to learn from" in state["error"]


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_in_the_middle_of_reading_ends_the_run(campaign, processes, monkeypatch):
    """maggma's own multiprocess runner would wait for ever."""
    original = CandidateBuilder._items_of

    def cut_off(self, *arguments):
        yield from itertools.islice(original(self, *arguments), 2)
        raise ConnectionError("the server went away")

    monkeypatch.setattr(CandidateBuilder, "_items_of", cut_off)
    with pytest.raises(ConnectionError, match="went away"):
        run("candidates.json", processes)
    assert campaign.db["candidate_summaries"].count_documents({}) == 2
    monkeypatch.undo()
    run("candidates.json", processes)
    assert campaign.db["candidate_summaries"].count_documents({}) == 6


def test_a_spec_for_one_campaign(campaign, tmp_path):
    path = tmp_path / "one.json"
    path.write_text(json.dumps({"@module": "builders.candidates", "@class": "CandidateBuilder", "campaign": "nope"}))
    with pytest.raises(ValueError, match="'nope' is not in this database; it holds c"):
        run(path)


def test_a_spec_that_builds_from_scratch(campaign, tmp_path):
    run("candidates.json")
    campaign.db["candidate_summaries"].update_many({}, {"$set": {"status": "edited"}})
    path = tmp_path / "anew.json"
    names = {"@module": "builders.candidates", "@class": "CandidateBuilder", "campaign": None}
    path.write_text(json.dumps({**names, "from_scratch": True}))
    run(path, 2)
    assert campaign.db["candidate_summaries"].distinct("status") == ["waiting"]
