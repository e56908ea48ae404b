"""Projections of the embedded store: cases by hand, and the wire server's answers."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymongo.errors import OperationFailure

from stores.projection import parse, project

DOCUMENT = {"_id": 1, "a": {"b": 1, "c": [1, {"b": 2, "d": 3}]}, "e": [5, {"b": 6}], "f": 7}


@pytest.mark.parametrize(
    ("projection", "expected"),
    [
        ({"a.b": 1}, {"_id": 1, "a": {"b": 1}}),
        ({"a.c.b": 1, "_id": 0}, {"a": {"c": [{"b": 2}]}}),
        ({"e.b": 1, "_id": 0}, {"e": [{"b": 6}]}),
        ({"f.g": 1}, {"_id": 1}),
        ({"f.g": 0, "a": 0, "e": 0}, {"_id": 1, "f": 7}),
        ({"e.b": 0, "a": 0, "f": 0}, {"_id": 1, "e": [5, {}]}),
        (["f"], {"_id": 1, "f": 7}),
        ({"_id": 0}, {k: v for k, v in DOCUMENT.items() if k != "_id"}),
        ({"_id": 1}, {"_id": 1}),
    ],
)
def test_by_hand(connection, projection, expected):
    collection = connection.db["things"]
    collection.insert_one(dict(DOCUMENT))
    assert collection.find_one({}, projection) == expected


@pytest.mark.parametrize("given_", [{"a": {"$slice": 1}}, {"a.$": 1}, {"a": 1, "b": 0}, {"a": 1, "a.b": 1}, {}, None])
def test_what_is_not_plain_is_left_to_the_library(given_):
    assert parse(given_) is None


@pytest.mark.parametrize("operator", ["$slice", "$elemMatch"])
def test_an_operator_on_a_nested_field_is_refused(embedded_connection, operator):
    collection = embedded_connection.db["things"]
    collection.insert_one(dict(DOCUMENT))
    wanted = 1 if operator == "$slice" else {"b": 2}
    with pytest.raises(OperationFailure, match=rf"no \{operator} of the nested field 'a.c'"):
        collection.find_one({}, {"a.c": {operator: wanted}})
    assert collection.find_one({}, {"e": {"$slice": 1}, "_id": 1})["e"] == [5]


def test_what_is_returned_is_the_callers_own(embedded_connection):
    collection = embedded_connection.db["things"]
    collection.insert_one(dict(DOCUMENT))
    for wanted in ({"a": 1}, {"e": 0}):
        collection.find_one({}, wanted)["a"]["b"] = "spoilt"
        assert collection.find_one({}, wanted)["a"]["b"] == 1


names = st.sampled_from("abc")
values = st.recursive(
    st.integers(0, 3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
paths = st.lists(names, min_size=1, max_size=3).map(".".join)


@given(st.dictionaries(names, values, max_size=3), st.sets(paths, min_size=1, max_size=3))
def test_what_is_kept_and_what_is_left_share_nothing(document, fields):
    kept, left = parse(dict.fromkeys(fields, 1)), parse(dict.fromkeys(fields, 0))
    if kept is None or left is None:
        return
    one, other = project(document, *kept), project(document, *left)
    assert set(one) | set(other) == set(document) or any("." in f for f in fields)
    for field in fields:
        if "." not in field:
            assert field not in other
            assert one.get(field) == document.get(field)


def nests_lists(value):
    """MongoDB keeps a list within a list, empty or not; the wire server does not."""
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    within = isinstance(value, list) and any(isinstance(item, list) for item in inner)
    return within or any(nests_lists(item) for item in inner)


@pytest.mark.wire
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    document=st.dictionaries(names, values, max_size=3),
    fields=st.sets(paths, min_size=1, max_size=2),
    keep=st.booleans(),
)
def test_the_server_agrees(wire_connection, document, fields, keep):
    wanted = dict.fromkeys(sorted(fields), int(keep))
    parsed = parse(wanted)
    if parsed is None or nests_lists(document):
        return
    collection = wire_connection.db["things"]
    collection.delete_many({})
    collection.insert_one({"_id": 1, **document})
    assert collection.find_one({}, wanted) == project({"_id": 1, **document}, *parsed)
