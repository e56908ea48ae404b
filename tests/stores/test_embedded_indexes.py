"""The embedded store's ordered indexes against mongomock-ng's scan, and what ``explain`` says of them."""

import datetime
import math
import operator
import sqlite3

import bson
import mongomock_ng
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mongomock_ng import helpers
from mongomock_ng.filtering import bson_compare

from stores.connection import connect
from stores.embedded import EmbeddedClient
from stores.index_keys import after, encode, inverted
from stores.sqlite_index import Index

FIELDS = ("a", "b", "c")
INDEXES = (
    (("a", 1),),
    (("a", 1), ("b", 1)),
    (("a", 1), ("b", -1), ("c", 1)),
    (("b", -1),),
    (("c", 1), ("a", 1)),
    (("d.x", 1), ("a", 1)),
)

# No booleans beside numbers: mongomock's filter holds True and 1 equal, MongoDB and the index do not. No arrays to sort
# by: mongomock sorts them by their first element, MongoDB by the least or greatest (tested by hand below).
moments = st.integers(0, 3).map(lambda ms: datetime.datetime(2026, 1, 1, 0, 0, 0, 1000 * ms))
numbers = st.one_of(
    st.integers(0, 2),
    st.integers(-3, 3),
    st.sampled_from(
        [0.0, -0.0, 0.5, -1.5, 1e300, -math.inf, math.inf, 2**53, 2**53 + 1, float(2**53), 2**63 - 1, -(2**63)]
    ),
)
texts = st.just("a") | st.sampled_from(["", "a", "ab", "b", "a\x00", "a\x01", "é", "\uffff", "\U0001f600"])
oids = st.sampled_from([bson.ObjectId("0" * 24), bson.ObjectId("f" * 24)])
scalars = st.one_of(st.none(), numbers, texts, oids, moments)
documents = st.one_of(st.just({}), st.fixed_dictionaries({"x": numbers}))
anything = st.one_of(
    scalars, st.binary(max_size=2), documents, st.lists(numbers, max_size=2), st.lists(texts, max_size=2)
)


RANGES = ({"$gt"}, {"$gte"}, {"$lt"}, {"$lte"}, {"$gt", "$lt"}, {"$gte", "$lte"}, {"$gte", "$lt"})


@st.composite
def cases(draw, kinds=anything):
    """Give documents, replacements of some, a filter and a sort, with values from one small pool so that they meet."""
    pool = draw(st.lists(kinds, min_size=2, max_size=5))
    plain = [value for value in pool if not isinstance(value, (dict, list))] or [1]
    field = st.sampled_from([*FIELDS, "d.x", "_id"])

    def documents_of(least):
        values = st.sampled_from(pool)
        if kinds is anything:
            values = values | st.lists(st.sampled_from(plain), min_size=1, max_size=3)
        known = dict.fromkeys(FIELDS, values)
        record = st.fixed_dictionaries({}, optional={**known, "d": st.sampled_from([{}, {"x": plain[0]}, {"x": 1}])})
        return draw(st.lists(record, min_size=least, max_size=12))

    def condition():
        value = st.sampled_from(plain)
        kind = draw(st.sampled_from(["equal", "equal", "in", "range", "range", "range", "other"]))
        if kind == "equal":
            return draw(st.one_of(value, value.map(lambda one: {"$eq": one})))
        if kind == "range":
            return {operator: draw(value) for operator in sorted(draw(st.sampled_from(RANGES)))}
        if kind == "in":
            return {draw(st.sampled_from(["$in", "$all"])): draw(st.lists(value, min_size=1, max_size=3))}
        return draw(st.one_of(value.map(lambda one: {"$ne": one}), st.booleans().map(lambda there: {"$exists": there})))

    inserted, changed = documents_of(4), documents_of(0)
    form = draw(st.sampled_from(["one", "one", "two", "and", "or"]))
    if form in ("one", "two"):
        spec = {draw(field): condition() for _ in range(1 if form == "one" else 2)}
    elif form == "and":
        spec = {"$and": [{"a": condition()}, {draw(field): condition()}]}
    else:
        spec = {"a": condition(), "$or": [{"b": condition()}, {"c": condition()}]}
    sort = draw(st.lists(st.tuples(field, st.sampled_from([1, -1])), unique_by=operator.itemgetter(0), max_size=3))
    return inserted, changed, spec, sort


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    client = EmbeddedClient(tmp_path_factory.mktemp("indexes") / "x.sqlite")
    yield client
    client.close()


