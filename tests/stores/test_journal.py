"""What the database would not take is kept and delivered later, once."""

import errno
import fcntl
import hashlib
import json
import uuid

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymongo.errors import AutoReconnect, BulkWriteError, OperationFailure, PyMongoError, WriteError

from stores import journal
from stores.documents import Calculation, Model, Prediction
from stores.provenance import provenance
from stores.records import insert_calculation, insert_model, insert_predictions
from stores.steps import claim_step


@pytest.fixture
def made(embedded_connection):
    return provenance(command="test")


@pytest.fixture
def outage(embedded_connection, monkeypatch):
    """Cut the connection for inserts until the returned function is called."""
    from stores.embedded import EmbeddedCollection

    def gone(*args, **kwargs):
        raise AutoReconnect("connection reset by peer")

    monkeypatch.setattr(EmbeddedCollection, "insert_many", gone)
    monkeypatch.setattr("stores.artifacts.put", gone)
    return monkeypatch.undo


def predictions(made, count):
    return [
        {"structure_id": f"s-{i}", "property": "k", "value": 1.0 / (i + 1), "protocol_id": "p", "provenance": made}
        for i in range(count)
    ]


def test_an_outage_loses_nothing(made, outage, monkeypatch, embedded_connection):
    kept = journal.folder()
    assert all(inserted for _, inserted in insert_predictions(predictions(made, 5)))
    assert journal.pending() == 5
    with pytest.raises(ConnectionError):
        journal.deliver()
    assert journal.pending() == 5
    outage()
    monkeypatch.setenv(journal.FOLDER_VARIABLE, str(kept.parent.parent / "other host"))
    insert_predictions(predictions(made, 2))  # somebody else was faster with two of them
    monkeypatch.setenv(journal.FOLDER_VARIABLE, str(kept.parent))
    assert journal.deliver() == {"delivered": 3, "known": 2, "rejected": 0}
    assert journal.pending() == 0
    assert [p.value for p in Prediction.objects.order_by("-value")] == [1.0 / (i + 1) for i in range(5)]
    assert Prediction.objects.first().provenance["created_at"] == made["created_at"].replace(
        microsecond=made["created_at"].microsecond // 1000 * 1000
    )
    assert journal.deliver() == {"delivered": 0, "known": 0, "rejected": 0}


def test_the_next_insert_delivers_what_an_outage_left(made, outage, monkeypatch, embedded_connection):
    kept = journal.folder()
    insert_predictions(predictions(made, 3))
    outage()
    monkeypatch.setenv(journal.FOLDER_VARIABLE, str(kept.parent))
    insert_predictions(predictions(made, 4)[3:])
    assert Prediction.objects.count() == 4
    assert journal.pending() == 0


def test_one_process_at_a_time_delivers(made, embedded_connection):
    path = journal.keep("predictions", predictions(made, 2))
    with path.open("rb") as file:  # another process is at it
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            journal.deliver(wait=False)
        insert_predictions(predictions(made, 3)[2:])  # and an insert does not wait for it
    assert Prediction.objects.count() == 1
    assert journal.deliver() == {"delivered": 2, "known": 0, "rejected": 0}


def test_weights_without_a_record_in_the_journal_are_delivered_with_the_next_ones(made, embedded_connection):
    from stores import artifacts

    blob = b"weights" * 100
    digest = hashlib.sha256(blob).hexdigest()
    journal.keep_blob(blob, digest)
    journal.keep("predictions", predictions(made, 1))
    journal.deliver()
    assert artifacts.get(digest) == blob
    assert not list((journal.folder() / "artifacts").iterdir())


def test_connecting_delivers_what_an_outage_left(made, outage, monkeypatch, embedded_connection):
    from stores.connection import connect

    kept = journal.folder()
    insert_predictions(predictions(made, 3))
    outage()
    monkeypatch.setenv(journal.FOLDER_VARIABLE, str(kept.parent))
    path = embedded_connection.client.path
    embedded_connection.close()
    connect(f"embedded:{path}")
    assert Prediction.objects.count() == 3
    assert journal.pending() == 0


def test_the_next_firework_of_a_worker_delivers_what_the_last_one_left(made, embedded_connection):
    from stores.connection import connect_from_launchpad

    journal.keep("predictions", predictions(made, 3))
    assert connect_from_launchpad(embedded_connection.launchpad()) is embedded_connection
    assert Prediction.objects.count() == 3
    assert journal.pending() == 0


def test_weights_survive_an_outage(made, outage, monkeypatch):
    kept = journal.folder()
    blob = b"weights" * 1000
    model = insert_model(blob, kind="predictor", name="cgcnn", provenance=made, training_set_id="t-1")
    assert model.sha256 == hashlib.sha256(blob).hexdigest()
    outage()
    monkeypatch.setenv(journal.FOLDER_VARIABLE, str(kept.parent))
    assert journal.deliver()["delivered"] == 1
    assert Model.objects.get(model_id=model.model_id).load() == blob
    assert not list((kept / "artifacts").iterdir())


def test_a_claim_is_never_journalled(made, outage):
    with pytest.raises(ConnectionError):
        claim_step("x/0/generate")
    assert journal.pending() == 0


