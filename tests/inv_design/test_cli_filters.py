from __future__ import annotations

import click
import pytest

from inv_design.cli.filters import element_filter, field_value, known_fields, pareto_keys, sort_keys, where_filter

FIELDS: dict[str, type | None] = {
    "bulk_modulus_vrh": float,
    "shear_modulus_vrh": float,
    "round": int,
    "status": str,
    "formula": str,
    "chemsys": str,
    "born_stable": bool,
    "stages": None,
    "stages.mlip": None,
    "stages.mlip.value": float,
    "candidate_id": str,
    "nsites": int,
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("K=340..360", {"bulk_modulus_vrh": {"$gte": 340, "$lte": 360}}),
        ("K = 340 .. 360", {"bulk_modulus_vrh": {"$gte": 340, "$lte": 360}}),
        ("K=340..", {"bulk_modulus_vrh": {"$gte": 340}}),
        ("K=..3.6e2", {"bulk_modulus_vrh": {"$lte": 360.0}}),
        ("K!=340..360", {"bulk_modulus_vrh": {"$not": {"$gte": 340, "$lte": 360}}}),
        ("bulk_modulus_vrh>=300", {"bulk_modulus_vrh": {"$gte": 300}}),
        ("K<300.5", {"bulk_modulus_vrh": {"$lt": 300.5}}),
        ("K<=300", {"bulk_modulus_vrh": {"$lte": 300}}),
        ("stages.mlip.value>310", {"stages.mlip.value": {"$gt": 310}}),
        ("round==1", {"round": {"$eq": 1}}),
        ("status!=passed", {"status": {"$ne": "passed"}}),
        ("born_stable=true", {"born_stable": {"$eq": True}}),
        ("born_stable=none", {"born_stable": {"$eq": None}}),
        ("chemsys=W-Re", {"chemsys": {"$eq": "Re-W"}}),
        ("formula=WRe3", {"formula": {"$eq": "Re3W"}}),
    ],
)
def test_conditions(text: str, expected: dict[str, object]) -> None:
    assert where_filter([text], FIELDS) == expected


def test_several_conditions_on_one_field_all_hold() -> None:
    assert where_filter(["K>300", "K<400"], FIELDS) == {
        "$and": [{"bulk_modulus_vrh": {"$gt": 300}}, {"bulk_modulus_vrh": {"$lt": 400}}]
    }
    assert where_filter([], FIELDS) == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("bulk_modulu_vrh>3", "did you mean 'bulk_modulus_vrh'?"),
        ("stages.mlip.valu>3", "did you mean 'stages.mlip.value'?"),
        ("zzz=1", "unknown field 'zzz'; known: "),
        ("K", "no condition"),
        ("K>", "no value"),
        ("K>high", "'high' is no number"),
        ("K=abc", "'abc' is no number"),
        ("K=360..340", "lower bound first"),
        ("K=..", "no bound"),
        ("born_stable=maybe", "true or false"),
        ("K~3", "no condition"),
    ],
)
def test_wrong_conditions_name_the_cure(text: str, says: str) -> None:
    with pytest.raises(click.BadParameter, match=None) as caught:
        where_filter([text], FIELDS)
    assert says in str(caught.value)


def test_sort_keys() -> None:
    assert sort_keys(["-K,round"], FIELDS) == [("bulk_modulus_vrh", -1), ("round", 1)]
    with pytest.raises(click.BadParameter, match="unknown field"):
        sort_keys(["-nothing"], FIELDS)


def test_elements() -> None:
    assert element_filter(["Re", "W"], ["Os"], ["Tc"]) == {
        "elements": {"$all": ["Re", "W"], "$in": ["Os"], "$nin": ["Tc"]}
    }
    assert element_filter([], [], []) == {}


def test_fields_of_documents_are_known_with_their_type() -> None:
    documents = [
        {"_id": 1, "stages": {"mlip": {"value": 3, "provenance": {}}}, "provenance": {"x": 1}},
        {"stages": {"mlip": {"value": 3.5}, "dft": {"state": "completed"}}, "born_stable": True},
    ]
    known = known_fields({"bulk_modulus_vrh": float}, documents)
    assert known["stages.mlip.value"] is float
    assert known["stages.dft.state"] is str
    assert known["born_stable"] is bool
    assert known["bulk_modulus_vrh"] is float
    assert "_id" not in known
    assert not any("provenance" in name for name in known)


def test_own_properties_are_found_by_their_name() -> None:
    fields = {**FIELDS, "properties": None, "properties.hardness": float}
    assert where_filter(["hardness>10"], fields) == {"properties.hardness": {"$gt": 10}}
    assert sort_keys(["-hardness"], fields) == [("properties.hardness", -1)]
    assert pareto_keys("K,-hardness", fields) == [("bulk_modulus_vrh", True), ("properties.hardness", False)]


def test_the_number_at_a_dotted_field() -> None:
    document = {"properties": {"hardness": 3}, "born_stable": True, "formula": "ReW"}
    assert field_value(document, "properties.hardness") == 3.0
    for field in ("born_stable", "formula", "properties.x", "nothing.at.all"):
        assert field_value(document, field) is None
