"""A campaign whose stage III is VASP, by its stand-in, which fails in every way: it labels what it can and ends."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from click.testing import CliRunner

from fireworks_specs import execution
from inv_design import testing_vasp
from inv_design.config import CampaignConfig
from inv_design.screening.retries import attempt_of

if TYPE_CHECKING:
    from pathlib import Path

    from stores.connection import Connection

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SETTINGS = (
    "{name: small, targets: {bulk_modulus_vrh: 150 GPa}, rounds: 0,"
    " data: {elements: [Al, Cu, Ag, Au, Ni, Pd, Pt], exclude: [], max_entries: 30},"
    " generator: {name: substitution, samples_per_round: 14, chunk: 14, max_sites: 4},"
    " stages: {predictor: {model: extra_trees, tolerance: 0.9},"
    " mlip: {calculator: emt, tolerance: 0.9, chunk: 14, born_stable: false},"
    " dft: {backend: vasp, budget_per_round: 3, retries: 1}},"
    " evaluation: {targets: []}}"
)


def test_it_ends_whatever_fails(embedded_connection: Connection, vasp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INV_DESIGN_WORKERS", "1")
    config = CampaignConfig.model_validate(yaml.safe_load(SETTINGS))
    database = embedded_connection.db

    # a worker without VASP blames no candidate
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("PATH", "")
        with pytest.raises(execution.CampaignFailed, match="VASP_CMD"):
            execution.run(embedded_connection, config)
    assert database["calculations"].count_documents({"method": "vasp"}) == 0
    queue = database["screening_queue"].find({"stage": "dft"}).sort([("priority", -1), ("candidate_id", 1)])
    chosen = [database["structures"].find_one({"structure_id": q["structure_id"]}) for q in queue]
    chosen.sort(key=lambda s: -s["spacegroup"]["number"])  # the one that is computed to its end has the fewest strains
    killed, starved, unconverged = (s["structure_id"] for s in chosen)
    names = [s["formula"] for s in chosen]
    assert len(set(names)) == 3
    plan = f"killed@{names[0]}/strain*1,truncated@{names[1]}*1,memory@{names[1]},unconverged@{names[2]}"
    monkeypatch.setenv(testing_vasp.FAIL_VARIABLE, plan)
    assert execution.run(embedded_connection, config).finished

    found: dict[str, list[Any]] = {}
    for calculation in sorted(database["calculations"].find({"method": "vasp"}), key=attempt_of):
        found.setdefault(calculation["structure_id"], []).append((calculation["state"], calculation.get("reason")))
    assert found == {
        killed: [("failed", "killed"), ("completed", None)],
        starved: [("failed", "truncated_output"), ("failed", "out_of_memory")],
        unconverged: [("failed", "electronic_nonconvergence")],
    }
    label = database["calculations"].find_one({"method": "vasp", "state": "completed"})
    jobs = database["outputs"].distinct("uuid", {"metadata.structure_id": killed})
    parent = database["calculations"].find_one({"structure_id": killed, "method": "mlip"})["calculation_id"]
    inputs = label["provenance"]["inputs"]
    assert inputs[:2] == [killed, parent]
    assert set(inputs[2:]) <= set(jobs)
    assert len(inputs) > 2 + 5
    # VASP's stand-in is the potential of stage II: the two agree
    by_mlip = database["calculations"].find_one({"structure_id": killed, "method": "mlip"})["results"]
    assert label["results"]["bulk_modulus_vrh"] == pytest.approx(by_mlip["bulk_modulus_vrh"], rel=0.03)

    before = database["calculations"].count_documents({})
    assert execution.run(embedded_connection, config).fireworks_run == 0
    assert database["calculations"].count_documents({}) == before
    place = vasp / "campaign.yaml"
    place.write_text(SETTINGS)
    embedded_connection.close()
    text = f"embedded:{embedded_connection.client.path}"
    result = CliRunner().invoke(main_command(), ["status", "--json", "-c", str(place), "--database", text])
    (this,) = json.loads(result.output)["rounds"]
    assert this["funnel"]["dft"]["failed"] == 2
    assert this["funnel"]["dft"]["reasons"]["calculation:electronic_nonconvergence"] == 1
    assert this["funnel"]["dft"]["reasons"]["calculation:out_of_memory"] == 1
    result = CliRunner().invoke(main_command(), ["ingest", "--outputs", "--json", "-c", str(place), "--database", text])
    assert json.loads(result.output)["inserted"] == 0
    result = CliRunner().invoke(main_command(), ["ingest", "-c", str(place), "--database", text])
    assert result.exit_code == 2


def main_command() -> Any:
    from inv_design.cli import main

    return main