def pair_of_collections(client, inserted):
    """Return (indexed, plain) collections with the same documents; the first in the embedded store."""
    client.drop_database("d")
    indexed, plain = client["d"]["things"], mongomock_ng.MongoClient()["d"]["things"]
    half = len(inserted) // 2
    for count, document in enumerate(inserted):
        if count == half:  # some documents were there before the indexes
            for fields in INDEXES:
                indexed.create_index(list(fields))
        for collection in (indexed, plain):
            collection.insert_one({"_id": count + 1, **document})
    return indexed, plain


def ids(found):
    return [document["_id"] for document in found]


thorough = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@thorough
@given(case=cases())
def test_filters_find_what_a_scan_finds(client, case):
    inserted, _, spec, _ = case
    indexed, plain = pair_of_collections(client, inserted)
    expected = ids(plain.find(spec))
    assert ids(indexed.find(spec)) == expected, indexed.find(spec).explain()
    assert indexed.count_documents(spec) == len(expected)


@thorough
@given(case=cases(scalars), page=st.tuples(st.integers(0, 4), st.integers(0, 4)))
def test_sorted_pages_are_those_of_a_scan(client, case, page):
    inserted, _, spec, sort = case
    indexed, plain = pair_of_collections(client, inserted)
    skip, limit = page
    sort = [*(key for key in sort if key[0] != "_id"), ("_id", 1)]  # without it, ties may come in any order
    for filter in (spec, {}):
        expected = ids(plain.find(filter).sort(sort).skip(skip).limit(limit))
        cursor = indexed.find(filter).sort(sort).skip(skip).limit(limit)
        assert ids(cursor) == expected, cursor.explain()


@thorough
@given(case=cases(scalars))
def test_a_sort_with_ties_has_the_order_of_a_scan(client, case):
    inserted, _, spec, sort = case
    indexed, plain = pair_of_collections(client, inserted)

    def values(document):
        return [helpers.get_value_by_dot(document, field) for field, _ in sort]

    found, expected = list(indexed.find(spec, sort=sort)), list(plain.find(spec, sort=sort))
    assert sorted(ids(found)) == sorted(ids(expected))
    for one, other in zip(found, expected, strict=True):  # missing and null are one value, as 1 and 1.0 are
        for left, right in zip(values(one), values(other), strict=True):
            assert encode(left) == encode(right)


@thorough
@given(case=cases())
def test_updates_and_deletions_keep_the_indexes(client, case):
    inserted, changed, spec, _ = case
    indexed, plain = pair_of_collections(client, inserted)
    for count, document in enumerate(changed, start=1):
        for collection in (indexed, plain):
            if count % 3 == 2:
                collection.delete_one({"_id": count})
            else:
                collection.replace_one({"_id": count}, document)
    assert ids(indexed.find(spec)) == ids(plain.find(spec))
    assert index_rows(client, indexed) == expected_rows(indexed)


def index_rows(client, collection):
    store = collection._store
    return (
        set(client.server.sqlite.execute(f"SELECT key, seq FROM entries_{store._number}")) if store._number else set()
    )


def expected_rows(collection):
    store = collection._store
    if store._number is None:
        return set()
    rows = store.server.sqlite.execute(f"SELECT seq, doc FROM documents_{store._number}").fetchall()
    return {
        (key, seq)
        for seq, blob in rows
        for index in store._ordered.values()
        for key in index.entries(bson.decode(blob))[0]
    }


everything = st.recursive(
    st.one_of(scalars, st.booleans(), st.binary(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("xyz"), inner, max_size=2)),
    max_leaves=6,
)


def stored(value):
    return bson.decode(bson.encode({"v": value}))["v"]


def like_one(left, right):
    """Return whether Python holds as equal what BSON does not: True and 1, or documents in another order."""
    return left == right and encode(left) != encode(right)


