"""Which crystal `query`, `show` and `report` mean: the one that K belongs to, relaxed where a stage relaxed it."""

from __future__ import annotations

import csv
import io
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    Run = Callable[..., Result]

LENGTHS = {"generated": 3.12, "mlip": 3.18, "dft": 3.15}
"""Lattice parameter (Å) of the cubic cell of Re-W."""


@pytest.fixture
def relaxed(
    written_campaign: tuple[Path, dict[str, Any]],
    inv_design: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, str]:
    """Give Re-W's ids in a copy of the campaign: the candidate's, and its structure's by who relaxed it."""
    from pymatgen.core import Lattice, Structure

    from stores import records
    from stores.connection import connect
    from stores.provenance import provenance

    folder, ids = written_campaign
    shutil.copytree(folder, tmp_path / "copy")  # the campaign itself is only read
    monkeypatch.chdir(tmp_path / "copy")
    found: dict[str, str] = {"candidate": ids["candidates"]["ReW"]}
    made = provenance(command="tests")
    with connect("embedded", root=tmp_path / "copy") as connection:
        summaries, calculations = connection.db["candidate_summaries"], connection.db["calculations"]
        found["generated"] = summaries.find_one({"candidate_id": found["candidate"]})["structure_id"]
        for stage, method in (("mlip", "mlip"), ("dft", "surrogate")):
            # a rhombohedral strain keeps the sites and changes the space group: Pm-3m to R-3m
            lattice = Lattice.rhombohedral(LENGTHS[stage], 88.0)
            crystal = Structure(lattice, ["Re", "W"], [[0, 0, 0], [0.5, 0.5, 0.5]])
            found[stage] = records.insert_structure(crystal, {"kind": "relaxed", "id": ""}, made)
            summaries.update_one(
                {"candidate_id": found["candidate"]}, {"$set": {f"stages.{stage}.output_structure_id": found[stage]}}
            )
            calculations.update_one(
                {"structure_id": found["generated"], "method": method}, {"$set": {"output_structure_id": found[stage]}}
            )
    return found


def without_label(folder: Path, candidate: str) -> None:
    """Take away the label's number of a candidate, as of one that failed."""
    from stores.connection import connect

    with connect("embedded", root=folder) as connection:
        summaries = connection.db["candidate_summaries"]
        summaries.update_one({"candidate_id": candidate}, {"$set": {"stages.dft.value": None}})


@pytest.mark.parametrize(("form", "name"), [("extxyz", "x.extxyz"), ("cif", "folder"), ("cif", "x.cif")])
@pytest.mark.parametrize(("args", "which"), [((), "dft"), (("--crystal", "generated"), "generated")])
def test_files_hold_the_crystal_of_k_and_say_which(
    relaxed: dict[str, str], inv_design: Run, tmp_path: Path, *, form: str, name: str, args: tuple[str, ...], which: str
) -> None:
    from inv_design.structures.files import read_structures

    result = inv_design("query", "-f", form, "-o", tmp_path / name, "--stage", "dft", "--sort", "-K", *args)
    assert result.exit_code == 0, result.output
    items = {item.properties["candidate_id"]: item for item in read_structures(tmp_path / name)}
    assert len(items) == 5
    mine = items.pop(relaxed["candidate"])
    assert mine.structure is not None
    assert mine.structure.lattice.a == pytest.approx(LENGTHS[which])
    assert mine.properties["structure_id"] == relaxed["generated"], "ids stay those of the candidate"
    assert mine.properties["crystal"] == ("generated" if which == "generated" else "relaxed")
    assert mine.properties["crystal_structure_id"] == relaxed[which]
    assert mine.properties.get("crystal_by") == (None if which == "generated" else "surrogate")
    assert {item.properties["crystal"] for item in items.values()} == {"generated"}, "nothing else was relaxed"


