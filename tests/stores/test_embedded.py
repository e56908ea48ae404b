"""The embedded database against MongoDB's rules; what runs on ``connection`` runs on the wire server too."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import bson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymongo import ASCENDING, DESCENDING, InsertOne, ReplaceOne, UpdateOne
from pymongo.errors import BulkWriteError, DocumentTooLarge, DuplicateKeyError, InvalidOperation, WriteError

from stores.connection import connect
from stores.embedded import EmbeddedClient
from stores.index_keys import entry
from stores.sqlite_index import Index
from stores.sqlite_planner import type_strict


@pytest.fixture
def collection(connection):
    return connection.db["things"]


def names(found):
    return sorted(document["name"] for document in found)


def test_unique_index_holds_on_insert_update_and_replace(collection):
    collection.create_index([("a", 1), ("b", 1)], unique=True)
    collection.insert_many([{"name": "x", "a": 1, "b": 1}, {"name": "y", "a": 1, "b": 2}])
    with pytest.raises(DuplicateKeyError) as caught:
        collection.insert_one({"a": 1.0, "b": 1})  # 1 and 1.0 are one number to MongoDB
    assert caught.value.code == 11000
    with pytest.raises(DuplicateKeyError):
        collection.update_one({"name": "y"}, {"$set": {"b": 1}})
    with pytest.raises(DuplicateKeyError):
        collection.replace_one({"name": "y"}, {"name": "y", "a": 1, "b": 1})
    assert collection.find_one({"name": "y"})["b"] == 2
    assert collection.count_documents({}) == 2
    collection.delete_one({"name": "x"})
    collection.update_one({"name": "y"}, {"$set": {"b": 1}})
    assert names(collection.find({"a": 1, "b": 1})) == ["y"]


def test_unordered_insert_reports_each_duplicate(collection):
    collection.create_index("key", unique=True)
    collection.insert_one({"key": 1})
    with pytest.raises(BulkWriteError) as caught:
        collection.insert_many([{"key": 0}, {"key": 1}, {"key": 2}, {"key": 2}], ordered=False)
    errors = [(error["index"], error["code"]) for error in caught.value.details["writeErrors"]]
    assert errors == [(1, 11000), (3, 11000)]
    assert sorted(d["key"] for d in collection.find()) == [0, 1, 2]


def test_unique_index_on_duplicates_is_refused_and_leaves_no_trace(collection):
    collection.insert_many([{"key": 1}, {"key": 1}])
    with pytest.raises(DuplicateKeyError):
        collection.create_index("key", unique=True)
    collection.insert_one({"key": 1})
    assert collection.count_documents({"key": 1}) == 3


def test_missing_and_null_share_a_unique_key(collection):
    collection.create_index("key", unique=True)
    collection.insert_one({"name": "missing"})
    with pytest.raises(DuplicateKeyError):
        collection.insert_one({"key": None})
    assert names(collection.find({"key": None})) == ["missing"]


def test_indexed_and_plain_look_ups_agree(connection):
    plain, indexed = connection.db["plain"], connection.db["indexed"]
    for fields in (["state"], ["nodes"], ["spec.kind"], ["state", "spec.kind"], ["tags.name"]):
        indexed.create_index([(field, ASCENDING) for field in fields])
    documents = [
        {"name": "a", "state": "READY", "nodes": [1, 2], "spec": {"kind": "x"}, "tags": [{"name": "t"}, {"name": "u"}]},
        {"name": "b", "state": "READY", "nodes": [2, 3], "spec": {"kind": None}, "tags": []},
        {"name": "c", "state": "DONE", "nodes": [], "spec": {}, "tags": [{"name": "u"}]},
        {"name": "d", "state": None, "nodes": [1.0], "spec": {"kind": "x"}},
    ]
    filters = [
        {"state": "READY"},
        {"state": {"$in": ["READY", "DONE"]}},
        {"state": {"$in": ["DONE", None]}},
        {"nodes": 2},
        {"nodes": 1},
        {"nodes": {"$in": [1, 3]}},
        {"nodes": [2, 3]},
        {"spec.kind": "x"},
        {"state": "READY", "spec.kind": "x"},
        {"$and": [{"state": "READY"}, {"nodes": 3}]},
        {"state": "READY", "nodes": {"$gt": 2}},
        {"tags.name": "u"},
        {"state": {"$ne": "READY"}},
        {"state": {"$in": []}},
        {"state": {"$eq": "DONE"}},
    ]
    for target in (plain, indexed):
        target.insert_many([dict(document) for document in documents])
    for spec in filters:
        assert names(indexed.find(spec)) == names(plain.find(spec)), spec
        assert indexed.count_documents(spec) == plain.count_documents(spec), spec
    for target in (plain, indexed):
        target.update_many({"state": "READY"}, {"$set": {"state": "RUNNING"}, "$push": {"nodes": 9}})
        target.delete_many({"tags.name": "u", "state": "DONE"})
    for spec in [*filters, {"state": "RUNNING"}, {"nodes": 9}]:
        assert names(indexed.find(spec)) == names(plain.find(spec)), spec


scalars = st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([0.0, 1.0, 2.5, "a", "b"]))
values = st.one_of(scalars, st.lists(scalars, max_size=3))


@settings(max_examples=150, deadline=None)
@given(document=st.fixed_dictionaries({}, optional={"a": values, "b": values}), a=scalars, b=scalars)
def test_an_index_never_hides_what_the_filter_finds(document, a, b):
    from mongomock_ng.filtering import filter_applies

    for spec in ({"a": a}, {"b": b}, {"a": a, "b": b}):
        fields = tuple(spec)
        if filter_applies(type_strict(spec), document):
            key = b"".join(entry(value) for value in spec.values())
            index = Index("i", {"key": [(field, 1) for field in fields]}, 7)
            assert index.slot + key in index.entries(document)[0]


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"ok": True}, "tu"),
        ({"ok": 1}, "iou"),
        ({"ok": {"$eq": False}}, "f"),
        ({"ok": 0.0}, "z"),
        ({"ok": {"$ne": True}}, "fioz"),
        ({"ok": {"$ne": 0}}, "fiotu"),
        ({"ok": {"$in": [True, 0]}}, "tuz"),
        ({"ok": {"$nin": [1, False]}}, "tz"),
        ({"ok": {"$all": [1, True]}}, "u"),
        ({"ok": {"$not": {"$eq": 1}}}, "ftz"),
        ({"ok": [True, 1]}, "u"),
        ({"ok": [1, 1]}, ""),
        ({"ok": {"$elemMatch": {"$eq": True}}}, "u"),
        ({"in.x": 1}, "t"),
        ({"in": {"x": True}}, "i"),
        ({"in": {"x": 1}}, "t"),
        ({"items": {"$elemMatch": {"x": 1}}}, "i"),
        ({"items": {"$all": [{"$elemMatch": {"x": True}}]}}, "t"),
        ({"$or": [{"ok": False}, {"$and": [{"ok": 1}, {"name": "o"}]}]}, "fo"),
        ({"$nor": [{"ok": True}, {"ok": 1}]}, "fz"),
        ({"ok": {"$exists": 1}, "name": "t"}, "t"),
        ({"items": {"$size": 1}}, "it"),
        ({"ok": {"$gte": 1}}, "iou"),
    ],
)
def test_truth_values_are_no_numbers(collection, indexed, spec, expected):
    if indexed:
        for field in ("ok", "in", "in.x"):
            collection.create_index(field)
    collection.insert_many(
        [
            {"name": "t", "ok": True, "in": {"x": 1}, "items": [{"x": True}]},
            {"name": "f", "ok": False},
            {"name": "i", "ok": 1, "in": {"x": True}, "items": [{"x": 1}]},
            {"name": "o", "ok": 1.0},
            {"name": "z", "ok": 0},
            {"name": "u", "ok": [True, 1]},
        ]
    )
    assert "".join(names(collection.find(spec))) == expected
    assert collection.count_documents(spec) == len(expected)
    assert "".join(names(collection.aggregate([{"$project": {"_id": 0}}, {"$match": spec}]))) == expected


def test_sort_skip_limit_and_projection(collection):
    collection.insert_many([{"_id": i, "k": i % 3, "v": {"x": i, "y": -i}} for i in range(9)])
    found = (
        collection.find({"k": {"$gt": 0}}, {"v.x": 1}).sort([("k", DESCENDING), ("v.x", ASCENDING)]).skip(1).limit(3)
    )
    assert list(found) == [{"_id": i, "v": {"x": i}} for i in (5, 8, 1)]
    assert collection.find_one({}, sort=[("v.y", 1)])["_id"] == 8
    assert sorted(collection.distinct("k", {"_id": {"$lt": 2}})) == [0, 1]


def test_what_a_cursor_gives_is_the_callers_own(collection):
    collection.insert_one({"_id": 1, "deep": {"list": [1]}})
    collection.find_one({"_id": 1})["deep"]["list"].append(2)
    next(collection.find({}, {"deep": 1}))["deep"]["list"].append(3)
    assert collection.find_one({"_id": 1})["deep"]["list"] == [1]


def test_find_one_and_update_and_upsert(collection):
    before = collection.find_one_and_update({"_id": "n"}, {"$inc": {"next": 5}}, upsert=True)
    assert before is None
    assert collection.find_one_and_update({"_id": "n"}, {"$inc": {"next": 5}})["next"] == 5
    assert collection.find_one({"_id": "n"})["next"] == 10


def test_bulk_write(collection):
    result = collection.bulk_write(
        [
            InsertOne({"_id": 1, "a": 1}),
            ReplaceOne({"_id": 2}, {"_id": 2, "a": 2}, upsert=True),
            UpdateOne({"_id": 1}, {"$set": {"b.c": 3}}),
        ]
    )
    assert (result.inserted_count, result.upserted_count, result.modified_count) == (1, 1, 1)
    assert collection.find_one({"_id": 1}) == {"_id": 1, "a": 1, "b": {"c": 3}}


def test_aggregation_with_a_leading_match(collection):
    collection.create_index("campaign")
    collection.insert_many([{"campaign": c, "stage": s} for c in "ab" for s in ("x", "x", "y")])
    groups = collection.aggregate(
        [{"$match": {"campaign": "a"}}, {"$group": {"_id": "$stage", "n": {"$sum": 1}}}, {"$sort": {"_id": 1}}]
    )
    assert list(groups) == [{"_id": "x", "n": 2}, {"_id": "y", "n": 1}]


def test_a_document_above_16_megabytes_is_refused(embedded_connection):
    things = embedded_connection.db["things"]
    with pytest.raises(DocumentTooLarge, match="16777216"):
        things.insert_one({"blob": b"x" * (16 * 1024 * 1024 + 1)})
    assert things.count_documents({}) == 0


def test_gridfs_keeps_large_objects(connection):
    files = connection.gridfs()
    blob = os.urandom(3_000_000)
    file_id = files.put(blob, filename="weights")
    assert files.get(file_id).read() == blob
    files.delete(file_id)
    assert not files.exists(file_id)


def test_threads_increment_without_loss(embedded_connection):
    counter = embedded_connection.db["counter"]
    counter.insert_one({"_id": 1, "n": 0})

    def work():
        for _ in range(200):
            counter.find_one_and_update({"_id": 1}, {"$inc": {"n": 1}})

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.find_one({"_id": 1})["n"] == 800


def reopened(connection):
    path = connection.client.path
    connection.close()
    return connect(f"embedded:{path}")


def test_everything_is_there_after_reopening(embedded_connection):
    things = embedded_connection.db["things"]
    things.create_index([("a", 1), ("b", 1)], unique=True)
    things.insert_many([{"a": i, "b": 0, "when": i} for i in range(50)])
    things.update_one({"a": 3}, {"$set": {"b": 7}})
    things.delete_one({"a": 4})
    embedded_connection.db["gone"].insert_one({})
    embedded_connection.db["gone"].drop()
    embedded_connection.db["old"].insert_one({"x": 1})
    embedded_connection.db["old"].rename("new")
    again = reopened(embedded_connection)
    things = again.db["things"]
    assert things.count_documents({}) == 49
    assert things.find_one({"a": 3, "b": 7})["when"] == 3
    assert things.find_one({"a": 3, "b": 0}) is None
    assert things.index_information()["a_1_b_1"]["unique"] is True
    with pytest.raises(DuplicateKeyError):
        things.insert_one({"a": 3, "b": 7})
    assert "gone" not in again.db.list_collection_names()
    assert "old" not in again.db.list_collection_names()
    assert again.db["new"].find_one({"x": 1})
    things.drop_index("a_1_b_1")
    things.insert_one({"a": 3, "b": 7})
    again = reopened(again)
    assert again.db["things"].count_documents({"a": 3, "b": 7}) == 2
    again.close()


def test_large_collections_are_not_held_in_memory_and_work_the_same(embedded_connection, monkeypatch):
    monkeypatch.setattr("stores.sqlite_collection.CACHE_BYTES", 20_000)
    things = embedded_connection.db["things"]
    things.create_index("a")
    things.insert_many([{"_id": i, "a": i % 7, "text": "x" * 100} for i in range(500)])
    assert things._store._cache is None
    assert things.count_documents({"a": 3}) == 71
    things.update_many({"a": 3}, {"$set": {"a": 100}})
    assert [d["_id"] for d in things.find({"a": 100})][:3] == [3, 10, 17]
    things.delete_many({"a": 0})
    assert things.count_documents({}) == 428
    assert sum(1 for _ in things.find()) == 428


def test_a_failed_write_leaves_memory_and_file_the_same(embedded_connection):
    things = embedded_connection.db["things"]
    things.insert_one({"_id": 1, "n": 1})
    with pytest.raises(DocumentTooLarge, match=r"larger than"):
        things.update_one({"_id": 1}, {"$set": {"n": 2, "blob": "x" * (17 * 1024 * 1024)}})
    with pytest.raises(bson.errors.InvalidDocument):
        things.update_one({"_id": 1}, {"$set": {"n": 2, "object": object()}})
    assert things.find_one({"_id": 1}) == {"_id": 1, "n": 1}
    things.insert_one({"_id": 2})
    again = reopened(embedded_connection)
    assert list(again.db["things"].find()) == [{"_id": 1, "n": 1}, {"_id": 2}]
    again.close()


def test_an_interrupted_operation_is_undone(embedded_connection, monkeypatch):
    things = embedded_connection.db["things"]
    things.create_index("a", unique=True)
    things.insert_one({"a": 1})

    write_entries = things._store._remember

    def interrupted(*arguments):
        write_entries(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(things._store, "_remember", interrupted)
    with pytest.raises(KeyboardInterrupt):
        things.insert_one({"a": 2})
    monkeypatch.undo()
    assert things.count_documents({}) == 1
    things.insert_one({"a": 2})
    assert things.count_documents({"a": 2}) == 1


class Interrupting:
    """A connection of SQLite that is interrupted right after some statements."""

    def __init__(self, sqlite, *statements):
        self.sqlite = sqlite
        self.statements = list(statements)

    def execute(self, statement, *arguments):
        found = self.sqlite.execute(statement, *arguments)
        if statement in self.statements:
            self.statements.remove(statement)
            raise KeyboardInterrupt
        return found

    def __getattr__(self, name):
        return getattr(self.sqlite, name)


@pytest.mark.parametrize(
    ("statements", "there"),
    [
        (["BEGIN IMMEDIATE"], 1),
        (["COMMIT"], 2),
        (["BEGIN IMMEDIATE", "ROLLBACK"], 1),
        (["COMMIT", "BEGIN IMMEDIATE"], 2),
    ],
)
def test_an_interrupt_at_any_moment_leaves_the_store_usable(embedded_connection, monkeypatch, statements, there):
    things = embedded_connection.db["things"]
    things.create_index("a", unique=True)
    things.insert_one({"_id": 1, "a": 1})
    server = embedded_connection.client.server
    with monkeypatch.context() as patch:
        patch.setattr(server, "sqlite", Interrupting(server.sqlite, *statements))
        for _ in range(sum(statement.startswith(("BEGIN", "COMMIT")) for statement in statements)):
            with pytest.raises(KeyboardInterrupt):
                things.insert_one({"a": 2})
    assert things.count_documents({}) == things.count_documents({"a": {"$gte": 0}}) == there
    assert not server.sqlite.in_transaction
    things.insert_one({"_id": 3, "a": 3})
    things.update_one({"_id": 1}, {"$set": {"a": 10}})
    assert things.find_one({"a": 10})["_id"] == 1
    assert reopened(embedded_connection).db["things"].count_documents({}) == there + 1


def test_a_half_undone_operation_is_undone_by_the_next_one(embedded_connection, monkeypatch):
    """The interrupt, and another while it is being undone: before anything of that happened, and amid of it."""
    things = embedded_connection.db["things"]
    things.insert_one({"_id": 1})
    server = embedded_connection.client.server
    for place in ("_undo", "_forget"):

        def interrupted(*_arguments):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(server, place, interrupted)
            patch.setattr(things._store, "_enter", interrupted)
            with pytest.raises(KeyboardInterrupt):
                things.insert_one({"_id": 2})
        assert [document["_id"] for document in things.find()] == [1]
        things.insert_one({"_id": 3})
        things.delete_one({"_id": 3})


@pytest.mark.parametrize(
    "update",
    [
        {"$inc": {"text": 1}},
        {"$push": {"text": 1}},
        {"$inc": {"h": 1}},
        {"$addToSet": {"text": 1}},
    ],
)
def test_an_update_that_does_not_suit_the_document_is_a_write_error(collection, update):
    collection.insert_one({"_id": 1, "text": "t", "h": [1]})
    with pytest.raises(WriteError) as caught:
        collection.update_one({"_id": 1}, {"$set": {"new": 1}, **update})
    assert "\n" not in str(caught.value)
    with pytest.raises(BulkWriteError):
        collection.bulk_write([UpdateOne({"_id": 1}, update)])
    assert collection.find_one({"_id": 1}) == {"_id": 1, "text": "t", "h": [1]}


def test_an_update_past_the_end_of_a_list_is_one_line(embedded_connection):
    things = embedded_connection.db["things"]
    things.insert_one({"_id": 1, "h": [1]})
    with pytest.raises(WriteError, match="does not suit"):
        things.update_one({"_id": 1}, {"$set": {"h.1.x": 2}})
    with pytest.raises(TypeError):  # the caller's fault
        things.update_one([], {"$set": {"h": 2}})
    with pytest.raises(ValueError, match=r"\$"):
        things.update_one({}, {"h": 2})
    assert things.find_one({"_id": 1}) == {"_id": 1, "h": [1]}


def test_threads_may_create_and_drop_the_same(embedded_connection):
    """One thread is between its look at the collection and the lock while another does the same."""
    things = embedded_connection.db["things"]
    things.insert_one({"a": 1})
    server = embedded_connection.client.server
    errors = []

    def behind(action):
        def run():
            try:
                action()
            except Exception as error:
                errors.append(error)

        with server.lock:
            thread = threading.Thread(target=run)
            thread.start()
            time.sleep(0.2)
            action()
        thread.join()

    store = things._store  # asked for beforehand, as that waits for the lock, too
    behind(lambda: store.create_index("a_1", {"key": [("a", 1)], "unique": True}))
    assert list(things.index_information()) == ["_id_", "a_1"]
    behind(store.drop)
    assert errors == []
    assert things.count_documents({}) == 0
    things.insert_one({"a": 1})


def test_a_closed_store_answers_nothing_from_memory(embedded_connection):
    things = embedded_connection.db["things"]
    things.insert_one({"a": 1})
    cursor = things.find()
    assert things.count_documents({}) == 1
    embedded_connection.client.close()
    embedded_connection.client.close()
    for question in (
        things.find_one,
        lambda: list(cursor),
        lambda: things.count_documents({}),
        lambda: things.count_documents({"a": 1}),
        lambda: list(things.aggregate([])),
        lambda: things.distinct("a"),
        things.find().explain,
        lambda: things.insert_one({}),
        lambda: things.create_index("b"),
        things.drop,
    ):
        with pytest.raises(InvalidOperation, match="close"):
            question()


def test_a_full_disk_is_one_line_and_forgets_nothing(embedded_connection):
    things = embedded_connection.db["things"]
    things.insert_one({"_id": 1})
    sqlite = embedded_connection.client.server.sqlite
    pages = sqlite.execute("PRAGMA page_count").fetchone()[0]
    sqlite.execute(f"PRAGMA max_page_count={pages + 2}")
    with pytest.raises(ConnectionError, match="did not take a write"):
        things.insert_many([{"_id": i, "text": "x" * 5000} for i in range(2, 20)])
    sqlite.execute("PRAGMA max_page_count=1000000")
    assert [d["_id"] for d in things.find()] == [1]
    things.insert_one({"_id": 2})
    assert things.count_documents({}) == 2


HOLDER = """
    import os, sys, time
    from stores.connection import connect
    connect("embedded:" + sys.argv[1])
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_killed_writer_frees_the_file_though_its_forks_live_on(tmp_path):
    path = tmp_path / "x.sqlite"
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert holder.stdout.readline() == "ready\n"
        told = rf"in use by process {holder.pid} on .*, since 2.*inv-design db move --to mongodb://"
        with pytest.raises(ConnectionError, match=told):
            connect(f"embedded:{path}")
        holder.kill()
        holder.wait()
        connect(f"embedded:{path}").close()
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.stdout.close()