@settings(max_examples=500, deadline=None)
@given(everything.map(stored), everything.map(stored))
def test_the_order_of_bytes_is_the_order_of_bson(left, right):
    try:
        less = bson_compare(operator.lt, left, right)
        greater = bson_compare(operator.gt, left, right)
    except (NotImplementedError, TypeError):
        return
    if like_one(left, right) or bson.encode({"v": left}).count(b"\x08"):  # booleans inside: see above
        return
    keys = encode(left), encode(right)
    assert (keys[0] < keys[1], keys[0] > keys[1]) == (less, greater)
    assert (inverted(keys[0]) > inverted(keys[1])) == less
    if keys[0] != keys[1]:
        assert not keys[0].startswith(keys[1])
    assert all(key < after(key) for key in keys)
    assert keys[0] < after(keys[0] + b"\xff")


def test_types_come_in_the_order_of_bson():
    values = [
        bson.MinKey(), None, math.nan, -math.inf, -(2**63), -1, 0, 0.5, 2**53, 2**53 + 1, 2**63 - 1, math.inf, "", "a",
        {}, {"a": 1}, [], [1], b"", b"z", bson.ObjectId("0" * 24), False, True, datetime.datetime(1969, 1, 1),
        datetime.datetime(2026, 1, 1), bson.Timestamp(1, 1), bson.Regex("a"), bson.MaxKey(),
    ]  # fmt: skip
    keys = [encode(value) for value in values]
    assert keys == sorted(set(keys))
    assert encode(1) == encode(1.0) == encode(bson.Int64(1)) == encode(bson.Decimal128("1"))
    with pytest.raises(OverflowError):
        encode(2**63)


def winning(cursor):
    """Return the stages of the winning plan, the outermost first."""
    stage = cursor.explain()["queryPlanner"]["winningPlan"]
    stages = []
    while stage:
        stages.append(stage)
        stage = stage.get("inputStage")
    return stages


def stage_names(cursor):
    return [stage["stage"] for stage in winning(cursor)]


@pytest.fixture
def summaries(embedded_connection):
    collection = embedded_connection.db["summaries"]
    collection.create_index([("campaign", 1), ("k", 1), ("name", 1)])
    collection.create_index([("campaign", 1), ("round", 1)])
    collection.create_index("elements")
    collection.insert_many(
        [
            {"name": i, "campaign": "ab"[i % 2], "k": (i * 7) % 100, "round": i % 5, "elements": ["N", "Mo"][: i % 3]}
            for i in range(300)
        ]
    )
    return collection


def test_prefix_range_and_sort_are_one_index_scan(summaries):
    cursor = summaries.find({"campaign": "a", "k": {"$gte": 40, "$lt": 60}}).sort([("k", -1), ("name", -1)]).limit(5)
    assert stage_names(cursor) == ["FETCH", "IXSCAN"]
    scan = winning(cursor)[-1]
    assert (scan["indexName"], scan["direction"], scan["isMultiKey"]) == ("campaign_1_k_1_name_1", "backward", False)
    assert "filter" not in winning(cursor)[0]  # nothing is left to check
    found = [(d["k"], d["name"]) for d in cursor]
    assert found == sorted(found, reverse=True)
    assert [k for k, _ in found] == [58, 58, 58, 56, 56]


def test_explain_says_when_documents_are_checked_sorted_or_scanned(summaries):
    checked = summaries.find({"campaign": "a", "k": 40, "name": {"$ne": 1}})
    assert stage_names(checked) == ["FETCH", "IXSCAN"]
    assert "filter" in winning(checked)[0]
    assert stage_names(summaries.find({"elements": "Mo"}).sort("name", 1)) == ["SORT", "FETCH", "IXSCAN"]
    assert winning(summaries.find({"elements": "Mo"}))[-1]["isMultiKey"] is True
    assert stage_names(summaries.find({"nothing": 1})) == ["COLLSCAN"]
    assert stage_names(summaries.find({"nothing": 1}).sort("name", 1)) == ["SORT", "COLLSCAN"]
    assert winning(summaries.find({"_id": 1}))[-1]["indexName"] == "_id_"
    assert stage_names(summaries.find().sort("_id", -1)) == ["FETCH", "IXSCAN"]


