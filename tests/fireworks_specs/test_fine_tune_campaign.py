"""A campaign that fine-tunes its potential, from end to end, with EMT in place of DFT."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import yaml

from inv_design.config import CampaignConfig

if TYPE_CHECKING:
    from pathlib import Path

    from stores.connection import Connection

RAW = """
name: tuned
targets: {bulk_modulus_vrh: 150 GPa}
data: {elements: [Al, Cu, Ag, Au, Ni, Pd, Pt], exclude: [], max_entries: 60}
generator: {name: substitution, samples_per_round: 24, chunk: 24, max_sites: 4}
stages:
  predictor: {model: extra_trees, tolerance: 0.5}
  mlip:
    calculator: mace-alloy-small
    tolerance: 0.3
    chunk: 24
    fine_tune: {enabled: true, epochs: 3, replay: 8, min_frames: 10}
  dft: {backend: surrogate, calculator: emt, budget_per_round: 4, audit_per_round: 1}
evaluation: {targets: []}
rounds: 1
"""


@pytest.mark.slow
def test_a_campaign_fine_tunes_judges_and_compares(
    embedded_connection: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fireworks_specs.execution import run
    from fireworks_specs.protocols import mlip_protocol, round_calculator
    from inv_design.cli.trust_data import collect_trust
    from stores.protocol import protocol_id

    monkeypatch.setenv("INV_DESIGN_WORKERS", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    config = CampaignConfig.model_validate(yaml.safe_load(RAW))
    summary = run(embedded_connection, config)
    assert summary.finished
    assert summary.fireworks_failed == 0
    database = embedded_connection.db
    tuned = round_calculator("tuned", config, 1)
    assert tuned.startswith("m-")
    assert round_calculator("tuned", config, 0) == "mace-alloy-small"
    expected = {0: protocol_id(mlip_protocol(config)), 1: protocol_id(mlip_protocol(config, tuned))}
    for number, protocol in expected.items():
        found = database["candidate_summaries"].distinct("stages.mlip.protocol_id", {"round": number})
        assert found == [protocol]
    trust = collect_trust(database, config, label="surrogate (emt E(V))", tolerance=0.2).record()
    (compared,) = trust["fine_tuning"]
    labelled = database["candidate_summaries"].count_documents({"round": 1, "stages.dft.value": {"$ne": None}})
    audited = database["candidate_summaries"].count_documents({"round": 1, "audit.value": {"$ne": None}})
    assert 0 < compared["n"] <= labelled + audited
    assert compared["learned"] == database["candidate_summaries"].count_documents(
        {"round": 0, "$or": [{"stages.dft.value": {"$ne": None}}, {"audit.value": {"$ne": None}}]}
    )
    assert compared["before"]["n"] == compared["after"]["n"]
    rejected = trust["confusion"]["I passed, II rejected"]
    if sum(rejected.values()):
        assert 0 < sum(rejected[v] for v in ("hit", "miss", "failed")) <= 2
