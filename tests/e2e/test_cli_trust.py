"""`trust` on a campaign whose numbers are known: as tables, JSON, page and picture."""

from __future__ import annotations

import json
import shutil
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


def test_the_numbers_are_the_records(inv_design: Run) -> None:
    found = answer(inv_design("trust", "--json"))
    assert found["label"] == "surrogate (chgnet E(V))"
    labelled = {c["formula"]: c for c in found["candidates"] if "label" in c["judgements"]}
    assert set(labelled) == {"ReIr", "TaIr", "ReW", "TaOs"}
    first = labelled["ReW"]
    values = {judge: j["value"] for judge, j in first["judgements"].items()}
    assert values == {"predictor": 352.0, "mlip": 361.0, "label": 344.0}
    assert first["judgements"]["predictor"]["std"] == 12.0
    assert first["deviations"]["mlip_label"] == pytest.approx(361 / 344 - 1)
    (pair,) = [p for p in found["pairs"] if (p["judge"], p["reference"]) == ("mlip", "label")]
    deviations = [361 / 344 - 1, 310 / 262 - 1, 341 / 349 - 1, 352 / 338 - 1]
    assert (pair["n"], pair["method"], pair["reference_method"]) == (4, "mace-alloy-small", "surrogate")
    assert pair["mean_relative_error"] == pytest.approx(sum(map(abs, deviations)) / 4)
    table = found["confusion"]
    assert table["I passed, II passed"] == {"hit": 3, "miss": 1, "failed": 0, "not labelled": 1}
    assert table["I passed, II rejected"]["not labelled"] == 1
    assert table["I rejected"]["not labelled"] == 3
    assert sum(sum(cells.values()) for cells in table.values()) == 11
    assert len(found["unknown"]) == 3
    assert found["fine_tuning"] == []


def test_values_in_doubt_are_counted_marked_and_explained(
    written_campaign: tuple[Path, dict[str, Any]], inv_design: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stores.connection import connect

    folder, ids = written_campaign
    shutil.copytree(folder, tmp_path / "copy")  # the campaign itself is only read
    monkeypatch.chdir(tmp_path / "copy")
    with connect("embedded", root=tmp_path / "copy") as connection:
        doubt = {"$set": {"stages.dft.flags": ["eos_residual"]}}
        connection.db["candidate_summaries"].update_one({"candidate_id": ids["candidates"]["IrRe"]}, doubt)
    result = inv_design("trust")
    header, *rows = result.stdout.splitlines()
    place = header.split("  in doubt")[0]
    (potential,) = [r for r in rows if r.startswith("mace-alloy-small") and "surrogate" in r]
    assert potential[len(place) - 1 : len(place) + len("  in doubt")].split() == ["3", "1"], "n and in doubt"
    assert "262 ?" in result.stdout
    assert "?: a quality flag puts the value in doubt" in result.stderr


def test_one_round_alone(inv_design: Run) -> None:
    found = answer(inv_design("trust", "--json", "--round", "1"))
    assert {c["round"] for c in found["candidates"]} == {1}
    assert sum(sum(cells.values()) for cells in found["confusion"].values()) == 5
    nothing = inv_design("trust", "--round", "7")
    assert nothing.exit_code == 3
    assert "values by two judges" in nothing.stderr


def test_the_tables_name_the_surrogate_and_what_is_not_known(inv_design: Run) -> None:
    result = inv_design("trust")
    assert result.exit_code == 0
    for text in ("mace-alloy-small", "352 ± 12", "I passed, II rejected", "3 of 4 of what both passed"):
        assert text in result.stdout
    assert "not by DFT" in result.stderr
    assert "a miss is a label outside a target's window, or one that a quality flag puts in doubt" in result.stderr
    assert "?:" not in result.stderr, "no value is in doubt"
    assert "not known: Stage I rejected 3 candidates" in result.stderr


@pytest.mark.parametrize(
    ("name", "start"), [("t.html", b"<!DOCTYPE html>"), ("t.png", b"\x89PNG"), ("t.svg", b"<?xml")]
)
def test_a_page_or_a_picture_is_written(inv_design: Run, tmp_path: Path, name: str, start: bytes) -> None:
    result = inv_design("trust", "-o", tmp_path / name)
    assert result.exit_code == 0, result.output
    assert (tmp_path / name).read_bytes().startswith(start)


def test_another_suffix_is_wrong_usage(inv_design: Run) -> None:
    result = inv_design("trust", "-o", "t.docx")
    assert result.exit_code == 2
    assert "t.docx must end in .html" in result.stderr


def test_the_report_has_it_too(inv_design: Run, tmp_path: Path) -> None:
    assert inv_design("report", "-o", tmp_path / "r.html").exit_code == 0
    assert "Predictor, potential and label side by side" in (tmp_path / "r.html").read_text()


def test_candidates_are_launched_by_condition(
    written_campaign: tuple[Path, dict[str, Any]], inv_design: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, ids = written_campaign
    shutil.copytree(folder, tmp_path / "copy")  # the campaign itself is only read
    monkeypatch.chdir(tmp_path / "copy")
    found = answer(inv_design("launch", "eos", "-w", "status=waiting", "-k", "emt", "--json"))
    assert (found["structures"], found["workflows"]) == (2, 1)
    again = answer(inv_design("launch", "eos", ids["candidates"]["RuW"], "-k", "emt", "--json"))
    assert again["waiting"] == 1
    assert set(again["structure_ids"]) < set(found["structure_ids"])
    nothing = inv_design("launch", "eos", "-w", "K>9000", "-k", "emt")
    assert nothing.exit_code == 3
    wrong = inv_design("launch", "eos", "-w", "Kk>9000", "-k", "emt")
    assert wrong.exit_code == 2
