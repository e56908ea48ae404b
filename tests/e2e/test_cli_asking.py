"""query by protocol and page by page, why, lineage as a picture, diff and status of what came after the counts."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    Run = Callable[..., Result]


def answer(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


# -- query ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--protocol", "p-surrogate", "--sort", "K"], ["ReIr", "TaIr", "ReW", "TaOs"]),
        (["--protocol", "dft=p-surrogate", "--round", "1"], ["TaOs", "TaIr"]),
        (["--protocol", "mlip=p-surrogate"], None),
        (["--protocol", "predictor=p-predictor-1", "-w", "K<100"], ["MgAg"]),
        (["-w", "stages.dft.value!=none", "--sort", "stages.dft.value"], ["ReIr", "TaIr", "ReW", "TaOs"]),
        (["--sort", "stages.dft.value,-K", "--skip", "4", "--limit", "2"], ["OsW", "RuW"]),
        (["-w", "flags=born_unstable"], ["OsW"]),
    ],
)
def test_query(inv_design: Run, args: list[str], expected: list[str] | None) -> None:
    result = inv_design("query", "--json", *args)
    if expected is None:
        assert result.exit_code == 3
    else:
        assert {d["formula"] for d in answer(result)} == set(expected)
        if "--sort" in args:
            assert [d["formula"] for d in answer(result)] == expected


def test_pages_follow_one_another(inv_design: Run) -> None:
    whole = [d["candidate_id"] for d in answer(inv_design("query", "--json", "--sort", "shear_modulus_vrh"))]
    assert len(whole) == 11
    followed: list[str] = []
    while len(followed) < 11:
        after = ["--after", followed[-1]] if followed else []
        followed += [
            d["candidate_id"]
            for d in answer(inv_design("query", "--json", "--sort", "shear_modulus_vrh", "--limit", "4", *after))
        ]
    assert followed == whole
    told = inv_design("query", "--sort", "shear_modulus_vrh", "--limit", "4")
    assert f"4 of 11 candidates; --limit 0 shows all, --after {whole[3]} the next ones" in told.stderr
    assert "the last 2 of 11 candidates" in inv_design("query", "--skip", "9", "--limit", "4").stderr
    last = inv_design("query", "--sort", "shear_modulus_vrh", "--after", whole[-1])
    assert last.exit_code == 3
    assert f"nothing left after {whole[-1]}" in last.stderr


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["-w", "$where=1"], "'$where' is no field"),
        (["-w", "formula=$ne"], "is an operator"),
        (["--sort", "stages"], "more than one value"),
        (["--protocol", "mlpi=p-1"], "STAGE=ID"),
        (["--after", "c-1", "--skip", "3"], "--after goes with --sort"),
        (["--after", "c-1", "--pareto", "K"], "--after goes with --sort"),
    ],
)
def test_wrong_questions_are_exit_code_2(inv_design: Run, args: list[str], says: str) -> None:
    result = inv_design("query", *args)
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_an_unknown_place_to_go_on_is_told(inv_design: Run) -> None:
    result = inv_design("query", "--after", "c-none")
    assert result.exit_code == 1
    assert "no candidate 'c-none'" in result.stderr


def test_verbose_says_which_index_serves(inv_design: Run) -> None:
    assert "index: campaign_1_bulk_modulus_vrh_1" in inv_design("query", "--sort", "-K", "-v").stderr
    assert "then sorted" in inv_design("query", "--sort", "-density", "-v").stderr


HEAVY = ("torch", "pymatgen.core", "matplotlib", "sklearn", "fireworks", "ase", "numpy")


@pytest.mark.parametrize("command", [["--help"], ["query", "--help"], ["query", "--elements", "Re,W"]])
def test_what_is_not_needed_is_not_imported(
    written_campaign: tuple[Path, Any], tmp_path: Path, command: list[str]
) -> None:
    import subprocess

    code = (
        "import sys\nfrom inv_design.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert end.code == 0, end.code\n"
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    there = ["--database", f"embedded:{written_campaign[0] / 'inv_design.sqlite'}"] if "--help" not in command else []
    done = subprocess.run(
        [sys.executable, "-c", code, *command, *there], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip().splitlines()[-1] == "[]", done.stderr


# -- why ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("AlNi", {"stage": "predictor", "rule": "target", "value": 150.0, "protocol_id": "p-predictor-0"}),
        ("OsW", {"stage": "mlip", "rule": "born_stable", "threshold": 0, "protocol_id": "p-mlip"}),
        ("MoRe", {"stage": "mlip", "status": "failed", "error": "relaxation: exploded", "protocol_id": "p-mlip"}),
        ("IrRe", {"stage": "dft", "rule": "target", "value": 262.0, "protocol_id": "p-surrogate"}),
        ("ReW", None),
        ("RuW", None),
    ],
)
def test_why_names_stage_value_threshold_and_protocol(
    inv_design: Run, ids: dict[str, Any], name: str, expected: dict[str, Any] | None
) -> None:
    record = answer(inv_design("why", ids["candidates"][name], "--json"))
    if expected is None:
        assert record["first_failure"] is None
        return
    assert {k: record["first_failure"][k] for k in expected} == expected
    line = next(
        x for x in inv_design("why", ids["candidates"][name]).stdout.splitlines() if x.startswith("first failed")
    )
    assert expected["protocol_id"] in line
    assert f"first failed stage: {expected['stage']}" in line


def test_why_gives_the_place_in_the_queue(inv_design: Run, ids: dict[str, Any]) -> None:
    assert answer(inv_design("why", ids["candidates"]["RuW"], "--json"))["queue"] == {"position": 1, "of": 1}
    assert "place 1 of 1" in inv_design("why", ids["candidates"]["RuW"]).stdout
    assert answer(inv_design("why", ids["candidates"]["ReW"], "--json"))["queue"] is None
    assert answer(inv_design("why", ids["candidates"]["RuW"], "--json"))["beyond_budget"] is None


def test_who_is_beyond_the_budget_is_told(
    written_campaign: tuple[Path, dict[str, Any]], inv_design: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from builders.run import build_campaign
    from stores.connection import connect

    folder, ids = written_campaign
    shutil.copytree(folder, tmp_path / "copy")  # the campaign itself is only read
    monkeypatch.chdir(tmp_path / "copy")
    with connect("embedded", root=tmp_path / "copy") as connection:
        campaigns = connection.db["campaigns"]
        campaigns.update_one({"name": "stiff"}, {"$set": {"config.stages.dft.budget_per_round": 2}})
        build_campaign("stiff")
    record = answer(inv_design("why", ids["candidates"]["RuW"], "--json"))
    assert (record["status"], record["queue"]) == ("waiting", None), "the value of the field is a contract"
    assert record["beyond_budget"] == "beyond the budget of round 1"
    text = inv_design("why", ids["candidates"]["RuW"]).stdout
    assert "waiting   beyond the budget of round 1" in text
    assert "no result of stage dft: beyond the budget of round 1" in text
    assert "waits for" not in text
    assert "beyond the budget" not in inv_design("why", ids["candidates"]["ReTa"]).stdout, "stage II has no budget"
    rows = {line.split()[1]: line for line in inv_design("query", "--status", "waiting").stdout.splitlines()}
    assert rows["RuW"].endswith("beyond the budget of round 1")
    assert rows["TaRe"].endswith(" -")
    assert inv_design("report", "-o", "r.html").exit_code == 0
    page = (tmp_path / "copy" / "r.html").read_text()
    assert "beyond the budget 1" in page, "the funnel"
    assert '<span class="method">beyond the budget of round 1</span>' in page, "the best candidates"


# -- lineage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", [[], ["--down"]])
def test_lineage_as_a_picture(inv_design: Run, ids: dict[str, Any], tmp_path: Path, direction: list[str]) -> None:
    start = ids["candidates"]["OsTa"] if not direction else ids["labels"]["ReW"]
    result = inv_design("lineage", start, *direction, "-o", tmp_path / "lineage.dot")
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert "2 training sets" in result.stderr or "1 training set" in result.stderr
    text = (tmp_path / "lineage.dot").read_text()
    assert f'"{ids["labels"]["ReW"]}" -> "{ids["training_sets"][1]}"' in text
    assert f'-> "{ids["candidates"]["OsTa"]}" [label="generated' in text
    wrong = inv_design("lineage", start, "-o", tmp_path / "lineage.txt")
    assert wrong.exit_code == 2
    assert ".svg, .png" in wrong.stderr


def test_the_tree_counts_many_alike(inv_design: Run, ids: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inv_design.cli.lineage.SIBLINGS", 2)
    model = ids["models"]["generator", 0]
    short = inv_design("lineage", "--down", model).stdout
    assert "4 more: generated (--all)" in short
    assert ids["candidates"]["ReW"] in short, "the one with most behind it is shown"
    every = inv_design("lineage", "--down", model, "--all").stdout
    assert all(ids["candidates"][name] in every for name in ("AlNi", "CuZn"))


# -- diff -----------------------------------------------------------------------------------------------------------


def test_diff_of_two_rounds(inv_design: Run, ids: dict[str, Any]) -> None:
    record = answer(inv_design("diff", ":0", "stiff:1", "--json"))
    assert record["settings"] == []
    assert record["funnel"]["predictor"]["in"] == {"a": 6, "b": 5, "difference": -1}
    assert record["funnel"]["mlip"]["failed"] == {"a": 1, "b": 0, "difference": -1}
    assert record["reasons"]["mlip"]["born_stable"] == {"a": 1, "b": 0, "difference": -1}
    assert record["hit_rate"]["per_label"] == {"a": 0.5, "b": 1.0, "difference": 0.5}
    assert record["target_error"]["dft"]["n"]["a"] == 2
    assert {m["model_id"] for m in record["models"]["only_b"]} == {
        ids["models"]["predictor", 1],
        ids["models"]["generator", 1],
    }
    found = record["candidates"]
    assert (found["a"], found["b"], found["both"], found["alike"]) == (6, 5, 0, [])
    text = inv_design("diff", ":0", ":1").stdout
    assert "hits per label (%)" in text
    assert "structures: 6 in a, 5 in b, 0 in both" in text


def test_diff_of_a_campaign_and_its_round(inv_design: Run) -> None:
    record = answer(inv_design("diff", "stiff", "stiff:0", "--json"))
    assert record["funnel"]["predictor"]["in"] == {"a": 11, "b": 6, "difference": -5}
    assert record["hit_rate"]["hits"] == {"a": 3, "b": 1, "difference": -2}
    found = record["candidates"]
    assert (found["both"], found["only_a"], found["only_b"]) == (6, 5, 0)
    assert all(s["a"] == s["b"] for s in found["shared"])
    assert len(record["models"]["both"]) == 2


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["stiff:x", "stiff"], 2, "NAME:ROUND"),
        (["stiff:7", "stiff"], 1, "has no round 7; it has 0, 1"),
        (["stif", "stiff"], 1, "did you mean 'stiff'?"),
    ],
)
def test_wrong_sides_are_told(inv_design: Run, args: list[str], code: int, says: str) -> None:
    result = inv_design("diff", *args)
    assert result.exit_code == code, result.output
    assert says in result.stderr


@pytest.fixture
def two_campaigns(inv_design: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the folder of a database with two campaigns: one crystal in both, one alike, one in each alone."""
    from pymatgen.core import Lattice, Structure

    from builders.run import build_campaign
    from inv_design.config import CampaignConfig
    from stores import records
    from stores.connection import connect
    from stores.provenance import provenance

    made = provenance()
    sides = {"one": (3.12, 2.89, 3.00, 0.3), "two": (3.12, 2.90, 3.05, 0.25)}
    with connect("embedded", root=tmp_path):
        for name, (same, alike, own, tolerance) in sides.items():
            config = CampaignConfig.model_validate(
                {
                    "name": name,
                    "targets": {"bulk_modulus_vrh": "350 GPa"},
                    "stages": {"predictor": {"tolerance": tolerance}},
                }
            )
            records.insert_campaign(name, config.model_dump(mode="json"), targets=config.targets, provenance=made)
            crystals = [
                (("Re", "W"), same),
                (("Al", "Ni"), alike),
                (("Os", "W") if name == "one" else ("Ta", "W"), own),
            ]
            for index, (elements, length) in enumerate(crystals):
                crystal = Structure(Lattice.cubic(length), elements, [[0, 0, 0], [0.5, 0.5, 0.5]])
                identity = records.insert_structure(crystal, {"kind": "generated", "id": ""}, made)
                records.insert_candidate(
                    campaign=name, structure_id=identity, round=0, seed=1, index=index, provenance=made
                )  # fmt: skip
                records.insert_prediction(
                    structure_id=identity, property="bulk_modulus_vrh", value=340.0, unit="GPa", protocol_id="p-1",
                    provenance=made,
                )  # fmt: skip
        build_campaign()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_diff_of_two_campaigns(two_campaigns: Path, inv_design: Run) -> None:
    args = ("diff", "one", "two", "--database", "embedded")
    record = answer(inv_design(*args, "--json"))
    assert {s["key"]: (s["a"], s["b"]) for s in record["settings"]} == {
        "name": ("one", "two"),
        "stages.predictor.tolerance": (0.3, 0.25),
    }
    found = record["candidates"]
    assert (found["both"], found["only_a"], found["only_b"]) == (1, 2, 2)
    assert found["shared"][0]["formula"] == "ReW"
    assert [pair["formula"] for pair in found["alike"]] == ["AlNi"]
    left = answer(inv_design(*args, "--json", "--no-alike"))["candidates"]
    assert left["alike"] is None
    assert left["not_compared"] == 2
    assert "--alike does it" in inv_design(*args, "--no-alike").stdout


