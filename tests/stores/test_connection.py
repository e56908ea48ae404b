import json
import os
import subprocess
import sys
import textwrap
from datetime import UTC, datetime, timedelta

import pytest

from stores.connection import connect, connect_from_launchpad, current, redact, scrub


def test_current_is_what_connect_returned(connection):
    assert current() is connection
    assert connection.kind in {"embedded", "mongodb"}


def test_current_without_connection_says_what_to_do(embedded_connection):
    embedded_connection.close()
    with pytest.raises(ConnectionError, match="connect"):
        current()


def test_embedded_file_is_in_root_and_reconnecting_is_the_same(embedded_connection, tmp_path):
    assert (tmp_path / "inv_design.sqlite").is_file()
    assert connect("embedded", root=tmp_path) is embedded_connection
    assert connect(f"embedded:{tmp_path / 'inv_design.sqlite'}") is embedded_connection


def test_the_environment_names_the_database(embedded_connection, tmp_path, monkeypatch):
    monkeypatch.setenv("INV_DESIGN_DATABASE", f"embedded:{tmp_path / 'other.db'}")
    other = connect()
    assert other.client.path == tmp_path / "other.db"
    assert embedded_connection.client.closed  # one database per alias
    other.close()


@pytest.mark.parametrize("database", ["mysql://u:secret@host/db", "embeded", "mongodb:/host"])
def test_unknown_database_is_refused_without_its_credentials(database):
    with pytest.raises(ValueError, match="is no database") as caught:
        connect(database)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_silent_server_is_one_line_with_redacted_uri(monkeypatch):
    monkeypatch.setattr("stores.connection.TIMEOUT_MS", 300)
    with pytest.raises(ConnectionError, match=r"mongodb://\*\*\*@127\.0\.0\.1:9/lab does not answer") as caught:
        connect("mongodb://me:hush-hush@127.0.0.1:9/lab?appName=hush-hush")
    assert "hush" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "embedded" in str(caught.value)  # the cure


def test_user_without_password_asks_for_the_variable(monkeypatch):
    monkeypatch.delenv("INV_DESIGN_DATABASE_PASSWORD", raising=False)
    with pytest.raises(ConnectionError, match="INV_DESIGN_DATABASE_PASSWORD"):
        connect("mongodb://me@127.0.0.1:9/lab")


def test_password_is_taken_from_the_environment(monkeypatch):
    seen = {}

    class Client:
        def __init__(self, uri, **_options):
            seen["uri"] = uri
            raise ValueError("stop here")

    monkeypatch.setattr("pymongo.MongoClient", Client)
    monkeypatch.setenv("INV_DESIGN_DATABASE_PASSWORD", "p@ss/word")
    with pytest.raises(ConnectionError):
        connect("mongodb://me@127.0.0.1:9/lab")
    assert seen["uri"] == "mongodb://me:p%40ss%2Fword@127.0.0.1:9/lab"


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("mongodb://u:p@h:1/db?authSource=admin", "mongodb://***@h:1/db"),
        ("mongodb://u:p/with@odd@h/db", "mongodb://***@h/db"),
        ("mongodb+srv://h/db", "mongodb+srv://h/db"),
    ],
)
def test_redact(uri, expected):
    assert redact(uri) == expected


def test_scrub_takes_credentials_out_of_any_text():
    text = "run --database mongodb://u:p@ss@h/db --out x and mongodb+srv://a:b@c/d"
    assert scrub(text) == "run --database mongodb://***@h/db --out x and mongodb+srv://***@c/d"


def test_launchpad_is_on_the_same_database(connection):
    launchpad = connection.launchpad()
    assert launchpad.connection is connection.client
    assert launchpad.db.name == connection.db.name
    assert connect_from_launchpad(launchpad) is connection


def test_connecting_from_a_foreign_launchpad_uses_its_client(connection):
    launchpad = connection.launchpad()
    connection.db["campaigns"].insert_one({"name": "here"})
    from stores import connection as module

    del module._connections["default"]  # a worker that never called connect()
    other = connect_from_launchpad(launchpad)
    assert other is not connection
    assert other.db["campaigns"].count_documents({"name": "here"}) == 1
    other.close()
    assert connection.db["campaigns"].count_documents({}) == 1  # a borrowed client is not closed
    module._connections["default"] = connection


