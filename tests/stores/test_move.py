"""A database moves to another: nothing lost, resumable, and what is there is never written over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from stores.connection import connect
from stores.move import fingerprint, move, moved_to

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from stores.connection import Connection


@pytest.fixture
def other_connection(embedded_connection: Connection, tmp_path: Path) -> Iterator[Connection]:
    """Give a second, empty embedded database."""
    with connect("embedded:other.sqlite", root=tmp_path, alias="other") as other:
        yield other


@pytest.fixture(autouse=True)
def _task_with_its_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Name the task with its module, or FireWorks imports its own tests in search of it; keep its files together."""
    from fireworks import PyTask

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(PyTask, "_fw_name", "{{fireworks.user_objects.firetasks.script_task.PyTask}}")


def fill(connection: Connection, documents: int = 250) -> None:
    """Write records, an artifact of several chunks, indexes of our own, and a launchpad at work."""
    from fireworks import Firework, PyTask, Workflow
    from fireworks.core.rocket_launcher import launch_rocket

    from stores import artifacts

    made = {"created_by": "tests"}
    predictions = [
        {"structure_id": f"s-{i}", "property": "K", "protocol_id": "p", "value": i / 7, "provenance": made}
        for i in range(documents)
    ]
    connection.db["predictions"].insert_many(predictions)
    connection.db["odd"].insert_many(
        [
            {"_id": 1, "x": float("nan"), "y": float("inf"), "z": -0.0},
            {"_id": "text", "big": 2**40, "small": 3, "nothing": None, "list": [[], {}, [1.5]]},
            {"_id": {"compound": 1}, "bytes": b"\x00\xff", "e\u0301": "\u00e9"},
        ]
    )
    connection.db["odd"].create_index([("small", 1), ("x", -1)], name="own", sparse=True)
    artifacts.put(os.urandom(600_000), kind="predictor", connection=connection)
    launchpad = connection.launchpad()
    for _ in range(2):
        first = Firework([PyTask(func="builtins.len", args=[[1, 2]])], name="first")
        launchpad.add_wf(Workflow([first, Firework([PyTask(func="builtins.len", args=[[]])], parents=[first])]))
    launch_rocket(launchpad, strm_lvl="CRITICAL")


def contents(connection: Connection) -> dict[str, tuple[int, str]]:
    names = [n for n in connection.db.list_collection_names() if n != "moves"]
    found = {name: fingerprint(connection, name) for name in names}
    return {name: value for name, value in found.items() if value[0]}


def test_everything_arrives(embedded_connection: Connection, other_connection: Connection) -> None:
    fill(embedded_connection)
    before = contents(embedded_connection)
    report = move(embedded_connection, other_connection)
    assert contents(other_connection) == before == contents(embedded_connection)
    assert {"predictions", "odd", "artifacts.files", "artifacts.chunks", "fireworks", "launches"} <= set(before)
    assert report["documents"] == sum(number for number, _ in before.values())
    assert report["copied"] in (report["documents"], report["documents"] - 1)  # the stamp of the schema may be there
    assert other_connection.db["odd"].index_information()["own"]["key"] == [("small", 1), ("x", -1)]
    assert other_connection.db["odd"].index_information()["own"]["sparse"] is True
    assert moved_to(embedded_connection) == other_connection.uri_redacted
    assert moved_to(other_connection) is None
    again = move(embedded_connection, other_connection)
    assert again["already"] is True
    assert again["documents"] == report["documents"]


@pytest.mark.wire
def test_a_launchpad_goes_on_at_the_server(embedded_connection: Connection, wire_server: str) -> None:
    from fireworks.core.rocket_launcher import rapidfire

    fill(embedded_connection)
    name = f"inv_design_test_moved_{os.getpid()}"
    with connect(f"{wire_server}/{name}", alias="server") as server:
        try:
            move(embedded_connection, server)
            assert contents(server) == contents(embedded_connection)
            wanted = {n: set(embedded_connection.db[n].index_information()) for n in ("candidates", "fireworks", "odd")}
            for collection, indexes in wanted.items():
                assert indexes <= set(server.db[collection].index_information())
            launchpad = server.launchpad()
            states = sorted(f["state"] for f in launchpad.fireworks.find())
            assert states == ["COMPLETED", "READY", "READY", "WAITING"]
            rapidfire(launchpad, strm_lvl="CRITICAL")
            assert launchpad.fireworks.distinct("state") == ["COMPLETED"]
            assert launchpad.launches.count_documents({}) == 4
            blob = next(iter(server.gridfs().find({})))
            assert len(blob.read()) == blob.length == 600_000
        finally:
            server.client.drop_database(name)