# -- status ---------------------------------------------------------------------------------------------------------


def test_status_says_what_came_after_the_counts(two_campaigns: Path, inv_design: Run) -> None:
    from datetime import timedelta

    from stores import records
    from stores.connection import connect
    from stores.provenance import provenance

    args = ("status", "--database", "embedded", "--campaign", "one")
    fresh = answer(inv_design(*args, "--json"))["freshness"]
    assert (fresh["records_since"], fresh["uncounted_candidates"]) == (0, 0)
    assert "came since" not in inv_design(*args).stdout
    with connect("embedded", root=two_campaigns) as connection:
        metrics = connection.db["campaign_metrics"]
        built = metrics.find_one({"campaign": "one"})["last_updated"]
        metrics.update_many({}, {"$set": {"last_updated": built - timedelta(hours=1)}})
    stale = answer(inv_design(*args, "--json"))["freshness"]
    assert stale["records_since"] == 3 + 4, "three candidates; their predictions, one crystal's by both campaigns"
    assert "7 records came since" in inv_design(*args).stdout
    with connect("embedded", root=two_campaigns):
        records.insert_candidate(
            campaign="one", structure_id="s-new", round=1, seed=1, index=0, provenance=provenance()
        )  # fmt: skip
    assert answer(inv_design(*args, "--json"))["freshness"]["uncounted_candidates"] == 1
    assert "1 candidate came since" in inv_design(*args).stdout