def test_of_a_label_without_number_the_potentials_crystal_counts(
    relaxed: dict[str, str], inv_design: Run, tmp_path: Path
) -> None:
    without_label(tmp_path / "copy", relaxed["candidate"])
    (found,) = json.loads(inv_design("query", "--json", "--elements", "Re,W").stdout)
    assert (found["crystal"], found["crystal_by"]) == ("relaxed", "mlip")
    assert found["crystal_structure_id"] == relaxed["mlip"]


def test_json_csv_and_table_name_the_crystal_of_the_space_group(relaxed: dict[str, str], inv_design: Run) -> None:
    (found,) = json.loads(inv_design("query", "--json", "--elements", "Re,W").stdout)
    assert (found["crystal"], found["crystal_spacegroup"]["symbol"]) == ("relaxed", "R-3m")
    assert (found["structure_id"], found["spacegroup"]["symbol"]) == (relaxed["generated"], "Pm-3m")
    (row,) = csv.DictReader(io.StringIO(inv_design("query", "-f", "csv", "--elements", "Re,W").stdout))
    assert (row["crystal"], row["crystal_structure_id"]) == ("relaxed", relaxed["dft"])
    line = inv_design("query", "--elements", "Re,W").stdout.splitlines()[1]
    assert {"R-3m", "(166)", "relaxed"} <= set(line.split())
    line = inv_design("query", "--elements", "Re,W", "--crystal", "generated").stdout.splitlines()[1]
    assert {"Pm-3m", "(221)", "generated"} <= set(line.split())


def test_show_prints_the_relaxed_cell_and_both_space_groups(relaxed: dict[str, str], inv_design: Run) -> None:
    text = inv_design("show", relaxed["candidate"]).stdout
    assert "cell, relaxed by surrogate: a = 3.1500" in text
    assert "R-3m (166) relaxed by surrogate, Pm-3m (221) generated" in text
    assert "cell, generated: a = 3.1200" in inv_design("show", relaxed["candidate"], "--crystal", "generated").stdout
    record = json.loads(inv_design("show", relaxed["candidate"], "--json").stdout)
    assert record["structure"]["lattice"]["a"] == pytest.approx(3.12), "the crystal of structure_id"
    assert record["crystal_structure"]["lattice"]["a"] == pytest.approx(3.15)


@pytest.mark.parametrize("which", ["generated", "mlip", "dft"])
def test_a_relaxed_structure_is_a_candidates(relaxed: dict[str, str], inv_design: Run, which: str) -> None:
    record = json.loads(inv_design("show", relaxed[which], "--json").stdout)
    assert record["candidate_id"] == relaxed["candidate"]


def test_the_report_says_whose_space_group_it_shows(relaxed: dict[str, str], inv_design: Run, tmp_path: Path) -> None:
    from inv_design.cli.report_data import collect
    from stores.connection import connect

    with connect("embedded", root=tmp_path / "copy", read_only=True) as connection:
        best = {b.id: b for b in collect(connection, "stiff").best}
    assert (best[relaxed["candidate"]].spacegroup, best[relaxed["candidate"]].crystal) == (
        "R-3m (166)",
        "relaxed by surrogate",
    )
    assert {b.crystal for identity, b in best.items() if identity != relaxed["candidate"]} == {"generated"}


def test_thousands_of_crystals_are_asked_for_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from inv_design.cli import crystals

    asked: list[int] = []

    class Structures:
        def find(self, wanted: dict[str, Any], _: dict[str, int]) -> list[dict[str, Any]]:
            names = wanted["structure_id"]["$in"]
            asked.append(len(names))
            return [{"structure_id": name, "spacegroup": {"number": 1}} for name in names]

    monkeypatch.setattr("stores.connection.current", lambda: SimpleNamespace(db={"structures": Structures()}))
    summaries = [
        {"structure_id": f"s-{i}", "stages": {"mlip": {"value": 1.0, "output_structure_id": f"s-{i}r"}}}
        for i in range(1200)
    ]
    found = crystals.with_crystals(summaries)
    assert asked == [500, 500, 200]
    assert all(f["crystal_structure_id"] == f"{f['structure_id']}r" and f["crystal_spacegroup"] for f in found)
