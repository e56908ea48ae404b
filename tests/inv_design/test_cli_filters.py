"""The options of `query` as filters; what is wrong names its option (the translation: tests/stores/test_conditions)."""

from __future__ import annotations

import click
import pytest

from inv_design.cli.filters import element_filter, place_filter, sort_keys, where_filter

FIELDS: dict[str, type | None] = {
    "bulk_modulus_vrh": float, "round": int, "status": str, "born_stable": bool, "stages": dict,
    "stages.mlip.value": float, "candidate_id": str, "properties": dict, "properties.hardness": float,
}  # fmt: skip


def test_several_conditions_all_hold() -> None:
    assert where_filter(["K>300", "K<400"], FIELDS) == {"bulk_modulus_vrh": {"$gt": 300, "$lt": 400}}
    assert where_filter(["K>300", "K>310"], FIELDS) == {
        "bulk_modulus_vrh": {"$gt": 300},
        "$and": [{"bulk_modulus_vrh": {"$gt": 310}}],
    }
    assert where_filter([], FIELDS) == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("bulk_modulu_vrh>3", "did you mean 'bulk_modulus_vrh'?"),
        ("stages.mlip.valu>3", "did you mean 'stages.mlip.value'?"),
        ("zzz=1", "unknown field 'zzz'; known: "),
        ("$where=1", "no field"),
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
def test_wrong_conditions_name_the_option_and_the_cure(text: str, says: str) -> None:
    with pytest.raises(click.BadParameter) as caught:
        where_filter([text], FIELDS)
    assert says in str(caught.value)
    assert caught.value.param_hint == "--where"


def test_the_other_options_are_named_too() -> None:
    assert sort_keys(["-K,round"], FIELDS) == [("bulk_modulus_vrh", -1), ("round", 1)]
    assert sort_keys(["-hardness"], FIELDS) == [("properties.hardness", -1)]
    assert element_filter(["Re,W"], ["Os"], ["Tc"]) == {
        "elements": {"$all": ["Re", "W"], "$in": ["Os"], "$nin": ["Tc"]}
    }
    assert element_filter([], [], []) == {}
    assert place_filter("mlip", None, (1,), ("mlip=p-1",)) == {
        "stage": "mlip",
        "round": 1,
        "stages.mlip.protocol_id": "p-1",
    }
    for call, hint in (
        (lambda: sort_keys(["-nothing"], FIELDS), "--sort"),
        (lambda: element_filter(["metals"], [], []), "--elements"),
        (lambda: element_filter([], ["Xx"], []), "--any-of"),
        (lambda: element_filter([], [], ["Xx"]), "--without"),
        (lambda: place_filter(None, None, (), ("dtf=p-1",)), "--protocol"),
    ):
        with pytest.raises(click.BadParameter) as caught:
            call()
        assert caught.value.param_hint == hint