def test_status_counts_itself_where_there_are_no_metrics(two_campaigns: Path, inv_design: Run) -> None:
    from stores.connection import connect

    args = ("status", "--database", "embedded", "--campaign", "one", "--json")
    [before] = answer(inv_design(*args))["rounds"]
    with connect("embedded", root=two_campaigns) as connection:
        connection.db["campaign_metrics"].delete_many({})
    [after] = answer(inv_design(*args))["rounds"]
    for stage in ("predictor", "mlip"):
        assert {k: after["funnel"][stage][k] for k in ("in", "passed", "rejected", "waiting", "reasons")} == {
            k: before["funnel"][stage][k] for k in ("in", "passed", "rejected", "waiting", "reasons")
        }
    assert after["generated"] == before["generated"] == 3
    text = inv_design("status", "--database", "embedded", "--campaign", "one").stdout
    assert "came since" not in text


def test_nothing_found_is_an_empty_list_in_json(inv_design):
    result = inv_design("query", "-w", "K>=9999", "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout) == []
    assert inv_design("query", "--json", "-f", "csv").exit_code == 2


def test_of_several_candidates_of_a_crystal_the_one_that_came_furthest_is_compared(embedded_connection):
    from inv_design.cli.diff import structures

    rows = [("c-1", "dft", "passed"), ("c-2", "predictor", "rejected"), ("c-0", "mlip", "rejected")]
    embedded_connection.db["candidate_summaries"].insert_many(
        {"candidate_id": i, "campaign": "a", "round": 0, "structure_id": "s-1", "stage": stage, "status": status}
        for i, stage, status in rows
    )
    assert structures("a", None)["s-1"]["candidate_id"] == "c-1"
