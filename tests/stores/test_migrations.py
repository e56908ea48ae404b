"""A dump of the first schema, from a real campaign, is brought to the present one; killed migrations go on."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import signal
import subprocess
import sys
import textwrap
import uuid
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from inv_design.weights import pack, unpack
from stores import artifacts, schema
from stores import connection as module
from stores.migrations import plan, runner, v2

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stores.connection import Connection

DUMP = Path(__file__).parent / "data" / "schema_1.jsonl.gz"
NOW = schema.SCHEMA_VERSION


def load_dump(database: Any) -> dict[str, int]:
    """Fill a database with the dump, its indexes included; return collection -> documents."""
    from bson.json_util import CANONICAL_JSON_OPTIONS, loads
    from pymongo import IndexModel

    counts: dict[str, int] = {}
    documents: dict[str, list[Any]] = {}
    with gzip.open(DUMP, "rt") as lines:
        for line in lines:
            entry = loads(line, json_options=CANONICAL_JSON_OPTIONS)
            name = entry["collection"]
            if "indexes" in entry:
                models = [IndexModel([tuple(k) for k in i["key"]], unique=i["unique"]) for i in entry["indexes"]]
                if models:
                    database[name].create_indexes(models)
            else:
                documents.setdefault(name, []).append(entry["document"])
    for name, found in documents.items():
        database[name].insert_many(found)
        counts[name] = len(found)
    return counts


@pytest.fixture(params=["embedded", pytest.param("wire", marks=pytest.mark.wire)])
def first_schema(
    request: pytest.FixtureRequest, embedded_connection: Connection, tmp_path: Path
) -> Iterator[Connection]:
    """Give a database as the first version of inv_design left it."""
    embedded_connection.close()
    server = request.getfixturevalue("wire_server") if request.param == "wire" else ""
    name = f"inv_design_schema_{uuid.uuid4().hex[:12]}"
    with schema.unchecked():
        connection = module.connect(f"{server}/{name}" if server else f"embedded:{tmp_path / 'first.sqlite'}")
    load_dump(connection.db)
    yield connection
    connection.close()
    if server:
        from pymongo import MongoClient
        from pymongo.errors import OperationFailure

        client: MongoClient[Any] = MongoClient(server)
        with contextlib.suppress(OperationFailure):  # mongo-java-server does not find an index made later
            client.drop_database(name)
        client.close()


def padded(numbers: list[Any]) -> Any:
    """Return lists of atomic numbers as one array, filled up with zeros."""
    return np.array([[*row, *[0] * (max(map(len, numbers)) - len(row))] for row in numbers])


def without(document: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key not in names}


def everything(connection: Connection, *collections: str) -> dict[str, list[Any]]:
    return {name: sorted(connection.db[name].find(), key=lambda d: str(d["_id"])) for name in collections}


# -- a new database ---------------------------------------------------------------------------------------------------


def test_a_new_database_is_stamped(connection: Connection) -> None:
    found = schema.stamp_of(connection)
    assert found is not None
    assert found["version"] == NOW == schema.version_of(connection)
    (entry,) = found["history"]
    assert entry["from"] is None
    assert entry["to"] == NOW
    assert "@" in entry["by"]
    assert plan(connection, NOW, NOW) == []


def test_stamping_twice_keeps_the_first(connection: Connection) -> None:
    before = schema.stamp_of(connection)
    schema.stamp(connection, 7)
    assert schema.stamp_of(connection) == before


def test_every_version_has_its_migration() -> None:
    from stores.migrations import steps_to

    for version in range(schema.FIRST + 1, NOW + 1):
        names = [step.name for step in steps_to(version)]
        assert names
        assert len(set(names)) == len(names)
        assert not any("." in name or "$" in name for name in names)  # they are keys of the history


# -- the first schema -------------------------------------------------------------------------------------------------


def test_the_dump_is_of_the_first_schema(first_schema: Connection) -> None:
    assert schema.stamp_of(first_schema) is None
    assert schema.version_of(first_schema) == schema.FIRST
    model = first_schema.db["models"].find_one({"kind": "predictor"})
    with pytest.raises(ValueError, match="not a model file"):
        unpack(artifacts.get(model["sha256"]))
    counts = {item.step.name: item.count for item in plan(first_schema, 1, 2)}
    assert counts == {"models": 4, "summaries": 22, "indexes": 1}


def test_migrated_to_the_present(first_schema: Connection) -> None:
    kept = (
        "structures",
        "campaigns",
        "candidates",
        "predictions",
        "calculations",
        "training_sets",
        "evaluations",
        "steps",
    )
    launchpad = ("fireworks", "workflows", "launches", "fw_id_assigner")
    before = everything(first_schema, *kept, *launchpad)
    models = {m["model_id"]: m for m in first_schema.db["models"].find()}
    entry, last = runner.migrate(first_schema)
    assert [entry["to"], last["to"]] == [2, 3]
    assert everything(first_schema, *kept, *launchpad) == before  # what need not change does not

    for model in first_schema.db["models"].find():
        old = models[model["model_id"]]
        assert without(model, "sha256", "artifact", "size") == without(old, "sha256", "artifact", "size")
        blob = artifacts.get(model["sha256"])
        tensors, config = unpack(blob)
        assert config.get("kind", model["name"]) == model["name"]
        assert blob == pack(tensors, config)  # as this version would write it
        assert len(blob) == model["size"]
        assert first_schema.gridfs().get(model["artifact"]).filename == model["sha256"]
    assert first_schema.gridfs().find_one({"filename": old["sha256"]}) is None
    assert first_schema.db["artifacts.files"].count_documents({}) == 4

    stamped = schema.stamp_of(first_schema)
    assert stamped is not None
    assert stamped["version"] == NOW
    assert "migrating" not in stamped
    assert stamped["history"][0]["to"] == 1
    assert [e["changes"] for e in stamped["history"][-2:]] == [entry["changes"], last["changes"]]
    moved = {name: tuple(change["sha256"]) for change in entry["changes"]["models"] for name in change["models"]}
    now = {m["model_id"]: m["sha256"] for m in first_schema.db["models"].find()}
    assert moved == {name: (model["sha256"], now[name]) for name, model in models.items()}
    assert [item.count for item in plan(first_schema, 1, 2)] == [0, 0, 0]
    assert runner.migrate(first_schema) == []  # a second time changes nothing


def test_models_of_the_first_schema_work_again(first_schema: Connection) -> None:
    from inv_design.generators.property_model import count_elements
    from inv_design.generators.registry import load_generator
    from inv_design.predictors.registry import load_predictor
    from stores.documents import Candidate, Model, Prediction
    from stores.queries import structures_by_id

    runner.migrate(first_schema)
    for model in Model.objects(kind="generator"):
        generator = load_generator(model.load())
        made = list(Candidate.objects(generator_model_id=model.model_id))
        crystals = structures_by_id([c.structure_id for c in made])
        cells = [crystals[c.structure_id].get_primitive_structure() for c in made]
        counts = count_elements(padded([cell.atomic_numbers for cell in cells]))
        values, _ = generator.property_model.predict(counts, np.array([cell.volume for cell in cells]))
        assert values == pytest.approx([c.score for c in made], rel=1e-3)  # the same numbers as the old code's
    for model in Model.objects(kind="predictor"):
        stored = list(Prediction.objects(model_id=model.model_id, error=None))
        assert len(stored) > 3
        crystals = structures_by_id([p.structure_id for p in stored])
        found = load_predictor(model.load()).predict([crystals[p.structure_id] for p in stored])
        assert found.values == pytest.approx([p.value for p in stored])  # the same numbers as the old code's


def test_derived_records_are_built_anew(first_schema: Connection) -> None:
    from builders.run import build_campaign
    from stores.documents import AUTHORITATIVE, CandidateSummary

    old = {s["candidate_id"]: s for s in first_schema.db["candidate_summaries"].find()}
    runner.migrate(first_schema)
    build_campaign("small")
    new = {s["candidate_id"]: s for s in first_schema.db["candidate_summaries"].find()}
    assert new.keys() == old.keys()
    for identity, summary in new.items():
        assert summary["properties"]["bulk_modulus_vrh"] == pytest.approx(old[identity]["bulk_modulus_vrh"])
        assert (summary["stage"], summary["status"]) == (old[identity]["stage"], old[identity]["status"])
    assert CandidateSummary.objects(hit=True).count() == sum(bool(s.get("hit")) for s in old.values())
    assert all("warnings" in m for m in first_schema.db["campaign_metrics"].find())
    for document in AUTHORITATIVE:
        for record in document.objects:
            record.validate()


# -- the second schema ------------------------------------------------------------------------------------------------


def of_second_schema(connection: Connection) -> dict[str, Any]:
    """Make a database that of the second schema, with a failed calculation; return the calculation."""
    from stores.migrations import v3
    from stores.protocol import content_id
    from stores.provenance import provenance

    calculations = connection.db["calculations"]
    names = {tuple(index["key"]): name for name, index in calculations.index_information().items()}
    calculations.drop_index(names[tuple(v3.NEW)])
    calculations.create_index(v3.OLD, unique=True)
    record = {
        **{"calculation_id": content_id("k", ["s-1", "elastic", "p-1"]), "structure_id": "s-1", "kind": "elastic"},
        **{"method": "vasp", "protocol_id": "p-1", "state": "failed", "error": "killed", "provenance": provenance()},
    }
    calculations.insert_one(record)
    connection.db[schema.COLLECTION].update_one({}, {"$set": {"version": 2}})
    return calculations.find_one({})


def test_a_failure_of_the_second_schema_can_be_retried(connection: Connection) -> None:
    from stores.attempts import lacking, next_attempts
    from stores.records import insert_calculation

    before = of_second_schema(connection)
    with schema.unchecked():
        opened = reopen(connection)
    assert [item.count for item in plan(opened, 2, 3)] == [1]
    assert plan(opened, 2, 3)[0].step.pending(opened) == 1  # counting changes nothing
    (entry,) = runner.migrate(opened)
    assert len(entry["changes"]["attempts"]) == 1
    assert runner.migrate(opened) == []
    connection = reopen(opened)
    assert list(connection.db["calculations"].find()) == [before]
    assert lacking(["s-1"], "elastic", "p-1", retries=3, connection=connection) == []  # without a reason: for good
    fields = {k: before[k] for k in ("structure_id", "kind", "method", "protocol_id", "provenance")}
    for _ in range(2):  # a late duplicate is dropped, as before
        assert insert_calculation(**fields, state="completed")[1] is False
    assert next_attempts(["s-1"], "elastic", "p-1", connection=connection) == {"s-1": 2}
    assert [insert_calculation(**fields, state="completed", attempt=2)[1] for _ in range(2)] == [True, False]


# -- checks at connection ---------------------------------------------------------------------------------------------


def reopen(connection: Connection, *, read_only: bool = False) -> Connection:
    """Open the database of a connection once more."""
    uri = connection.given[0] if connection.given else f"embedded:{connection.client.path}"
    return module.connect(uri, alias="again", read_only=read_only)


def test_an_old_database_is_read_but_not_written(first_schema: Connection, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(
        RuntimeError, match=r"has schema 1.* run `inv-design db migrate`.*nothing was written"
    ) as caught:
        reopen(first_schema)
    assert "\n" not in str(caught.value)
    with reopen(first_schema, read_only=True) as snapshot:
        assert snapshot.db["candidates"].count_documents({}) == 20
        assert "has schema 1" in caplog.text
        assert schema.stamp_of(snapshot) is None
    with schema.unchecked():
        opened = reopen(first_schema)
    assert "formula_1" not in opened.db["structures"].index_information()  # not even an index was made
    runner.migrate(opened)
    reopen(opened).db["steps"].insert_one({"key": "writes again"})


def test_a_newer_database_is_not_written(connection: Connection, caplog: pytest.LogCaptureFixture) -> None:
    connection.db[schema.COLLECTION].update_one({}, {"$set": {"version": NOW + 1, "inv_design": "9.1.0"}})
    with pytest.raises(RuntimeError, match=rf"has schema {NOW + 1}.*install inv_design 9\.1\.0 or newer"):
        reopen(connection)
    reopen(connection, read_only=True)
    assert "9.1.0" in caplog.text
    with schema.unchecked():
        opened = reopen(connection)
    with pytest.raises(ValueError, match="newer"):
        runner.migrate(opened)


def test_a_database_under_migration_is_not_written(connection: Connection) -> None:
    connection.db[schema.COLLECTION].update_one({}, {"$set": {"migrating": {**schema.signature(), "to": NOW}}})
    with pytest.raises(RuntimeError, match="is being migrated"):
        reopen(connection)


def test_a_database_without_stamp_that_needs_nothing_is_stamped(connection: Connection) -> None:
    connection.db["steps"].insert_one({"key": "a", "provenance": {}})
    connection.db[schema.COLLECTION].drop()
    stamped = schema.stamp_of(reopen(connection))
    assert stamped is not None
    assert stamped["version"] == NOW
    assert "nothing to migrate" in stamped["history"][0]["changes"]["note"]


# -- preconditions and interruptions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("to", [0, NOW + 1])
def test_impossible_versions(connection: Connection, to: int) -> None:
    with pytest.raises(ValueError, match=f"no schema {to}"):
        runner.migrate(connection, to)


def test_there_is_no_way_back(connection: Connection) -> None:
    with pytest.raises(ValueError, match="forward only"):
        runner.migrate(connection, 1)


@pytest.mark.parametrize("first_schema", [pytest.param("wire", marks=pytest.mark.wire)], indirect=True)
def test_others_at_work_stand_in_the_way(first_schema: Connection) -> None:
    wire_connection = first_schema
    wire_connection.db["fireworks"].update_one({}, {"$set": {"state": "RUNNING"}})
    with pytest.raises(RuntimeError, match="1 fireworks are running"):
        runner.migrate(wire_connection)
    assert sum(item.count for item in plan(wire_connection, 1, 2)) == 27
    wire_connection.db["fireworks"].update_many({}, {"$set": {"state": "COMPLETED"}})
    soon = wire_connection.now() + timedelta(minutes=1)
    wire_connection.db["claims"].insert_one({"key": "k", "holder": "h", "expires_at": soon})
    with pytest.raises(RuntimeError, match="1 results are claimed"):
        runner.migrate(wire_connection)
    assert runner.migrate(wire_connection, force=True)


def test_another_migration_stands_in_the_way(first_schema: Connection) -> None:
    schema.stamp(first_schema, 1)
    elsewhere = {"at": datetime(2026, 1, 1), "by": "ada@far", "host": "far", "pid": 1, "to": 2}
    first_schema.db[schema.COLLECTION].update_one({}, {"$set": {"migrating": elsewhere}})
    with pytest.raises(RuntimeError, match=r"ada@far \(process 1\) has been migrating it"):
        runner.migrate(first_schema)
    assert runner.migrate(first_schema, force=True)


@pytest.mark.parametrize("changes", [1, 2, 3, 4, 5, 27])
@pytest.mark.parametrize("first_schema", ["embedded"], indirect=True)
def test_interrupted_after_any_change_it_goes_on(first_schema: Connection, changes: int) -> None:

    class Killed(Exception):  # noqa: N818
        pass

    def stop(done: int, *_: object) -> None:
        if done == changes:
            raise Killed

    left = {1: 3, 2: 2, 3: 1}.get(changes, 0)
    try:
        runner.migrate(first_schema, progress=stop)
    except Killed:
        assert schema.version_of(first_schema) in (1, 2)
        assert plan(first_schema, 1, 2)[0].count == left
        runner.migrate(first_schema)
    stamped = schema.stamp_of(first_schema)
    assert stamped is not None
    assert stamped["version"] == NOW
    assert [len(stamped["history"][-2]["changes"][name]) for name in ("models", "summaries", "indexes")] == [4, 1, 1]


def test_killed_after_its_last_step_it_ends(connection: Connection) -> None:
    mine = {**schema.signature(), "to": NOW, "host": "gone", "pid": 1}
    connection.db[schema.COLLECTION].update_one({}, {"$set": {"migrating": mine}})
    with schema.unchecked():
        assert runner.migrate(connection) == []
    assert "migrating" not in (schema.stamp_of(connection) or {})
    reopen(connection)


@pytest.mark.parametrize("first_schema", ["embedded"], indirect=True)
def test_killed_by_sigkill_it_goes_on(first_schema: Connection) -> None:
    path = first_schema.client.path
    first_schema.close()
    code = f"""
        import os, signal
        from stores import schema
        from stores.connection import connect
        from stores.migrations import runner
        with schema.unchecked():
            connection = connect("embedded:{path}")
        runner.migrate(connection, progress=lambda done, *_: done == 2 and os.kill(os.getpid(), signal.SIGKILL))
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False, env=os.environ)
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(RuntimeError, match="is being migrated"):
        module.connect(f"embedded:{path}")
    with schema.unchecked(), module.connect(f"embedded:{path}") as connection:
        assert plan(connection, 1, 2)[0].count == 2
        entry, _ = runner.migrate(connection)
        assert len(entry["changes"]["models"]) >= 3  # one may have been killed between its change and its note
        assert plan(connection, 1, 2)[0].count == 0


