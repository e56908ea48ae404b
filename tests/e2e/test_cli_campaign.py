"""status, query, show, why, lineage and report on a campaign whose records are known."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    Run = Callable[..., Result]


def formulas(result: Result) -> list[str]:
    assert result.exit_code == 0, result.output
    return [d["formula"] for d in json.loads(result.stdout)]


# -- status -----------------------------------------------------------------------------------------------------------


def test_status_counts_every_candidate_once_per_stage(inv_design: Run) -> None:
    record = json.loads(inv_design("status", "--json").stdout)
    assert record["campaign"] == "stiff"
    first, second = record["rounds"]
    assert first["generated"] == 6
    assert {k: first["funnel"]["predictor"][k] for k in ("in", "passed", "rejected")} == {
        "in": 6,
        "passed": 4,
        "rejected": 2,
    }
    assert first["funnel"]["mlip"]["failed"] == 1
    assert first["funnel"]["mlip"]["reasons"]["born_stable"] == 1
    assert first["funnel"]["dft"]["passed"] == 1
    assert second["funnel"]["mlip"]["waiting"] == 1
    assert second["funnel"]["dft"]["waiting"] == 1
    assert second["training_set"]["labels_by_method"]["surrogate"] == 2
    for item in (first, second):
        for counts in item["funnel"].values():
            assert counts["in"] == sum(counts[k] for k in ("passed", "rejected", "failed", "waiting"))


def test_status_as_text_names_reasons(inv_design: Run) -> None:
    result = inv_design("status", "-v")
    assert result.exit_code == 0
    assert "born_stable 1" in result.stdout
    assert "hits: 2 of 2 labelled" in result.stdout
    assert "launchpad: empty" in result.stdout
    assert not any(line != line.rstrip() for line in result.stdout.splitlines() if line.startswith(("mlip", "dft")))


def test_status_tells_elements_objectives_and_warnings(inv_design: Run) -> None:
    record = json.loads(inv_design("status", "--json").stdout)
    (objective,) = record["objectives"]
    assert (objective["property"], objective["value"], objective["text"]) == ("bulk_modulus_vrh", 350.0, "350 GPa")
    assert record["targets"] == {"bulk_modulus_vrh": 350.0}
    assert record["chemistry"]["exclude"] == []
    elements = record["rounds"][0]["elements"]
    assert elements["generated"]["n"] == 6
    assert elements["generated"]["shares"]["Re"] == pytest.approx(3 / 12)
    assert set(elements) == {"training_set", "generated", "predictor", "mlip", "labelled", "hits"}
    # three of the six have rhenium, the thirty crystals of the training set have hardly any
    warned = {w["element"] for w in record["rounds"][0]["warnings"]}
    assert "Re" in warned
    assert "warning: " in inv_design("status", "-v").stdout
    assert "warning: " not in inv_design("status").stdout


# -- query ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["-w", "K=340..350", "--sort", "-K"], ["TaOs", "ReW"]),
        (["-w", "bulk_modulus_vrh>=349", "--sort", "K"], ["TaOs", "OsW"]),
        (["-w", "K>340", "-w", "K<345"], ["ReW"]),
        (["-w", "stages.mlip.value>=352", "--sort", "-stages.mlip.value"], ["ReW", "OsW", "TaIr"]),
        (["-w", "born_stable=false"], ["OsW"]),
        (["-w", "formula=WRe"], ["ReW"]),
        (["-w", "chemsys=W-Os"], ["OsW"]),
        (["--elements", "Re,W"], ["ReW"]),
        (["--any-of", "Ag,Cu", "--sort", "K"], ["MgAg", "ZnCu"]),
        (["--any-of", "Re", "--without", "W,Ta", "--sort", "K"], ["ReIr", "ReMo"]),
        (["--stage", "dft", "--status", "passed", "--sort", "K"], ["TaIr", "ReW", "TaOs"]),
        (["--status", "waiting", "--sort", "K"], ["TaRe", "RuW"]),
        (["--round", "0", "--status", "rejected", "--sort", "-K", "--limit", "2"], ["OsW", "ReIr"]),
        (["--sort", "-K", "--skip", "2", "--limit", "1"], ["ReW"]),
    ],
)
def test_query(inv_design: Run, args: list[str], expected: list[str]) -> None:
    assert formulas(inv_design("query", "--json", *args)) == expected


def test_query_without_match_is_exit_code_3(inv_design: Run) -> None:
    result = inv_design("query", "-w", "K>900")
    assert result.exit_code == 3
    assert "no candidate matches" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["-w", "bulk_modulu_vrh>3"], "did you mean 'bulk_modulus_vrh'?"),
        (["-w", "stages.mlip.born_stabl=true"], "did you mean 'stages.mlip.born_stable'?"),
        (["--sort", "-nosuchfield"], "unknown field"),
        (["-w", "K>high"], "'high' is no number"),
        (["--pareto", "K,-formula"], "formula holds no numbers"),
        (["--pareto", "K,dens"], "did you mean 'density'?"),
        (["--pareto", ","], "K,G,-density"),
        (["--fronts", "1"], "--fronts needs --pareto"),
        (["--elements", "Xx"], "'Xx' is neither an element"),
        (["--elements", "metals"], "give element symbols"),
        (["--format", "cif"], "-o FOLDER"),
        (["--format", "extxyz", "-o", "x.csv"], "does not fit"),
    ],
)
def test_wrong_queries_are_exit_code_2_with_the_cure(inv_design: Run, args: list[str], says: str) -> None:
    result = inv_design("query", *args)
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        # stiff and light, by hand: densities of these B2 cells fall from Re-W to Al-Ni
        (["--pareto", "K,-density", "--stage", "dft", "--sort", "-K"], None),
        (["--pareto", "K", "--fronts", "1"], [("OsW", 0)]),
        (["--pareto", "K", "--skip", "1", "--limit", "2"], [("TaOs", 1), ("ReW", 2)]),
        (["--pareto", "-target_error", "--fronts", "2"], [("TaOs", 0), ("OsW", 1)]),
        (["--pareto", "objectives", "--fronts", "1", "--stage", "dft"], [("TaOs", 0)]),
        (["--pareto", "K,G", "--stage", "predictor", "--any-of", "Ag"], [("MgAg", None)]),
    ],
)
def test_query_by_pareto_front(inv_design: Run, args: list[str], expected: list[tuple[str, int]] | None) -> None:
    found = json.loads(inv_design("query", "--json", *args).stdout)
    if expected is None:
        points = [(d["bulk_modulus_vrh"], -d["density"]) for d in found]
        beaten = [any(a >= x and b >= y and (a, b) != (x, y) for a, b in points) for x, y in points]
        assert [d["pareto_rank"] > 0 for d in found] == beaten
        assert [d["pareto_rank"] for d in found] == sorted(d["pareto_rank"] for d in found)
    else:
        assert [(d["formula"], d["pareto_rank"]) for d in found] == expected


def test_query_shows_the_front_and_its_fields_in_the_table(inv_design: Run) -> None:
    header, first, *_ = inv_design("query", "--pareto", "K,-density", "--fronts", "1").stdout.splitlines()
    assert "density" in header
    assert "front" in header
    assert " 0 " in first
    assert "pareto_rank" not in inv_design("query", "--json", "--limit", "1").stdout


def test_query_as_csv_has_dotted_columns(inv_design: Run) -> None:
    rows = list(csv.DictReader(io.StringIO(inv_design("query", "-f", "csv", "--elements", "Re,W").stdout)))
    assert len(rows) == 1
    assert float(rows[0]["stages.dft.value"]) == 344.0
    assert rows[0]["elements"] == "Re W"


def test_query_table_says_that_there_are_more(inv_design: Run) -> None:
    result = inv_design("query", "--limit", "3")
    assert len(result.stdout.strip().splitlines()) == 4
    assert "3 of 11 candidates" in result.stderr


@pytest.mark.parametrize(("form", "name"), [("extxyz", "found.extxyz"), ("cif", "folder"), ("cif", "found.zip")])
def test_query_writes_crystals_with_their_ids(
    inv_design: Run, ids: dict[str, Any], tmp_path: Path, form: str, name: str
) -> None:
    from inv_design.structures.files import read_structures

    target = tmp_path / name
    result = inv_design("query", "-f", form, "-o", target, "--stage", "dft", "--sort", "-K")
    assert result.exit_code == 0, result.output
    items = list(read_structures(target))
    wanted = [ids["candidates"][f] for f in ("OsTa", "ReW", "IrTa", "RuW", "IrRe")]
    assert [item.properties["candidate_id"] for item in items] == wanted
    assert items[1].structure is not None
    assert items[1].structure.composition.reduced_formula == "ReW"
    assert items[1].properties["bulk_modulus_vrh"] == 344.0


def test_query_writes_extxyz_to_standard_output(inv_design: Run) -> None:
    result = inv_design("query", "-f", "extxyz", "--elements", "Re,W")
    assert result.stdout.splitlines()[0] == "2"
    assert "Lattice=" in result.stdout.splitlines()[1]


# -- one candidate ----------------------------------------------------------------------------------------------------


def test_show_gives_all_numbers(inv_design: Run, ids: dict[str, Any]) -> None:
    identity = ids["candidates"]["ReW"]
    record = json.loads(inv_design("show", identity, "--json").stdout)
    assert record["candidate_id"] == identity
    assert [p["value"] for p in record["predictions"]] == [352.0]
    assert {c["method"]: c["results"]["bulk_modulus_vrh"] for c in record["calculations"]} == {
        "mlip": 361.0,
        "surrogate": 344.0,
    }
    assert record["candidate"]["seed"] == 7
    text = inv_design("show", identity[:8]).stdout
    assert "eos by surrogate" in text
    assert "a = 3.1200" in text


@pytest.mark.parametrize(
    ("name", "stage", "rule", "text"),
    [
        ("OsW", "mlip", "born_stable", "not positive definite"),
        ("MoRe", "mlip", "calculation", "relaxation: exploded"),
        ("AlNi", "predictor", "target", "57 % off the target"),
        ("IrRe", "dft", "target", "25 % off the target"),
    ],
)
def test_why_names_the_first_failed_stage(
    inv_design: Run, ids: dict[str, Any], *, name: str, stage: str, rule: str, text: str
) -> None:
    record = json.loads(inv_design("why", ids["candidates"][name], "--json").stdout)
    assert record["first_failed_stage"] == stage
    last = record["stages"][-1]
    assert last["stage"] == stage
    assert last["reasons"][0]["rule"] == rule
    assert text in record["verdict"]
    assert last["protocol_id"]
    assert text in inv_design("why", ids["candidates"][name]).stdout


def test_why_says_what_a_candidate_waits_for(inv_design: Run, ids: dict[str, Any]) -> None:
    assert "waits for stage dft" in inv_design("why", ids["candidates"]["RuW"]).stdout
    assert "passed stage dft" in inv_design("why", ids["candidates"]["ReW"]).stdout


@pytest.mark.parametrize("command", ["show", "why", "lineage"])
def test_an_unknown_id_is_an_error_with_the_cure(inv_design: Run, command: str) -> None:
    result = inv_design(command, "c-00000000")
    assert result.exit_code == 1
    assert "'c-00000000'" in result.stderr
    assert "inv-design query" in result.stderr
    assert inv_design(command, "nonsense!").exit_code == 1


def test_an_ambiguous_start_of_an_id_lists_the_records(inv_design: Run) -> None:
    starts: dict[str, list[str]] = {}
    for identity in (d["candidate_id"] for d in json.loads(inv_design("query", "--json").stdout)):
        starts.setdefault(identity[:3], []).append(identity)
    several = next(start for start, found in starts.items() if len(found) > 1)  # ids are hashes of fixed content
    result = inv_design("show", several)
    assert result.exit_code == 1
    assert "fits several records" in result.stderr
    assert all(identity in result.stderr for identity in starts[several])


def test_lineage_leads_from_a_candidate_to_the_labels_behind_it(inv_design: Run, ids: dict[str, Any]) -> None:
    tree = inv_design("lineage", ids["candidates"]["OsTa"], "--json").stdout
    for identity in (ids["models"]["generator", 1], ids["training_sets"][1], ids["labels"]["ReW"]):
        assert identity in tree
    assert ids["models"]["predictor", 1] not in tree


def test_lineage_leads_from_a_label_down_to_later_candidates(inv_design: Run, ids: dict[str, Any]) -> None:
    result = inv_design("lineage", "--down", ids["labels"]["ReW"])
    assert result.exit_code == 0
    assert ids["candidates"]["OsTa"] in result.stdout
    assert ids["candidates"]["IrRe"] not in result.stdout
    assert ids["models"]["predictor", 1] in result.stdout


# -- report -----------------------------------------------------------------------------------------------------------


def test_report_shows_the_campaign(inv_design: Run, ids: dict[str, Any], tmp_path: Path) -> None:
    target = tmp_path / "out" / "report.html"
    result = inv_design("report", "-o", target)
    assert result.exit_code == 0, result.output
    html = target.read_text()
    for text in (ids["candidates"]["ReW"], "3 of 4", "surrogate (chgnet E(V))", "E(V) by chgnet", "Rehearsal"):
        assert text in html
    best, _ = html.split("Predictor, potential and label side by side")
    assert ids["candidates"]["OsW"] not in best, "a Born-unstable crystal is none of the best"
    assert "http" not in html.replace("http://www.w3.org", "")


def test_report_data_agrees_with_the_records(inv_design: Run, written_campaign: tuple[Path, dict[str, Any]]) -> None:
    from inv_design.cli.report_data import collect
    from stores.connection import connect

    with connect("embedded", root=written_campaign[0], read_only=True) as connection:
        data = collect(connection, "stiff")
    assert data.hits() == {0: (1, 2), 1: (2, 2)}
    assert [r.training_size for r in data.rounds] == [30, 32]
    assert len(data.training_for(1)) == 32
    assert data.label_is_surrogate
    by_stage = {(d.stage, d.round): d.values for d in data.distributions}
    assert by_stage["predictor", 0] == [120.0, 150.0, 330.0, 340.0, 352.0, 372.0]
    assert by_stage["mlip", 1] == [330.0, 341.0, 352.0]
    assert [b.formula for b in data.best] == ["TaOs", "ReW", "TaIr", "RuW", "TaRe"]
    assert [p.title for p in data.parities] == ["Predictor against labels", "MLIP against labels"]
    assert data.element_sets[0] == [sorted(e) for e in data.element_sets[0]]


def test_values_in_doubt_are_left_out_of_the_report() -> None:
    from inv_design.cli.report_data import distributions

    good = {"round": 0, "stages": {"mlip": {"value": 300.0, "flags": []}}}
    shown = {"round": 0, "stages": {"mlip": {"value": 310.0, "flags": ["born_unstable"]}}}
    doubtful = {"round": 0, "stages": {"mlip": {"value": 2000.0, "flags": ["symmetry_residual"]}}}
    (found,) = distributions([good, shown, doubtful], {"predictor": "p", "mlip": "m", "dft": "d"})
    assert found.values == [300.0, 310.0]
    assert found.left_out == 1


# -- databases --------------------------------------------------------------------------------------------------------


def test_the_database_option_wins_over_the_environment(
    inv_design: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written_campaign: tuple[Path, dict[str, Any]]
) -> None:
    monkeypatch.setenv("INV_DESIGN_DATABASE", f"embedded:{tmp_path / 'none.sqlite'}")
    failed = inv_design("status")
    assert failed.exit_code == 1
    assert "none.sqlite" in failed.stderr
    database = f"embedded:{written_campaign[0] / 'inv_design.sqlite'}"
    assert inv_design("status", "--database", database).exit_code == 0
    monkeypatch.chdir(tmp_path)  # no campaign.yaml here: the only campaign is meant
    assert inv_design("status", "--database", database).exit_code == 0
    wrong = inv_design("status", "--database", database, "--campaign", "stif")
    assert wrong.exit_code == 1
    assert "did you mean 'stiff'?" in wrong.stderr


def test_reading_works_while_another_process_writes(
    inv_design: Run, written_campaign: tuple[Path, dict[str, Any]]
) -> None:
    from stores.connection import connect

    with connect("embedded", root=written_campaign[0]):
        for args in (["status"], ["query", "--limit", "1"]):
            result = inv_design(*args)
            assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: x\n", "targets"),
        ("name: x\ntargets: {bulk_modulus_vrh: 350 GPa}\nround: 3\n", "did you mean 'rounds'?"),
        ("name: [\n", "not valid YAML"),
        (None, "does not exist"),
    ],
)
def test_a_wrong_campaign_file_is_exit_code_2(inv_design: Run, tmp_path: Path, text: str | None, says: str) -> None:
    path = tmp_path / "campaign.yaml"
    if text is not None:
        path.write_text(text)
    for command in ("status", "query", "report"):
        result = inv_design(command, "-c", path)
        assert result.exit_code == 2, result.output
        assert says in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1


def test_an_unreachable_server_is_one_line(inv_design: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stores.connection.TIMEOUT_MS", 200)
    result = inv_design("status", "--database", "mongodb://user@localhost:1/x")
    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.wire
def test_a_server_answers_like_the_embedded_database(inv_design: Run, served_campaign: str, tmp_path: Path) -> None:
    embedded = inv_design("query", "--json", "-w", "K>300", "--without", "Ta", "--sort", "-K")
    served = inv_design(
        "query", "--json", "-w", "K>300", "--without", "Ta", "--sort", "-K", "--database", served_campaign
    )
    assert formulas(served) == formulas(embedded) == ["OsW", "ReW", "RuW", "ReMo"]
    first, second = (
        json.loads(inv_design("status", "--json", *more).stdout)["rounds"]
        for more in ([], ["--database", served_campaign])
    )
    assert [r["funnel"] for r in first] == [r["funnel"] for r in second]
    identity = json.loads(served.stdout)[0]["candidate_id"]
    for command in ("show", "why", "lineage"):
        assert inv_design(command, identity, "--database", served_campaign).exit_code == 0
    result = inv_design("report", "-o", tmp_path / "served.html", "--database", served_campaign)
    assert result.exit_code == 0, result.output
    assert "3 of 4" in (tmp_path / "served.html").read_text()
