"""A database moves to another: nothing lost, resumable, and what is there is never written over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from stores.connection import connect, connect_from_launchpad
from stores.move import _copy_indexes, _index, fingerprint, move, moved_to, moving

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


# -- others write meanwhile --------------------------------------------------------------------------------------------


def interrupt(source: Connection, target: Connection, at: str) -> None:
    """Begin a move and interrupt it at a step of its progress."""

    def stop(_done: int, _total: int, text: str) -> None:
        if text == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        move(source, target, progress=stop)


@pytest.mark.parametrize("change", ["insert", "update"])
def test_what_others_wrote_into_the_target_is_never_deleted(
    embedded_connection: Connection, other_connection: Connection, change: str
) -> None:
    fill(embedded_connection, 5)
    interrupt(embedded_connection, other_connection, "verify predictions")
    predictions = other_connection.db["predictions"]
    if change == "insert":
        predictions.insert_one({"_id": "new", "value": 1.0})
    else:
        predictions.update_one({"structure_id": "s-1"}, {"$set": {"value": -1.0}})
    before = contents(other_connection)
    with pytest.raises(RuntimeError, match="holds 1 predictions that this move did not copy"):
        move(embedded_connection, other_connection)
    assert contents(other_connection) == before
    predictions.delete_many({"$or": [{"_id": "new"}, {"structure_id": "s-1"}]})
    move(embedded_connection, other_connection)
    assert contents(other_connection) == contents(embedded_connection)


def test_a_collection_that_only_the_target_has_is_never_passed_over(
    embedded_connection: Connection, other_connection: Connection
) -> None:
    fill(embedded_connection, 5)
    interrupt(embedded_connection, other_connection, "verify predictions")
    other_connection.db["theirs"].insert_one({"_id": 1})
    with pytest.raises(RuntimeError, match="holds 1 theirs that this move did not copy"):
        move(embedded_connection, other_connection)


def test_an_incomplete_target_does_not_open_for_writing(
    embedded_connection: Connection, other_connection: Connection, tmp_path: Path
) -> None:
    fill(embedded_connection, 5)
    interrupt(embedded_connection, other_connection, "copy predictions")
    other_connection.close()
    with pytest.raises(ConnectionError, match="not complete; finish with the same `inv-design db move` command"):
        connect("embedded:other.sqlite", root=tmp_path, alias="other")
    with connect("embedded:other.sqlite", root=tmp_path, alias="other", read_only=True) as shown:
        assert shown.db["predictions"].count_documents({}) == 5
    with moving(), connect("embedded:other.sqlite", root=tmp_path, alias="other") as target:
        move(embedded_connection, target)
    with connect("embedded:other.sqlite", root=tmp_path, alias="other") as target:
        assert contents(target) == contents(embedded_connection)
        assert target.db["moves"].count_documents({}) == 1  # what was copied need not be known any more


def test_a_moved_database_does_not_open_for_writing(
    embedded_connection: Connection, other_connection: Connection, tmp_path: Path
) -> None:
    fill(embedded_connection, 5)
    launchpad = embedded_connection.launchpad()
    interrupt(embedded_connection, other_connection, "verify predictions")
    with pytest.raises(ConnectionError, match="is being moved to"):
        connect_from_launchpad(launchpad)  # a worker that is connected
    move(embedded_connection, other_connection)
    with pytest.raises(ConnectionError, match="was moved to"):
        connect_from_launchpad(launchpad)
    from stores import connection as module

    del module._connections["default"]
    with pytest.raises(ConnectionError, match="was moved to"):
        connect_from_launchpad(launchpad)  # one that is not
    assert embedded_connection.db["predictions"].count_documents({}) == 5
    embedded_connection.client.close()
    with pytest.raises(ConnectionError, match="was moved to"):
        connect("embedded", root=tmp_path)
    with connect("embedded", root=tmp_path, read_only=True) as shown:
        assert shown.db["predictions"].count_documents({}) == 5


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_record_written_while_it_verifies_is_not_lost(
    embedded_connection: Connection, other_connection: Connection, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """By a writer that was connected before the mark, just before its collection is compared or just after."""
    from stores import move as module

    fill(embedded_connection, 5)
    late = embedded_connection.db["predictions"]

    def writing(connection: Connection, name: str, *count: Any) -> tuple[int, str]:
        found = fingerprint(connection, name, *count) if when == "after" else (0, "")
        side = other_connection if when == "after" else embedded_connection
        if name == "predictions" and connection is side and not late.count_documents({"_id": "late"}):
            late.insert_one({"_id": "late"})
        return found if when == "after" else fingerprint(connection, name, *count)

    with monkeypatch.context() as patched:
        patched.setattr(module, "fingerprint", writing)
        with pytest.raises(RuntimeError, match="predictions is not the same"):
            move(embedded_connection, other_connection)
    assert moved_to(embedded_connection) is None
    assert move(embedded_connection, other_connection)["already"] is False
    assert other_connection.db["predictions"].count_documents({"_id": "late"}) == 1


def test_another_call_compares_again(embedded_connection: Connection, other_connection: Connection) -> None:
    fill(embedded_connection, 5)
    move(embedded_connection, other_connection)
    embedded_connection.db["predictions"].insert_one({"_id": "late"})
    embedded_connection.db["new"].insert_one({"_id": "late"})
    with pytest.raises(RuntimeError, match=r"new, predictions of .* changed after it was moved"):
        move(embedded_connection, other_connection)


def test_what_was_built_anew_between_two_calls_has_its_keys_free(
    embedded_connection: Connection, other_connection: Connection
) -> None:
    summaries = embedded_connection.db["candidate_summaries"]
    summaries.insert_many([{"candidate_id": f"c-{i}", "campaign": "c"} for i in range(3)])
    fill(embedded_connection, 5)
    interrupt(embedded_connection, other_connection, "verify candidate_summaries")
    summaries.delete_many({})
    summaries.insert_many([{"candidate_id": f"c-{i}", "campaign": "c", "built": 2} for i in range(3)])
    interrupt(embedded_connection, other_connection, "verify candidate_summaries")
    summaries.update_one({"candidate_id": "c-0"}, {"$set": {"candidate_id": "c-x"}})  # two documents swap a key
    summaries.update_one({"candidate_id": "c-1"}, {"$set": {"candidate_id": "c-0"}})
    move(embedded_connection, other_connection)
    assert contents(other_connection) == contents(embedded_connection)


def test_both_sides_open_for_the_move_itself(
    embedded_connection: Connection, other_connection: Connection, tmp_path: Path
) -> None:
    """Interrupted after the source was closed, with records that wait for it; then once more after the last mark."""
    from stores import journal
    from stores import move as module

    fill(embedded_connection, 5)
    interrupt(embedded_connection, other_connection, "verify predictions")
    made = {"created_by": "tests"}
    record = {"structure_id": "s-late", "property": "K", "protocol_id": "p", "value": 1.0, "provenance": made}
    journal.keep("predictions", [record], connection=embedded_connection)
    embedded_connection.close()
    other_connection.close()
    with (
        moving(),
        connect("embedded", root=tmp_path) as source,
        connect("embedded:other.sqlite", root=tmp_path, alias="other") as target,
    ):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(module, "_finish", lambda *_: None)
            move(source, target)
        assert moved_to(source) is None
        assert move(source, target)["already"] is True
        assert moved_to(source) == target.uri_redacted
        assert target.db["moves"].count_documents({}) == 1
        assert target.db["predictions"].count_documents({"structure_id": "s-late"}) == 1
        journal.keep("predictions", [record], connection=source)
        with pytest.raises(ValueError, match=f"1 records for .* wait in .*; move them to {journal.folder(target)}"):
            move(source, target)


@pytest.mark.wire
def test_a_collation_goes_along(wire_connection: Connection, wire_server: str) -> None:
    options = {"unique": True, "collation": {"locale": "en", "strength": 2}}
    wire_connection.db["mine"].create_index([("a", 1)], name="ci", **options)
    name = f"inv_design_test_collation_{os.getpid()}"
    with connect(f"{wire_server}/{name}", alias="server") as server:
        try:
            move(wire_connection, server)
            made = server.db["mine"].index_information()["ci"]
            assert {key: made[key] for key in options} == options
        finally:
            server.client.drop_database(name)


@pytest.mark.wire
def test_who_writes_to_the_server_is_in_the_way(wire_connection: Connection, tmp_path: Path) -> None:
    wire_connection.db["fireworks"].insert_one({"fw_id": 1, "state": "RUNNING"})
    with connect("embedded:other.sqlite", root=tmp_path, alias="other") as target:
        with pytest.raises(RuntimeError, match=r"1 fireworks are running or reserved.*--force"):
            move(wire_connection, target)
        assert target.db["moves"].count_documents({}) == wire_connection.db["moves"].count_documents({}) == 0
        move(wire_connection, target, force=True)
        assert contents(target) == contents(wire_connection)


# -- indexes -----------------------------------------------------------------------------------------------------------


def test_every_option_of_an_index_goes_along() -> None:
    """With what a MongoDB 7 lists; the stand-ins know less."""

    class Indexes(dict[str, Any]):
        def index_information(self) -> dict[str, Any]:
            return {name: {"v": 2, **info} for name, info in self.items()}

        def drop_index(self, name: str) -> None:
            del self[name]

        def create_index(self, fields: list[tuple[str, Any]], name: str, **options: Any) -> None:
            assert all(isinstance(way, int | str) for _, way in fields)
            assert name not in self
            self[name] = {"key": fields, **options}

    class Side:
        def __init__(self, **there: Any) -> None:
            self.db = {"mine": Indexes(there)}

    source: Any = Side(
        _id_={"key": [("_id", 1)]},
        ci={"key": [("a", 1.0)], "unique": True, "collation": {"locale": "en", "strength": 2, "version": "57.1"}},
        ttl={"key": [("b", 1)], "expireAfterSeconds": 0},
        part={"key": [("c", -1)], "partialFilterExpression": {"c": {"$gt": 1}}, "hidden": True},
        loc={"key": [("loc", "2dsphere")], "2dsphereIndexVersion": 3},
        every={"key": [("$**", 1)], "wildcardProjection": {"a": 1}, "background": True},
        words={
            "key": [("k", 1), ("_fts", "text"), ("_ftsx", 1)],
            "weights": {"title": 5, "body": 1},
            "default_language": "german",
            "language_override": "language",
            "textIndexVersion": 3,
        },
        plain={"key": [("d", 1)], "unique": False},
    )
    target: Any = Side(
        ci={"key": [("a", 1)]}, other={"key": [("b", 1)], "sparse": True}, d_1={"key": [("d", 1)], "unique": False}
    )
    assert _copy_indexes(source, target, "mine") == 7
    made = target.db["mine"]
    assert made["ci"] == {"key": [("a", 1)], "unique": True, "collation": {"locale": "en", "strength": 2}}
    assert made["ttl"] == {"key": [("b", 1)], "expireAfterSeconds": 0}
    assert made["part"] == {"key": [("c", -1)], "partialFilterExpression": {"c": {"$gt": 1}}, "hidden": True}
    assert made["loc"]["2dsphereIndexVersion"] == 3
    assert made["every"] == {"key": [("$**", 1)], "wildcardProjection": {"a": 1}}
    assert made["words"]["key"] == [("k", 1), ("title", "text"), ("body", "text")]
    assert made["words"]["weights"] == {"title": 5, "body": 1}
    assert made["words"]["default_language"] == "german"
    assert "plain" not in made  # there under another name
    assert all(_index(source.db["mine"][name]) == _index(made[name]) for name in made if name in source.db["mine"])


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
        with (
            connect(uri, alias="server") as server,
            connect(f"embedded:{path}", alias="source", read_only=True) as source,
        ):
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