def test_a_line_cut_off_by_a_crash_does_not_spoil_the_next(made, embedded_connection):
    path = journal.keep("predictions", predictions(made, 1))
    with path.open("ab") as file:
        file.write(b'{"collection": "predictions", "docu')
    journal.keep("predictions", predictions(made, 2)[1:])
    assert journal.deliver() == {"delivered": 2, "known": 0, "rejected": 1}
    assert len((path.parent / "rejected.jsonl").read_text().splitlines()) == 1


def test_a_record_that_no_collection_takes_is_put_aside(made, embedded_connection):
    journal.keep("predictions", [{"structure_id": "s-1", "nonsense": 1}])
    journal.keep("predictions", predictions(made, 1))
    assert journal.deliver() == {"delivered": 1, "known": 0, "rejected": 1}
    rejected = (journal.folder() / "rejected.jsonl").read_text()
    assert json.loads(rejected)["document"]["nonsense"] == {"$numberInt": "1"}


def test_a_large_record_is_kept_whole_and_spilled_on_delivery(made, outage, monkeypatch):
    kept = journal.folder()
    big = [[float(i)] * 50 for i in range(4000)]
    fields = {"structure_id": "s-1", "kind": "phonon", "method": "mlip", "protocol_id": "p", "state": "completed"}
    insert_calculation(**fields, results={"displacements": big}, provenance=made)
    outage()
    monkeypatch.setenv(journal.FOLDER_VARIABLE, str(kept.parent))
    journal.deliver()
    assert Calculation.objects.first().complete()["results"]["displacements"] == big


REFUSALS = [
    OperationFailure("not authorized on lab", 13),
    OperationFailure("you are over your space quota", 8000),
    OperationFailure("disk full", 14031),
    OperationFailure("HostUnreachable", 6),
    BulkWriteError({"writeErrors": [{"index": 0, "code": 14031, "errmsg": "disk full"}]}),
    BulkWriteError({"writeErrors": [], "writeConcernErrors": [{"code": 100, "errmsg": "too few members"}]}),
]


def refusing(error):
    def insert_many(*args, **kwargs):
        raise error

    return insert_many


@pytest.mark.parametrize("error", REFUSALS, ids=str)
def test_what_the_server_refuses_is_kept_and_said(made, embedded_connection, monkeypatch, error):
    with monkeypatch.context() as patch:
        patch.setattr("stores.embedded.EmbeddedCollection.insert_many", refusing(error))
        with pytest.raises(PermissionError if error.code == 13 else OSError, match=r"2 records .* kept in .*records"):
            insert_predictions(predictions(made, 2))
        with pytest.raises(PyMongoError):
            journal.deliver()
        journal.deliver_waiting(embedded_connection)  # who comes by does not fail for it
        assert journal.pending() == 2
    assert journal.deliver() == {"delivered": 2, "known": 0, "rejected": 0}


