"""training-set list, show and diff on a campaign whose two training sets differ by one label."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    Run = Callable[..., Result]


@pytest.fixture
def sets(ids: dict[str, Any]) -> list[str]:
    return ids["training_sets"]


def test_list_names_every_set_and_its_rounds(inv_design: Run, sets: list[str]) -> None:
    rows = json.loads(inv_design("training-set", "list", "--json").stdout)
    assert [(r["training_set_id"], r["rounds"]) for r in rows] == [(sets[0], [0]), (sets[1], [1])]
    assert rows[1]["size"] - rows[0]["size"] == rows[1]["labels_by_method"]["surrogate"]
    assert rows[1]["parent_training_set_id"] == sets[0]
    text = inv_design("training-set", "list").stdout
    assert all(identity in text for identity in sets)


@pytest.mark.parametrize("name", ["round:1", "latest", "id", "start", "bare"])
def test_show_knows_a_set_by_its_names(inv_design: Run, sets: list[str], name: str) -> None:
    names = {"id": sets[1], "start": sets[1][:8], "bare": sets[1][2:10]}
    record = json.loads(inv_design("training-set", "show", names.get(name, name), "--json").stdout)
    assert record["training_set_id"] == sets[1]
    assert len(record["members"]) == record["size"] == sum(record["splits"].values())
    assert record["leaks"] == ["x"]  # this campaign's sets were made by hand, and their splits leak


def test_show_says_what_is_in_it(inv_design: Run) -> None:
    text = inv_design("training-set", "show", "latest").stdout
    assert "in two splits  x" in text
    assert "surrogate" in text
    listed = inv_design("training-set", "show", "latest", "-v").stdout
    assert listed.count(" by reference") > 10


def test_diff_shows_what_came(inv_design: Run, sets: list[str], ids: dict[str, Any]) -> None:
    record = json.loads(inv_design("training-set", "diff", "round:0", "latest", "--json").stdout)
    assert (record["a"], record["b"]) == tuple(sets)
    assert record["counts"] == {"added": len(record["added"]), "removed": 0, "relabelled": 0, "moved": 0}
    assert record["labels_by_method"]["surrogate"] == {"a": 0, "b": len(record["added"])}
    labels = [m["labels"]["bulk_modulus_vrh"]["calculation_id"] for m in record["added"]]
    assert set(labels) <= set(ids["labels"].values())
    text = inv_design("training-set", "diff", *sets).stdout
    assert f"{len(record['added'])} added, 0 removed" in text
    assert "labels by surrogate: 0 ->" in text
    assert inv_design("training-set", "diff", "latest", "latest").stdout.endswith("no difference\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "t-ffffffff"], "the database holds no record 't-ffffffff'"),
        (["show", "round:7"], "round 7 of campaign 'stiff' has no training set; rounds 0, 1 have one"),
        (["diff", "latest", "nonsense"], "'nonsense' is no id"),
        (["list", "--campaign", "none"], "no campaign 'none'"),
    ],
)
def test_what_is_not_there_is_one_line(inv_design: Run, arguments: list[str], words: str) -> None:
    result = inv_design("training-set", *arguments)
    assert result.exit_code == 1
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_another_record_is_no_training_set(inv_design: Run, ids: dict[str, Any]) -> None:
    result = inv_design("training-set", "show", ids["candidates"]["ReW"])
    assert result.exit_code == 1
    assert "is no training set" in result.stderr