def test_a_damaged_model_file_is_not_touched(first_schema: Connection) -> None:
    file = next(iter(first_schema.gridfs().find({"kind": "generator"})))
    chunk = first_schema.db["artifacts.chunks"].find_one({"files_id": file._id})
    data = bytearray(chunk["data"])
    data[-1] ^= 1
    first_schema.db["artifacts.chunks"].update_one({"_id": chunk["_id"]}, {"$set": {"data": bytes(data)}})
    with pytest.raises(ValueError, match="is damaged"):
        runner.migrate(first_schema)
    assert first_schema.gridfs().exists(file._id)
    assert schema.version_of(first_schema) == 1


@pytest.mark.parametrize(
    "blob", [b"", b"\x80\x04.", b"\xff" * 64, pack({}, {}), (8).to_bytes(8, "little") + b"{}      "]
)
def test_what_is_no_model_file_of_the_first_schema(blob: bytes) -> None:
    assert not v2.is_old(blob)
    with pytest.raises(ValueError, match="not a model file of schema 1"):
        v2.repacked(blob)


def test_the_dump_tells_no_machine() -> None:
    with gzip.open(DUMP, "rt") as lines:
        for line in lines:
            entry = json.loads(line)
            made = entry.get("document", {}).get("provenance") or {}
            assert made.get("created_by", "ada@lab") == "ada@lab"
            assert entry.get("document", {}).get("launch_dir", "/home/ada/alloys") == "/home/ada/alloys"


def test_the_database_of_another_program_is_left_alone(connection: Connection) -> None:
    connection.db[schema.COLLECTION].drop()
    connection.db["structures"].insert_one({"a": 1})
    with pytest.raises(RuntimeError, match="another program"):
        reopen(connection)
    with pytest.raises(RuntimeError, match="another program"):
        runner.migrate(connection)
    assert schema.stamp_of(connection) is None