@pytest.mark.wire
def test_everything_on_a_server_waits_for_it(wire_connection):
    import mongoengine
    from fireworks import LaunchPad

    from stores.outage import PatientCollection, PatientDatabase

    assert isinstance(wire_connection.db, PatientDatabase)
    assert mongoengine.get_db() is wire_connection.db
    assert isinstance(wire_connection.gridfs()._files, PatientCollection)
    assert isinstance(wire_connection.maggma_store("candidates")._collection, PatientCollection)
    assert isinstance(wire_connection.launchpad().workflows, PatientCollection)
    foreign = LaunchPad(host=f"{wire_connection._uri}?appName=rlaunch", uri_mode=True, name=wire_connection.db.name)
    assert not isinstance(foreign.fireworks, PatientCollection)
    from stores import connection as module

    del module._connections["default"]  # a worker that never called connect()
    with connect_from_launchpad(foreign) as other:
        assert isinstance(foreign.fireworks, PatientCollection)
        assert other.db.client is foreign.connection
    foreign.connection.close()
    module._connections["default"] = wire_connection


def test_the_time_is_the_databases(connection):
    assert abs(connection.now() - datetime.now(UTC).replace(tzinfo=None)) < timedelta(minutes=5)
    assert connection.now().tzinfo is None


def test_launchpad_survives_its_own_serialisation(embedded_connection):
    from fireworks import LaunchPad

    launchpad = embedded_connection.launchpad()
    assert LaunchPad.from_dict(launchpad.to_dict()).connection is embedded_connection.client


def test_maggma_store_holds_no_credentials(connection):
    store = connection.maggma_store("candidates")
    text = json.dumps(store.as_dict())
    assert "127.0.0.1" not in text
    assert "password" not in text
    from monty.json import MontyDecoder

    again = MontyDecoder().process_decoded(json.loads(text))
    again.connect()
    connection.db["candidates"].insert_one({"candidate_id": "c-1"})
    assert [d["candidate_id"] for d in again.query()] == ["c-1"]


def test_two_processes_cannot_write_one_file(embedded_connection, tmp_path):
    code = f"""
        from stores.connection import connect
        try:
            connect("embedded:{tmp_path / "inv_design.sqlite"}")
        except ConnectionError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True, env=os.environ
    )
    assert f"in use by process {os.getpid()} on " in done.stdout
    assert done.stdout.count("\n") == 1


def test_a_second_process_reads_a_snapshot_while_the_first_writes(embedded_connection, tmp_path):
    embedded_connection.db["steps"].insert_one({"key": "a"})
    code = f"""
        import sys
        from stores.connection import connect
        c = connect("embedded:{tmp_path / "inv_design.sqlite"}", read_only=True)
        print(c.db["steps"].count_documents({{}}), flush=True)
        sys.stdin.readline()
        print(c.db["steps"].count_documents({{}}), flush=True)
        c.refresh()
        print(c.db["steps"].count_documents({{"key": "b"}}), flush=True)
        try:
            c.db["steps"].insert_one({{"key": "c"}})
        except PermissionError as error:
            print(error)
    """
    reader = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert reader.stdout.readline() == "1\n"
    embedded_connection.db["steps"].insert_one({"key": "b"})
    rest, _ = reader.communicate("\n")
    assert rest.splitlines()[:2] == ["1", "1"]  # the snapshot stands still until it is refreshed
    assert "read-only" in rest.splitlines()[2]


def test_a_snapshot_of_a_file_that_nobody_writes(embedded_connection, tmp_path):
    embedded_connection.db["steps"].insert_one({"key": "a"})
    embedded_connection.close()
    with connect("embedded", root=tmp_path, read_only=True) as snapshot:
        assert snapshot.db["steps"].find_one({"key": "a"})
        assert snapshot.db["steps"].index_information()["key_1"]["unique"]
    with connect("embedded", root=tmp_path) as writer:
        writer.db["steps"].insert_one({"key": "b"})


def test_a_snapshot_of_a_file_that_is_only_being_made(tmp_path):
    (tmp_path / "inv_design.sqlite").touch()
    with connect("embedded", root=tmp_path, read_only=True) as snapshot:
        assert snapshot.db["steps"].count_documents({}) == 0
        snapshot.refresh()
        assert snapshot.db.list_collection_names() == []


def test_connecting_to_the_same_server_twice_is_one_connection(wire_connection):
    assert connect(wire_connection.given[0]) is wire_connection


def test_reading_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConnectionError, match="no embedded database at"):
        connect("embedded", root=tmp_path, read_only=True)


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no database at all, but longer than a header of one hundred bytes" * 3)
    with pytest.raises(ConnectionError, match="no embedded database"):
        connect(f"embedded:{tmp_path / 'notes.txt'}")