def test_several_values_before_the_sort_are_merged(summaries):
    cursor = summaries.find({"campaign": {"$in": ["b", "a"]}}).sort([("k", 1), ("name", 1)])
    assert stage_names(cursor) == ["FETCH", "IXSCAN"]
    found = [(d["k"], d["name"]) for d in cursor]
    assert len(found) == 300
    assert found == sorted(found)
    rounds = summaries.find({"campaign": "a", "round": {"$in": [3, 1]}}).sort("round", -1)
    assert stage_names(rounds) == ["FETCH", "IXSCAN"]
    assert [d["round"] for d in rounds] == [3] * 30 + [1] * 30


def test_a_sort_that_goes_on_behind_the_index_is_sorted_within(summaries):
    cursor = summaries.find({"campaign": "a"}).sort([("round", -1), ("name", 1)])
    assert stage_names(cursor) == ["SORT", "FETCH", "IXSCAN"]
    assert winning(cursor)[-1]["indexName"] == "campaign_1_round_1"
    found = [(-d["round"], d["name"]) for d in cursor]
    assert found == sorted(found)
    assert [d["name"] for d in cursor.clone().limit(2)] == [name for _, name in found[:2]]


def test_a_count_by_an_index_decodes_nothing(summaries, monkeypatch):
    def refuse(*_):
        raise AssertionError("a document was read")

    monkeypatch.setattr(type(summaries._store), "_read", refuse)
    monkeypatch.setattr(type(summaries._store), "_all", refuse)
    assert summaries.count_documents({"campaign": "a"}) == 150
    assert summaries.count_documents({"campaign": {"$in": ["a", "b"]}, "round": 2}) == 60
    assert summaries.count_documents({"campaign": "a", "k": {"$gte": 90}}) == 15
    assert summaries.count_documents({"elements": "N"}) == 200


def test_a_page_reads_only_its_own_documents(summaries, monkeypatch):
    read, original = [], type(summaries._store)._read
    monkeypatch.setattr(type(summaries._store), "_read", lambda store, seq: read.append(seq) or original(store, seq))
    page = list(summaries.find({"campaign": "a"}).sort([("k", 1), ("name", 1)]).skip(100).limit(10))
    assert len(page) == len(read) == 10


def test_arrays_sort_by_least_and_greatest_element(connection):
    things = connection.db["things"]
    things.insert_many([{"_id": 1, "a": [3, 9]}, {"_id": 2, "a": [5, 1]}, {"_id": 3, "a": 4}, {"_id": 4, "a": []}])
    for _ in range(2):
        assert ids(things.find().sort("a", 1)) == [4, 2, 1, 3]
        assert ids(things.find().sort("a", -1)) == [1, 2, 3, 4]
        things.create_index("a")  # multikey: finds, but does not sort


def test_two_elements_may_meet_the_two_bounds(embedded_connection):  # mongo-java-server wants one that meets both
    things = embedded_connection.db["things"]
    things.create_index("a")
    things.insert_many([{"_id": 1, "a": [0, 10]}, {"_id": 2, "a": [4]}, {"_id": 3, "a": 11}])
    assert sorted(ids(things.find({"a": {"$gt": 2, "$lt": 5}}))) == [1, 2]
    assert things.count_documents({"a": {"$gt": 2, "$lt": 5}}) == 2


def test_sparse_and_partial_indexes_are_used_only_where_they_have_all(embedded_connection):
    things = embedded_connection.db["things"]
    things.create_index("s", sparse=True, unique=True)
    things.create_index("p", unique=True, partialFilterExpression={"on": True})
    things.insert_many([{"_id": 1}, {"_id": 2}, {"_id": 3, "s": 1, "p": 1}, {"_id": 4, "s": 2, "p": 1, "on": True}])
    assert ids(things.find({"s": None})) == [1, 2]
    assert ids(things.find({"s": {"$in": [1, None]}})) == [1, 2, 3]
    assert ids(things.find().sort([("s", 1), ("_id", 1)])) == [1, 2, 3, 4]
    assert ids(things.find({"p": 1})) == [3, 4]
    assert winning(things.find({"s": 1}))[-1]["indexName"] == "s_1"
    assert stage_names(things.find({"p": 1})) == ["COLLSCAN"]
    with pytest.raises(mongomock_ng.DuplicateKeyError):
        things.insert_one({"s": 2})