def test_weights_that_the_server_refuses_are_kept(made, embedded_connection, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("stores.artifacts.put", refusing(OperationFailure("no space", 14031)))
        with pytest.raises(OSError, match="kept in"):
            insert_model(b"weights", kind="predictor", name="cgcnn", provenance=made)
    insert_predictions(predictions(made, 1))
    assert Model.objects.get().load() == b"weights"


def test_the_record_that_the_server_does_not_take_is_put_aside_alone(made, embedded_connection, monkeypatch):
    from stores.embedded import EmbeddedCollection

    real = EmbeddedCollection.insert_many

    def insert_many(self, documents, *args, **kwargs):
        if any(document.get("structure_id") == "s-1" for document in documents):
            raise WriteError("document failed validation", 121)
        return real(self, documents, *args, **kwargs)

    monkeypatch.setattr(EmbeddedCollection, "insert_many", insert_many)
    journal.keep("predictions", predictions(made, 3))
    assert journal.deliver() == {"delivered": 2, "known": 0, "rejected": 1}


def test_a_file_system_without_locks_is_good_enough(made, outage, monkeypatch):
    def flock(*args):
        raise OSError(errno.ENOSYS, "Function not implemented")

    kept = journal.folder()
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        insert_predictions(predictions(made, 2))
        insert_predictions(predictions(made, 3)[2:])
    assert journal.pending() == 3
    outage()
    monkeypatch.setenv(journal.FOLDER_VARIABLE, str(kept.parent))
    monkeypatch.setattr(fcntl, "flock", flock)
    assert journal.deliver() == {"delivered": 3, "known": 0, "rejected": 0}
    assert journal.pending() == 0


def test_nobody_waits_for_who_delivers(made, embedded_connection):
    path = journal.keep("predictions", predictions(made, 1))
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert journal.keep("predictions", predictions(made, 2)[1:]) != path
    assert journal.pending() == 2
    assert journal.deliver() == {"delivered": 2, "known": 0, "rejected": 0}
    assert [p.name for p in path.parent.iterdir()] == ["records.jsonl"]


def test_where_the_folder_cannot_be_written_the_working_directory_is(made, embedded_connection, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv(journal.FOLDER_VARIABLE, str(tmp_path / "file"))
    monkeypatch.chdir(tmp_path)
    path = journal.keep("predictions", predictions(made, 1))
    blob = journal.keep_blob(b"weights", hashlib.sha256(b"weights").hexdigest())
    assert path.is_relative_to(tmp_path / journal.FALLBACK)
    assert blob.is_relative_to(tmp_path / journal.FALLBACK)
    monkeypatch.chdir("/")
    assert journal.pending() == 1
    assert journal.deliver() == {"delivered": 1, "known": 0, "rejected": 0}


DAMAGED = [
    b'{"collection":"predictions","document":{"_id":{"$oid":"xyz"}}}',
    b'{"collection":"predictions","document":5}',
    b'{"collection":"predictions","document":null}',
    b"[1]",
    b'{"collection":"predictions","document":{"value":{"$numberDouble":"a"}}}',
    b'{"collection":"predictions","document":{"created":{"$date":{"$numberLong":"99999999999999999"}}}}',
    b"\xff\xfe",
    b'{"collection":["x"],"document":{}}',
    b'{"collection":"steps","document":{}}',
    b'{"collection":"predictions","document":{"structure_id":"s","property":"k","value":1.0,"protocol_id":"p",'
    b'"provenance":{"a":99999999999999999999}}}',
    b'{"collection":"predictions","document":{"structure_id":"s","property":"k","value":1.0,"protocol_id":"p",'
    b'"provenance":{"a\\u0000":1}}}',
]


@pytest.mark.parametrize("line", DAMAGED, ids=range(len(DAMAGED)))
def test_an_unusable_line_is_put_aside_and_stops_nothing(made, embedded_connection, line):
    path = journal.keep("predictions", predictions(made, 2)[1:])
    path.write_bytes(line + b"\n" + path.read_bytes())
    insert_predictions(predictions(made, 1))
    assert Prediction.objects.count() == 2
    assert journal.pending() == 0
    assert len((path.parent / "rejected.jsonl").read_bytes().splitlines()) == 1


def test_weights_alone_are_delivered_too(embedded_connection):
    from stores import artifacts

    journal.keep_blob(b"weights", hashlib.sha256(b"weights").hexdigest())
    journal.deliver_waiting(embedded_connection)
    assert artifacts.get(hashlib.sha256(b"weights").hexdigest()) == b"weights"


@pytest.mark.wire
def test_the_journal_is_the_databases_under_whatever_address(wire_server, tmp_path, monkeypatch):
    from fireworks import LaunchPad

    from stores.connection import connect, connect_from_launchpad

    monkeypatch.setenv(journal.FOLDER_VARIABLE, str(tmp_path))
    name = f"lab_{uuid.uuid4().hex[:8]}"
    host, _, port = wire_server.removeprefix("mongodb://").partition(":")
    if not port.isdigit() or "@" in host:
        pytest.skip("the server of INV_DESIGN_TEST_MONGODB has no plain address")
    with connect(f"{wire_server}/{name}") as connection:
        kept = journal.folder(connection)
    pad = LaunchPad(host=host, port=int(port), name=name, strm_lvl="CRITICAL")
    worker = connect_from_launchpad(pad)
    assert journal.folder(worker) == kept
    journal.keep("predictions", predictions(provenance(command="test"), 1))
    worker.close()
    with connect(f"{wire_server.replace('127.0.0.1', 'localhost')}/{name}") as other:
        assert journal.folder(other) == kept
        assert Prediction.objects.count() == 1
        other.client.drop_database(name)


def test_two_databases_have_two_journals(tmp_path, monkeypatch):
    from stores.connection import connect

    monkeypatch.setenv(journal.FOLDER_VARIABLE, str(tmp_path / "journal"))
    folders = set()
    for place in (tmp_path / "a" / "b", tmp_path / "a_b"):
        place.mkdir(parents=True)
        with connect("embedded", root=place) as connection:
            folders.add(journal.folder(connection))
        with connect("embedded", root=place) as connection:
            folders.add(journal.folder(connection))
    assert len(folders) == 2


def test_a_database_without_an_id_gets_one_and_its_old_journal(made, embedded_connection):
    from stores.connection import connect

    embedded_connection.db["schema"].update_one({}, {"$unset": {"database_id": 1}})
    embedded_connection.database_id = None
    old = journal.keep("predictions", predictions(made, 2))
    path = embedded_connection.client.path
    embedded_connection.close()
    with connect(f"embedded:{path}") as again:
        assert again.database_id is not None
        assert journal.folder() != old.parent
        assert Prediction.objects.count() == 2
        assert journal.pending() == 0


text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=4)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**62), 2**62), st.floats(allow_nan=False), text, st.datetimes()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(text, inner, max_size=3)),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(documents=st.lists(st.dictionaries(text, values, max_size=3), min_size=1, max_size=4))
def test_the_journal_gives_back_what_it_took(embedded_connection, tmp_path, documents):
    path = journal.keep("things", documents)
    groups, rejected = journal._grouped(path.read_bytes())
    path.unlink()
    assert not rejected
    import bson

    assert [bson.encode(d) for d in groups["things"]] == [bson.encode(d) for d in documents]
