"""Calculations outside of campaigns: ids in specs, one result per protocol, failures as records, run by anybody."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from pymatgen.core import Lattice, Structure

from fireworks_specs.calculations import calculation_workflows, launch_calculations, run_calculations
from inv_design.cli import main
from inv_design.structures.files import write_structures
from stores.provenance import provenance
from stores.records import insert_structure

if TYPE_CHECKING:
    from click.testing import Result

    from stores.connection import Connection

RELAX: dict[str, Any] = {
    "fmax": 0.02, "max_steps": 100, "keep_structure": {"ltol": 0.2, "stol": 0.3, "angle_tol": 5.0}
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "relax": RELAX,
    "elastic": RELAX,
    "eos": {"fmax": 0.02, "max_steps": 100, "strain": 0.04},
}
PAIRS = [("Al", "Ni"), ("Cu", "Pd"), ("Ni", "Pd"), ("Al", "Cu")]


def crystals() -> list[Structure]:
    return [Structure(Lattice.cubic(2.95), pair, [[0, 0, 0], [0.5, 0.5, 0.5]]) for pair in PAIRS]


def inserted(structures: list[Structure]) -> list[str]:
    source = {"kind": "ingested", "id": "tests"}
    return [insert_structure(s, source, provenance(command="tests")) for s in structures]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INV_DESIGN_WORKERS", "1")


@pytest.mark.parametrize("kind", ["relax", "elastic", "eos"])
def test_a_kind_of_calculation_is_done_once(embedded_connection: Connection, kind: str) -> None:
    ids = inserted(crystals())
    options: dict[str, Any] = {"calculator": "emt", "settings": SETTINGS[kind], "batch": 3}
    first = launch_calculations(embedded_connection, kind, [*ids, ids[0]], **options)
    assert (first.workflows, first.structures, first.known, first.waiting) == (2, 4, 0, 0)
    again = launch_calculations(embedded_connection, kind, ids, **options)
    assert (again.workflows, again.waiting) == (0, 4)
    assert run_calculations(embedded_connection) == (2, 0)
    records = list(embedded_connection.db["calculations"].find())
    assert sorted(r["structure_id"] for r in records) == sorted(ids)
    for record in records:
        assert (record["kind"], record["method"], record["state"]) == (kind, "mlip", "completed")
        assert record["protocol"]["calculator"]["calculator"] == "emt"
        assert record["results"]["relaxed"] is True
        assert record["output_structure_id"].startswith("s-")
        assert record["provenance"]["fw_id"] > 0
        assert ("bulk_modulus_vrh" in record["results"]) is (kind != "relax")
    done = launch_calculations(embedded_connection, kind, ids, **options)
    assert (done.workflows, done.known) == (0, 4)
    other = {**options, "settings": SETTINGS[kind] | {"fmax": 0.05}}  # another protocol is another result
    assert launch_calculations(embedded_connection, kind, ids, **other).structures == 4


def test_a_failure_is_a_record_and_stops_nothing(embedded_connection: Connection) -> None:
    unknown = Structure(Lattice.cubic(3.2), ["Re", "W"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    ids = [*inserted([unknown, *crystals()[:1]]), "s-00000000000000000000"]
    launch_calculations(embedded_connection, "eos", ids, calculator="emt", settings=SETTINGS["eos"])
    assert run_calculations(embedded_connection) == (1, 0)
    found = {r["structure_id"]: r for r in embedded_connection.db["calculations"].find()}
    assert [found[i]["state"] for i in ids] == ["failed", "completed", "failed"]
    assert "Re" in found[ids[0]]["error"] or "EMT" in found[ids[0]]["error"]
    assert "is not in the database" in found[ids[2]]["error"]


def test_an_elastic_tensor_is_the_campaigns_where_settings_agree() -> None:
    from fireworks_specs.protocols import calculation_protocol, mlip_protocol
    from inv_design.config import CampaignConfig
    from stores.protocol import protocol_id

    raw = {"name": "one", "targets": {"bulk_modulus_vrh": 150.0}, "stages": {"mlip": {"calculator": "emt"}}}
    config = CampaignConfig.model_validate(raw)
    stage = config.stages.mlip
    settings = {"fmax": stage.fmax, "max_steps": stage.max_steps, "keep_structure": stage.keep_structure}
    one = protocol_id(mlip_protocol(config))
    assert protocol_id(calculation_protocol("elastic", "emt", settings)) == one
    assert protocol_id(calculation_protocol("elastic", "emt", settings | {"fmax": 0.1})) != one
    assert protocol_id(calculation_protocol("elastic", "chgnet", settings)) != one
    assert protocol_id(mlip_protocol(config, "chgnet")) != one


def test_what_an_interrupted_process_was_at_is_run_again(embedded_connection: Connection) -> None:
    ids = inserted(crystals()[:2])
    launch_calculations(embedded_connection, "eos", ids, calculator="emt", settings=SETTINGS["eos"], batch=1)
    embedded_connection.launchpad().checkout_fw(_worker(), str(Path.cwd()))  # and then its process was killed
    assert run_calculations(embedded_connection) == (2, 0)
    assert embedded_connection.db["calculations"].count_documents({"state": "completed"}) == 2


def test_a_failure_of_the_place_is_tried_again_when_it_is_launched_again(
    embedded_connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fireworks_specs import pool
    from inv_design.mechanics.stages import failed

    unknown = Structure(Lattice.cubic(3.2), ["Re", "W"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    killed, lasting, new = inserted([crystals()[0], unknown, crystals()[1]])
    options: dict[str, Any] = {"calculator": "emt", "settings": SETTINGS["eos"]}
    here = pool.map_structures

    def dying(_: Any, structures: list[Structure], **__: Any) -> Any:
        yield from ((i, failed("the worker process died twice (out of memory?)")) for i in range(len(structures)))

    def launched(ids: list[str]) -> dict[str, int]:
        done = asdict(launch_calculations(embedded_connection, "eos", ids, **options))
        assert run_calculations(embedded_connection) == (done["workflows"], 0)
        return {name: number for name, number in done.items() if number and name != "workflows"}

    def attempts(identity: str) -> list[tuple[str, Any]]:
        found = embedded_connection.db["calculations"].find({"structure_id": identity})
        return [(c["state"], c.get("attempt")) for c in sorted(found, key=lambda c: c.get("attempt") or 1)]

    monkeypatch.setattr(pool, "map_structures", dying)
    assert launched([killed]) == {"structures": 1}
    assert launched([killed]) == {"structures": 1, "again": 1}  # one attempt each time
    assert attempts(killed) == [("failed", None), ("failed", 2)]
    monkeypatch.setattr(pool, "map_structures", here)
    assert launched([lasting]) == {"structures": 1}
    assert launched([killed, lasting, new]) == {"structures": 2, "failed": 1, "again": 1}
    assert attempts(killed) == [("failed", None), ("failed", 2), ("completed", 3)]
    assert attempts(lasting) == [("failed", None)]
    assert launched([killed, lasting, new]) == {"known": 2, "failed": 1}


@pytest.mark.parametrize("kind", ["relax", "elastic", "eos"])
def test_a_crystal_under_way_goes_on_from_its_checkpoint(
    embedded_connection: Connection, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from fireworks_specs.firetasks.calculate import CalculateTask
    from fireworks_specs.preemption import Preempted
    from inv_design.mechanics import lockstep

    monkeypatch.setenv("INV_DESIGN_CHECKPOINT", "0")
    answered, evaluate = 0, lockstep.evaluate

    def counted(calculator: Any, asked: Any) -> Any:
        nonlocal answered
        if answered == most:
            raise Preempted(15)
        answered += 1
        return evaluate(calculator, asked)

    monkeypatch.setattr(lockstep, "evaluate", counted)
    ids = inserted(crystals()[:2])
    options: dict[str, Any] = {"calculator": "emt", "settings": SETTINGS[kind]}

    def work() -> None:
        CalculateTask(campaign=None, kind=kind, structure_ids=ids, **options).work()

    most = 2
    with pytest.raises(Preempted):
        work()
    kept = embedded_connection.db["checkpoints"]
    assert kept.count_documents({}) == 1  # one after the other
    most = -1
    work()
    assert kept.count_documents({}) == 0
    assert embedded_connection.db["calculations"].count_documents({"state": "completed"}) == 2
    in_two, answered = answered, 0
    embedded_connection.db["calculations"].delete_many({})
    work()
    assert in_two == answered > 2  # nothing was asked twice


def _worker() -> Any:
    from fireworks import FWorker

    return FWorker()


def test_specs_carry_ids_only_and_stay_small() -> None:
    ids = [f"s-{n:020x}" for n in range(450)]
    workflows = calculation_workflows("elastic", ids, calculator="mace-alloy-small", settings=RELAX, batch=200)
    assert len(workflows) == 3
    for workflow in workflows:
        text = json.dumps(workflow.fws[0].to_dict(), default=str)
        assert len(text) < 8_000
        assert "lattice" not in text
        assert workflow.fws[0].spec["_category"] == "mlip"
    with pytest.raises(ValueError, match="201 structures"):
        calculation_workflows("elastic", ids, calculator="emt", settings=RELAX, batch=201)
    with pytest.raises(ValueError, match="'phonon'"):
        calculation_workflows("phonon", ids, calculator="emt", settings={})


# -- the command ------------------------------------------------------------------------------------------------------


def call(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def test_files_are_ingested_and_computed(tmp_path: Path) -> None:
    write_structures(tmp_path / "alloys.extxyz", [(s, {"id": s.formula}) for s in crystals()])
    words = ["launch", "eos", "alloys.extxyz", "-k", "emt", "--database", "embedded", "--json"]
    launched = call(*words, "--batch", "2")
    assert launched.exit_code == 0, launched.stderr
    counts = json.loads(launched.stdout)
    assert (counts["workflows"], counts["structures"]) == (2, 4)
    ran = json.loads(call(*words, "--run").stdout)
    assert (ran["waiting"], ran["fireworks_run"], ran["fireworks_failed"]) == (4, 2, 0)
    again = json.loads(call("launch", "eos", *ran["structure_ids"], *words[3:]).stdout)
    assert (again["workflows"], again["known"]) == (0, 4)


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["elastic"], 2, "give either CRYSTALS"),
        (["elastic", "a.cif", "-w", "K>3"], 2, "give either CRYSTALS"),
        (["elastc", "a.cif"], 2, "did you mean 'elastic'"),
        (["relax", "nowhere.cif"], 1, "nowhere.cif does not exist"),
        (["relax", "s-00000000000000000000"], 1, "no structure 's-00000000000000000000'"),
        (["eos", "a.extxyz", "-k", "emty"], 2, "unknown calculator 'emty'"),
        (["eos", "a.extxyz", "-k", "gpaw"], 2, "gpaw is DFT"),
        (["eos", "a.extxyz", "-k", "m-00000000000000000000"], 1, "no model 'm-00000000000000000000'"),
    ],
)
def test_what_cannot_be_launched_is_said_in_one_line(tmp_path: Path, words: list[str], code: int, text: str) -> None:
    write_structures(tmp_path / "a.extxyz", [(s, {}) for s in crystals()[:1]])
    result = call("launch", *words, *([] if words[0] == "elastc" else ["--database", "embedded"]))
    assert result.exit_code == code, result.output
    assert text in result.stderr


def test_a_campaigns_own_options_are_refused_beside_a_calculation() -> None:
    result = call("launch", "--rounds", "1", "eos", "a.cif")
    assert result.exit_code == 2
    assert "--rounds" in result.stderr


@pytest.mark.wire
def test_rlaunch_workers_compute_them(wire_connection: Connection, tmp_path: Path) -> None:
    uri = wire_connection._uri
    assert uri is not None
    ids = inserted(crystals())
    (tmp_path / "my_launchpad.yaml").write_text(f"host: {uri}\nuri_mode: true\nname: {wire_connection.db.name}\n")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "ignore", "-m", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    launched = run("inv_design.cli", "launch", "relax", *ids, "-k", "emt", "--batch", "2", "--database", uri)
    assert launched.returncode == 0, launched.stderr
    worked = run("fireworks.scripts.rlaunch_run", "-l", "my_launchpad.yaml", "rapidfire")
    assert worked.returncode == 0, worked.stderr[-2000:]
    assert wire_connection.db["fireworks"].distinct("state") == ["COMPLETED"]
    states = [r["state"] for r in wire_connection.db["calculations"].find({"kind": "relax"})]
    assert states == ["completed"] * 4