@contextlib.contextmanager
def as_someone_else():
    """Give up root's rights, under which nothing is read-only."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def locked_folder():
    """A folder that others may enter: pytest's own is private to its user."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
        folder.chmod(0o755)


def test_a_colleague_reads_a_closed_file_in_a_folder_that_is_not_theirs(locked_folder):
    path = locked_folder / "x.sqlite"
    with connect(f"embedded:{path}") as owner:
        owner.db["things"].create_index("a")
        owner.db["things"].insert_one({"_id": 1, "a": 1})
    locked_folder.chmod(0o555)
    with as_someone_else():
        client = EmbeddedClient(path, read_only=True)
        things = client["inv_design"]["things"]
        assert things.find_one({"a": 1}) == {"_id": 1, "a": 1}
        with pytest.raises(PermissionError, match="read-only"):
            things.insert_one({})
    locked_folder.chmod(0o755)
    with connect(f"embedded:{path}") as owner:
        owner.db["things"].insert_one({"_id": 2, "a": 2})
    locked_folder.chmod(0o555)
    with as_someone_else():
        client.refresh()
        assert things.count_documents({}) == 2
        client.close()


def test_rights_are_named_where_they_are_the_cause(locked_folder):
    path = locked_folder / "x.sqlite"
    writer = connect(f"embedded:{path}")
    writer.db["things"].insert_one({"_id": 1})
    copy = locked_folder / "copy" / "x.sqlite"
    copy.parent.mkdir()
    for suffix in ("", "-wal"):  # as a killed writer leaves it
        copy.with_name(copy.name + suffix).write_bytes(path.with_name(path.name + suffix).read_bytes())
    writer.close()
    copy.parent.chmod(0o555)
    with (
        as_someone_else(),
        pytest.raises(ConnectionError, match=r"right to write in its folder .* copy it and x.sqlite-wal"),
    ):
        EmbeddedClient(copy, read_only=True)
    copy.parent.chmod(0o777)
    copy.chmod(0o000)
    with as_someone_else(), pytest.raises(ConnectionError, match=r"cannot be written .* check the rights"):
        EmbeddedClient(copy)
    copy.with_name("x.sqlite-wal").unlink()
    with as_someone_else(), pytest.raises(ConnectionError, match=r"cannot be opened .* its rights"):
        EmbeddedClient(copy, read_only=True)


