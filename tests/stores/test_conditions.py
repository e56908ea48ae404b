"""Questions as MongoDB filters: what is typed, checked, and free of injection."""

from __future__ import annotations

import re
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stores.conditions import (
    candidate_filter,
    condition,
    element_filter,
    known_fields,
    merge,
    pareto_keys,
    protocol_filter,
    sort_keys,
)

FIELDS: dict[str, type | None] = {
    "bulk_modulus_vrh": float, "shear_modulus_vrh": float, "round": int, "status": str, "formula": str, "chemsys": str,
    "born_stable": bool, "stages": dict, "stages.mlip": dict, "stages.mlip.value": float, "candidate_id": str,
    "nsites": int, "elements": list, "flags": list,
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("K=340..360", {"bulk_modulus_vrh": {"$gte": 340, "$lte": 360}}),
        ("K = 340 .. 360", {"bulk_modulus_vrh": {"$gte": 340, "$lte": 360}}),
        ("K=340..", {"bulk_modulus_vrh": {"$gte": 340}}),
        ("K=..3.6e2", {"bulk_modulus_vrh": {"$lte": 360.0}}),
        ("K!=340..360", {"bulk_modulus_vrh": {"$not": {"$gte": 340, "$lte": 360}}}),
        ("K<300.5", {"bulk_modulus_vrh": {"$lt": 300.5}}),
        ("K>99999999999999999999", {"bulk_modulus_vrh": {"$gt": 1e20}}),
        ("stages.mlip.value>310", {"stages.mlip.value": {"$gt": 310}}),
        ("round==1", {"round": {"$eq": 1}}),
        ("status!=passed", {"status": {"$ne": "passed"}}),
        ("born_stable=true", {"born_stable": {"$eq": True}}),
        ("born_stable=none", {"born_stable": {"$eq": None}}),
        ("chemsys=W-Re", {"chemsys": {"$eq": "Re-W"}}),
        ("formula=WRe3", {"formula": {"$eq": "Re3W"}}),
        ("flags=born_unstable", {"flags": {"$eq": "born_unstable"}}),
        (("K", ">=", 3), {"bulk_modulus_vrh": {"$gte": 3}}),
        (("status", "in", ("passed", "failed")), {"status": {"$in": ["passed", "failed"]}}),
        (("round", "not in", [1, 2]), {"round": {"$nin": [1, 2]}}),
        (("formula", "=", None), {"formula": {"$eq": None}}),
    ],
)
def test_conditions(text: object, expected: dict[str, object]) -> None:
    assert condition(text, FIELDS) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("$where=1", "'$where' is no field"),
        ("stages.$mlip=1", "is no field"),
        ("stages..mlip=1", "is no field"),
        (("$or", "=", 1), "is no field"),
        (("K", "=", {"$gt": 0}), "is no value"),
        (("K", "=", re.compile("x")), "is no value"),
        (("formula", "=", re.compile("x")), "is no value"),
        (("formula", "=", b"x"), "is no value"),
        (("formula", "=", ["x"]), "is no value"),
        (("formula", "in", [{"$ne": 1}]), "is no value"),
        (("formula", "in", {"$ne": 1}), "list of values"),
        (("formula", "in", "abc"), "list of values"),
        (("formula", "=", "$gt"), "is an operator"),
        ("formula=$gt", "is an operator"),
        ("formula=a\0b", "is an operator"),
        (("formula", "$regex", "x"), "unknown operator '$regex'"),
        (("K", "=", float("nan")), "NaN"),
        ("K>nan", "is no number"),
        (("K", ">", "x"), "is no number"),
        (("K", ">", None), "no order"),
        ("born_stable>1", "no order"),
        ("stages.mlip>1", "no order"),
        ("stages.mlip=1", "stages.mlip.NAME"),
        ("K~3", "no condition"),
        (("K", 3), "no condition"),
        (7, "no condition"),
    ],
)
def test_what_is_no_plain_condition_is_refused(where: object, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        condition(where, FIELDS)  # type: ignore[arg-type]


def operators(value: object) -> set[str]:
    """Return every key of a filter that starts with $."""
    found: set[str] = set()
    if isinstance(value, dict):
        for key, inner in value.items():
            found |= ({key} if str(key).startswith("$") else set()) | operators(inner)
    elif isinstance(value, list):
        found = set().union(*(operators(item) for item in value)) if value else set()
    return found


@settings(deadline=None)
@given(st.text(max_size=30), st.sampled_from(["=", "!=", ">", "<=", "=="]), st.text(max_size=30))
def test_no_text_becomes_an_operator_or_a_pattern(name: str, operator: str, value: str) -> None:
    try:
        made = condition(f"{name}{operator}{value}")
    except ValueError:
        return
    assert operators(made) <= {"$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$not"}
    [(field, wanted)] = made.items()
    assert not field.startswith("$")
    assert all(part and not part.startswith("$") for part in field.split("."))
    values = [v for v in wanted.values() if not isinstance(v, dict)]
    assert all(isinstance(v, str | int | float | bool | None) for v in values)


@settings(deadline=None)
@given(st.recursive(st.none() | st.text(max_size=5) | st.integers(), lambda x: st.dictionaries(st.text(max_size=5), x)))
def test_no_mapping_passes_as_a_value(value: object) -> None:
    if isinstance(value, dict):
        with pytest.raises(ValueError, match="is no value"):
            condition(("formula", "=", value))


def test_a_question_is_one_filter_with_its_fields_on_top() -> None:
    made = candidate_filter(
        campaign="x", where=["K>300", "K<400", "K<390"], elements="Re,W", without="actinides", stage="mlip",
        status="passed", round=(0, 1), protocol="mlip=p-1", fields=FIELDS,
    )  # fmt: skip
    assert made.pop("elements")["$all"] == ["Re", "W"]
    assert made == {
        "campaign": "x", "round": {"$in": [0, 1]}, "stage": "mlip", "status": "passed",
        "bulk_modulus_vrh": {"$gt": 300, "$lt": 400}, "$and": [{"bulk_modulus_vrh": {"$lt": 390}}],
        "stages.mlip.protocol_id": "p-1",
    }  # fmt: skip
    assert candidate_filter() == {}
    assert candidate_filter(round=2) == {"round": 2}
    assert candidate_filter(where=("K", ">", 3), fields=FIELDS) == {"bulk_modulus_vrh": {"$gt": 3}}
    assert candidate_filter(where=("K>3", "K<9", "round=1"), fields=FIELDS)["round"] == {"$eq": 1}


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"stage": "dtf"}, "stage 'dtf' is none of"),
        ({"status": {"$ne": 1}}, "is none of"),
        ({"campaign": {"$ne": 1}}, "is no value"),
        ({"round": "1"}, "no whole number"),
        ({"round": [{"$gt": 0}]}, "no whole number"),
        ({"elements": "Xx"}, "'Xx' is neither an element"),
        ({"elements": "metals"}, "give element symbols"),
        ({"without": ["$where"]}, "is neither an element"),
        ({"protocol": "mlpi=p-1"}, "STAGE=ID"),
        ({"protocol": "mlip="}, "STAGE=ID"),
        ({"protocol": "$x"}, "is an operator"),
    ],
)
def test_wrong_parts_are_told(asked: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        candidate_filter(**asked, fields=FIELDS)  # type: ignore[arg-type]


def test_elements_and_protocols() -> None:
    assert element_filter(["Re", "W"], "Os", ["Tc"]) == {
        "elements": {"$all": ["Re", "W"], "$in": ["Os"], "$nin": ["Tc"]}
    }
    assert element_filter([], [], []) == {}
    assert "Os" in element_filter([], "metals", [])["elements"]["$in"]
    assert [*protocol_filter("p-1")["$or"][1]] == ["stages.mlip.protocol_id"]


def test_orders() -> None:
    assert sort_keys(["-K,round"], FIELDS) == [("bulk_modulus_vrh", -1), ("round", 1)]
    assert sort_keys("+K", FIELDS) == [("bulk_modulus_vrh", 1)]
    assert pareto_keys("K,-G", FIELDS) == [("bulk_modulus_vrh", True), ("shear_modulus_vrh", False)]
    for wrong, says in (("-nothing", "unknown field"), ("stages", "more than one"), ("$natural", "no field")):
        with pytest.raises(ValueError, match=says):
            sort_keys([wrong], FIELDS)
    with pytest.raises(ValueError, match="no numbers"):
        pareto_keys("K,formula", FIELDS)


def test_merging_keeps_every_clause() -> None:
    assert merge([{"a": {"$lt": 3}}, {"a": {"$gt": 0}}]) == {"a": {"$lt": 3, "$gt": 0}}
    assert merge([{"a": 1}, {"a": {"$gt": 0}}]) == {"a": 1, "$and": [{"a": {"$gt": 0}}]}
    assert merge([{"a": 1}, {"a": 2}]) == {"a": 1, "$and": [{"a": 2}]}
    assert merge([{"$or": [1]}, {"$or": [2]}]) == {"$or": [1], "$and": [{"$or": [2]}]}


def test_fields_of_documents_are_known_with_their_type() -> None:
    documents = [
        {"_id": 1, "stages": {"mlip": {"value": 3, "provenance": {}}}, "provenance": {"x": 1}},
        {"stages": {"mlip": {"value": 3.5}, "dft": {"state": "completed"}}, "born_stable": True},
    ]
    known = known_fields({"bulk_modulus_vrh": float}, documents)
    assert known["stages.mlip.value"] is float
    assert known["stages.dft.state"] is str
    assert known["stages.dft"] is dict
    assert known["born_stable"] is bool
    assert "_id" not in known
    assert not any("provenance" in name for name in known)


def test_a_time_is_a_value() -> None:
    when = datetime(2026, 1, 1)
    assert condition(("last_updated", ">", when)) == {"last_updated": {"$gt": when}}