def test_an_interrupted_move_goes_on(embedded_connection: Connection, other_connection: Connection) -> None:
    fill(embedded_connection, 450)

    def stop(done: int, total: int, text: str) -> None:
        if text == "copy predictions" and done >= 200:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        move(embedded_connection, other_connection, progress=stop)
    there = other_connection.db["predictions"].count_documents({})
    assert 0 < there < 450
    assert moved_to(embedded_connection) is None
    # the source goes on before the move does: one document more, one less, one other
    predictions = embedded_connection.db["predictions"]
    first = other_connection.db["predictions"].find_one({})["structure_id"]
    last = other_connection.db["predictions"].find().skip(there - 1).limit(1)[0]["structure_id"]
    predictions.update_one({"structure_id": first}, {"$set": {"value": -1.0}})
    predictions.delete_one({"structure_id": last})
    embedded_connection.db["odd"].insert_one({"_id": "late"})
    report = move(embedded_connection, other_connection)
    assert contents(other_connection) == contents(embedded_connection)
    copied = {entry["name"]: entry["copied"] for entry in report["collections"]}
    assert copied["predictions"] == 450 - there + 1


def test_other_data_is_never_written_over(embedded_connection: Connection, other_connection: Connection) -> None:
    fill(embedded_connection, 5)
    other_connection.db["campaigns"].insert_one({"name": "precious", "config": {}, "provenance": {}})
    before = contents(other_connection)
    with pytest.raises(ValueError, match="is not empty: it holds 1 campaigns"):
        move(embedded_connection, other_connection)
    assert contents(other_connection) == before
    with pytest.raises(ValueError, match="is where the database is"):
        move(embedded_connection, embedded_connection)


def test_one_source_has_one_target(
    embedded_connection: Connection, other_connection: Connection, tmp_path: Path
) -> None:
    fill(embedded_connection, 5)
    move(embedded_connection, other_connection)
    with connect("embedded:third.sqlite", root=tmp_path, alias="third") as third:
        with pytest.raises(ValueError, match=r"was moved to embedded:.*other\.sqlite at"):
            move(embedded_connection, third)
        move(other_connection, third)  # it moves on from where it is
        assert contents(third) == contents(embedded_connection)
    with (
        connect("embedded:fourth.sqlite", root=tmp_path, alias="fourth") as fourth,
        pytest.raises(ValueError, match="holds the move of another database"),
    ):
        move(fourth, other_connection)


def test_work_at_the_target_survives_another_call(
    embedded_connection: Connection, other_connection: Connection
) -> None:
    fill(embedded_connection, 5)
    move(embedded_connection, other_connection)
    other_connection.db["predictions"].update_one({"structure_id": "s-1"}, {"$set": {"value": 99.0}})
    other_connection.db["predictions"].delete_one({"structure_id": "s-2"})
    after = contents(other_connection)
    assert move(embedded_connection, other_connection)["already"] is True
    assert contents(other_connection) == after


SCRIPT = """
import sys
from pathlib import Path
from inv_design.cli.db_move import move
from inv_design.cli.options import Settings
move(["--to", sys.argv[2], "--database", "embedded:" + sys.argv[1], "--json"], obj=Settings())
"""


@pytest.mark.wire
def test_a_killed_move_is_completed_by_the_next(embedded_connection: Connection, wire_server: str) -> None:
    from pymongo import MongoClient

    fill(embedded_connection, 4000)
    path = embedded_connection.client.path
    before = contents(embedded_connection)
    embedded_connection.close()
    name = f"inv_design_test_killed_{os.getpid()}"
    uri = f"{wire_server}/{name}"
    client: MongoClient[Any] = MongoClient(wire_server)
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(path), uri]
    try:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while client[name]["predictions"].estimated_document_count() < 500 and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        _, said = process.communicate()
        assert process.returncode == -signal.SIGKILL, said
        there = client[name]["predictions"].estimated_document_count()
        assert 500 <= there < 4000
        again = subprocess.run(command, capture_output=True, text=True, check=False)
        assert again.returncode == 0, again.stderr
        with connect(uri, alias="server") as server, connect(f"embedded:{path}", alias="source") as source:
            assert contents(server) == before == contents(source)
            assert moved_to(source) == server.uri_redacted
    finally:
        client.drop_database(name)
        client.close()


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("mongodb://host/db", "database: mongodb://host/db"),
        (
            "mongodb://me:se:c@ret@host:27017/db?authSource=admin",
            "database: mongodb://me@host:27017/db?authSource=admin",
        ),
        ("mongodb://h/db?tls=true&tlsCertificateKeyFilePassword=x&w=1", "database: mongodb://h/db?tls=true&w=1"),
        ("mongodb://h/db?authMechanismProperties=AWS_SESSION_TOKEN:x", "database: mongodb://h/db"),
        ("mongodb+srv://me@host/db", "database: mongodb+srv://me@host/db"),
        ("embedded:other.sqlite", "database: embedded:other.sqlite"),
    ],
)
def test_the_line_for_the_campaign_file_holds_no_password(given: str, line: str) -> None:
    from inv_design.cli.db_move import database_line

    assert database_line(given) == line