def test_a_fork_must_not_use_the_file(embedded_connection):
    child = os.fork()
    if child == 0:
        try:
            embedded_connection.db["things"].insert_one({})
        except RuntimeError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


WRITER = """
    import sys
    from stores.connection import connect
    connection = connect("embedded:" + sys.argv[1])
    things = connection.db["things"]
    things.create_index("key", unique=True)
    start = things.count_documents({})
    for i in range(start, start + 1_000_000):
        if i % 5 == 0:
            things.insert_many([{"key": f"{i}-{j}", "payload": "x" * 300} for j in range(3)])
        else:
            things.insert_one({"key": i, "payload": "x" * 300})
        if i % 7 == 0:
            things.update_one({"key": i} if i % 5 else {"key": f"{i}-0"}, {"$set": {"updated": True}})
        print(i, flush=True)
"""


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path):
    path = tmp_path / "killed.sqlite"
    acknowledged: list[int] = []
    for delay in (0.05, 0.15, 0.31, 0.4):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(path)], stdout=subprocess.PIPE, text=True
        )
        first = process.stdout.readline()
        assert first.strip().isdigit()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in [first, *process.stdout.read().splitlines()[:-1]]]
        process.wait()
        connection = connect(f"embedded:{path}")
        things = connection.db["things"]
        for i in acknowledged:
            keys = [f"{i}-{j}" for j in range(3)] if i % 5 == 0 else [i]
            for key in keys:
                document = things.find_one({"key": key})
                assert document is not None, f"{key} was acknowledged and is lost"
                if i % 7 == 0 and key in (i, f"{i}-0"):
                    assert document["updated"] is True
        scanned = [d["key"] for d in things.find()]  # documents and index entries tell the same
        assert all(things.count_documents({"key": key}) == 1 for key in scanned)
        connection.close()
    assert len(acknowledged) > 100
