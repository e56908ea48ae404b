"""metrics with --suite, --hull, --relaxed and --calculator: the fields that come beside the others."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from pymatgen.core import Lattice, Structure

from inv_design.cli import main
from inv_design.structures.files import write_structures

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

FCC = [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


def cubic(edge: float, species: list[str]) -> Structure:
    return Structure(Lattice.cubic(edge), species, FCC)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give generated crystals with energies, a reference, relaxed ones and a hull."""
    monkeypatch.chdir(tmp_path)
    silver, alloy = cubic(4.09, ["Ag"] * 4), cubic(3.72, ["Au", "Cu", "Cu", "Cu"])
    generated = [(silver, {"energy_per_atom": -2.5}), (alloy, {"energy_per_atom": -3.95}), (alloy, {})]
    write_structures("made.extxyz", generated)
    write_structures("known.extxyz", [(silver, {})])
    write_structures("relaxed.extxyz", [(s, {}) for s in (silver, cubic(3.8, ["Au", "Cu", "Cu", "Cu"]), alloy)])
    phases = [("Ag", -2.8), ("Au", -3.2), ("Cu", -4.1), ("AuCu", -3.7)]
    (tmp_path / "hull.json").write_text(
        json.dumps([{"composition": formula, "energy_per_atom": energy} for formula, energy in phases])
    )
    return tmp_path


def test_the_fields_of_old_stay_and_suites_come_beside_them(files: Path):
    plain = json.loads(run("metrics", "made.extxyz", "--reference", "known.extxyz", "--json").stdout)
    result = run(
        "metrics", "made.extxyz", "--reference", "known.extxyz", "--suite", "all", "--hull", "hull.json",
        "--relaxed", "relaxed.extxyz", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert {name: record[name] for name in plain} == plain
    own = record["mattergen"]
    # the alloy lies half way between AuCu and Cu, at -3.9 eV/atom; silver 0.3 above itself; the third has no energy
    assert own["mean_e_above_hull"] == pytest.approx((0.3 - 0.05) / 2)
    assert own["stable"] == own["stable_strict"] == {"count": 1, "total": 3, "fraction": pytest.approx(1 / 3)}
    assert own["sun"]["count"] == 1
    assert own["without_e_above_hull"] == 1
    assert own["rmsd"]["n"] == 3
    assert record["cdvae"]["coverage_recall"] == {"count": 1, "total": 1, "fraction": 1.0}
    assert record["genmetrics"]["novelty"]["count"] == 2
    assert record["hull"] == "hull.json"
    assert "no energy above the hull for 1: AuCu3 has no energy" in result.stderr or "Cu3Au" in result.stderr


def test_tables_name_every_figure(files: Path):
    result = run("metrics", "made.extxyz", "--reference", "known.extxyz", "--suite", "all", "--hull", "hull.json")
    assert result.exit_code == 0, result.output
    for words in ("cdvae", "mattergen", "genmetrics", "sun_strict", "coverage_recall", "validity_space_group"):
        assert words in result.stdout


def test_a_calculator_gives_energies_and_displacements(files: Path):
    result = run("metrics", "made.extxyz", "-k", "emt", "--hull", "hull.json", "--json")
    assert result.exit_code == 0, result.output
    own = json.loads(result.stdout)["mattergen"]
    assert own["without_e_above_hull"] == 0
    assert own["rmsd"]["n"] == 3
    assert own["rmsd"]["mean"] < 0.1
    assert "sun" not in own


def test_the_files_own_energies_above_hull_count_without_a_hull(files: Path):
    write_structures("made.json", [(cubic(4.09, ["Ag"] * 4), {"e_above_hull": 0.05})])
    own = json.loads(run("metrics", "made.json", "--suite", "mattergen", "--json").stdout)["mattergen"]
    assert own["stable"]["count"] == 1
    assert own["stable_strict"]["count"] == 0


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["--suite", "genmetrics"], 2, "add --reference"),
        (["--suite", "fid"], 2, "is not one of"),
        (["--hull", "nowhere.json"], 1, "does not exist"),
        (["--hull", "made.extxyz"], 1, "is not JSON"),
        (["--relaxed", "known.extxyz"], 1, "1 entries for 3 crystals"),
        (["-k", "nonsense"], 1, "nonsense"),
    ],
)
def test_errors_name_the_cure(files: Path, args: list[str], code: int, says: str):
    result = run("metrics", "made.extxyz", *args)
    assert result.exit_code == code
    assert says in result.stderr