def test_old_documents_expire_by_their_index(embedded_connection):
    things = embedded_connection.db["things"]
    things.create_index("at", expireAfterSeconds=3600)
    now = datetime.datetime.now(datetime.UTC)
    things.insert_many([{"_id": hours, "at": now - datetime.timedelta(hours=hours)} for hours in range(4)])
    things.insert_one({"_id": "never"})
    assert ids(things.find()) == [0, "never"]


def test_aggregation_sorts_and_limits_by_an_index(summaries, monkeypatch):
    read, original = [], type(summaries._store)._read
    monkeypatch.setattr(type(summaries._store), "_read", lambda store, seq: read.append(seq) or original(store, seq))
    pipeline = [
        {"$match": {"campaign": "a"}}, {"$sort": {"k": -1, "name": -1}}, {"$skip": 1}, {"$limit": 3},
        {"$project": {"_id": 0, "k": 1}},
    ]  # fmt: skip
    assert list(summaries.aggregate(pipeline)) == [{"k": 98}, {"k": 98}, {"k": 96}]
    assert len(read) == 3


def test_a_file_of_version_1_is_upgraded(tmp_path):
    """The tables as the first version made them: hashes for entries, BSON for ``_id``."""
    path = tmp_path / "old.sqlite"
    old = sqlite3.connect(path)
    config = {"key": [["a", 1], ["b", 1]], "unique": True}
    tags = {"key": [["tags", 1]]}
    old.executescript(
        """
        PRAGMA application_id=0x1D5E; PRAGMA user_version=1;
        CREATE TABLE collections (number INTEGER PRIMARY KEY, database TEXT, name TEXT, UNIQUE(database, name));
        CREATE TABLE indexes (number INTEGER, name TEXT, config BLOB, PRIMARY KEY(number, name));
        CREATE TABLE documents_1 (seq INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, doc BLOB NOT NULL);
        CREATE TABLE entries_1 (key BLOB NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY(key, seq)) WITHOUT ROWID;
        INSERT INTO collections VALUES (1, 'inv_design', 'things');
        """
    )
    old.execute("INSERT INTO indexes VALUES (1, 'a_1_b_1', ?)", (bson.encode(config),))
    old.execute("INSERT INTO indexes VALUES (1, 'tags_1', ?)", (bson.encode(tags),))
    for i in range(5):
        document = {"_id": f"i{i}", "a": 1, "b": i, "tags": ["x", f"t{i}"]}
        old.execute(
            "INSERT INTO documents_1 (id, doc) VALUES (?, ?)", (bson.encode({"": f"i{i}"}), bson.encode(document))
        )
        old.execute("INSERT INTO entries_1 VALUES (?, ?)", (b"%016d" % i, i + 1))
    old.commit()
    old.close()
    with pytest.raises(ConnectionError, match="older version; `inv-design db migrate`"):
        EmbeddedClient(path, read_only=True)
    connection = connect(f"embedded:{path}")
    things = connection.db["things"]
    assert ids(things.find({"a": 1, "b": {"$gt": 2}}).sort("b", -1)) == ["i4", "i3"]
    assert ids(things.find({"tags": "t2"})) == ["i2"]
    assert winning(things.find({"tags": "x"}))[-1]["isMultiKey"] is True
    assert things.find_one({"_id": "i1"})["b"] == 1
    with pytest.raises(mongomock_ng.DuplicateKeyError):
        things.insert_one({"a": 1, "b": 4})
    assert index_rows(connection.client, things) == expected_rows(things)
    connection.close()


def test_entries_of_compound_arrays_are_all_combinations():
    index = Index("a_1_b_-1", {"key": [("a", 1), ("b", -1)]}, 3)
    entries, multikey = index.entries({"a": [1, 2], "b": "x"})
    assert multikey
    assert {index.slot + encode(a) + inverted(encode("x")) for a in (1, 2)} < entries
    assert len(entries) == 3  # the array itself too
